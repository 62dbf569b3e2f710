"""Detect objects in a raster of any size, alone or in shares, and write them as a layer of polygons."""

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.windows import Window
from torch import nn

from geolearn.bundle import DetectionFacts
from geolearn.inference import computing, merging, reading, store, targets, vectors
from geolearn.inference.area import layers_of
from geolearn.inference.detecting import PredictFn, detect_tiles, make_graph_detector
from geolearn.inference.engines import ENGINES, EngineName
from geolearn.inference.options import ReadOptions, TilingOptions
from geolearn.inference.placing import DetectOptions, choose_halo, merge_tiles
from geolearn.inference.plan import Part, Share, plan_parts, tiles_reaching
from geolearn.inference.resume import RunCheckpoint, open_checkpoint, read_facts, run_facts, weights_digest
from geolearn.inference.scene import enter_scene, scene_facts, torch_only
from geolearn.inference.shares import collect_shares, is_begun
from geolearn.inference.source import Source
from geolearn.inference.tiles import BATCH_SIZE
from geolearn.networks.detection.detector import Detector, Places
from geolearn.networks.spec import ModelSpec
from geolearn.raster.area import PixelArea
from geolearn.tiling import TileGrid


def detect_raster(
    spec: ModelSpec,
    network: Detector,
    src: reading.RasterSource,
    dst: str | Path,
    *,
    typical_side: float,
    masks: bool,
    read: ReadOptions,
    tiling: TilingOptions,
    options: DetectOptions,
    overwrite: bool = False,
) -> Path:
    """Detect the objects in a raster of any size and write them as a layer of polygons.

    Args:
        spec: What the network was trained on.
        network: The detector.
        src: A raster, several that make one mosaic, or one such for each date.
        dst: Layer to write.
        typical_side: Side in pixels that nearly no training box exceeds.
        masks: Whether the network draws outlines.
        read: How the raster is read.
        tiling: How tiles are cut and computed.
        options: What is detected.
        overwrite: Replace `dst` if it exists.

    Returns:
        The path written.

    Raises:
        RasterError: If bands, units or pixel sizes do not fit, `dst` exists, or reading or writing fails; no part of
            `dst` is left.
        CheckpointError: If there is no run to resume, or the checkpoint cannot be written.
        ValueError: If outlines are asked of a network that draws none, or tiles would overlap by more than half.
    """
    request = DetectRequest(src, dst, typical_side, masks, read, tiling, options, overwrite)
    return detect_request(spec, network, request)


def detect_request(spec: ModelSpec, network: Detector, request: 'DetectRequest') -> Path:
    """Write the layer of the objects of a raster; see `detect_raster`."""
    options = request.options
    with ExitStack() as stack:
        plan = plan_detection(spec, network, request, stack)
        checkpoint = stack.enter_context(open_checkpoint(plan.target, plan.facts, resume=options.resume))
        plan.write(plan.detect(checkpoint))
        checkpoint.remove()
    return plan.target


@dataclass(frozen=True, eq=False)
class DetectRequest:
    """In what objects are detected, and how; the arguments of `detect_raster` besides the model.

    Those of `oriented` are whether the network gives oriented boxes; `graph` makes the network's ONNX graph for engines
    other than torch, and `detection` says what objects are made of its output by, None where it has no graph.
    """

    src: reading.RasterSource
    dst: str | Path
    typical_side: float
    masks: bool
    read: ReadOptions
    tiling: TilingOptions
    options: DetectOptions
    overwrite: bool
    oriented: bool = False
    graph: computing.GraphMaker | None = None
    detection: DetectionFacts | None = None

    @property
    def outlined(self) -> bool:
        """Whether features are outlines, and not boxes."""
        return self.masks and self.options.outline != 'rectangle'


@dataclass(frozen=True, eq=False)
class DetectPlan:
    """A detection whose rasters are open and whose tiles are known.

    Args:
        target: Layer to write.
        spec: What the network was trained on.
        network: On its device.
        sources: One for each date.
        grid: The tiles in which objects are detected.
        area: That holds the middles of the objects' boxes; None for all of the raster.
        request: What was asked for.
        facts: What must be equal for a run to be resumed.
        predict: Detects objects in place of the network, by its graph; None where torch computes.
    """

    target: Path
    spec: ModelSpec
    network: nn.Module
    sources: Sequence[Source]
    grid: TileGrid
    area: PixelArea | None
    request: DetectRequest
    facts: dict[str, Any]
    predict: PredictFn | None = None

    def part(self, share: Share) -> Part | None:
        """Return the tiles of a share; None where it has none."""
        height, width = self.sources[0].shape
        parts = plan_parts(self.grid, Window(0, 0, width, height), blend='crop', share=share)
        return parts[0] if parts else None

    def count_tiles(self, share: Share) -> int:
        """Return the number of tiles of a share."""
        part = self.part(share)
        return 0 if part is None else len(part.grid.rows) * len(part.grid.cols)

    def open_checkpoint(self, share: Share) -> RunCheckpoint:
        """Open what keeps the objects of the finished tiles of a share."""
        return RunCheckpoint(store.open_share_journal(self.target, self.facts, share))

    def detect(self, checkpoint: RunCheckpoint, part: Part | None = None) -> list[merging.TileDetections]:
        """Return the detections of all tiles, or of those of a part."""
        request = self.request
        return detect_tiles(
            self.sources,
            self.network,
            self.grid,
            read=request.read,
            tiling=request.tiling,
            options=request.options,
            checkpoint=checkpoint,
            area=self.area,
            part=part,
            detect=self.predict,
        )

    def write(self, parts: Sequence[merging.TileDetections]) -> None:
        """Write the layer, from the detections of all tiles in their order."""
        objects = merge_tiles(parts, self.grid, self.request.options, self.area)
        request = self.request
        features = vectors.objects_to_features(
            objects,
            self.sources[0].box,
            self.spec.class_infos,
            outlined=request.outlined,
            oriented=request.oriented or (request.masks and not request.outlined),
        )
        kind = 'MultiPolygon' if request.outlined else 'Polygon'
        vectors.write_layer(features, self.target, geometry_type=kind, classes=self.spec.class_infos)


