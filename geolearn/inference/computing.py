"""How a network computes a raster: tiles and how they are cut, batches, the engine, and what is chosen by measuring."""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from geolearn import errors
from geolearn.backbones.compiling import compile_for_inference
from geolearn.device import choose_device, device_of, keep_freed_memory
from geolearn.inference import engines, tiles, tuning
from geolearn.inference.options import TilingOptions
from geolearn.inference.plan import Blend
from geolearn.inference.source import Source
from geolearn.networks.network import Network
from geolearn.networks.spec import ModelSpec
from geolearn.precision import Precision, casting, choose_precision, precision_note
from geolearn.raster import GeoBox
from geolearn.tiling import TileGrid, lattice_origin, make_grid

log = logging.getLogger('geolearn')

CONVOLUTION_TILE = 512
"""Convolutions run fastest per pixel at about this side: smaller tiles overlap more, larger ones leave caches."""

CONVOLUTION_HALO = 32

PIXEL_TILE = 256
"""Networks that see single pixels need no overlap, and small tiles of many bands stay nearer to the caches."""

MULTIPLE = 32
"""Tile sides and starts are multiples of this at least; most networks have no coarser stride."""

POSITION_GRID_SIDES: dict[Blend, int] = {'hann': 1, 'crop': 2}
"""Tiles of networks with embedded positions, in sides of the training chips.

Linear probes on DOFA and Prithvi 1, chips of 128 px of a Sentinel-2 scene, quarter of a tile shared: maps of shifted
tile grids differ in 0.71 and 0.58 % of the pixels where tiles of one side fade into each other, and in 2.15 and 1.95 %
where tiles of two sides are cut; labels change along tile lines 0.95 and 1.06 times as often as elsewhere, and 2.38 and
2.04 times. The former compute each pixel 1.56 times there, the latter 1.27 times (on large rasters 1.78 and 1.31).
"""


