"""Get weights: find or fetch the file, verify it, read it without running code, load it strictly with a report."""

import errno
import hashlib
import logging
import os
import pickle
import struct
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HfHubHTTPError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from geolearn.backbones import catalog
from geolearn.backbones.catalog import WeightsRecord, WeightsSource
from geolearn.errors import WeightsError

log = logging.getLogger('geolearn')

WEIGHTS_DIR = 'GEOLEARN_WEIGHTS_DIR'
"""Environment variable that names a folder of weight files, searched before any download."""

ANYBODYS_NAMES = ('model.safetensors', 'pytorch_model.bin')
"""File names that say nothing about whose weights they are."""

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

# Damaged pickles fail in whatever step first meets the damage.
_BROKEN_FILE: tuple[type[Exception], ...] = (
    *(OSError, EOFError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError),
    *(ArithmeticError, MemoryError, struct.error, pickle.UnpicklingError, SafetensorError),
)


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a strict load did, as names of parameters and buffers.

    Args:
        matched: Loaded.
        missing: Not in the file; left at their initial values, as declared.
        unexpected: In the file and not used by the network; dropped, as declared.
        resized: Loaded after being resampled to another shape.
        source: Where the weights came from.
    """

    matched: tuple[str, ...]
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    resized: tuple[str, ...] = ()
    source: str = ''

    def __str__(self) -> str:
        """Say it in a line for the reader of a log."""
        text = f'{len(self.matched)} tensors loaded' + (f' from {self.source}' if self.source else '')
        for label in ('missing', 'unexpected', 'resized'):
            names = getattr(self, label)
            text += f'; {len(names)} {label}: {_some(names)}' if names else ''
        return text


def load_weights_file(path: str | Path) -> dict[str, Any]:
    """Read a .pth, .pt, .ckpt, .bin or .safetensors file; pickled code is refused, never run.

    Returns:
        The dict that the file holds: tensors on the CPU by name, or wrappers around them that `unwrap` opens.
    """
    path = Path(path)
    try:
        if path.suffix == '.safetensors':
            return load_file(path)
        content = torch.load(path, map_location='cpu', weights_only=True)
    except _BROKEN_FILE as error:
        reason = str(error).split('\n')[0]
        raise WeightsError(
            f'{path} cannot be read as weights; it is truncated or holds more than tensors ({reason})'
        ) from error
    if not isinstance(content, dict):
        raise WeightsError(f'{path} must hold a dict of tensors by name, found {type(content).__name__}')
    return content


def unwrap(
    content: Mapping[str, Any], *, wrappers: Sequence[str] = (), prefixes: Sequence[str] = (), drop: Sequence[str] = ()
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Reduce a file's content to a flat state dict.

    Args:
        content: What `load_weights_file` returned.
        wrappers: Keys that may hold the state dict.
        prefixes: Prefixes to take off names that have them, each once, in order.
        drop: Shell patterns of names to leave out, matched after the prefixes are off.

    Returns:
        Tensors by name, and the names that were left out.
    """
    while inner := [content[key] for key in wrappers if isinstance(content.get(key), Mapping)]:
        content = inner[0]
    state: dict[str, Any] = {}
    for key, value in content.items():
        name = str(key)
        for prefix in prefixes:
            name = name.removeprefix(prefix)
        if name in state:
            raise WeightsError(f'two tensors of the file come out as {name!r} once prefixes {list(prefixes)} are off')
        state[name] = value
    dropped = tuple(name for name in state if _matches(name, drop))
    state = {name: value for name, value in state.items() if name not in set(dropped)}
    if strange := [name for name, value in state.items() if not isinstance(value, Tensor)]:
        raise WeightsError(f'the file must hold tensors by name; these are none: {_some(strange)}')
    return state, dropped


def load_strict(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    may_be_missing: Sequence[str] = (),
    dropped: Collection[str] = (),
    resized: Collection[str] = (),
    source: str = '',
) -> LoadReport:
    """Load every tensor of `state`, or none and raise `WeightsError` saying which names or shapes do not fit.

    Args:
        module: Network to fill.
        state: Tensors by name.
        may_be_missing: Shell patterns of names that `state` may lack.
        dropped: Names that were left out of `state` on purpose, for the report.
        resized: Names whose tensors were resampled on purpose, for the report.
        source: Where the weights came from, for the report and errors.
    """
    needed = module.state_dict()
    missing = tuple(name for name in needed if name not in state)
    undeclared = [name for name in missing if not _matches(name, may_be_missing)]
    unexpected = [name for name in state if name not in needed]
    matched = tuple(name for name in needed if name in state)
    shapes = [
        f'{name}: found {tuple(state[name].shape)}, needed {tuple(needed[name].shape)}'
        for name in matched
        if state[name].shape != needed[name].shape
    ]
    labels = (('missing', undeclared), ('unexpected', unexpected), ('of another shape', shapes))
    if problems := [f'{len(names)} {label}: {_some(names)}' for label, names in labels if names]:
        raise WeightsError(f'weights {source or "given"} do not fit the network; ' + '; '.join(problems))
    module.load_state_dict(dict(state), strict=False)
    return LoadReport(matched, missing, tuple(dropped), tuple(resized), source)


def fetch(record: WeightsRecord, weights: str | Path | None = None) -> Path:
    """Find the weights of `record`, downloading them where no folder holds them, and verify their sha256.

    Args:
        record: Which weights.
        weights: A file to take instead, whatever its hash as long as it is not refused; or a folder to find a
            published file in. None looks into the folder that GEOLEARN_WEIGHTS_DIR names, then into the cache of the
            Hugging Face hub, then downloads.
    """
    if weights is not None and Path(weights).is_file():
        return _not_refused(Path(weights), record)
    if weights is not None and not Path(weights).is_dir():
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


def _download(record: WeightsRecord, source: WeightsSource) -> Path:
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
        where = f'{source.file} of {source.repo} at {source.revision[:7]}'
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


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _some(names: Collection[str], most: int = 8) -> str:
    return ', '.join(list(names)[:most]) + (f', ... ({len(names)} in all)' if len(names) > most else '')


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