def plan_detection(spec: ModelSpec, network: Detector, request: DetectRequest, stack: ExitStack) -> DetectPlan:
    """Open the rasters in which objects are detected, and cut them into tiles.

    Args:
        spec: What the network was trained on.
        network: The detector.
        request: What is asked for.
        stack: Closes the rasters.

    Raises:
        RasterError: If bands, units or pixel sizes do not fit, or the layer exists.
        ValueError: If outlines are asked of a network that draws none, or tiles would overlap by more than half.
        ExportError: If another engine than torch cannot run the network.
        MissingExtraError: If that engine is not installed.
    """
    src, read, tiling, options = request.src, request.read, request.tiling, request.options
    device = computing.choose_compute_device(tiling)
    if options.outline != 'exact' and not request.masks:
        raise ValueError(f'outline={options.outline!r} is for models that draw masks; the others give boxes')
    target = targets.check_target(
        src,
        vectors.check_vector_target(request.dst),
        overwrite=request.overwrite,
        layers=layers_of(read.area),
    )
    sources = reading.open_dates(src, spec, read, stack, whole=True)
    scene = enter_scene(stack, spec, network, sources, read)
    box, area = sources[0].box, reading.locate_area(sources[0], read)
    vectors.check_crs(target, box, src)
    side, halo = computing.choose_tile(spec, network, tiling)
    halo = choose_halo(side, halo, typical_side=request.typical_side, overlap=options.overlap)
    grid = computing.cut_raster(network, box, tiling, tile_size=side, halo=halo)
    network = network.to(device).eval()
    tiling = replace(torch_only(scene, tiling, spec), tile_size=side, halo=halo)
    engine = _choose_engine(spec, network, target, box.shape, tiling, request)
    facts = _run_facts(spec, network, sources, grid, read, tiling, options) | scene_facts(scene)
    predict = None
    if engine != 'torch':
        facts['engine'] = engine
        run = computing.make_run(network, engine, request.graph, grid.tile_shape)
        assert request.detection is not None  # else there is no graph
        predict = make_graph_detector(run, request.detection)
    if area is not None:
        facts['area'] = area.digest()
        grid = tiles_reaching(grid, area.window)
    return DetectPlan(target, spec, network, sources, grid, area, request, facts, predict)


def _choose_engine(
    spec: ModelSpec,
    network: Detector,
    target: Path,
    shape: tuple[int, int],
    tiling: TilingOptions,
    request: DetectRequest,
) -> EngineName:
    """Return what computes the tiles: torch where the network has no graph and the caller asks for the fastest."""
    if tiling.engine == 'torch' or (tiling.engine == 'auto' and request.detection is None):
        return 'torch'
    if tiling.engine != 'auto':
        return tiling.engine
    if request.options.resume:
        kept = read_facts(target).get('engine')
        return next((name for name in ENGINES if name == kept), 'torch')
    one = replace(tiling, batch_size=1)  # neither the side of the tiles nor their number is measured
    return computing.choose_setup(spec, Places(network), shape, one, blend='crop', graph=request.graph).engine


def detect_in_shares(spec: ModelSpec, network: Detector, request: DetectRequest, share: Share | None) -> Path:
    """Detect the objects of a share of the tiles, or, where `share` is None, write the layer of all shares.

    Args:
        spec: What the network was trained on.
        network: The detector.
        request: What is asked for.
        share: To compute.

    Returns:
        The folder of the shares, or the layer.

    Raises:
        RasterError: If something does not fit, or reading or writing fails.
        CheckpointError: If the folder holds shares of another run, or shares are missing.
    """
    checked = request.read.is_checked or is_begun(Path(request.dst), share)
    request = replace(request, read=replace(request.read, is_checked=checked))
    with ExitStack() as stack:
        plan = plan_detection(spec, network, request, stack)
        if share is not None:
            with plan.open_checkpoint(share) as checkpoint:
                if part := plan.part(share):
                    plan.detect(checkpoint, part)
                checkpoint.finish(plan.count_tiles(share))
            return store.parts_folder(plan.target)
        found: list[merging.TileDetections] = []

        def take(each: Share) -> bool:
            with plan.open_checkpoint(each) as checkpoint:
                found.extend(checkpoint.detections)
                return checkpoint.tiles_done == plan.count_tiles(each)

        collect_shares(plan.target, take)
        detections = merging.TileDetections.concatenate(found)
        plan.write([detections.select(np.argsort(detections.tiles, kind='stable'))])
        shutil.rmtree(store.parts_folder(plan.target), ignore_errors=True)
        return plan.target


def _run_facts(
    spec: ModelSpec,
    network: nn.Module,
    sources: Sequence[Source],
    grid: TileGrid,
    read: ReadOptions,
    tiling: TilingOptions,
    options: DetectOptions,
) -> dict[str, Any]:
    """Return what must be equal for a run to be resumed; the device may be another."""
    names = ('threshold', 'nms_overlap', 'outline', 'merge')
    return {
        **run_facts(spec, weights_digest(network), sources, grid, read),
        **({} if read.nodata is None else {'nodata': read.nodata}),
        'batch_size': tiling.batch_size or BATCH_SIZE,
        **{name: getattr(options, name) for name in names},
        'augment': bool(options.augment),
    }
