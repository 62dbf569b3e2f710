"""Map a raster of any size to segments: classes through tiles, objects through tiles, laid over one another."""

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from rasterio.features import rasterize
from rasterio.windows import Window
from torch import nn

from geolearn import extras
from geolearn._version import __version__
from geolearn.classes import ClassInfo
from geolearn.inference import vectors
from geolearn.inference.area import layers_of
from geolearn.inference.detect_raster import DetectRequest, plan_detection
from geolearn.inference.encoding import ClassEncoding
from geolearn.inference.mapping import MapRequest, map_request
from geolearn.inference.merging import TileDetections
from geolearn.inference.placing import merge_tiles
from geolearn.inference.resume import open_checkpoint
from geolearn.inference.targets import check_target, claim_target
from geolearn.networks.detection.panoptic import MergeOptions, drop_small
from geolearn.networks.network import Network
from geolearn.networks.spec import ModelSpec
from geolearn.progress import ProgressBar
from geolearn.raster import GeoBox, open_raster, read_window
from geolearn.raster.writing import RasterWriter

STRIP_PIXELS = 2**22
"""Pixels that are merged at once."""


@dataclass(frozen=True, eq=False)
class PanopticRequest:
    """What is mapped, and how.

    Args:
        target: The map.
        layer: Of the objects.
        detect: How objects are detected.
        map: How classes are mapped.
        merge: How both become one map.
        overwrite: Replace files that exist.
    """

    target: Path
    layer: Path
    detect: DetectRequest
    map: MapRequest
    merge: MergeOptions
    overwrite: bool


def map_panoptic(
    spec: ModelSpec, objects: Network, classes: Network, things: Sequence[int], request: PanopticRequest
) -> Path:
    """Write the map of segments of a raster, and the layer of its objects.

    Args:
        spec: What the networks were trained on.
        objects: Gives detections.
        classes: Gives logits of the stuff, in the order of the classes, and of all things together.
        things: Indices of the countable classes.
        request: What is mapped.

    Returns:
        The path of the map.

    Raises:
        RasterError: If something does not fit, a file exists, or reading or writing fails.
    """
    src, target = request.map.src, request.target
    read_layers = layers_of(request.map.read.area)
    check_target(src, target, overwrite=request.overwrite)
    layer = check_target(
        src, vectors.check_vector_target(request.layer), overwrite=request.overwrite, layers=read_layers
    )
    stuff = [info for index, info in enumerate(spec.class_infos) if index not in set(things)]
    free = next(value for value in range(65536) if value not in {info.value for info in spec.class_infos})
    encoding = ClassEncoding([*stuff, ClassInfo(free, 'thing', (0, 0, 0))])
    with (
        claim_target(target),
        claim_target(layer),
        tempfile.TemporaryDirectory(dir=target.parent, prefix='.geolearn-panoptic-') as folder,
    ):
        mapped = map_request(spec, classes, encoding, replace(request.map, dst=Path(folder, 'classes.tif')))
        detect = replace(request.detect, dst=Path(folder, 'objects.gpkg'), overwrite=True)
        found, box = _detect(spec, objects, detect)
        found = drop_hidden(found, request.merge.least_free)
        frame = vectors.objects_to_features(found, box, spec.class_infos, outlined=True)
        frame.insert(0, 'id', np.arange(1, len(frame) + 1, dtype=np.int64))
        _write_map(mapped, target, frame, spec, free, encoding.nodata, request.merge.min_area)
        vectors.write_layer(frame, layer, geometry_type='MultiPolygon')
    return target


def _detect(spec: ModelSpec, network: nn.Module, request: DetectRequest) -> tuple[TileDetections, GeoBox]:
    with ExitStack() as stack:
        plan = plan_detection(spec, network, request, stack)  # type: ignore[arg-type]
        checkpoint = stack.enter_context(open_checkpoint(plan.target, plan.facts, resume=False))
        merged = merge_tiles(plan.detect(checkpoint), plan.grid, request.options, plan.area)
        checkpoint.remove()
        return merged, plan.sources[0].box


