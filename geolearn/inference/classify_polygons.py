"""Classify the polygons of a layer: check that layer, raster and model fit together, compute, write the copy."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from rasterio.windows import Window
from torch import Tensor

from geolearn import errors, extras, progress
from geolearn.chips.exporting.vector_labels import read_layers
from geolearn.device import choose_device, is_out_of_memory
from geolearn.inference import reading, targets, vectors
from geolearn.inference.options import ReadOptions
from geolearn.inference.scene import enter_scene
from geolearn.inference.source import Source
from geolearn.networks import classification
from geolearn.networks.chip_decisions import THRESHOLD, check_threshold, name_rows
from geolearn.networks.spec import ModelSpec
from geolearn.raster import GeoBox
from geolearn.raster.opening import burn_polygons

log = logging.getLogger('geolearn')

LABEL, CONFIDENCE = 'ClassLabel', 'Confidence'
"""Columns of the copy; ArcGIS's names, which fit into shapefiles."""


@dataclass(frozen=True)
class PolygonOptions:
    """How chips around polygons are cut and classified.

    Args:
        chip_size: Side of the chips in pixels.
        crop: Which window of the raster becomes a chip; see `chip_windows`.
        blacken: Whether pixels around the polygon are set to 0, as `export_training_data` can do; they have no data
            where 0 is the raster's NoData value, as in the chips of such a raster.
        layer: Layer of the file of polygons; None takes the only one.
        threshold: Probability from which on a class is present, where chips may hold several.
        batch_size: Chips computed together.
        device: Torch device; None means CUDA where there is one.

    Raises:
        ValueError: If a value is not valid.
    """

    chip_size: int
    crop: classification.Crop = 'fixed'
    blacken: bool = False
    layer: str | None = None
    threshold: float = THRESHOLD
    batch_size: int = 16
    device: str | None = None

    def __post_init__(self) -> None:
        if self.crop not in get_args(classification.Crop):
            raise ValueError(
                f'crop must be one of {", ".join(map(repr, get_args(classification.Crop)))}, got {self.crop!r}'
            )
        for name, unit in (('batch_size', ''), ('chip_size', ' pixel')):
            if getattr(self, name) < 1:
                raise ValueError(f'{name} must be at least 1{unit}, got {getattr(self, name)}')
        check_threshold(self.threshold)


class _Chip(NamedTuple):
    """A window to read, and whose chip it is: the row of the layer."""

    row: int
    window: Window


def read_polygons(polygons: Any, layer: str | None) -> Any:
    """Read a layer as a GeoDataFrame.

    Args:
        polygons: A file that OGR reads, a GeoParquet, or a GeoDataFrame, which is returned as it is.
        layer: Layer of the file; None takes the only one.

    Raises:
        RasterError: If it cannot be read, or holds no geometries.
        MissingExtraError: If the libraries of the extra ``vector`` are not installed.
    """
    geopandas = extras.require('geopandas', extra='vector', to='classify polygons')
    if isinstance(polygons, geopandas.GeoSeries):
        polygons = polygons.to_frame('geometry')
    if not isinstance(polygons, str | Path | geopandas.GeoDataFrame):
        raise errors.RasterError(
            f'polygons must be a vector file or a GeoDataFrame, got a {type(polygons).__name__}; of a geometry make '
            'geopandas.GeoSeries([geometry], crs=...)'
        )
    try:
        return next(iter(read_layers(polygons, layer))).frame
    except errors.ChipFolderError as error:
        raise errors.RasterError(f'cannot take polygons: {error}') from error


def _without_area(outlines: np.ndarray, options: PolygonOptions) -> np.ndarray:
    """Return outlines without those that have no area, where a chip is what lies inside of them: they get no label."""
    shapely = extras.require('shapely', extra='vector', to='classify polygons')
    flat = ~(shapely.area(outlines) > 0) & ~shapely.is_missing(outlines) & ~shapely.is_empty(outlines)
    if not flat.any() or (options.crop == 'fixed' and not options.blacken):
        return outlines
    option = 'blacken=False' if options.blacken else "crop='fixed'"
    log.warning(
        '%s of %s features are points, lines or others without area, so that no pixel lies inside of them; they get no '
        'label. Put a buffer around them, or pass %s',
        int(flat.sum()),
        len(outlines),
        option,
    )
    kept = outlines.copy()
    kept[flat] = None
    return kept


