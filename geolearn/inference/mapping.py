"""Map a raster of any size with a network of torch, from the request to the files."""

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from rasterio.windows import Window
from torch import nn

from geolearn import errors, files
from geolearn.device import device_of, give_back_freed_memory
from geolearn.inference import computing, resume
from geolearn.inference.coarse import coarsen_box, coarsen_window
from geolearn.inference.encoding import OUTPUTS, Output, ProbabilityType, make_layers
from geolearn.inference.layers import Encoding, Layer, map_tags
from geolearn.inference.map_parts import compute_parts, divide_parts, write_map
from geolearn.inference.map_progress import ProgressFn
from geolearn.inference.options import ReadOptions, TilingOptions
from geolearn.inference.plan import Blend, Part, Share
from geolearn.inference.reading import RasterSource, locate_area, open_dates
from geolearn.inference.resume import Journal
from geolearn.inference.scene import enter_scene, scene_facts, torch_only
from geolearn.inference.source import Source
from geolearn.inference.store import PieceStore, open_journal, sidecars
from geolearn.inference.targets import check_space, check_target
from geolearn.networks.image_target import EveryNth
from geolearn.networks.network import Network
from geolearn.networks.spec import ModelSpec
from geolearn.raster import GeoBox
from geolearn.raster.area import PixelArea
from geolearn.raster.arrays import is_zarr
from geolearn.raster.opening import find_driver
from geolearn.tiling import TileGrid

log = logging.getLogger('geolearn')


@dataclass(frozen=True)
class MapOptions:
    """What a map holds, and how the run that makes it behaves.

    Args:
        outputs: What is written; the first goes into the map itself, others into files beside it, such as
            ``map_confidence.tif``.
        probability_dtype: Of probabilities and confidence: ``'uint8'`` in steps of 0.004, which the file states as its
            scale (255 is NoData), ``'float16'`` or ``'float32'`` (NaN is).
        layout: ``'bands'`` puts all outputs into one file of `probability_dtype`, classes first.
        cog: Whether files are cloud-optimized GeoTIFFs, with overviews, instead of plain ones.
        overwrite: Replace files that exist.
        resume: Continue a run that was killed or failed.
        progress: Called after each batch of tiles, and while the files are made.

    Raises:
        ValueError: If there are no outputs, or one twice.
        UnknownNameError: If there is no such output, type or layout.
    """

    outputs: Sequence[Output] = ('classes',)
    probability_dtype: ProbabilityType = 'uint8'
    layout: Literal['files', 'bands'] = 'files'
    cog: bool = True
    overwrite: bool = False
    resume: bool = False
    progress: ProgressFn | None = None

    def __post_init__(self) -> None:
        outputs = (self.outputs,) if isinstance(self.outputs, str) else tuple(self.outputs)
        object.__setattr__(self, 'outputs', outputs)
        if not self.outputs or len(set(self.outputs)) < len(self.outputs):
            raise ValueError(f'outputs must name one or several of {", ".join(OUTPUTS)}, each once; got {self.outputs}')
        for name, values, known in (
            ('output', self.outputs, OUTPUTS),
            ('probability_dtype', (self.probability_dtype,), ('uint8', 'float16', 'float32')),
            ('layout', (self.layout,), ('files', 'bands')),
        ):
            for value in values:
                if value not in known:
                    raise errors.UnknownNameError(name, str(value), known)


