"""Cut a raster and its labels into a chip folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.windows import Window

from geolearn.bands import Band, find_sensor, list_sensors
from geolearn.chips.writer import ClassifiedTilesWriter
from geolearn.classes import ClassInfo
from geolearn.errors import ChipFolderError, UnknownNameError
from geolearn.raster import open_raster, raster_bands, raster_geobox, read_window


def export_training_data(
    raster: str | Path | Sequence[str | Path],
    labels: str | Path,
    out: str | Path,
    *,
    classes: Sequence[ClassInfo],
    tile_size: int = 256,
    stride: int | None = None,
    bands: Sequence[Band] | None = None,
    sensor: str = 'Undefined',
    min_labelled: float = 0.0,
) -> Path:
    """Cut a raster and a class raster on the same grid into a Classified_Tiles folder.

    Args:
        raster: Image, or several that make one mosaic.
        labels: Single-band raster of class values; 0 and its NoData value mean unlabelled.
        out: New or empty folder; appears when all of it is written.
        classes: Classes of the labels.
        tile_size: Side of a chip in pixels.
        stride: Pixels from chip to chip; None means `tile_size`, so that chips do not overlap.
        bands: Bands of the raster in order; None takes the names that the raster gives.
        sensor: Sensor to record, such as ``'Sentinel-2'``; it also says what the raster's ``'B5'`` is.
        min_labelled: Smallest share of a chip's pixels that must be valid and labelled for it to be written. Labels of
            pixels without data are written as 0.

    Returns:
        The folder.

    Raises:
        RasterError: If a raster cannot be read.
        ChipFolderError: If the grids differ, no chip results or `out` is not empty; nothing is left behind.
        UnknownNameError: If `sensor` is none that geolearn knows.
    """
    if sensor != 'Undefined' and find_sensor(sensor) is None:
        raise UnknownNameError('sensor', sensor, [*list_sensors(), 'Undefined'])
    shown = str(raster) if isinstance(raster, str | Path) else f'mosaic of {len(raster)} files'
    with open_raster(raster) as src, open_raster(labels) as lab:
        _check_grids(src, lab, f'image {shown} and labels {labels}')
        corners = _corners((src.height, src.width), tile_size, stride or tile_size)
        writer = ClassifiedTilesWriter(
            out,
            bands=tuple(bands) if bands else raster_bands(src, sensor=None if sensor == 'Undefined' else sensor),
            classes=classes,
            tile_size=tile_size,
            sensor=sensor,
            nodata=src.nodata,
        )
        geobox = raster_geobox(src)
        with writer:
            for row, col in corners:
                window = Window(col, row, tile_size, tile_size)
                pixels, mask = read_window(src, window, src.indexes)
                label, label_mask = read_window(lab, window, [1])
                values = label[0]
                for valid in (mask, label_mask):
                    values = values if valid is None else np.where(valid, values, 0)
                if values.any() and (values > 0).mean() >= min_labelled:
                    writer.add(pixels, values, geobox.crop(row, col, (tile_size, tile_size)), mask=mask)
    return writer.folder


def _check_grids(src: Any, lab: Any, shown: str) -> None:
    if lab.count != 1:
        raise ChipFolderError(f'{shown}: labels hold {lab.count} bands; a label raster has one band of class values')
    image, label = raster_geobox(src), raster_geobox(lab)
    same_crs = src.crs == lab.crs or not (src.crs and lab.crs)
    if image.shape != label.shape or not same_crs or not image.transform.almost_equals(label.transform, 1e-6):
        raise ChipFolderError(
            f'{shown} lie on different grids: {image.shape} at {image.transform[:6]} in {src.crs} '
            f'and {label.shape} at {label.transform[:6]} in {lab.crs}; warp the labels to the image first'
        )


def _corners(shape: tuple[int, int], tile_size: int, stride: int) -> list[tuple[int, int]]:
    """Return the upper-left corners of the chips that lie wholly inside."""
    if min(shape) < tile_size:
        raise ChipFolderError(f'the raster is {shape[1]}x{shape[0]} pixels, smaller than tile_size {tile_size}')
    rows, cols = (range(0, side - tile_size + 1, stride) for side in shape)
    return [(row, col) for row in rows for col in cols]
