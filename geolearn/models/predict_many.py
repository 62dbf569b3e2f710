"""`predict_many`, a function that `Model` takes as its method: one model on all scenes of a catalog."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from rasterio.errors import RasterioError

from geolearn import errors, progress
from geolearn.bundle import SUFFIX
from geolearn.inference import cluster, computing
from geolearn.inference.catalog import MANIFEST, Manifest, Scene, SceneResult, file_state, list_scenes
from geolearn.inference.options import TilingOptions
from geolearn.inference.resume import weights_digest
from geolearn.inference.targets import find_source
from geolearn.models.raster_use import NOT_EACH, READING, UsesRasters
from geolearn.precision import choose_precision

log = logging.getLogger('geolearn')

FAILURES = (errors.GeoLearnError, RasterioError, OSError, ValueError, ArithmeticError, LookupError, RuntimeError)
"""What a scene may fail with while others are fine; memory that does not suffice is among them."""


@dataclass(frozen=True)
class ManyResult:
    """What became of the scenes of a catalog.

    Args:
        folder: Of the maps, and of ``manifest.csv``, which says the same.
        scenes: In the order of the catalog.
    """

    folder: Path
    scenes: tuple[SceneResult, ...]

    @property
    def failed(self) -> tuple[SceneResult, ...]:
        """The scenes that have no map, with the reason."""
        return tuple(result for result in self.scenes if result.state == 'failed')

    def __str__(self) -> str:
        done = len(self.scenes) - len(self.failed)
        text = f'{done} of {len(self.scenes)} scenes are mapped in {self.folder}'
        if self.failed:
            first = self.failed[0]
            text += f'; {len(self.failed)} failed, see {MANIFEST}; the first, {first.scene}: {first.error}'
        return text


def predict_many(
    self: UsesRasters,
    catalog: Any,
    folder: str | Path,
    *,
    options: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    client: Any = None,
) -> ManyResult:
    """Map, or detect objects in, all scenes of a catalog; a scene that fails is listed, and the others go on.

    ``manifest.csv`` in the folder has a row for each scene: its map, state, seconds and error. The same call again does
    only the scenes that are missing, have failed, or whose files have changed since.

    Args:
        self: The model.
        catalog: A folder, of which each raster and each folder in it is a scene; a list of scenes, each of them what
            `predict_raster` takes; a GeoDataFrame or vector file with a column ``location`` or ``path``; or a STAC
            collection, each item of which is a scene. Models of several dates take lists of lists.
        folder: For the results, each called as its scene; made if it is not there.
        options: Keywords of `predict_raster` or `detect_objects` that hold for all scenes, such as
            ``{'resolution': 'training'}``.
        overwrite: Map all scenes anew, and replace files that exist.
        client: A `dask.distributed.Client`: its workers, which see the same disk, map a scene each. One that fails is
            tried again twice.

    Returns:
        What became of each scene.

    Raises:
        ArgumentError: If there is no such option.
        RasterError: If the catalog lists no scene, or a map would replace a raster of the catalog.
        CheckpointError: If the folder holds maps of another model or of other options, or another process writes it.
    """
    return map_catalog(self, catalog, folder, options or {}, overwrite=overwrite, client=client)


def map_catalog(
    model: UsesRasters,
    catalog: Any,
    folder: str | Path,
    options: Mapping[str, Any],
    *,
    overwrite: bool,
    client: Any = None,
    facts: Mapping[str, Any] | None = None,
) -> ManyResult:
    """Do what `predict_many` does.

    Args:
        model: What maps.
        catalog: Of scenes.
        folder: For the results.
        options: That hold for all scenes.
        overwrite: Map all scenes anew.
        client: Of Dask, whose workers map.
        facts: What else must be equal for maps of an earlier run to be kept, as JSON.

    Raises:
        ArgumentError: If there is no such option.
        RasterError: If the catalog lists no scene, or a map would replace a raster of the catalog.
        CheckpointError: If the folder holds maps of another model or of other options, or another process writes it.
    """
    given = dict(options)
    check_options(model, given, here=client is None)
    folder = Path(folder).expanduser()
    scenes = list_scenes(catalog, folder=folder)
    same = {'model': model.spec.model, 'weights': weights_digest(model.network), 'options': given, **(facts or {})}
    if (area := given.get('aoi')) is not None:
        same['area of interest'] = file_state(area)
        if not isinstance(area, str | Path):  # of which JSON would hold what is printed
            same['options'] = {**given, 'aoi': type(area).__name__}
    with Manifest(folder, scenes, model.raster_use.suffixes[0], same, anew=overwrite) as manifest:
        missing = manifest.missing()
        found = find_source([scene.source for scene in scenes], map(manifest.target, missing))
        if found is not None:
            raise errors.RasterError(
                f'{found.target} is a raster of this catalog, and would be the map of a scene of that name; write the '
                'maps to another folder'
            )
        if kept := len(scenes) - len(missing):
            log.info('%s of %s scenes are mapped already', kept, len(scenes))
        work = Work(manifest, given, overwrite)
        each = _map_each(model, missing, work) if client is None else _map_on_workers(model, missing, work, client)
        with progress.ProgressBar(len(scenes), 'mapping', 'scene', initial=kept) as bar:
            for scene, result in each:
                manifest.add(scene, result)
                bar.update(detail=scene.name)
        return ManyResult(folder, manifest.results())


def check_options(model: UsesRasters, options: Mapping[str, Any], *, here: bool) -> None:
    """Refuse options that no scene could be mapped with.

    Args:
        model: What maps.
        options: That hold for all scenes.
        here: Whether this machine maps, whose devices are known, or others.

    Raises:
        ArgumentError: If the model has no such option.
        ValueError: If one of those on tiles has a value that is not valid, or that the device cannot compute in.
    """
    known = [name for name in (*model.raster_use.options, *READING) if name not in NOT_EACH]
    unknown = sorted(set(options) - set(known))
    if unknown:
        name = type(model).__name__
        raise errors.ArgumentError(f'options of a {name} are {", ".join(sorted(known))}; got {", ".join(unknown)}')
    tiling = {name: value for name, value in options.items() if name in TilingOptions.__dataclass_fields__}
    with suppress(TypeError):  # the method of the model says of what type a value must be
        chosen = TilingOptions(**tiling)
        if here:
            choose_precision(chosen.mixed_precision, computing.choose_compute_device(chosen))


class Work(NamedTuple):
    """Where maps of scenes go, and how they are made."""

    manifest: Manifest
    options: Mapping[str, Any]
    overwrite: bool

    def begin(self, scene: Scene) -> bool:
        """Note that a scene is about to be mapped; returns whether its map may be replaced."""
        replaced = self.overwrite or self.manifest.was_begun(scene)
        self.manifest.begin(scene)
        return replaced


def _map_each(model: UsesRasters, scenes: Sequence[Scene], work: Work) -> Iterator[tuple[Scene, SceneResult]]:
    """Map scenes one after the other."""
    for scene in scenes:
        replaced = work.begin(scene)
        yield scene, map_scene(model, scene, work.manifest.target(scene), work.options, overwrite=replaced)


def _map_on_workers(
    model: UsesRasters, scenes: Sequence[Scene], work: Work, client: Any
) -> Iterator[tuple[Scene, SceneResult]]:
    """Map scenes on a cluster, in the order in which they are done."""
    cluster.check_client(client)
    if not scenes:
        return
    targets = [work.manifest.target(scene).absolute() for scene in scenes]
    path = targets[0].parent / f'.model{SUFFIX}'
    try:
        # workers may have been started in another folder
        options = {name: cluster.absolute(value) if name == 'aoi' else value for name, value in work.options.items()}
        task = SceneTask(cluster.ship(model, path), options)
        items = [
            (number, replace(scene, source=cluster.absolute(scene.source)), target, work.begin(scene))
            for number, (scene, target) in enumerate(zip(scenes, targets))
        ]
        for (number, *_), result, error in cluster.run_tasks(client, task, items):
            scene, target = scenes[number], targets[number]
            yield scene, result or SceneResult(scene.name, target.name, 'failed', 0.0, error)
    finally:
        path.unlink(missing_ok=True)


@dataclass(frozen=True, eq=False)
class SceneTask:
    """What a worker needs to map a scene, besides the scene."""

    model: cluster.ShippedModel
    options: Mapping[str, Any]

    def __call__(self, item: tuple[int, Scene, Path, bool]) -> SceneResult:
        """Map a scene; runs on a worker, and raises what the scene failed with, so that it is tried again."""
        _, scene, target, overwrite = item
        result = map_scene(self.model.get(), scene, target, self.options, overwrite=overwrite)
        if result.error:
            raise errors.RasterError(result.error)
        return result


def map_scene(
    model: UsesRasters, scene: Scene, target: Path, options: Mapping[str, Any], *, overwrite: bool
) -> SceneResult:
    """Map a scene, or say why it cannot be.

    Args:
        model: The model.
        scene: To map.
        target: Its map.
        options: Keywords of what the model does with rasters.
        overwrite: Whether to replace a map that exists.
    """
    sources = list(scene.source) if isinstance(scene.source, list | tuple) else [scene.source]
    started, error = time.perf_counter(), ''
    try:
        with progress.report_progress(lambda _: None):
            _use(model, sources, target, {**options, 'overwrite': overwrite})
    except (errors.UnknownNameError, errors.MissingExtraError, errors.ArgumentError):
        raise  # no scene would do better
    except (*FAILURES, MemoryError) as failure:
        error = ' '.join(str(failure).split()) or type(failure).__name__
        log.warning('%s failed: %s', scene.name, error)
    seconds = round(time.perf_counter() - started, 3)
    return SceneResult(scene.name, target.name, 'failed' if error else 'done', seconds, error)


def _use(model: UsesRasters, sources: Sequence[Any], target: Path, options: Mapping[str, Any]) -> None:
    """Go on with what a run that was killed left of a scene, if it can be gone on with."""
    if target.with_name(f'{target.name}.part').exists() and 'resume' in model.raster_use.options:
        try:
            model.use_on_raster(sources, target, {**options, 'resume': True})
        except errors.CheckpointError as error:
            log.info('%s; %s is mapped anew', error, target)
        else:
            return
    model.use_on_raster(sources, target, options)