def map_raster(
    spec: ModelSpec,
    network: Network,
    encoding: Encoding,
    src: RasterSource,
    dst: str | Path,
    *,
    read: ReadOptions,
    tiling: TilingOptions,
    options: MapOptions | None = None,
    every_date: bool = False,
    graph: computing.GraphMaker | None = None,
) -> Path:
    """Write the map of a raster of any size, or of rasters of several dates of one grid.

    What is finished is kept in a folder beside the map, ``<map>.part``, until the map is written.

    Args:
        spec: What the network was trained on.
        network: Maps images to outputs (N, C, H, W).
        encoding: From its outputs to the map's pixels.
        src: A raster, several that make one mosaic, or one such for each date.
        dst: GeoTIFF to write.
        read: How the raster is read.
        tiling: How tiles are cut and computed.
        options: What the map holds, and how the run behaves.
        every_date: Whether a pixel needs data at every date, as change does; else one date is enough.
        graph: Makes the network's ONNX graph, for engines other than torch.

    Returns:
        The path written.

    Raises:
        RasterError: If bands, units, dates or pixel sizes do not fit, a file exists, or reading or writing fails; no
            part of `dst` is left.
        CheckpointError: If there is no run to resume, or what is finished cannot be kept.
        ExportError: If another engine than torch cannot run the network.
        MissingExtraError: If that engine is not installed.
        ValueError: If one file cannot hold the outputs.
    """
    options = MapOptions() if options is None else options
    return map_request(spec, network, encoding, MapRequest(src, dst, read, tiling, options, every_date, graph))


def map_request(spec: ModelSpec, network: Network, encoding: Encoding, request: 'MapRequest') -> Path:
    """Write a map; see `map_raster`."""
    started = time.monotonic()
    try:
        with ExitStack() as stack:
            plan = plan_map(spec, network, encoding, request, stack)
            journal = open_journal(plan.target, plan.facts, resume=request.options.resume)
            store = stack.enter_context(plan.open_store(journal))
            started = time.monotonic()
            plan.compute(store)
            plan.write(store)
        store.remove()
    finally:
        if time.monotonic() - started > KEPT_SECONDS:
            give_back_freed_memory()
    return plan.target


KEPT_SECONDS = 10.0
"""Maps that take longer hand back the memory that tensors freed; the next of many small ones takes it over."""


@dataclass(frozen=True, eq=False)
class MapRequest:
    """What is mapped, and how; the arguments of `map_raster` besides the model."""

    src: RasterSource
    dst: str | Path
    read: ReadOptions
    tiling: TilingOptions
    options: MapOptions
    every_date: bool
    graph: computing.GraphMaker | None = None
    measures: bool = True
    """Whether what is left open may be chosen by a measurement; processes that share a map need the same choice."""
    stride: int = 1
    """Pixels of the raster for each of the map, down and across; tiles then start on multiples of it."""


@dataclass(frozen=True, eq=False)
class MapPlan:
    """A map whose rasters are open and whose tiles are known.

    Args:
        target: The map.
        sources: One for each date.
        network: On its device.
        grid: How the whole raster is cut, in pixels of the map.
        area: What of it is mapped, in pixels of the raster; those of the map are as in a map of the whole.
        layers: Files of the map.
        blend: How tiles meet.
        request: What was asked for.
        facts: What must be equal for a run to be resumed.
        setup: What computes.
    """

    target: Path
    sources: Sequence[Source]
    network: nn.Module
    grid: TileGrid
    area: PixelArea
    layers: Sequence[Layer]
    blend: Blend
    request: MapRequest
    facts: Mapping[str, Any]
    setup: computing.Setup

    @property
    def box(self) -> GeoBox:
        """Place of the map of the whole raster."""
        return coarsen_box(self.sources[0].box, self.request.stride)

    @property
    def window(self) -> Window:
        """What the map holds of a map of the whole raster."""
        return coarsen_window(self.area.window, self.request.stride)

    def parts(self, share: Share | None = None) -> list[Part]:
        """Return the parts of the map, or of one share of it."""
        return divide_parts(
            self.sources,
            self.grid,
            self.window,
            self.layers,
            self.request.tiling,
            self.blend,
            share,
            stride=self.request.stride,
        )

    def open_store(self, journal: Journal, share: Share | None = None) -> PieceStore:
        """Open what keeps the pieces of the map, or of one share of it."""
        return PieceStore(
            self.target,
            journal.path.parent,
            self.box,
            self.window,
            self.layers,
            self.parts(share),
            journal,
            share,
        )

    @torch.inference_mode()
    def compute(self, store: PieceStore, share: Share | None = None) -> None:
        """Compute what the store has not."""
        request, setup = self.request, self.setup
        compute_parts(
            self.sources,
            computing.make_compute(
                self.network,
                self.sources,
                self.grid.enlarged(request.stride),
                request.tiling,
                setup=setup,
                graph=request.graph,
            ),
            self.grid,
            self.parts(share),
            self.layers,
            store,
            read=request.read,
            tiling=replace(request.tiling, batch_size=setup.batch_size),
            blend=self.blend,
            every_date=request.every_date,
            area=self.area,
            progress=request.options.progress,
            stride=request.stride,
        )

    def write(self, store: PieceStore) -> None:
        """Make the files of the map of its pieces; all of them appear together."""
        options = self.request.options
        write_map(store, self.target, self.layers, self.parts(), cog=options.cog, progress=options.progress)


