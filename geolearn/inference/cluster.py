"""Work on a Dask cluster: workers load the model once each, and compute shares of a map, which become one map here.

Whatever fails there, the shares that are finished stay in the folder of the map: the same call does only the others.
"""

import csv
import hashlib
import heapq
import json
import logging
import math
import os
import re
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from rasterio.windows import Window

from geolearn import errors, extras, files
from geolearn.bundle import SUFFIX, read_bundle
from geolearn.inference import shares, store
from geolearn.inference.map_progress import ProgressFn, advance
from geolearn.inference.mapping import MapRequest, plan_map
from geolearn.inference.plan import Blend, Share, plan_parts
from geolearn.inference.resume import weights_digest
from geolearn.networks.spec import ModelSpec
from geolearn.progress import ProgressBar, report_progress
from geolearn.tiling import TileGrid

if TYPE_CHECKING:
    from geolearn.inference.detect_raster import DetectRequest

log = logging.getLogger('geolearn')

RETRIES = 2
"""Times that a task is tried again, whatever it failed with."""

BLOCK_PIXELS = 4096**2
"""Of a task: so much work is lost with a worker, and transformers compute a tenth on top at its edges."""

LEAST_BLOCK_PIXELS: dict[Blend, int] = {'crop': 512**2, 'hann': 1024**2}
"""Of a task of a small raster; blended tiles at the edge of a block are computed for two of them."""

BLOCKS_PER_THREAD = 4
"""At least, where the raster is large enough: blocks differ in size, and the last ones leave workers idle."""

FEW_BLOCKS = 64
"""Up to so many, up to twice as many are taken where all workers end sooner then."""

BLOCK_TILES = 0.1
"""What a block takes besides its tiles: it opens rasters and a journal."""

MEMORY_SHARE = 0.25
"""Of a worker's memory that rows and tiles may take, besides the network and what it computes."""

DEFAULT_MEMORY = 2 * 2**30
"""Of a worker's thread, from which on nothing is said of rows and tiles."""


# -- models


@dataclass(frozen=True)
class ShippedModel:
    """A model that each worker process loads once.

    Args:
        kind: Its class.
        path: Of its bundle, on a disk that all workers see.
        digest: Of what it computes, so that the next map by the same model finds it loaded.
    """

    kind: Any
    path: str
    digest: str

    def get(self) -> Any:
        """Return the model, loaded at the first call in this process.

        Raises:
            BundleError: If the file is not there, or broken.
        """
        with _loading:
            if self.digest not in _models:
                bundle = read_bundle(self.path)
                spec = ModelSpec.from_manifest(bundle.manifest)
                _models.clear()
                _models[self.digest] = self.kind.from_spec(spec, bundle.weights, None)
            return _models[self.digest]


_models: dict[str, Any] = {}
"""The model of this process, by the digest of what it computes."""

_loading = threading.Lock()


def ship(model: Any, path: Path) -> ShippedModel:
    """Write a model where workers load it from.

    Args:
        model: A model.
        path: To write, with the suffix of bundles.

    Raises:
        ArgumentError: If it is built on a module of the user's own, which a bundle does not hold.
        FileWriteError: If it cannot be written.
    """
    if needed := model.spec.custom.get('backbone'):
        raise errors.ArgumentError(
            f'client= hands models to workers as bundles, which do not hold {needed}, your own module; compute parts '
            'with part= on each machine instead'
        )
    model.save(path, compute_metrics=False)
    facts = [type(model).__qualname__, model.spec.to_manifest(), weights_digest(model.network)]
    text = json.dumps(facts, sort_keys=True, default=str)
    return ShippedModel(type(model), str(path), hashlib.blake2b(text.encode(), digest_size=16).hexdigest())


# -- tasks


class Outcome(NamedTuple):
    """What became of a task: its result, or the text of the error that it failed with to the last."""

    item: Any
    result: Any
    error: str


def check_client(client: Any) -> Any:
    """Return the module distributed.

    Raises:
        MissingExtraError: If it is not installed.
        ArgumentError: If `client` is none of its clients, or an asynchronous one.
    """
    distributed = extras.require('distributed', extra='dask', to='work on a cluster')
    if not isinstance(client, distributed.Client) or client.asynchronous:
        raise errors.ArgumentError(
            f'client must be a dask.distributed.Client that is not asynchronous, got a {type(client).__name__}'
        )
    return distributed