def drop_hidden(found: TileDetections, least_free: float) -> TileDetections:
    """Return objects of which higher-scoring ones leave a share free, by falling score.

    Args:
        found: With outlines.
        least_free: That share.
    """
    shapely = extras.require('shapely', extra='vector', to='merge segments')
    found = found.select(np.argsort(-found.scores, kind='stable'))
    if found.outlines is None or len(found.scores) < 2 or least_free <= 0:
        return found
    tree = shapely.STRtree(found.outlines)
    first, second = tree.query(found.outlines, predicate='intersects')
    rivals: dict[int, list[int]] = {}
    for one, other in zip(first.tolist(), second.tolist()):
        if other < one:
            rivals.setdefault(one, []).append(other)
    kept = np.ones(len(found.scores), bool)
    for number in sorted(rivals):
        above = [other for other in rivals[number] if kept[other]]
        if above:
            left = shapely.difference(found.outlines[number], shapely.union_all(found.outlines[above]))
            kept[number] = shapely.area(left) >= least_free * shapely.area(found.outlines[number])
    return found.select(kept)


def _write_map(
    mapped: Path, target: Path, frame: Any, spec: ModelSpec, free: int, nodata: float, min_area: int
) -> None:
    """Write the map strip by strip: small regions of stuff dropped, objects burnt on top."""
    # one NoData for both bands: no class has this value, and no object this number
    void = 0 if all(info.value for info in spec.class_infos) else 2**32 - 1
    shapes = list(zip(frame.geometry, frame['id']))[::-1]  # the highest-scoring last, on top of the others
    bounds = frame.geometry.bounds.to_numpy()[::-1] if len(frame) else np.zeros((0, 4))
    value_of = np.concatenate([[0], frame['value'].to_numpy(np.uint32)]).astype(np.uint32)
    with open_raster(mapped) as src:
        t, rows = src.transform, max(256, STRIP_PIXELS // src.width // 256 * 256)
        writer = RasterWriter(
            target,
            src.geobox,
            dtype='uint32',
            count=2,
            nodata=void,
            band_names=('class', 'id'),
            class_names={info.value: info.name for info in spec.class_infos},
            tags={'MODEL': spec.model, 'BACKBONE': spec.backbone, 'SOFTWARE': f'geolearn {__version__}'},
        )
        with writer as dst, ProgressBar(src.height, 'merging', 'row') as bar:
            for top in range(0, src.height, rows):
                bottom = min(top + rows, src.height)
                classes, known = _stuff(src, top, bottom, free, nodata, void, min_area)
                place = Affine(t.a, t.b, t.c + t.b * top, t.d, t.e, t.f + t.e * top)
                ids = np.where(known, _burn(shapes, bounds, place, known.shape), 0)
                dst.write(top, np.stack([np.where(ids > 0, value_of[ids], classes), ids]))
                bar.update(bottom - top)


def _stuff(
    src: Any, top: int, bottom: int, free: int, nodata: float, void: int, min_area: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return class values of rows, void where there is a thing, no data, or a small region; and where there is data.

    A region of fewer than `min_area` pixels reaches over fewer rows than that, so what is small is seen whole.
    """
    first, last = max(top - min_area, 0), min(bottom + min_area, src.height)
    pixels, valid = read_window(src, Window(0, first, src.width, last - first), [1])
    classes = pixels[0].astype(np.uint32)
    known = classes != nodata
    if valid is not None:
        known &= valid
    classes[~known | (classes == free)] = void
    if min_area > 1:
        classes = drop_small(classes, min_area, void)
    rows = slice(top - first, bottom - first)
    return classes[rows], known[rows]


def _burn(shapes: Sequence[tuple[Any, int]], bounds: np.ndarray, place: Any, shape: tuple[int, int]) -> np.ndarray:
    """Return the number of the object of each pixel of some rows."""
    cols, rows = np.array([0, shape[1], 0, shape[1]]), np.array([0, 0, shape[0], shape[0]])
    x, y = place.a * cols + place.b * rows + place.c, place.d * cols + place.e * rows + place.f
    near = (bounds[:, 0] <= x.max()) & (bounds[:, 2] >= x.min()) & (bounds[:, 1] <= y.max()) & (bounds[:, 3] >= y.min())
    chosen = [shapes[index] for index in np.flatnonzero(near).tolist()]
    if not chosen:
        return np.zeros(shape, np.uint32)
    burnt: np.ndarray = rasterize(chosen, shape, transform=place, dtype='uint32')
    return burnt