def plan_map(spec: ModelSpec, network: Network, encoding: Encoding, request: MapRequest, stack: ExitStack) -> MapPlan:
    """Open the rasters of a map and cut them into tiles.

    Args:
        spec: What the network was trained on.
        network: Maps images to outputs.
        encoding: From its outputs to pixels.
        request: What is mapped.
        stack: Closes the rasters.

    Raises:
        RasterError: If bands, units, dates or pixel sizes do not fit, or a file exists.
        ValueError: If one file cannot hold the outputs.
    """
    read, tiling, options = request.read, request.tiling, request.options
    layers = make_layers(
        encoding,
        options.outputs,
        dtype=options.probability_dtype,
        bands=options.layout == 'bands',
        tags=map_tags(spec),
    )
    target = Path(request.dst).expanduser()
    for layer in layers:
        check_target(request.src, layer.path(target), overwrite=options.overwrite)
    if not is_zarr(target):
        find_driver(target, by_rows=True)
    blend = computing.choose_blend(network, tiling)
    device = computing.choose_compute_device(tiling)
    sources = open_dates(request.src, spec, read, stack, whole=True)
    scene = enter_scene(stack, spec, network, sources, read)
    tiling = torch_only(scene, tiling, spec)
    finer, coarse = network.finer, sources[0].box
    if finer > 1:
        tiling = _without_graphs(tiling)
        sources = [replace(source, repeats=finer) for source in sources]
    box, wanted = sources[0].box, locate_area(sources[0], read)
    area = PixelArea(Window(0, 0, box.shape[1], box.shape[0])) if wanted is None else wanted
    pixels = area.window.height * area.window.width / request.stride**2
    check_space(target, int(pixels * sum(layer.content.pixel_bytes for layer in layers)))
    # both walk through all modules, which takes a while for small scenes
    if device_of(network) != device:
        network = network.to(device)
    if any(module.training for module in network.modules()):
        network = network.eval()
    if options.resume or not request.measures:
        setup = computing.usual_setup(spec, network, tiling, blend=blend)
        setup = setup.recorded(resume.read_facts(target), tiling) if options.resume else setup
    else:
        setup = computing.choose_setup(spec, network, coarse.shape, tiling, blend=blend, graph=request.graph)
    side, halo = computing.choose_tile(spec, network, replace(tiling, tile_size=setup.tile_size), blend=blend)
    grid = computing.cut_raster(network, coarse, tiling, tile_size=side, halo=halo, stride=request.stride)
    grid = grid.enlarged(finer)
    log.info('mapping with %s in tiles of %s px, halo %s', setup.engine, grid.tile_shape, halo)
    made = {'ENGINE': setup.engine, 'TILE_SIZE': str(side), 'HALO': str(halo)}
    layers = tuple(layer.tagged(made) for layer in layers)
    facts = _run_facts(spec, network, sources, grid, layers, read, tiling, blend) | setup.to_json()
    facts |= scene_facts(scene)
    if wanted is not None:
        facts['area'] = area.digest()
    request = replace(request, tiling=tiling)
    computed = network if finer == 1 else EveryNth(network, finer)
    plan = MapPlan(target, sources, computed, grid, area, layers, blend, request, facts, setup)
    facts['parts'] = [[int(part.core.col_off), int(part.core.width)] for part in plan.parts()]
    return plan