def run_tasks(client: Any, function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Outcome]:
    """Call a function with each item on the workers; yield what became of each, in the order in which they end.

    The graph is flat. A task that fails, with whatever, or whose worker dies, is tried again.

    Args:
        client: Of Dask.
        function: To call; it travels with what it holds.
        items: Small values.

    Raises:
        RasterError: If the scheduler is lost.
    """
    distributed = check_client(client)
    futures = client.map(function, items, key=f'geolearn-{uuid.uuid4().hex[:12]}', retries=RETRIES, pure=False)
    item_of = {future.key: item for future, item in zip(futures, items)}
    try:
        for future in distributed.as_completed(futures):
            item = item_of[future.key]
            if future.status == 'finished':
                yield Outcome(item, future.result(), '')
            elif future.status == 'error':
                error = future.exception()
                kind = '' if isinstance(error, errors.GeoLearnError) else f'{type(error).__name__}: '
                yield Outcome(item, None, ' '.join(f'{kind}{error}'.split()))
            else:
                raise errors.RasterError(LOST)
            future.release()
    except (distributed.CancelledError, distributed.comm.CommClosedError) as error:
        raise errors.RasterError(LOST) from error
    finally:
        if client.status == 'running':
            client.cancel(futures)


LOST = (
    'the Dask scheduler was lost. What is finished is kept: the same call with a new client computes only what is '
    'missing'
)


# -- maps and objects


Request = TypeVar('Request', MapRequest, 'DetectRequest')


@dataclass(frozen=True, eq=False)
class ShareTask:
    """What a worker needs to compute a share, besides its number.

    Args:
        model: To compute with.
        request: What is asked for.
        numbers: Of the shares, in the order to compute them.
        compute: Computes a share of a request with a model; without a share it merges all.
    """

    model: ShippedModel
    request: Any
    numbers: Sequence[int]
    compute: Callable[[Any, Any, Share | None], Path]

    def __call__(self, number: int) -> int:
        """Compute a share; runs on a worker."""
        with report_progress(lambda _: None):
            self.compute(self.model.get(), self.request, Share(number, len(self.numbers)))
        return number

    def run(
        self, client: Any, model: Any, target: Path, *, megapixels: float, progress: ProgressFn | None = None
    ) -> Path:
        """Compute all shares on the workers and merge them here; return the result.

        Args:
            client: Of Dask.
            model: The same as the workers', in this process.
            target: Of the request.
            megapixels: Of the result.
            progress: Called after each block, and while the files are made.

        Raises:
            RasterError: If some fail, which are listed, or the scheduler is lost.
        """
        failed, count = [], len(self.numbers)
        with ProgressBar(count, 'computing', 'block') as bar:
            for outcome in run_tasks(client, self, self.numbers):
                if outcome.error:
                    failed.append(outcome)
                advance(bar, bar.count + 1, megapixels / count, progress)
        if failed:
            path = store.parts_folder(target) / FAILED
            _list_failed(path, failed)
            raise errors.RasterError(
                f'{len(failed)} of {count} blocks of {target} failed after {RETRIES + 1} tries, see {path}; the '
                f'first: {failed[0].error}. What is finished is kept: the same call computes only what is missing'
            )
        request = _here(self.request)
        if isinstance(request, MapRequest):
            request = replace(request, options=replace(request.options, progress=progress))
        return self.compute(model, request, None)


def _map_share(model: Any, request: MapRequest, share: Share | None) -> Path:
    request = replace(request, graph=model.onnx_graph)
    return shares.map_in_shares(model.spec, model.network, model.encoding, request, share)


def _detect_share(model: Any, request: 'DetectRequest', share: Share | None) -> Path:
    from geolearn.inference.detect_raster import detect_in_shares  # brings torchvision, whose import takes seconds

    return detect_in_shares(model.spec, model.network, request, share)


