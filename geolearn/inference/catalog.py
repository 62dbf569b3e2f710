"""Many scenes with one model: which scenes a catalog lists, and a manifest of what became of each."""

import csv
import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

from geolearn import extras, files
from geolearn.errors import RasterError
from geolearn.inference.resume import Journal
from geolearn.raster.arrays import ArrayRaster, is_array
from geolearn.raster.identity import digest_of_samples
from geolearn.raster.scene import SUFFIXES
from geolearn.raster.stac import is_stac, split_items

COLUMNS = ('location', 'path', 'file', 'filename')
"""Of a table of scenes: the first of these holds their files; `gdaltindex` calls it location."""

VECTORS = ('.gpkg', '.parquet', '.shp', '.fgb', '.geojson')
"""Suffixes of files that hold such a table."""


@dataclass(frozen=True, eq=False)
class Scene:
    """A scene of a catalog.

    Args:
        name: Unique in the catalog; its map is called so.
        source: A raster, or a list of several that make one mosaic or are dates.
    """

    name: str
    source: Any

    def state(self) -> Any:
        """Return what changes where the scene's files do, as JSON: their sizes and times."""
        return file_state(self.source)


def list_scenes(catalog: Any, *, folder: Path | None = None) -> list[Scene]:
    """List the scenes of a catalog.

    Args:
        catalog: A folder, of which each raster and each folder in it is a scene; a list of scenes; a GeoDataFrame or
            vector file with a column ``location`` or ``path``; or a STAC collection, each item of which is a scene.
        folder: Of the maps, which is no scene.

    Raises:
        RasterError: If it lists none, cannot be read, or is itself the folder of the maps.
    """
    target = None if folder is None else os.path.realpath(folder)
    if isinstance(catalog, str | Path) and os.path.realpath(Path(catalog).expanduser()) == target:
        raise RasterError(f'{folder} is the folder of the scenes; write the maps to another folder')
    scenes = [
        scene
        for scene in _scenes(catalog)
        if not isinstance(scene.source, Path) or os.path.realpath(scene.source) != target
    ]
    if not scenes:
        raise RasterError(f'{_shown(catalog)} lists no scene; pass a folder of rasters, or a list of files')
    counts = Counter(scene.name for scene in scenes)
    # scenes of the same name in several folders take the names of these too
    scenes = [
        replace(scene, name=f'{_parent(scene.source)}_{scene.name}') if counts[scene.name] > 1 else scene
        for scene in scenes
    ]
    counts = Counter(scene.name for scene in scenes)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise RasterError(f'{counts[twice[0]]} scenes are called {twice[0]}; give their files different names')
    return scenes


def _scenes(catalog: Any) -> Iterator[Scene]:
    if is_stac(catalog):
        yield from (Scene(name, item) for name, item in split_items(catalog))
        return
    if isinstance(catalog, str | Path):
        folder = Path(catalog).expanduser()
        if folder.is_dir():
            for path in sorted(folder.iterdir()):
                if not path.name.startswith('.') and (path.is_dir() or path.suffix.lower() in SUFFIXES):
                    yield Scene(path.stem, path)
            return
        if folder.suffix.lower() not in VECTORS or not folder.is_file():
            raise RasterError(f'{catalog} is no folder of scenes; pass a folder, a list of files, or a table of them')
        geopandas = extras.require('geopandas', extra='vector', to='read tables of scenes')
        read = geopandas.read_parquet if folder.suffix.lower() == '.parquet' else geopandas.read_file
        catalog = read(folder)
    if type(catalog).__module__.partition('.')[0] in ('geopandas', 'pandas'):
        catalog = list(_column(catalog))
    if not isinstance(catalog, Sequence):
        raise RasterError(f'a {type(catalog).__name__} lists no scenes; pass a folder, a list of files, or a table')
    yield from (Scene(_name(source, number), source) for number, source in enumerate(catalog, 1))


def _column(table: Any) -> Any:
    for name in COLUMNS:
        if name in table.columns:
            return table[name]
    raise RasterError(
        f'the table of scenes has the columns {", ".join(map(str, table.columns))}; call the one of the files '
        f'{COLUMNS[0]} or {COLUMNS[1]}'
    )


def _first(source: Any) -> Any:
    while isinstance(source, list | tuple) and source:
        source = source[0]
    return source


def _name(source: Any, number: int) -> str:
    first = _first(source)
    if is_stac(first) and isinstance(first, Mapping):
        return str(first.get('id') or f'scene_{number}')
    return Path(str(first)).stem if isinstance(first, str | Path) else f'scene_{number}'


def _parent(source: Any) -> str:
    first = _first(source)
    return Path(str(first)).absolute().parent.name if isinstance(first, str | Path) else type(first).__name__


def _shown(catalog: Any) -> str:
    return str(catalog) if isinstance(catalog, str | Path) else f'the {type(catalog).__name__}'


