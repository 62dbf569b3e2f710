"""Read the catalog: what each encoder looks like, where its weights are and what they were trained on.

Each file of the folder ``catalog`` holds one family; its comment lines at the top of ``dofa.yaml`` explain the keys.
"""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from geolearn.bands import Band, get_bands
from geolearn.errors import BackboneError, UnknownNameError

PHYSICAL = 'physical'
"""In the place of a sensor: bands are quantities by their names, such as elevation, in the units of `scale`."""

ABSENT = {
    'alphaearth': (
        'AlphaEarth is no backbone but a product of yearly embeddings, whose model is not published: take the '
        'embeddings as bands, as docs/precomputed-embeddings.md says, or presto, whose model sees a year too'
    ),
}
"""Networks of the field that people ask for by name and that are not there: why, and what to take instead."""


@dataclass(frozen=True, slots=True)
class WeightsSource:
    """One published file, pinned where its revision and hash are known.

    Args:
        repo: Repository on the Hugging Face hub.
        revision: Commit of that repository; ``'main'`` where none is known.
        file: Path of the file in it.
        sha256: Of the file, in full or its first hex digits; empty where it is not known.
    """

    repo: str
    revision: str
    file: str
    sha256: str = ''


@dataclass(frozen=True, slots=True)
class RefusedFile:
    """A file that would load and be wrong: its sha256 (or first hex digits) and the reason."""

    sha256: str
    reason: str


@dataclass(frozen=True, slots=True)
class InputStatistics:
    """What pretraining fed.

    Args:
        sensor: Key of the sensor whose names `bands` are, as in `geolearn.bands.list_sensors`; `PHYSICAL` for
            quantities that no sensor's bands are, such as elevation.
        scale: Units of the pixels, such as ``'0-255'`` or ``'reflectance x 10000'``.
        bands: Names of the bands, in the order in which the weights take them.
        mean: Of each band, in those units; empty where none is published.
        std: Of each band, in those units; empty where none is published.
        gsd_m: Ground sample distance in meters, where pretraining had one.
    """

    sensor: str
    scale: str
    bands: tuple[str, ...]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    gsd_m: float | None = None

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or len(self.mean) not in (0, len(self.bands)):
            raise ValueError(f'statistics of {self.sensor} must give one mean and one std for each of {self.bands}')

    def get_bands(self) -> tuple[Band, ...]:
        """Return the bands with their wavelengths, in the order in which the weights take them."""
        if self.sensor == PHYSICAL:
            return tuple(Band(name) for name in self.bands)
        return get_bands(self.sensor, self.bands)


@dataclass(frozen=True, slots=True)
class WeightsRecord:
    """One encoder.

    Args:
        name: Name for `create_backbone`.
        family: Which code builds it.
        dim: Width.
        depth: Number of blocks.
        heads: Attention heads; 0 for a convolutional network, whose `patch` and `grid` say nothing.
        patch: Patch side, in pixels.
        grid: Side of the token grid at pretraining.
        license: SPDX name of the weights' license.
        paper: Where it was published.
        parameters: Number of parameters of the trunk, for its own bands, or three where it has none; 0 where it is
            not known.
        aliases: Other names for `create_backbone`, such as ArcGIS's.
        sources: Published files, the preferred one first; empty where none are published.
        wrappers: Keys that may hold the state dict inside a file.
        prefixes: Prefixes to take off parameter names.
        drop: Patterns of parameters that the encoder does not use.
        refuse: Files that must not be loaded.
        inputs: What pretraining fed; the first is what fixed kernels were made for.
        any_bands: Whether kernels are made from wavelengths, so that any bands will do.
        own_scaling: Whether inputs must be scaled as in pretraining, because the network computes with their values.
        unknown_scaling: Whether it is not published how inputs were scaled in pretraining, so that the user says it.
        needs_places: Whether the network has to know where images lie.
        non_commercial: Whether the license forbids commercial use.
        gated: Whether the hub asks for an agreement and a token first.
        terms: What the license asks for or forbids beyond that, said once when weights are loaded.
        note: What a user should know.
    """

    name: str
    family: str
    dim: int
    depth: int
    heads: int
    patch: int
    grid: int
    license: str
    paper: str
    parameters: int = 0
    aliases: tuple[str, ...] = ()
    sources: tuple[WeightsSource, ...] = ()
    wrappers: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    refuse: tuple[RefusedFile, ...] = ()
    inputs: tuple[InputStatistics, ...] = ()
    any_bands: bool = False
    own_scaling: bool = False
    unknown_scaling: bool = False
    needs_places: bool = False
    non_commercial: bool = False
    gated: bool = False
    terms: str = ''
    note: str = ''

    @property
    def source_bands(self) -> tuple[Band, ...]:
        """The bands that fixed kernels were made for, in order."""
        return self.inputs[0].get_bands()


def get_record(name: str) -> WeightsRecord:
    """Look up one record by name."""
    records = read_catalog()
    if name not in records:
        raise UnknownNameError('weights record', name, records)
    return records[name]


def refuse_absent(name: str) -> None:
    """Raise BackboneError where a name, with whatever size or version behind it, is one of `ABSENT`."""
    plain = name.lower().replace('_', '').replace('-', '')
    for absent, reason in ABSENT.items():
        if plain.startswith(absent):
            raise BackboneError(reason)


def find_record(name: str) -> WeightsRecord | None:
    """Look up the record of a backbone by name or alias; None for those of other libraries."""
    return read_catalog().get(read_aliases().get(name, name))


def needs_own_scaling(name: str) -> bool:
    """Whether the inputs of a backbone, by name or alias, must be scaled as in its pretraining."""
    record = find_record(name)
    return record is not None and record.own_scaling


def needs_places(name: str) -> bool:
    """Whether a backbone, by name or alias, has to know where images lie."""
    record = find_record(name)
    return record is not None and record.needs_places


@cache
def read_catalog() -> dict[str, WeightsRecord]:
    """Read every record of the catalog, by name, in the order of the files' names and of their lines."""
    folder = files('geolearn.backbones').joinpath('catalog')
    records: dict[str, WeightsRecord] = {}
    for path in sorted((path for path in folder.iterdir() if path.name.endswith('.yaml')), key=lambda path: path.name):
        for name, entry in yaml.safe_load(path.read_text(encoding='utf-8'))['weights'].items():
            if name in records:
                raise ValueError(f'{path.name} holds {name!r}, which another file of the catalog holds too')
            records[name] = _record(name, entry)
    return records


@cache
def read_aliases() -> dict[str, str]:
    """Map every alias of the catalog to the name of its record."""
    records = read_catalog()
    pairs = [(alias, record.name) for record in records.values() for alias in record.aliases]
    aliases = dict(pairs)
    if len(aliases) < len(pairs) or aliases.keys() & records.keys():
        raise ValueError('an alias of the catalog is the name or the alias of another record')
    return aliases


def _record(name: str, entry: dict[str, Any]) -> WeightsRecord:
    nested = {
        'sources': tuple(WeightsSource(**source) for source in entry.get('sources', ())),
        'refuse': tuple(RefusedFile(**refused) for refused in entry.get('refuse', ())),
        'inputs': tuple(InputStatistics(**_tuples(statistics)) for statistics in entry.get('inputs', ())),
    }
    return WeightsRecord(name=name, **{**_tuples(entry), **nested})


def _tuples(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
