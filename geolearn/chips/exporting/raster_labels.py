"""Rasters as labels: which classes they hold, and their class values or numbers in a window."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.windows import Window

from geolearn.chips.meaning.values import as_numbers
from geolearn.classes import ClassInfo, default_color
from geolearn.errors import ChipFolderError
from geolearn.raster import open_raster, raster_geobox, read_window

RasterPath = str | Path | Sequence[str | Path]


class RasterLabels:
    """A raster of class values, or of numbers to learn, on the grid of the image.

    Args:
        path: The raster, or several that make one mosaic.
        image: Dataset of the image, whose grid it must have.
        shown: What the image is called in messages.
        classes: Classes; None takes the values found, with the raster's own names and colours.
        numbers: Whether pixels are numbers to learn; then there are no classes.

    Raises:
        ChipFolderError: If it has several bands, another grid, or values that are no class values.
    """

    def __init__(
        self, path: RasterPath, image: Any, shown: str, classes: Sequence[ClassInfo] | None, *, numbers: bool = False
    ) -> None:
        self.path, self.numbers = path, numbers
        self.shown = str(path) if isinstance(path, str | Path) else f'mosaic of {len(path)} files'
        with open_raster(path) as src:
            _check_grids(image, src, f'image {shown} and labels {self.shown}')
            known = () if numbers else classes
            self.classes = tuple(known) if known is not None else _find_classes(src, self.shown)

    @contextmanager
    def open(self) -> Iterator[Any]:
        """Open it for one thread."""
        with open_raster(self.path) as src:
            yield src


def read_values(
    src: Any, window: tuple[int, int, int, int], mask: np.ndarray | None, shown: str, *, numbers: bool = False
) -> np.ndarray:
    """Return class values (height, width) of a window, 0 where labels or image have no data.

    Args:
        src: Dataset of the labels.
        window: Row, column, height and width.
        mask: True where the image has data; None where it has everywhere.
        shown: What the labels are called in messages.
        numbers: Return numbers to learn instead, float32 with NaN where there is no data.
    """
    row, col, height, width = window
    pixels, valid = read_window(src, Window(col, row, width, height), [1])
    if mask is not None:
        valid = mask if valid is None else mask & valid
    if numbers:
        return as_numbers(pixels[0], valid, f'labels {shown}')
    values = pixels[0] if valid is None else np.where(valid, pixels[0], 0).astype(pixels.dtype)
    if values.dtype.kind == 'f' and (np.rint(values) != values).any():
        raise ChipFolderError(
            f"labels {shown} hold fractions; class values are whole numbers; pass target='values' to export numbers"
        )
    if values.dtype.itemsize > 1 or values.dtype.kind == 'i':
        low, high = values.min(), values.max()
        if low < 0 or high > 65535:
            raise ChipFolderError(f'labels {shown} hold values from {low} to {high}; class values lie in 0..65535')
    whole: np.ndarray = values if values.dtype == np.uint8 else values.astype(np.uint16)
    return whole


def _find_classes(src: Any, shown: str) -> tuple[ClassInfo, ...]:
    """Read the raster once, by block rows, and make a class of each value but 0."""
    seen = np.zeros(65536, bool)
    step = max(src.block_shapes[0][0], 256)
    for row in range(0, src.height, step):
        window = (row, 0, min(step, src.height - row), src.width)
        values = read_values(src, window, None, shown)
        seen[: int(values.max()) + 1] |= np.bincount(values.ravel()) > 0
    tags = src.tags(1)
    try:
        colors = src.colormap(1)
    except ValueError:  # rasterio's word for a band without colours
        colors = {}
    found = [int(value) for value in np.flatnonzero(seen) if value]
    return tuple(
        ClassInfo(value, tags.get(f'class_{value}') or str(value), _color(colors.get(value), at))
        for at, value in enumerate(found)
    )


def _color(given: tuple[int, ...] | None, position: int) -> tuple[int, int, int]:
    return default_color(position) if given is None or not any(given[:3]) else (given[0], given[1], given[2])


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