def map_on_cluster(model: Any, request: MapRequest, client: Any) -> Path:
    """Write a map whose shares are computed by the workers of a Dask cluster.

    Workers and this process see the raster and the folder of the map under the same paths.

    Args:
        model: Maps pixels.
        request: What is mapped.
        client: Of Dask.

    Returns:
        The path written.

    Raises:
        RasterError: If something does not fit, shares failed, which are listed, or the scheduler is lost; what is
            finished is kept for the next call.
        CheckpointError: If the folder holds shares of another map.
    """
    check_client(client)
    progress, options = request.options.progress, replace(request.options, progress=None, resume=False)
    request = replace(_portable(request), options=options, graph=None, measures=False)
    with ExitStack() as stack:
        plan = plan_map(model.spec, model.network, model.encoding, _here(request), stack)
        numbers, folder = _open_folder(plan.target, plan.grid, plan.window, client, plan.blend)
    tiling = replace(request.tiling, max_memory=_memory(request, folder, client))
    request = replace(request, tiling=tiling, read=replace(request.read, is_checked=True))
    task = ShareTask(ship(model, folder / f'model{SUFFIX}'), request, numbers, _map_share)
    megapixels = plan.window.height * plan.window.width / 1e6
    return task.run(client, model, plan.target, megapixels=megapixels, progress=progress)


def detect_on_cluster(model: Any, request: 'DetectRequest', client: Any) -> Path:
    """Write a layer of objects which the workers of a Dask cluster detect; see `map_on_cluster`.

    Args:
        model: Detects objects.
        request: What is asked for.
        client: Of Dask.

    Returns:
        The path written.

    Raises:
        RasterError: If something does not fit, shares failed, or the scheduler is lost.
        CheckpointError: If the folder holds shares of another run.
    """
    from geolearn.inference.detect_raster import plan_detection  # brings torchvision, whose import takes seconds

    check_client(client)
    request = replace(_portable(request), options=replace(request.options, resume=False))
    with ExitStack() as stack:
        plan = plan_detection(model.spec, model.network, _here(request), stack)
        height, width = plan.sources[0].shape
        window = Window(0, 0, width, height) if plan.area is None else plan.area.window
        numbers, folder = _open_folder(plan.target, plan.grid, window, client, 'crop')
    request = replace(request, read=replace(request.read, is_checked=True))
    task = ShareTask(ship(model, folder / f'model{SUFFIX}'), request, numbers, _detect_share)
    return task.run(client, model, plan.target, megapixels=window.height * window.width / 1e6)


def refuse_parts(part: Any, *, merge_parts: bool) -> None:
    """Refuse parts where a cluster computes them.

    Raises:
        ArgumentError: If there are some.
    """
    if part is not None or merge_parts:
        raise errors.ArgumentError('client= computes all parts and merges them; pass it without part= and merge_parts=')


def _open_folder(target: Path, grid: TileGrid, window: Window, client: Any, blend: Blend) -> tuple[Sequence[int], Path]:
    """Return the numbers of the shares of a window of a raster, in the order to compute them, and their folder."""
    begun = store.count_shares(target)
    threads = sum(client.nthreads().values())
    count = choose_count(grid, window, threads, blend) if begun is None else begun
    store.refuse_other_runs(target, Share(1, count))
    numbers: Sequence[int] = range(1, count + 1)
    if count <= 2 * FEW_BLOCKS:
        numbers = [number for _, number in _largest_first(grid, window, count, blend)]
    return numbers, store.make_folder(target, Share(1, count))


FAILED = 'failed.csv'


def choose_count(grid: TileGrid, window: Window, threads: int, blend: Blend = 'crop') -> int:
    """Return in how many blocks a raster is computed: by its size, and by the workers where it is small.

    Args:
        grid: How the raster is cut into tiles.
        window: What of it is mapped.
        threads: Of all workers.
        blend: How tiles meet.
    """
    pixels = int(window.height * window.width)
    for_all = min(BLOCKS_PER_THREAD * threads, math.ceil(pixels / LEAST_BLOCK_PIXELS[blend]))
    least = max(math.ceil(pixels / BLOCK_PIXELS), for_all, 1)
    if threads == 1 or least > FEW_BLOCKS:
        return least
    return min(range(least, 2 * least + 1), key=lambda count: (_last_end(grid, window, count, threads, blend), count))


