"""Map a raster of any size to segments: classes through tiles, objects through tiles, laid over one another."""

import json
import logging
import shutil
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from rasterio.features import rasterize
from rasterio.windows import Window

from geolearn import extras
from geolearn.classes import ClassInfo
from geolearn.errors import CheckpointError
from geolearn.inference import vectors
from geolearn.inference.area import layers_of
from geolearn.inference.detect_raster import DetectPlan, DetectRequest, plan_detection
from geolearn.inference.encoding import ClassEncoding
from geolearn.inference.layers import map_tags
from geolearn.inference.mapping import MapRequest, map_request
from geolearn.inference.merging import TileDetections
from geolearn.inference.placing import merge_tiles
from geolearn.inference.resume import Journal, open_checkpoint
from geolearn.inference.store import JOURNAL, make_folder, parts_folder
from geolearn.inference.targets import check_target, claim_target
from geolearn.networks.detection.panoptic import MergeOptions, drop_small
from geolearn.networks.network import Network
from geolearn.networks.spec import ModelSpec
from geolearn.progress import ProgressBar
from geolearn.raster import open_raster, read_window
from geolearn.raster.writing import RasterWriter

log = logging.getLogger('geolearn')

STRIP_PIXELS = 2**22
"""Pixels that are merged at once."""

CLASSES, LAYER, MAP = 'classes', 'layer', 'map'
"""Steps of a run in its journal: the classes are mapped; the layer and the map are being written."""


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
        resume: Continue a run that was interrupted.
    """

    target: Path
    layer: Path
    detect: DetectRequest
    map: MapRequest
    merge: MergeOptions
    overwrite: bool
    resume: bool = False


def map_panoptic(
    spec: ModelSpec, objects: Network, classes: Network, things: Sequence[int], request: PanopticRequest
) -> Path:
    """Write the map of segments of a raster, and the layer of its objects.

    What is finished is kept in a folder beside the map, ``<map>.part``, until both are written.

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
        CheckpointError: If there is no run to resume, or what is finished cannot be kept.
    """
    src, target = request.map.src, request.target
    folder, resume = parts_folder(target), request.resume
    if resume and not (folder / JOURNAL).is_file():
        raise CheckpointError(f'there is no {folder} to resume; run without resume=True')
    # what a run was writing when it was interrupted is its own, and is replaced
    begun = read_steps(folder / JOURNAL) if resume else set()
    check_target(src, target, overwrite=request.overwrite or MAP in begun)
    layer = check_target(
        src,
        vectors.check_vector_target(request.layer),
        overwrite=request.overwrite or LAYER in begun,
        layers=layers_of(request.map.read.area),
    )
    stuff = [info for index, info in enumerate(spec.class_infos) if index not in set(things)]
    free = next(value for value in range(65536) if value not in {info.value for info in spec.class_infos})
    encoding = ClassEncoding([*stuff, ClassInfo(free, 'thing', (0, 0, 0))])
    mapped, detect = folder / 'classes.tif', replace(request.detect, dst=folder / 'objects.gpkg', overwrite=True)
    with ExitStack() as stack:
        for written in (target, layer):
            stack.enter_context(claim_target(written))
        make_folder(target)
        stack.callback(_remove_empty, folder)
        plan = plan_detection(spec, objects, detect, stack)  # type: ignore[arg-type]
        facts = {**plan.facts, 'segments': asdict(request.merge)}
        if not resume and (folder / JOURNAL).is_file():
            log.warning('%s of an unfinished run is replaced; pass resume=True to continue it', folder)
        steps = stack.enter_context(Journal(folder / JOURNAL, facts, resume=resume))
        # not before: the folder may be that of another process
        stack.callback(_remove_without_steps, folder)
        if CLASSES not in begun:
            half = resume and (parts_folder(mapped) / JOURNAL).is_file()
            options = replace(request.map.options, overwrite=True, resume=half)
            map_request(spec, classes, encoding, replace(request.map, dst=mapped, options=options))
            steps.add({'step': CLASSES})
        found = drop_hidden(_detect(plan, detect, stack, resume=resume), request.merge.least_free)
        frame = vectors.objects_to_features(found, plan.sources[0].box, spec.class_infos, outlined=True)
        frame.insert(0, 'id', np.arange(1, len(frame) + 1, dtype=np.int64))
        steps.add({'step': LAYER})
        vectors.write_layer(frame, layer, geometry_type='MultiPolygon', classes=spec.class_infos)
        steps.add({'step': MAP})
        _write_map(mapped, target, frame, spec, free, encoding.nodata, request.merge.min_area)
    shutil.rmtree(folder, ignore_errors=True)
    return target


def _detect(plan: DetectPlan, request: DetectRequest, stack: ExitStack, *, resume: bool) -> TileDetections:
    """Return the objects of all tiles; those of finished tiles stay in a file until the whole run is finished."""
    kept = plan.target.with_name(f'{plan.target.name}.part')
    checkpoint = stack.enter_context(open_checkpoint(plan.target, plan.facts, resume=resume and kept.is_file()))
    return merge_tiles(plan.detect(checkpoint), plan.grid, request.options, plan.area)


def read_steps(path: Path) -> set[str]:
    """Return the steps that a journal names, without its first line; an incomplete last line is none."""
    found: set[str] = set()
    if not path.is_file():
        return found
    for line in path.read_bytes().split(b'\n')[1:-1]:
        with suppress(ValueError, AttributeError):
            found.add(str(json.loads(line).get('step')))
    return found


def _remove_empty(folder: Path) -> None:
    """Delete the folder of a run that could not begin."""
    with suppress(OSError):
        folder.rmdir()


def _remove_without_steps(folder: Path) -> None:
    """Delete the folder of a run that came to nothing: it holds no more than its journal."""
    kept = [path for path in folder.rglob('*') if path.is_file() and path != folder / JOURNAL]
    if not kept and not read_steps(folder / JOURNAL):
        shutil.rmtree(folder, ignore_errors=True)


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
            tags=map_tags(spec),
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
