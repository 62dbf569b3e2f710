"""Take the backbone out of a .dlpk that geolearn wrote, so that a trained model's encoder can start another.

`geolearn.bundle` reads whole bundles and lies above this layer; here two members are read, and nothing is trusted.
"""

import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors
from torch import Tensor

from geolearn.backbones.backbone import Backbone, BackboneOptions
from geolearn.backbones.building import adapt_input_kernel, resample_kernel
from geolearn.backbones.weights import load_strict
from geolearn.bands import Band
from geolearn.errors import WeightsError

SUFFIX = '.dlpk'
PREFIX = 'backbone.trunk.'
MAX_EMD_BYTES = 64 * 2**20
MAX_WEIGHTS_BYTES = 16 * 2**30

_BROKEN_ZIP = (zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, struct.error, NotImplementedError, OSError)
_BROKEN_CONTENT = (SafetensorError, KeyError, TypeError, ValueError, RecursionError, EOFError)


@dataclass(frozen=True, slots=True)
class BundledTrunk:
    """The encoder that a bundle holds.

    Args:
        path: The bundle.
        backbone: Name of the backbone.
        bands: Which it was built for.
        state: Parameters and buffers of its trunk by name.
    """

    path: Path
    backbone: str
    bands: tuple[Band, ...]
    state: dict[str, Tensor]


def is_bundle(weights: str | Path | None) -> bool:
    """Whether `weights` names a .dlpk."""
    return weights is not None and Path(weights).suffix == SUFFIX


def read_bundled_trunk(path: str | Path) -> BundledTrunk:
    """Read the backbone of a bundle; nothing in it is unpickled or run.

    Raises:
        WeightsError: If the file is absent, broken, hostile or no bundle of geolearn's.
    """
    path = Path(path).expanduser()
    try:
        with zipfile.ZipFile(path) as archive:
            emd = json.loads(_read(archive, _alone(archive, '.emd', path), MAX_EMD_BYTES, path))
            tensors = parse_safetensors(_read(archive, _alone(archive, '.safetensors', path), MAX_WEIGHTS_BYTES, path))
        manifest = emd['geolearn']
        bands = tuple(Band(**row) for row in manifest['bands'])
        name = manifest['backbone']
        if not isinstance(name, str):
            raise TypeError(f'the backbone is named {name!r}')
    except _BROKEN_ZIP as error:
        raise WeightsError(f'{path} is no readable {SUFFIX} ({error}); copy it again') from error
    except _BROKEN_CONTENT as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(
            f'{path} holds no backbone of geolearn ({type(error).__name__}: {error}); a {SUFFIX} that model.save() '
            'wrote is needed'
        ) from error
    state = {key.removeprefix(PREFIX): tensor for key, tensor in tensors.items() if key.startswith(PREFIX)}
    return BundledTrunk(path, name, bands, state)


def build_from_bundle(
    name: str,
    bands: tuple[Band, ...],
    options: BackboneOptions,
    *,
    build: Callable[[str, tuple[Band, ...], BackboneOptions], Backbone],
    same_name: Callable[[str], str],
) -> Backbone:
    """Build a backbone and fill its trunk from the bundle that `options.weights` names.

    Where the bundle's bands are others, the kernels that see bands are carried over by what the bands are.

    Args:
        name: The backbone's own name.
        bands: Of the images.
        options: How to build; `weights` names the bundle.
        build: Builds the backbone.
        same_name: Turns the name that a bundle holds into a backbone's own name.

    Raises:
        WeightsError: If the bundle holds another backbone, or cannot be read.
    """
    found = read_bundled_trunk(str(options.weights))
    if same_name(found.backbone) != name:
        raise WeightsError(f'{found.path} holds the backbone {found.backbone}, not {name}; ask for {found.backbone}')
    random = replace(options, pretrained=False, weights=None)
    backbone = build(name, bands, random)
    state, notes = dict(found.state), []
    keys = _stem_keys(build, name, found.bands, random) if _differ(found.bands, bands) else []
    for key in keys:
        if key not in state or state[key].dim() not in (4, 5):
            have = ', '.join(band.name for band in found.bands)
            raise WeightsError(f'{key} of {found.path} cannot be carried over to other bands; use its own: {have}')
        state[key], how = adapt_input_kernel(state[key], found.bands, bands)
        notes.append(f'{key}: {how}')
    needed = backbone.trunk.state_dict()
    for key in [k for k, v in state.items() if k in needed and _patch_differs(v, needed[k])]:
        state[key] = resample_kernel(state[key], needed[key].shape[-1])
        notes.append(f'{key}: resampled to patches of {needed[key].shape[-1]}')
        keys.append(key)
    note = f' ({"; ".join(notes)})' if notes else ''
    new = ('*.rel_pos_h', '*.rel_pos_w') if options.relative_positions else ()
    backbone.load_report = load_strict(
        backbone.trunk,
        state,
        may_be_missing=new,
        resized=tuple(dict.fromkeys(keys)),
        source=f'{found.path}{note}',
    )
    return backbone


def _stem_keys(build: Any, name: str, bands: Sequence[Band], options: BackboneOptions) -> list[str]:
    """Name the weights whose shape depends on the number of bands."""
    extra = Band('one more band', 0.6)
    with torch.device('meta'):
        states = [build(name, tuple(b), options).trunk.state_dict() for b in (bands, (*bands, extra))]
    return [key for key, value in states[0].items() if value.shape != states[1][key].shape]


def _differ(ours: Sequence[Band], theirs: Sequence[Band]) -> bool:
    """Whether kernels for one list of bands would be wrong for the other."""
    pairs = [[(b.name.lower(), b.wavelength_um, b.common_name, b.is_radar) for b in bands] for bands in (ours, theirs)]
    return pairs[0] != pairs[1]


def _patch_differs(found: Tensor, needed: Tensor) -> bool:
    return found.dim() >= 4 and found.shape[:-2] == needed.shape[:-2] and found.shape != needed.shape


def _alone(archive: zipfile.ZipFile, suffix: str, path: Path) -> zipfile.ZipInfo:
    members = [m for m in archive.infolist() if m.filename.endswith(suffix) and not set(m.filename) & set('/\\:\0')]
    if len(members) != 1:
        raise WeightsError(f'{path} must hold one {suffix} at its root, found {len(members)}')
    return members[0]


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo, most: int, path: Path) -> bytes:
    if member.file_size > most or member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
        raise WeightsError(
            f'{path}: {member.filename} is packed, encrypted or too large; geolearn writes no such bundles'
        )
    return archive.read(member)