def cut_raster(
    network: Network, box: GeoBox, tiling: TilingOptions, *, tile_size: int, halo: int, stride: int = 1
) -> TileGrid:
    """Cut a raster into tiles that start on the lattice of the network's coarsest stride.

    The lattice is counted from the origin of the CRS, so that a map does not depend on which part of a scene the raster
    is. A raster that one tile of the size that the caller asks for holds is computed in one, from its corner on; so is
    one whose map has larger pixels, `stride` of its own: the tiles that are returned are counted in those.
    """
    if stride > 1:
        shape = (-(-box.shape[0] // stride), -(-box.shape[1] // stride))
        side, shared, multiple = (
            -(-length // stride) for length in (tile_size, halo, network.backbone.coarsest_stride)
        )
        return make_grid(shape, tile_size=side, halo=shared, multiple=multiple)
    multiple = _multiple(network)
    origin = lattice_origin(box.transform, multiple)
    if tiling.tile_size is not None and max(box.shape) <= tiling.tile_size:
        origin = (0, 0)
    return make_grid(box.shape, tile_size=tile_size, halo=halo, multiple=multiple, origin=origin)


def choose_blend(network: Network, tiling: TilingOptions) -> Blend:
    """Return how tiles meet: transformers' fade into each other, convolutions' show no lines where they are cut."""
    if tiling.blend is not None:
        return tiling.blend
    return 'hann' if network.backbone.has_position_grid else 'crop'


def choose_tile(spec: ModelSpec, network: Network, tiling: TilingOptions, *, blend: Blend = 'crop') -> tuple[int, int]:
    """Return the usual tile side and halo: near the training size where positions are embedded."""
    if network.backbone.has_position_grid:
        side, halo = POSITION_GRID_SIDES[blend] * spec.chip_size, spec.chip_size // 8
    else:
        alone = network.context == 0
        side, halo = (PIXEL_TILE, 0) if alone else (max(spec.chip_size, CONVOLUTION_TILE), CONVOLUTION_HALO)
    side = side if tiling.tile_size is None else tiling.tile_size
    return side, min(halo, side // 8) if tiling.halo is None else tiling.halo


GraphMaker = Callable[[tuple[int, int]], bytes]
"""Returns the network as an ONNX graph, the file's content, that takes images of this height and width."""


@dataclass(frozen=True)
class Setup:
    """What a raster is computed with.

    Args:
        engine: What computes.
        tile_size: Largest side of the tiles in pixels.
        batch_size: Tiles that are read, and where that is faster computed, together.
    """

    engine: engines.EngineName
    tile_size: int
    batch_size: int = tiles.BATCH_SIZE

    def to_json(self) -> dict[str, Any]:
        """Return what the pixels of a map depend on, as `recorded` takes it."""
        return {'engine': self.engine, 'tile size': self.tile_size}

    def recorded(self, facts: Mapping[str, Any], tiling: TilingOptions) -> 'Setup':
        """Return the choices of an earlier run, where the caller makes none.

        Args:
            facts: Of that run, as its journal has them.
            tiling: What the caller asks for.
        """
        engine, side = facts.get('engine'), facts.get('tile size')
        kept: dict[str, Any] = {}
        if tiling.engine == 'auto' and engine in engines.ENGINES:
            kept['engine'] = engine
        if tiling.tile_size is None and isinstance(side, int) and 1 <= side <= MAX_SIDE:
            kept['tile_size'] = side
        return replace(self, **kept)


MAX_SIDE = 2**14
"""Of tiles, in journals of earlier runs."""

CPU_SIDES, GPU_SIDES = (256, 512, 768), (512, 1024, 1536)
"""Sides of convolutions' tiles that are measured; smaller ones compute more pixels twice, larger ones take memory."""

BATCH_SIZES = (1, 4, 16)
"""Numbers of tiles computed together that are measured on graphics cards."""


def choose_compute_device(tiling: TilingOptions) -> torch.device:
    """Return the device of a map; engines other than torch compute on the CPU.

    Raises:
        ValueError: If another device is asked for.
    """
    if tiling.engine in ('torch', 'auto'):
        return choose_device(tiling.device)
    if choose_device(tiling.device or 'cpu').type != 'cpu':
        raise ValueError(f"engine={tiling.engine!r} computes on the CPU; leave out device, or pass engine='torch'")
    return torch.device('cpu')


def usual_setup(spec: ModelSpec, network: Network, tiling: TilingOptions, *, blend: Blend) -> Setup:
    """Return what is computed with where nothing is measured."""
    side, _ = choose_tile(spec, network, tiling, blend=blend)
    engine = 'torch' if tiling.engine == 'auto' else tiling.engine
    return Setup(engine, side, choose_batch_size(network, tiling))


def choose_setup(
    spec: ModelSpec,
    network: Network,
    shape: tuple[int, int],
    tiling: TilingOptions,
    *,
    blend: Blend,
    graph: GraphMaker | None = None,
) -> Setup:
    """Choose the engine, the tile side and the batch size that the caller leaves open, by a short measurement.

    A measurement computes at most 5 % of what the map does; maps too small for that take torch and the usual sizes, or
    what was measured before. Of engines it also tells what opening them takes, which counts for small maps. Sides of
    transformers' tiles are those of training.

    Args:
        spec: Of the model.
        network: On its device, in evaluation.
        shape: Height and width of the raster.
        tiling: What the caller asks for.
        blend: How tiles meet.
        graph: Makes the graph for other engines.

    Raises:
        MissingExtraError: If the engine that is asked for is not installed.
    """
    if tiling.engine != 'auto':
        engines.require_engine(tiling.engine)
    setup = usual_setup(spec, network, tiling, blend=blend)
    return _Measurement(spec, network, shape, tiling, blend, graph).improve(setup)


@dataclass
class _Measurement:
    """Measures what `choose_setup` chooses; see there."""

    spec: ModelSpec
    network: Network
    shape: tuple[int, int]
    tiling: TilingOptions
    blend: Blend
    graph: GraphMaker | None

    def improve(self, setup: Setup) -> Setup:
        """Return the choices."""
        if self.tiling.engine == 'auto':
            setup = replace(setup, engine=self._choose_engine(setup))
        if self.network.context == 0:  # no size of tiles saves anything
            return setup
        # compiled networks take one size
        if self.tiling.tile_size is None and not self.network.backbone.has_position_grid and not self.tiling.compile:
            setup = replace(setup, tile_size=self._choose_side(setup))
        if self.tiling.batch_size is None and most_at_once(self._device) is None and not self.tiling.compile:
            setup = replace(setup, batch_size=self._choose_batch_size(setup))
        return setup

    @property
    def _device(self) -> torch.device:
        return device_of(self.network)

    def _halo(self, side: int) -> int:
        return choose_tile(self.spec, self.network, replace(self.tiling, tile_size=side), blend=self.blend)[1]

    def _pixels(self, side: int) -> int:
        """Return how many pixels the tiles of a map have together."""
        grid = make_grid(self.shape, tile_size=side, halo=self._halo(side), multiple=_multiple(self.network))
        return len(grid.rows) * len(grid.cols) * math.prod(grid.tile_shape)

    def _facts(self, what: str, setup: Setup, candidates: Sequence[Any]) -> dict[str, Any]:
        device = self._device
        return {
            'what': what,
            'candidates': list(candidates),
            'engine': setup.engine,
            'device': torch.cuda.get_device_name(device) if device.type == 'cuda' else device.type,
            'threads': torch.get_num_threads(),
            'precision': self._precision or 'float32',
            'torch': torch.__version__,
            'model': [self.spec.model, self.spec.backbone, self.spec.options, len(self.spec.bands), self.spec.dates],
            'weights': sum(weight.numel() for weight in self.network.parameters()),
            'tile': [setup.tile_size, self._halo(setup.tile_size)],
        }

    def _images(self, count: int, side: int) -> Tensor:
        """Draw images with the statistics of the chips."""
        dates = (self.spec.dates,) if self.spec.dates > 1 else ()
        mean, std = (
            torch.tensor(column, dtype=torch.float32).view(-1, 1, 1)
            for column in (self.spec.statistics.mean, self.spec.statistics.std)
        )
        # the caller's random numbers stay as they are
        random = torch.Generator().manual_seed(0)
        return torch.randn(count, *dates, len(self.spec.bands), side, side, generator=random) * std + mean

    @property
    def _precision(self) -> Precision | None:
        return precision_of(self.network, self.tiling)

    def _make_run(self, engine: engines.EngineName, shape: tuple[int, int]) -> Callable[[Tensor], Tensor]:
        return make_run(self.network, engine, self.graph, shape, precision=self._precision)

    def _job(self, run: Callable[[Tensor], Tensor], count: int, side: int) -> tuning.Job:
        images = self._images(count, side)

        def job() -> None:
            with torch.inference_mode():
                run(images.to(self._device)).max(1).indices.byte().cpu()

        return job

    def _choose_engine(self, setup: Setup) -> engines.EngineName:
        installed = engines.installed_engines(self._precision)
        if self._device.type != 'cpu' or self.graph is None or self.tiling.compile or len(installed) < 2:
            return 'torch'
        # a whole tile: on smaller ones, what each layer takes on top makes other engines the fastest
        side = -(-setup.tile_size // _multiple(self.network)) * _multiple(self.network)
        facts = self._facts('engine', setup, [engines.describe(name) for name in installed])
        costs = tuning.recall(facts)
        if costs is None:
            rounds = tuning.count_rounds(self._pixels(setup.tile_size), len(installed) * side**2)
            if not rounds:
                log.info("engine='auto' takes torch: the raster is too small for a measurement")
                return 'torch'
            runs, opening = self._open_engines(installed, (side, side))
            jobs = {str(name): self._job(run, 1, side) for name, run in runs.items()}
            costs = tuning.measure(jobs, rounds=rounds, rest=tuning.ENGINE_REST_S)
            # the first tile takes longer than those that follow
            opening = {name: max(seconds - costs[name], 1e-6) for name, seconds in opening.items() if name in costs}
            log.info('seconds a tile of %s px takes: %s; and opening: %s', side, _listed(costs), _listed(opening))
            costs |= {f'{OPENING}{name}': seconds for name, seconds in opening.items()}
            tuning.keep(facts, costs)
        tiles_of_map = self._pixels(setup.tile_size) / side**2
        totals = {
            str(name): costs.get(f'{OPENING}{name}', 0.0) + tiles_of_map * costs[name]
            for name in installed
            if name in costs
        }
        chosen = tuning.pick(totals, 'torch', tuning.ENGINE_MARGIN)
        if chosen == 'torch':
            engines.close_graphs()  # what was measured need not stay in memory
        return next(name for name in installed if name == chosen)

    def _open_engines(
        self, names: Sequence[engines.EngineName], shape: tuple[int, int]
    ) -> tuple[dict[engines.EngineName, Callable[[Tensor], Tensor]], dict[str, float]]:
        """Return the engines that run the network and agree with torch, and the seconds until each gave a tile."""
        image = self._images(1, shape[0])
        run_torch = self._make_run('torch', shape)
        runs: dict[engines.EngineName, Callable[[Tensor], Tensor]] = {'torch': run_torch}
        tolerance = TOLERANCE
        with torch.inference_mode():
            exact = self.network(image)
            if self._precision is not None:  # rounds, and each engine in its own places
                tolerance = max(tolerance, 2 * _difference(run_torch(image), exact))
        opening: dict[str, float] = {}
        for name in names[1:]:
            try:
                assert self.graph is not None
                self.graph(shape)  # written once, where the bundle holds none
                seconds = []
                for _ in range(OPENINGS):
                    runs.pop(name, None)
                    engines.close_graphs()  # which takes as long as a small tile
                    started = time.perf_counter()
                    runs[name] = self._make_run(name, shape)
                    outputs = runs[name](image)
                    seconds.append(time.perf_counter() - started)
            except PASSED_OVER as error:
                log.warning("engine='auto' passes over %s: %s", name, error)
                runs.pop(name, None)
                continue
            opening[name] = min(seconds)
            difference = _difference(outputs, exact)
            if difference > tolerance:
                del runs[name]
                log.warning("engine='auto' passes over %s, whose outputs differ by %.2g", name, difference)
        return runs, opening

    def _choose_side(self, setup: Setup) -> int:
        usual = setup.tile_size
        usable = (
            side for side in (CPU_SIDES if self._device.type == 'cpu' else GPU_SIDES) if 2 * self._halo(side) < side
        )
        sides = sorted({usual, *(side for side in usable if self.spec.chip_size <= side <= max(self.shape))})
        rounds = tuning.count_rounds(self._pixels(usual), sum(side**2 for side in sides))
        if not rounds:
            return usual
        facts = self._facts('tile size', setup, sides)
        costs = tuning.recall(facts)
        if costs is None:
            # graphs of one size say nothing of others
            runs = {side: self._make_run(setup.engine, (side, side)) for side in sides}
            jobs = {str(side): self._job(run, 1, side) for side, run in runs.items()}
            seconds = tuning.measure(jobs, rounds=rounds)
            # of what a tile computes, the halo is computed twice
            costs = {name: taken / (int(name) - 2 * self._halo(int(name))) ** 2 for name, taken in seconds.items()}
            tuning.keep(facts, costs)
        chosen = int(tuning.pick(costs, str(usual), tuning.TILE_MARGIN))
        microseconds = {name: 1e6 * cost for name, cost in costs.items()}
        log.info('tiles of %s px: microseconds a pixel of the map takes are %s', chosen, _listed(microseconds))
        return chosen

    def _choose_batch_size(self, setup: Setup) -> int:
        usual, side = setup.batch_size, setup.tile_size
        rounds = tuning.count_rounds(self._pixels(side), sum(BATCH_SIZES) * side**2)
        if not rounds:
            return usual
        facts = self._facts('batch size', setup, BATCH_SIZES)
        costs = tuning.recall(facts)
        if costs is None:
            run = self._make_run(setup.engine, (side, side))
            jobs = {str(count): self._job(run, count, side) for count in BATCH_SIZES}
            seconds = tuning.measure(jobs, rounds=rounds)
            costs = {name: taken / int(name) for name, taken in seconds.items()}
            tuning.keep(facts, costs)
        chosen = int(tuning.pick(costs, str(usual), tuning.BATCH_MARGIN))
        log.info('batches of %s tiles: seconds a tile takes are %s', chosen, _listed(costs))
        return chosen


OPENING = 'opening '
"""Before an engine's name, in what was measured: the seconds until it can compute."""

OPENINGS = 3
"""Of each engine that is measured; the first one imports its library too, which the map then finds imported."""

TOLERANCE = 1e-3
"""Most that an engine's outputs may differ from torch's, over the largest of them.

In half precision: from torch's in float32, where torch's in half precision do not differ by half as much.
"""

PASSED_OVER = (errors.ArgumentError, errors.BundleError, errors.ExportError, errors.MissingExtraError)
"""What an engine that cannot compute a network, or not in the precision asked for, is left out with."""


def _difference(outputs: Tensor, exact: Tensor) -> float:
    return float((outputs - exact).abs().max() / exact.abs().max().clamp(min=1e-6))


def _listed(costs: Mapping[Any, float]) -> str:
    return ', '.join(f'{name} {cost:.3g}' for name, cost in costs.items())


def _multiple(network: Network) -> int:
    return math.lcm(MULTIPLE, *network.backbone.strides)


def make_run(
    network: nn.Module,
    engine: engines.EngineName,
    graph: GraphMaker | None,
    shape: tuple[int, int],
    *,
    precision: Precision | None = None,
) -> Callable[[Tensor], Tensor]:
    """Return what computes images (N, [dates,] bands, h, w) with an engine, to float32 outputs.

    Args:
        network: In evaluation.
        engine: What computes.
        graph: Makes the network's ONNX graph.
        shape: Height and width of the images.
        precision: Of matrix products and convolutions; None for float32.

    Raises:
        ArgumentError: If the engine has no such precision.
        ExportError: If the network cannot be written as a graph.
        MissingExtraError: If a library is missing.
    """
    if engine == 'torch':
        return in_precision(network, precision, device_of(network))
    engines.require_engine(engine)
    if graph is None:
        raise errors.ExportError(f"this network has no graph for engine={engine!r}; pass engine='torch'")
    run_graph = engines.open_graph(engine, graph(shape), threads=torch.get_num_threads(), precision=precision)
    return lambda images: torch.from_numpy(run_graph(np.ascontiguousarray(images.numpy())))


def precision_of(network: nn.Module, tiling: TilingOptions) -> Precision | None:
    """Return what a network computes in on its device; None for float32."""
    return choose_precision(tiling.mixed_precision, device_of(network))


def in_precision(
    run: Callable[[Tensor], Tensor], precision: Precision | None, device: torch.device
) -> Callable[[Tensor], Tensor]:
    """Return what computes the same with matrix products and convolutions in half precision, and returns float32."""
    if precision is None:
        return run

    def half(images: Tensor) -> Tensor:
        with casting(precision, device):
            return run(images).float()

    return half


def most_at_once(device: torch.device) -> int | None:
    """Return how many images are computed at once at most; None for any number.

    On CPUs convolutions of one image and of several round differently, and one at a time are as fast.
    """
    return 1 if device.type == 'cpu' else None


def choose_batch_size(network: nn.Module, tiling: TilingOptions) -> int:
    """Return how many tiles are read at once: as many as are computed at once, where fewer leave caches warmer."""
    if tiling.batch_size is not None:
        return tiling.batch_size
    return most_at_once(device_of(network)) or tiles.BATCH_SIZE


def make_compute(
    network: nn.Module,
    sources: Sequence[Source],
    grid: TileGrid,
    tiling: TilingOptions,
    *,
    setup: Setup | None = None,
    graph: GraphMaker | None = None,
) -> tiles.MicroBatches:
    """Return what computes batches of tiles: on the network's device, compiled and augmented as asked for.

    Args:
        network: In evaluation, on its device.
        sources: The raster, one for each date.
        grid: How it is cut.
        tiling: What the caller asks for.
        setup: What was chosen; None for torch.
        graph: Makes the network's graph for other engines.

    Raises:
        ExportError: If the network cannot be written as a graph for another engine.
    """
    device = device_of(network)
    if device.type == 'cpu':
        keep_freed_memory()
    most = most_at_once(device)
    engine = 'torch' if setup is None else setup.engine
    precision = precision_of(network, tiling)
    # whether torch would be slow is measured for torch alone; that float32 is computed after all concerns each engine
    note = precision_note(tiling.mixed_precision, device) if engine == 'torch' or precision is None else None
    if note is not None:
        log.warning(note)
    run = make_run(network, engine, graph, grid.tile_shape, precision=precision)
    if tiling.compile:
        dates = (len(sources),) if len(sources) > 1 else ()
        shape = (*dates, len(sources[0].indexes), *grid.tile_shape)
        wanted = tiles.BATCH_SIZE if tiling.batch_size is None else tiling.batch_size
        count = most or tiles.fit_batch_size(wanted, len(grid.rows) * len(grid.cols), 4 * math.prod(shape))
        with casting(precision, device):
            compiled = compile_for_inference(network, torch.zeros((count, *shape), device=device))
        run = in_precision(compiled, precision, device)
    if not tiling.augment:
        return tiles.MicroBatches(lambda pixels: run(pixels.to(device)), most=most)
    ways = engines.FLIPS if tiling.augment == 'flips' else engines.TURNS
    # a graph may be of one height and width
    height, width = grid.tile_shape
    across = (
        run
        if height == width or ways is engines.FLIPS
        else make_run(network, engine, graph, (width, height), precision=precision)
    )

    def compute(images: Tensor) -> Tensor:
        return (run if images.shape[-2:] == (height, width) else across)(images).float()

    def augmented(pixels: Tensor) -> Tensor:
        outputs: Tensor = engines.augment_outputs(compute, pixels.to(device), ways, torch)
        return outputs

    return tiles.MicroBatches(augmented, most=most)
