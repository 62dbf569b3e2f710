"""Start a backbone from the encoder of a trained model's bundle."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from geolearn import bundle
from geolearn.backbones.backbone import Backbone, BackboneOptions, Builder
from geolearn.backbones.building import adapt_input_kernel, resample_kernel
from geolearn.backbones.loading import load_strict, refuse_small, without_values
from geolearn.bands import Band
from geolearn.errors import BundleError, WeightsError

PREFIX = 'backbone.trunk.'


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
    return weights is not None and Path(weights).suffix == bundle.SUFFIX


def read_bundled_trunk(path: str | Path) -> BundledTrunk:
    """Read the backbone of a bundle; nothing in it is unpickled or run.

    Raises:
        WeightsError: If the file is absent, broken, hostile or no bundle of geolearn's.
    """
    try:
        path = bundle.find_bundle(path)
        content = bundle.read_bundle(path)
    except BundleError as error:
        raise WeightsError(f'no backbone can be taken from {path}: {error}') from error
    try:
        bands = tuple(Band(**row) for row in content.manifest['bands'])
        name = content.manifest['backbone']
        if not isinstance(name, str):
            raise TypeError(f'the backbone is named {name!r}')
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f'{path} holds no backbone of geolearn ({type(error).__name__}: {error}); a {bundle.SUFFIX} that '
            'model.save() wrote is needed'
        ) from error
    state = {key.removeprefix(PREFIX): tensor for key, tensor in content.weights.items() if key.startswith(PREFIX)}
    return BundledTrunk(path, name, bands, state)


def build_from_bundle(
    name: str,
    bands: tuple[Band, ...],
    options: BackboneOptions,
    *,
    build: Builder,
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
    with without_values():
        refuse_small(found.state, build(name, bands, random).trunk.state_dict(), str(found.path))
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


def _stem_keys(build: Builder, name: str, bands: Sequence[Band], options: BackboneOptions) -> list[str]:
    """Name the weights whose shape depends on the number of bands."""
    extra = Band('one more band', 0.6)
    with without_values():
        states = [build(name, tuple(b), options).trunk.state_dict() for b in (bands, (*bands, extra))]
    return [key for key, value in states[0].items() if value.shape != states[1][key].shape]


def _differ(ours: Sequence[Band], theirs: Sequence[Band]) -> bool:
    """Whether kernels for one list of bands would be wrong for the other."""
    pairs = [[(b.name.lower(), b.wavelength_um, b.common_name, b.is_radar) for b in bands] for bands in (ours, theirs)]
    return pairs[0] != pairs[1]


def _patch_differs(found: Tensor, needed: Tensor) -> bool:
    return found.dim() >= 4 and found.shape[:-2] == needed.shape[:-2] and found.shape != needed.shape