def _last_end(grid: TileGrid, window: Window, count: int, threads: int, blend: Blend) -> float:
    """Return when the last of the blocks is done, in tiles, if each thread takes the next one as soon as it is free."""
    ends = [0.0] * threads
    for tiles, _ in _largest_first(grid, window, count, blend):
        if not tiles:
            return math.inf  # for so few tiles there are too many blocks
        heapq.heapreplace(ends, ends[0] + tiles + BLOCK_TILES)
    return max(ends)


def _largest_first(grid: TileGrid, window: Window, count: int, blend: Blend) -> list[tuple[int, int]]:
    """Return the number of tiles of each block and its own number, in the order in which workers take them."""
    blocks = []
    for number in range(1, count + 1):
        parts = plan_parts(grid, window, blend=blend, share=Share(number, count))
        blocks.append((sum(len(part.grid.rows) * len(part.grid.cols) for part in parts), number))
    return sorted(blocks, key=lambda block: -block[0])


def _memory(request: MapRequest, folder: Path, client: Any) -> int | None:
    """Return what rows and tiles of a block may take: as asked for, as in an earlier run, or by the workers' memory."""
    path = folder / 'cluster.json'
    if path.is_file():
        kept: int | None = json.loads(path.read_text())['max_memory']
        return kept
    memory = request.tiling.max_memory
    if memory is None:
        workers: Mapping[str, Any] = client.scheduler_info()['workers']
        limits = [info['memory_limit'] / info['nthreads'] for info in workers.values() if info['memory_limit']]
        if limits and min(limits) < DEFAULT_MEMORY:
            memory = int(MEMORY_SHARE * min(limits))
    with files.atomic_write(path) as part:
        part.write_text(json.dumps({'max_memory': memory}))
    return memory


def _portable(request: Request) -> Request:
    """Return a request whose paths mean the same on a worker."""
    read = request.read
    if read.area is not None:
        read = replace(read, area=replace(read.area, aoi=absolute(read.area.aoi)))
    return replace(request, src=absolute(request.src), dst=Path(request.dst).expanduser().absolute(), read=read)


def _here(request: Request) -> Request:
    """Return a request for this machine, which may have another device than workers."""
    return replace(request, tiling=replace(request.tiling, device=None))


def absolute(source: Any) -> Any:
    """Return a source with absolute paths of the files that are here."""
    if isinstance(source, list | tuple):
        return [absolute(each) for each in source]
    if isinstance(source, str | Path) and os.path.exists(source):
        return type(source)(os.path.abspath(source))
    return _absolute_inside(source) if isinstance(source, str) else source


def _absolute_inside(source: str) -> str:
    """Return a name of GDAL, such as ``HDF5:"scene.h5"://bands``, with the absolute path of the file that it names.

    Archives too: ``/vsizip/scene.zip/scene.tif`` and ``zip://scene.zip!scene.tif``.
    """
    if (source.startswith('/vsi') and not source.startswith(_ARCHIVES)) or re.match(_REMOTE, source):
        return source  # names no file of this machine, whatever lies beside
    if source.startswith('/vsi'):
        head, tail = re.match(r'((?:/vsi\w+/)+)(.*)', source, re.DOTALL).groups('')  # type: ignore[union-attr]
        parts = tail.split('/')
        ends = ('/'.join(parts[:count]) for count in range(1, len(parts) + 1))
        inner = next((path for path in ends if path and os.path.isfile(path)), None)
        return source if inner is None else f'{head}{os.path.abspath(inner)}{tail[len(inner) :]}'
    pieces = re.split(r'(://|[:"!?,])', source)
    # what follows lies inside of the first file, whatever is beside it
    number = next((number for number, piece in enumerate(pieces) if piece and os.path.isfile(piece)), None)
    if number is not None:
        pieces[number] = os.path.abspath(pieces[number])
    return ''.join(pieces)


_ARCHIVES = tuple(f'/vsi{kind}/' for kind in ('zip', 'tar', 'gzip', '7z', 'rar', 'subfile', 'sparse'))

_REMOTE = r'(?:https?|ftp|s3|gs|az|abfss?|swift|oss|hdfs)://'


def _list_failed(path: Path, failed: Sequence[Outcome]) -> None:
    with files.atomic_write(path) as part, part.open('w', newline='', encoding='utf-8') as file:
        writer = csv.writer(file)
        writer.writerow(['part', 'error'])
        writer.writerows([outcome.item, outcome.error] for outcome in sorted(failed, key=lambda each: each.item))
