"""Read catalog.yaml: what each encoder looks like, where its weights are and what they were trained on."""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from geolearn.errors import UnknownNameError


@dataclass(frozen=True, slots=True)
class WeightsSource:
    """One published file, pinned.

    Args:
        repo: Repository on the Hugging Face hub.
        revision: Commit of that repository.
        file: Name of the file in it.
        sha256: Of the file, in full or its first hex digits.
    """

    repo: str
    revision: str
    file: str
    sha256: str


@dataclass(frozen=True, slots=True)
class RefusedFile:
    """A file that would load and be wrong: its sha256 (or first hex digits) and the reason."""

    sha256: str
    reason: str


@dataclass(frozen=True, slots=True)
class InputStatistics:
    """What pretraining fed: mean and std per band, on the scale that `scale` states (such as ``'0-255'``)."""

    sensor: str
    scale: str
    bands: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if not len(self.bands) == len(self.mean) == len(self.std):
            raise ValueError(f'statistics of {self.sensor} must give one mean and one std for each of {self.bands}')


@dataclass(frozen=True, slots=True)
class WeightsRecord:
    """One encoder.

    Args:
        name: Name for `create_backbone`.
        family: Which code builds it.
        dim: Width.
        depth: Number of blocks.
        heads: Attention heads.
        patch: Patch side, in pixels.
        grid: Side of the token grid at pretraining.
        licence: SPDX name of the weights' licence.
        paper: Where it was published.
        sources: Published files, the preferred one first; empty where none are published.
        wrappers: Keys that may hold the state dict inside a file.
        prefixes: Prefixes to take off parameter names.
        drop: Patterns of parameters that the encoder does not use.
        refuse: Files that must not be loaded.
        inputs: Statistics of the pretraining inputs.
        note: What a user should know.
    """

    name: str
    family: str
    dim: int
    depth: int
    heads: int
    patch: int
    grid: int
    licence: str
    paper: str
    sources: tuple[WeightsSource, ...] = ()
    wrappers: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    refuse: tuple[RefusedFile, ...] = ()
    inputs: tuple[InputStatistics, ...] = ()
    note: str = ''


def get_record(name: str) -> WeightsRecord:
    """Look up one record by name."""
    records = read_catalog()
    if name not in records:
        raise UnknownNameError('weights record', name, records)
    return records[name]


@cache
def read_catalog() -> dict[str, WeightsRecord]:
    """Read every record of the catalog, by name, in the order of the file."""
    content = yaml.safe_load(files('geolearn.backbones').joinpath('catalog.yaml').read_text(encoding='utf-8'))
    return {name: _record(name, entry) for name, entry in content['weights'].items()}


def _record(name: str, entry: dict[str, Any]) -> WeightsRecord:
    nested = {
        'sources': tuple(WeightsSource(**source) for source in entry['sources']),
        'refuse': tuple(RefusedFile(**refused) for refused in entry['refuse']),
        'inputs': tuple(InputStatistics(**_tuples(statistics)) for statistics in entry['inputs']),
    }
    return WeightsRecord(name=name, **{**_tuples(entry), **nested})


def _tuples(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