def pixel_outlines(frame: Any, box: GeoBox) -> np.ndarray:
    """Return the geometries (n,) in pixels of a raster.

    Args:
        frame: GeoDataFrame.
        box: Place of the raster; geometries are brought to its CRS.

    Raises:
        RasterError: If one of the two has a CRS and the other none.
    """
    shapely = extras.require('shapely', extra='vector', to='classify polygons')
    if (frame.crs is None) != (box.crs is None):
        lacks, has = ('the layer', 'the raster') if frame.crs is None else ('the raster', 'the layer')
        raise errors.RasterError(
            f'{lacks} names no CRS, but {has} does, so their places cannot be compared; give it its CRS'
        )
    placed = frame if box.crs is None else frame.to_crs(box.crs)
    geometry = shapely.force_2d(np.asarray(placed.geometry.values, dtype=object))
    inverse = ~box.transform

    def move(points: np.ndarray) -> np.ndarray:
        x, y = points.T
        columns, rows = inverse.a * x + inverse.b * y + inverse.c, inverse.d * x + inverse.e * y + inverse.f
        return np.stack([columns, rows], axis=1)

    outlines: np.ndarray = shapely.transform(geometry, move)
    return outlines


def pixel_bounds(outlines: np.ndarray) -> np.ndarray:
    """Return the left, top, right and bottom (n, 4) of geometries (n,).

    They are NaN where geometries are missing or empty, or have no place in the raster's CRS.
    """
    shapely = extras.require('shapely', extra='vector', to='classify polygons')
    bounds: np.ndarray = shapely.bounds(outlines).reshape(-1, 4)
    bounds[~np.isfinite(bounds).all(axis=1)] = np.nan
    return bounds


def chip_windows(bounds: np.ndarray, shape: tuple[int, int], options: PolygonOptions) -> Iterator[tuple[int, Window]]:
    """Choose the window of the chip of each polygon, as `export_training_data` does for chips of features.

    With ``crop='fixed'`` a chip lies around the middle of its polygon, and moves inwards at the raster's edges; with
    ``'bounding_box'`` it is the polygon's bounding box, or the middle of that where it is larger than a chip.

    Args:
        bounds: From `pixel_bounds`.
        shape: Height and width of the raster.
        options: How chips are cut.

    Yields:
        Row of the layer and window, within the raster; polygons outside of the raster are skipped.
    """
    height, width = shape
    for row, (left, top, right, bottom) in enumerate(bounds.tolist()):
        if math.isnan(left) or right <= 0 or bottom <= 0 or left >= width or top >= height:
            continue
        across, down = (left, right), (top, bottom)
        if options.crop == 'bounding_box':
            across, down = _whole_pixels(across, width), _whole_pixels(down, height)
        (col, columns), (line, lines) = _span(across, width, options), _span(down, height, options)
        yield row, Window(col, line, columns, lines)


def _whole_pixels(span: tuple[float, float], length: int) -> tuple[float, float]:
    first = min(max(0, math.floor(span[0])), length - 1)
    return first, max(first + 1, min(length, math.ceil(span[1])))


def _span(span: tuple[float, float], length: int, options: PolygonOptions) -> tuple[int, int]:
    """Return where a chip begins along one axis and how long it is."""
    size = min(options.chip_size, length)
    if options.crop == 'bounding_box' and span[1] - span[0] <= size:
        return int(span[0]), int(span[1] - span[0])
    return min(max(0, round((span[0] + span[1]) / 2 - size / 2)), length - size), size


