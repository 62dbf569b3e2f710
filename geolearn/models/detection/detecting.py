"""Use a detector: on one image, or on a raster of any size whose objects become a layer."""

import math
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch

from geolearn.device import choose_device
from geolearn.errors import RasterError, UnknownNameError
from geolearn.inference.features import objects_to_features
from geolearn.inference.found import Found
from geolearn.inference.merging import EDGE_MARGIN, Merge
from geolearn.inference.objects import DetectPlan, detect_raster, looker
from geolearn.inference.outlines import Outline
from geolearn.inference.progress import Progress, source_facts, weights_digest
from geolearn.inference.tiles import Source
from geolearn.inference.vectors import check_vector_target, write_layer
from geolearn.models.detection.detector import Detector
from geolearn.models.images import Image, load_image
from geolearn.models.mapping import RasterSource, Reading, Running, check_reading, check_target, choose_tile, open_dates
from geolearn.models.spec import ModelSpec
from geolearn.raster import raster_geobox
from geolearn.tiling import TileGrid, make_grid

MOST_SHARED = 0.5
"""Share of a tile's side that its neighbour may show too."""


@dataclass(frozen=True, eq=False)
class Detections:
    """The objects found in one image, surest first.

    Args:
        boxes: (n, 4) float32 left, top, right, bottom in pixels.
        labels: (n,) int64 class indices.
        values: (n,) int64 class values.
        names: (n,) names of classes.
        scores: (n,) float32, 0..1.
        masks: (n, height, width) bool, or None where objects have no outline.
    """

    boxes: np.ndarray
    labels: np.ndarray
    values: np.ndarray
    names: tuple[str, ...]
    scores: np.ndarray
    masks: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)


class DetectOptions(NamedTuple):
    """What the caller of predict or detect_objects asked for."""

    threshold: float
    nms_overlap: float
    augment: bool = False
    outline: Outline = 'exact'
    overlap: int | None = None
    merge: Merge = 'nms'
    resume: bool = False


def detect_in_image(
    spec: ModelSpec, network: Detector, image: Image, reading: Reading, options: DetectOptions, *, device: str | None
) -> Detections:
    """Do what `predict` says."""
    _check(options, has_masks=True)
    if spec.dates > 1:
        raise RasterError(
            f'this model takes images of {spec.dates} dates, and predict takes one; use detect_objects with a list of '
            'one raster for each date'
        )
    pixels = load_image(image, spec, reading).pixels
    network.to(choose_device(device)).eval()
    look = looker(network, threshold=options.threshold, nms_overlap=options.nms_overlap, augment=options.augment)
    with torch.inference_mode():
        (found,) = look(pixels[None])
    return _as_detections(found, spec)


def _as_detections(found: Found, spec: ModelSpec) -> Detections:
    found = found.select(torch.argsort(found.scores, descending=True, stable=True))
    labels = found.labels.numpy()
    return Detections(
        found.boxes.numpy(),
        labels,
        np.array([spec.class_infos[label].value for label in labels], np.int64),
        tuple(spec.class_infos[label].name for label in labels),
        found.scores.numpy(),
        None if found.masks is None else found.masks.numpy(),
    )


class DetectModel(NamedTuple):
    """What detects: a network, what it was trained on, and what its objects are.

    Args:
        spec: Of the model.
        network: Of the model.
        typical_side: Side in pixels that nearly no training box exceeds.
        masks: Whether objects have outlines.
    """

    spec: ModelSpec
    network: Detector
    typical_side: float
    masks: bool


def detect_to_layer(
    model: DetectModel, src: RasterSource, dst: str | Path, reading: Reading, running: Running, options: DetectOptions
) -> Path:
    """Do what `detect_objects` says."""
    spec, network = model.spec, model.network
    check_reading(reading)
    _check(options, has_masks=model.masks)
    if running.batch_size < 1:
        raise ValueError(f'batch_size must be at least 1, got {running.batch_size}')
    target = check_target(src, check_vector_target(dst))
    with ExitStack() as stack:
        sources = open_dates(src, spec, reading, stack)
        box = raster_geobox(sources[0].dataset)
        if target.suffix.lower() == '.geojson' and box.crs is None:
            raise RasterError(f'GeoJSON is in WGS84, but {src} names no CRS; write a .gpkg, or give the raster its CRS')
        grid = choose_grid(box.shape, model, running, overlap=options.overlap)
        plan = DetectPlan(
            grid,
            running.batch_size,
            reading.pixel_scale,
            options.threshold,
            options.nms_overlap,
            options.outline,
            options.augment,
            options.merge,
        )
        progress = stack.enter_context(Progress(target, _run_facts(model, sources, plan), resume=options.resume))
        objects = detect_raster(sources, network.to(choose_device(running.device)), plan, progress)
        write_layer(
            objects_to_features(objects, box, spec.class_infos, outlined=model.masks),
            target,
            geometry_type='MultiPolygon' if model.masks else 'Polygon',
        )
        progress.remove()
    return target


def _run_facts(model: DetectModel, sources: list[Source], plan: DetectPlan) -> dict[str, Any]:
    """Return what must be equal for a run to be gone on with; the device may be another."""
    names = ('batch_size', 'threshold', 'nms_overlap', 'outline', 'augment', 'merge')
    return {
        'model': model.spec.model,
        'options of the model': model.spec.options,
        'weights': weights_digest(model.network),
        'raster': [source_facts(source) for source in sources],
        'tiles': [plan.grid.tile_shape, plan.grid.rows, plan.grid.cols],
        'scale': plan.scale.scale,
        'offset': plan.scale.offset,
        **{name: getattr(plan, name) for name in names},
    }


def choose_grid(shape: tuple[int, int], model: DetectModel, running: Running, *, overlap: int | None) -> TileGrid:
    """Cut a raster into tiles that overlap by the largest usual object, so that one of them shows it whole.

    Args:
        shape: Height and width of the raster.
        model: What detects.
        running: Says how large tiles are, where the caller does.
        overlap: In pixels; None takes that of the training boxes, at most half a tile.

    Raises:
        ValueError: If tiles would overlap by more than half, or less than nothing.
    """
    side, halo = choose_tile(model.spec, model.network, running)
    most = int(side * MOST_SHARED)
    if overlap is None:
        overlap = min(most, max(2 * halo, math.ceil(model.typical_side + 4 * EDGE_MARGIN)))
    elif not 0 <= overlap <= most:
        raise ValueError(f'overlap must be in 0..{most} pixels, half of tile_size {side}, got {overlap}')
    return make_grid(shape, tile_size=side, halo=min(-(-overlap // 2), (side - 1) // 2))


def _check(options: DetectOptions, *, has_masks: bool) -> None:
    for name, value in (('threshold', options.threshold), ('nms_overlap', options.nms_overlap)):
        if not 0 <= value <= 1:
            raise ValueError(f'{name} must be in 0..1, got {value}')
    for name, choices in (('outline', Outline), ('merge', Merge)):
        if getattr(options, name) not in get_args(choices):
            raise UnknownNameError(name, str(getattr(options, name)), get_args(choices))
    if options.outline != 'exact' and not has_masks:
        raise ValueError(f'outline={options.outline!r} is for models that draw masks; the others give boxes')
