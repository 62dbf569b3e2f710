"""Which published weights are on this machine: list, download and verify them by the backbones' names."""

import os
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from geolearn.backbones import catalog
from geolearn.backbones.weights import WEIGHTS_DIR, fetch, find_in_folder, hub_cache, verify
from geolearn.errors import WeightsError


@dataclass(frozen=True, slots=True)
class WeightsStatus:
    """The published weights of one backbone.

    Args:
        name: Of the backbone.
        file: Name of the preferred file.
        repo: Where it is published on the Hugging Face hub.
        path: Where it, or another published file of the same weights, lies on this machine; None if nowhere.
    """

    name: str
    file: str
    repo: str
    path: Path | None


def find_weights(record: catalog.WeightsRecord) -> Path | None:
    """Find a published file of a record on this machine, in the folder GEOLEARN_WEIGHTS_DIR and the hub's cache.

    Nothing is read, verified or fetched.
    """
    folder = os.environ.get(WEIGHTS_DIR)
    for source in record.sources:
        if folder and (path := find_in_folder(folder, source)):
            return path
    for source in record.sources:
        found = try_to_load_from_cache(source.repo, source.file, cache_dir=hub_cache(), revision=source.revision)
        if isinstance(found, str):
            return Path(found)
    return None


def list_weights(pattern: str = '*') -> list[WeightsStatus]:
    """List the backbones with published weights whose names match a shell pattern, and what is here of them."""
    return [
        WeightsStatus(record.name, record.sources[0].file, record.sources[0].repo, find_weights(record))
        for record in catalog.read_catalog().values()
        if record.sources and fnmatchcase(record.name, pattern)
    ]


def download_weights(name: str) -> Path:
    """Fetch and verify the weights of a backbone, unless they are here; return the file.

    Raises:
        UnknownNameError: If the catalog has no such name.
        WeightsError: If they cannot be had, or are not what was published.
    """
    return fetch(catalog.get_record(catalog.read_aliases().get(name, name)))


def verify_weights(name: str) -> Path:
    """Hash the weights of a backbone that lie on this machine, and return the file; nothing is fetched.

    Raises:
        UnknownNameError: If the catalog has no such name.
        WeightsError: If they are not here, or are not what was published.
    """
    record = catalog.get_record(catalog.read_aliases().get(name, name))
    path = find_weights(record)
    if path is None:
        raise WeightsError(f'the weights of {record.name} are not on this machine; download them first')
    source = next(s for s in record.sources if Path(s.file).name == path.name)
    return verify(path, record, source)