@torch.inference_mode()
def compute_chips(
    sources: Sequence[Source],
    outlines: np.ndarray,
    compute: Callable[[Tensor], Tensor],
    *,
    read: ReadOptions,
    options: PolygonOptions,
) -> np.ndarray:
    """Compute the chip of each polygon.

    Args:
        sources: The raster and its bands, or those of each date.
        outlines: From `pixel_outlines`.
        compute: Takes chips (n, [dates,] bands, size, size) float32 on the CPU, NaN where there is no data, to rows
            (n, k).
        read: How stored values become the network's units.
        options: How chips are cut, and how many are computed together.

    Returns:
        (polygons, k) float32; NaN for polygons outside of the raster, and where it has no data.

    Raises:
        RasterError: If the raster cannot be read.
    """
    first, bounds = sources[0], pixel_bounds(outlines)
    windows = [_Chip(*pair) for pair in chip_windows(bounds, first.shape, options)]
    block = max(1, first.block_rows)
    # blocks are decompressed once where chips come row by row of blocks
    windows.sort(key=lambda chip: (chip.window.row_off // block, chip.window.col_off))
    rows: list[np.ndarray] = []
    owners: list[int] = []
    with progress.ProgressBar(len(windows), 'classifying', 'polygon') as bar:
        for chips, pixels in _batches(sources, windows, outlines, read, options):
            rows.append(compute(pixels).float().cpu().numpy())
            owners += [chip.row for chip in chips]
            bar.update(len(chips))
    outputs = np.full((len(bounds), rows[0].shape[1] if rows else 0), np.nan, np.float32)
    if rows:
        outputs[owners] = np.concatenate(rows)
    return outputs


def _batches(
    sources: Sequence[Source],
    windows: list[_Chip],
    outlines: np.ndarray,
    read: ReadOptions,
    options: PolygonOptions,
) -> Iterator[tuple[list[_Chip], Tensor]]:
    """Yield chips that hold data at any date in full batches; only one batch is held."""
    shape = (options.batch_size, len(sources), len(sources[0].indexes), options.chip_size, options.chip_size)
    chips: list[_Chip] = []
    batch = _empty_batch(shape)
    for chip in windows:
        inside = _inside(outlines[chip.row], chip.window) if options.blacken else None
        targets = batch[len(chips)].numpy()
        # every date is read: a chip needs data at one of them
        if not any([_fill(*pair, chip.window, read, inside) for pair in zip(targets, sources)]):
            continue
        chips.append(chip)
        if len(chips) == options.batch_size:
            yield chips, _without_lone_date(batch)
            chips, batch = [], _empty_batch(shape)
    if chips:
        yield chips, _without_lone_date(batch[: len(chips)])


def _empty_batch(shape: tuple[int, ...]) -> Tensor:
    try:
        return torch.full(shape, torch.nan)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        size = math.prod(shape) * 4 / 2**30
        raise MemoryError(
            f'{shape[0]} chips of {shape[-1]} x {shape[-1]} pixels take {size:,.0f} GiB; pass a smaller batch_size= or '
            'chip_size='
        ) from error


def _fill(target: np.ndarray, source: Source, window: Window, read: ReadOptions, inside: np.ndarray | None) -> bool:
    """Put a window into the upper left, as in training, of `target` (bands, size, size); returns whether it has data.

    Args:
        target: NaN everywhere.
        source: The raster, or one date of it.
        window: Of the raster, no larger than the target.
        read: How stored values become the network's units.
        inside: (height, width), False where pixels become 0; None leaves all as they are.
    """
    pixels, valid = source.read(window)
    if valid is not None and not valid.any():
        return False
    part = target[:, : pixels.shape[1], : pixels.shape[2]]
    part[...] = read.to_model_units(pixels)
    if inside is not None:
        part[:, ~inside] = np.nan if source.dataset.nodata == 0 else 0
    if valid is not None:
        part[:, ~valid] = np.nan
    return True


def _inside(outline: Any, window: Window) -> np.ndarray:
    """Return where (height, width) pixels of a window have their middle in a geometry in pixels of the raster."""
    shapely = extras.require('shapely', extra='vector', to='classify polygons')
    corner = (window.col_off, window.row_off)
    moved = shapely.transform(outline, lambda points: points - corner)
    inside: np.ndarray = burn_polygons([(moved, 1)], (int(window.height), int(window.width))) > 0
    return inside


def _without_lone_date(batch: Tensor) -> Tensor:
    return batch[:, 0] if batch.shape[1] == 1 else batch


def classify_polygons(
    spec: ModelSpec,
    network: classification.ChipNetwork,
    raster: reading.RasterSource,
    polygons: Any,
    dst: str | Path,
    *,
    read: ReadOptions,
    options: PolygonOptions,
    overwrite: bool = False,
) -> Path:
    """Classify the ground around each polygon of a layer, and write a copy of the layer with class and confidence.

    Args:
        spec: What the network was trained on.
        network: Classifies chips.
        raster: A raster, several that make one mosaic, or one such for each date.
        polygons: A file that OGR reads, a GeoParquet, or a GeoDataFrame.
        dst: Layer to write.
        read: How the raster is read.
        options: How chips are cut and classified.
        overwrite: Replace `dst` if it exists.

    Returns:
        The path written.

    Raises:
        RasterError: If bands, units or places do not fit, or reading or writing fails; no part of `dst` is left.
    """
    target = targets.check_target(raster, vectors.check_vector_target(dst), overwrite=overwrite, layers=[polygons])
    frame = read_polygons(polygons, options.layer)
    own = [name for name in frame.columns if str(name).lower() in (LABEL.lower(), CONFIDENCE.lower())]
    if own:
        log.warning('the copy holds new values in the columns %s of the layer', ' and '.join(map(str, own)))
        frame = frame.drop(columns=[name for name in own if name not in (LABEL, CONFIDENCE)])
    vectors.check_layer(frame.assign(**{LABEL: '', CONFIDENCE: np.nan}), target)
    device = choose_device(options.device)
    network.to(device).eval()
    with ExitStack() as stack:
        stack.enter_context(targets.claim_target(target))
        sources = reading.open_dates(raster, spec, read, stack)
        enter_scene(stack, spec, network, sources, read)
        outlines = _without_area(pixel_outlines(frame, sources[0].box), options)
        logits = compute_chips(sources, outlines, lambda chips: network(chips.to(device)), read=read, options=options)
    names = [info.name for info in spec.class_infos]
    multi_label = classification.ChipOptions.from_json(spec.options).multi_label
    labels, confidences = name_rows(logits, names, multi_label=multi_label, threshold=options.threshold)
    missing = sum(label is None for label in labels)
    if missing:
        log.warning(
            '%s of %s polygons lie outside of the raster or where it has no data; they get no label',
            missing,
            len(labels),
        )
    return vectors.write_layer(frame.assign(**{LABEL: labels, CONFIDENCE: confidences}), target)