def file_state(source: Any) -> Any:
    """Return, as JSON, what changes where a source does: the size and time of a file, and of each file of a folder.

    Of items, arrays and layers in memory it is a hash of what they hold; of large arrays, of parts of it.
    """
    if isinstance(source, list | tuple):
        return [file_state(each) for each in source]
    try:
        if is_array(source):
            return digest_of_samples(ArrayRaster(source))
        if is_stac(source) and not isinstance(source, str | Path):
            return _hash(json.dumps([item for _, item in split_items(source)], sort_keys=True, default=str).encode())
    except RasterError as error:  # no map is made of it either
        return str(error)
    if isinstance(source, Mapping):
        return _hash(json.dumps(source, sort_keys=True, default=str).encode())
    if type(source).__module__.partition('.')[0] == 'geopandas':
        return _hash(repr(source.crs).encode(), *source.geometry.to_wkb())
    if (wkb := getattr(source, 'wkb', None)) is not None:  # a geometry of shapely
        return _hash(wkb)
    if not isinstance(source, str | Path):
        return type(source).__name__
    try:
        found = os.stat(source)
    except (OSError, ValueError):  # remote, or absent
        return str(source)
    if not os.path.isdir(source):
        return [str(source), found.st_size, found.st_mtime_ns]
    states = []
    # the time of a folder stays where a file in it is written anew
    for root, folders, names in os.walk(source):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(root, name)
            try:
                inner = os.stat(path)
            except OSError:  # a link to nothing
                continue
            states.append(repr((os.path.relpath(path, source), inner.st_size, inner.st_mtime_ns)).encode())
    return [str(source), _hash(*states)]


def _hash(*parts: bytes) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


@dataclass(frozen=True)
class SceneResult:
    """What became of a scene.

    Args:
        scene: Its name.
        map: Name of its map in the folder of maps.
        state: ``'done'`` or ``'failed'``.
        seconds: That it took.
        error: Why it failed; empty where it did not.
    """

    scene: str
    map: str
    state: Literal['done', 'failed']
    seconds: float
    error: str = ''


WRITE_SECONDS = 5.0
"""Between two times that the manifest is written."""

MANIFEST = 'manifest.csv'

JOURNAL = 'manifest.journal'


class Manifest:
    """What became of the scenes of a catalog, in a folder of maps: ``manifest.csv``, whole at any time.

    A journal beside it has the same, line by line, and what is being computed.

    Args:
        folder: Of the maps; made if it is not there.
        scenes: Of the catalog.
        suffix: Of the maps.
        facts: What must be equal for maps of an earlier run to be kept, as JSON.
        anew: Whether maps of an earlier run are forgotten.

    Raises:
        CheckpointError: If the folder holds maps of another model or of other options, or another process writes it.
    """

    def __init__(
        self, folder: Path, scenes: Sequence[Scene], suffix: str, facts: Mapping[str, Any], *, anew: bool
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._scenes, self._suffix = folder, scenes, suffix
        path = folder / JOURNAL
        known = not anew and path.is_file() and b'\n' in path.read_bytes()
        instead = 'pass overwrite=True to map all scenes anew, or another folder'
        self._journal = Journal(path, json.loads(json.dumps(facts, default=str)), resume=known, instead=instead)
        self._rows: dict[str, Mapping[str, Any]] = {str(row.get('scene')): row for row in self._journal.steps}
        self._written = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._write()
        self._journal.close()

    def target(self, scene: Scene) -> Path:
        """Return the file of a scene's map."""
        return self._folder / f'{scene.name}{self._suffix}'

    def missing(self) -> list[Scene]:
        """Return the scenes without a map, or whose files have changed since it was made."""
        return [scene for scene in self._scenes if not self._is_done(scene)]

    def was_begun(self, scene: Scene) -> bool:
        """Whether a map of this scene may be what an earlier run wrote and did not note."""
        return self._rows.get(scene.name, {}).get('state') in ('begun', 'done')

    def begin(self, scene: Scene) -> None:
        """Note that the map of a scene is about to be computed."""
        self._journal.add({'scene': scene.name, 'state': 'begun'})

    def add(self, scene: Scene, result: SceneResult) -> None:
        """Note what became of a scene."""
        self._rows[scene.name] = {**asdict(result), 'source': _as_json(scene.state())}
        self._journal.add(self._rows[scene.name])
        if time.monotonic() - self._written > WRITE_SECONDS:
            self._write()

    def results(self) -> tuple[SceneResult, ...]:
        """Return what became of the scenes, in the order of the catalog."""
        rows = [self._rows.get(scene.name, {}) for scene in self._scenes]
        known = [row for row in rows if row.get('state') in ('done', 'failed')]
        return tuple(
            SceneResult(row['scene'], row['map'], row['state'], float(row['seconds']), row['error']) for row in known
        )

    def _is_done(self, scene: Scene) -> bool:
        row = self._rows.get(scene.name, {})
        same = row.get('state') == 'done' and row.get('source') == _as_json(scene.state())
        return same and self.target(scene).is_file()

    def _write(self) -> None:
        self._written = time.monotonic()
        with (
            files.atomic_write(self._folder / MANIFEST) as part,
            part.open('w', newline='', encoding='utf-8') as file,
        ):
            writer = csv.DictWriter(file, list(SceneResult.__dataclass_fields__))
            writer.writeheader()
            writer.writerows(asdict(result) for result in self.results())


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))
