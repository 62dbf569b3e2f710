"""Get weights: find the published file on this machine or fetch it, and verify it."""

import errno
import hashlib
import logging
import os
import socket
import threading
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HfHubHTTPError

from geolearn.backbones import catalog
from geolearn.backbones.catalog import WeightsRecord, WeightsSource
from geolearn.errors import WeightsError

log = logging.getLogger('geolearn')

WEIGHTS_DIR = 'GEOLEARN_WEIGHTS_DIR'
"""Environment variable that names a folder of weight files, searched before any download."""

ANYBODYS_NAMES = ('model.safetensors', 'pytorch_model.bin')
"""File names that say nothing about whose weights they are."""

HUB = 'https://huggingface.co'

PATIENCE = 10.0
"""Seconds that a host gets to answer before it counts as out of reach."""

ADVICE = f"pass weights='<file or folder>', set {WEIGHTS_DIR} to a folder that holds it, or pass pretrained=False"
"""What to do when weights cannot be had."""

# The hub's own error derives from its HTTP library's root error (requests, httpx ... by version), which a connection
# that breaks half way raises bare.
DOWNLOAD_ERRORS: tuple[type[Exception], ...] = (
    OSError,
    HfHubHTTPError,
    HfHubHTTPError.__bases__[0],
    EntryNotFoundError,
)
"""What downloads fail with."""


def fetch(record: WeightsRecord, weights: str | Path | None = None) -> Path:
    """Find the weights of `record`, downloading them where no folder holds them, and verify their sha256.

    Args:
        record: Which weights.
        weights: A file to take instead, whatever its hash as long as it is not refused; or a folder to find a
            published file in. None looks into the folder that GEOLEARN_WEIGHTS_DIR names, then into the cache of the
            Hugging Face hub, then downloads.
    """
    weights = None if weights is None else Path(weights).expanduser()
    if weights is not None and weights.is_file():
        return _not_refused(weights, record)
    if weights is not None and not weights.is_dir():
        raise WeightsError(f'weights must be a file or a folder, found neither at {weights}')
    folder = weights if weights is not None else os.environ.get(WEIGHTS_DIR)
    for source in record.sources if folder else ():
        if path := find_in_folder(str(folder), source):
            return verify(path, record, source)
    if weights is not None:
        names = [source.file for source in record.sources] or 'no published file; name the file itself'
        raise WeightsError(f'{weights} holds no weights of {record.name}; looked for {names}')
    if not record.sources:
        raise WeightsError(f'no weights are published for {record.name}; pass pretrained=False or weights=<file>')
    return _download(record, record.sources[0])


def find_in_folder(folder: str | Path, source: WeightsSource) -> Path | None:
    """Find a published file in a folder: under its name, or in a folder named as its repository; None if absent."""
    name = Path(source.file).name
    places = [Path(folder, source.repo.rpartition('/')[2], name)]
    if name not in ANYBODYS_NAMES:
        places += [Path(folder, source.file), Path(folder, name)]
    return next((path for path in places if path.is_file()), None)


def hub_cache() -> Path | None:
    """Return the hub's cache folder as the environment names it now; None leaves it to the hub's client."""
    home = os.environ.get('HF_HOME')
    named = os.environ.get('HF_HUB_CACHE')
    return Path(named) if named else Path(home, 'hub') if home else None


def is_offline() -> bool:
    """Whether the environment forbids downloads (HF_HUB_OFFLINE)."""
    return os.environ.get('HF_HUB_OFFLINE', '').lower() in ('1', 'true', 'yes', 'on')


def hub_address() -> str:
    """Return the address of the hub as the environment names it now."""
    return os.environ.get('HF_ENDPOINT') or HUB


def find_in_cache(repo: str, file: str, revision: str | None = None) -> Path | None:
    """Find a file of the hub in its cache on this machine; None where it is not there."""
    found = try_to_load_from_cache(repo, file, cache_dir=hub_cache(), revision=revision)
    return Path(found) if isinstance(found, str) else None


def connection_fault(address: str) -> str | None:
    """Try to reach a host, for at most `PATIENCE` seconds; return what went wrong, or None where it answers.

    Clients of the hub try again for half a minute or more before they say that there is no network. Where a proxy
    stands between, only they can tell.
    """
    url = urlsplit(address)
    host, port = url.hostname or '', url.port or (443 if url.scheme == 'https' else 80)
    if url.scheme in getproxies() and not proxy_bypass(host):
        return None
    faults: list[str | None] = []

    def reach() -> None:
        try:
            socket.create_connection((host, port), timeout=PATIENCE).close()
        except OSError as error:
            faults.append(error.strerror or str(error))
        else:
            faults.append(None)

    # a thread, since the look-up of a name cannot be stopped
    thread = threading.Thread(target=reach, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    if faults and faults[0] is None:
        return None
    return f'{host} cannot be reached: {faults[0] if faults else f"no answer in {PATIENCE:g} s"}; no connection'


def _download(record: WeightsRecord, source: WeightsSource) -> Path:
    where = f'{source.file} of {source.repo} at {source.revision[:7]}'
    cached = is_offline() or find_in_cache(source.repo, source.file, source.revision) is not None
    if fault := None if cached else connection_fault(hub_address()):
        raise WeightsError(f'{where} could not be downloaded ({fault}); {ADVICE}')
    try:
        found = hf_hub_download(
            source.repo,
            source.file,
            revision=source.revision,
            endpoint=os.environ.get('HF_ENDPOINT'),
            cache_dir=hub_cache(),
            local_files_only=is_offline(),
        )
    except DOWNLOAD_ERRORS as error:
        reason = str(error).strip().split('\n')[0]
        advice = _advise(error, record, source)
        raise WeightsError(f'{where} could not be downloaded ({type(error).__name__}: {reason}); {advice}') from error
    try:
        return verify(Path(found), record, source)
    except WeightsError:
        blob = Path(found).resolve()
        Path(found).unlink()
        blob.unlink(missing_ok=True)
        raise


def _advise(error: Exception, record: WeightsRecord, source: WeightsSource) -> str:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f'the disk of {hub_cache() or "the cache"} is full: free space, or set HF_HOME to a folder on another'
    if is_offline():
        return f'HF_HUB_OFFLINE is set: unset it, or {ADVICE}'
    if record.gated or isinstance(error, GatedRepoError):
        return f'accept its license on huggingface.co/{source.repo} and set HF_TOKEN, or {ADVICE}'
    return ADVICE


def verify(path: Path, record: WeightsRecord, source: WeightsSource) -> Path:
    """Return `path` if it is the published file, or raise WeightsError; without a published hash it is not checked."""
    digest = _sha256(_not_refused(path, record))
    if not source.sha256:
        log.warning('no sha256 of %s is known to compare with; that of %s is %s', source.file, path, digest)
    if not digest.startswith(source.sha256):
        raise WeightsError(f'{path} is not the published {source.file}: sha256 {digest}, needed {source.sha256}')
    return path


def _not_refused(path: Path, record: WeightsRecord) -> Path:
    if record.refuse:
        digest = _sha256(path)
        for refused in record.refuse:
            if digest.startswith(refused.sha256) or refused.sha256[:8] in path.name:
                raise WeightsError(f'{path} is refused: {refused.reason}')
    return path


def _sha256(path: Path) -> str:
    with path.open('rb') as stream:
        return hashlib.file_digest(stream, 'sha256').hexdigest()


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
        if path := find_in_cache(source.repo, source.file, source.revision):
            return path
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