def _without_graphs(tiling: TilingOptions) -> TilingOptions:
    """Return options of a map that is finer than its raster, which torch alone computes.

    Raises:
        ValueError: If another engine is asked for.
    """
    if tiling.engine not in ('torch', 'auto'):
        raise ValueError(f"maps finer than their raster are computed by engine='torch', got {tiling.engine!r}")
    return replace(tiling, engine='torch')


@torch.inference_mode()
def map_sources(
    sources: Sequence[Source],
    network: nn.Module,
    encoding: Encoding,
    grid: TileGrid,
    dst: str | Path,
    *,
    read: ReadOptions,
    tiling: TilingOptions,
    every_date: bool = False,
    blend: Blend = 'crop',
    tags: Mapping[str, str] | None = None,
    cog: bool = False,
    outputs: Sequence[Output] = ('classes',),
) -> Path:
    """Write the map of an open raster, or of several dates of one grid, in a run that cannot be resumed.

    Args:
        sources: One for each date.
        network: Maps (N, bands, H, W) float32, or (N, dates, bands, H, W) where there are several, NaN where there is
            no data, to outputs (N, C, H, W).
        encoding: From the network's outputs to the map's pixels.
        grid: How the raster is cut.
        dst: GeoTIFF to write.
        read: How stored values become the network's units.
        tiling: Its batch size and whether to compile; the network stays on its device.
        every_date: Whether a pixel needs data at every date.
        blend: How tiles meet. Transformers see all of a tile and its positions, so that what two of them say of one
            place differs at any distance from the edge.
        tags: Metadata to store in the map.
        cog: Whether the map is a cloud-optimized GeoTIFF.
        outputs: What is written; see `MapOptions`.

    Returns:
        The path written.

    Raises:
        RasterError: If reading or writing fails; no part of `dst` is left.
    """
    layers, target = make_layers(encoding, outputs, tags=tags), Path(dst)
    box = sources[0].box
    window = Window(0, 0, box.shape[1], box.shape[0])
    parts = divide_parts(sources, grid, window, layers, tiling, blend)
    with files.atomic_write_all(target, error=errors.RasterError, replaces=sidecars(layers, target)) as part:
        with PieceStore(target, part.parent / 'pieces', box, window, layers, parts) as store:
            compute = computing.make_compute(network.eval(), sources, grid, tiling)
            compute_parts(
                sources,
                compute,
                grid,
                parts,
                layers,
                store,
                read=read,
                tiling=replace(tiling, batch_size=computing.choose_batch_size(network, tiling)),
                blend=blend,
                every_date=every_date,
            )
            store.join(part.parent, cog=cog)
        store.remove()
    return target


def _run_facts(
    spec: ModelSpec,
    network: nn.Module,
    sources: Sequence[Source],
    grid: TileGrid,
    layers: Sequence[Layer],
    read: ReadOptions,
    tiling: TilingOptions,
    blend: Blend,
) -> dict[str, Any]:
    """Return what must be equal for a run to be resumed; device and batch size may be others."""
    return {
        **resume.run_facts(spec, resume.weights_digest(network), sources, grid, read),
        'nodata': read.nodata,
        'dequantize': read.dequantize,
        'blend': blend,
        'augment': tiling.augment,
        'precision': computing.precision_of(network, tiling) or 'float32',
        'max_memory': tiling.max_memory,
        'outputs': [[layer.suffix, layer.content.dtype, layer.content.band_names] for layer in layers],
        'classes': [sorted(layer.content.class_names.items()) for layer in layers],
        'temperature': spec.temperature,
    }
