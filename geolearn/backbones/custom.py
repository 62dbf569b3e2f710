"""Networks of one's own as backbones: modules with declared facts, and trunks of bundles and of pretraining files."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from geolearn import bundle
from geolearn.adaptation import is_whole
from geolearn.backbones import building, loading, pretrained, vit
from geolearn.backbones.backbone import (
    BUILDERS,
    Backbone,
    BackboneOptions,
    Builder,
    choose_strides,
    end_at_coarsest,
    refuse_transformer_options,
    register_backbone,
)
from geolearn.backbones.trunk import Trunk
from geolearn.bands import Band
from geolearn.errors import BackboneError, BandError, BundleError, WeightsError

PREFIX = 'backbone.trunk.'


@dataclass(frozen=True, slots=True)
class StoredTrunk:
    """The encoder that a bundle, or a file of `geolearn.pretrain`, holds.

    Args:
        path: The file.
        backbone: Name of the backbone.
        bands: Which it was built for.
        state: Parameters and buffers of its trunk by name.
        class_token: Whether pretraining made the class token describe the image; None where that is not known.
    """

    path: Path
    backbone: str
    bands: tuple[Band, ...]
    state: dict[str, Tensor]
    class_token: bool | None = None


def is_bundle(weights: str | Path | None) -> bool:
    """Whether `weights` names a .dlpk."""
    return weights is not None and Path(weights).suffix == bundle.SUFFIX


def is_stored(weights: str | Path | None) -> bool:
    """Whether `weights` names a file that says itself which backbone it holds: a .dlpk, or one of `pretrain`."""
    return is_bundle(weights) or pretrained.is_pretrained(weights)


def is_file_name(name: object) -> bool:
    """Whether what was given as a backbone's name is a path of such a file, by its suffix."""
    return isinstance(name, str | Path) and Path(name).suffix in (bundle.SUFFIX, pretrained.SUFFIX)


def backbone_in(path: str | Path) -> str:
    """Return the name of the backbone that a bundle, or a file of `geolearn.pretrain`, holds.

    Raises:
        WeightsError: If there is no such file, or it does not say so.
    """
    return read_bundled_trunk(path).backbone if is_bundle(path) else pretrained.read_facts(path).backbone


def read_stored_trunk(path: str | Path) -> StoredTrunk:
    """Read the backbone of a bundle, or of a file of `geolearn.pretrain`.

    Raises:
        WeightsError: If the file is absent, broken, hostile or neither of these.
    """
    if is_bundle(path):
        return read_bundled_trunk(path)
    facts, state = pretrained.read_facts(path), pretrained.read_state(path)
    return StoredTrunk(Path(path), facts.backbone, facts.bands, state, facts.class_token)


def read_bundled_trunk(path: str | Path) -> StoredTrunk:
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
    return StoredTrunk(path, name, bands, state)


def build_stored(
    name: str,
    bands: tuple[Band, ...],
    options: BackboneOptions,
    *,
    build: Builder,
    same_name: Callable[[str], str],
) -> Backbone:
    """Build a backbone and fill its trunk from the bundle, or the file of `pretrain`, that `options.weights` names.

    Where the bands of the file are others, the kernels that see bands are carried over by what the bands are.

    Args:
        name: The backbone's own name.
        bands: Of the images.
        options: How to build; `weights` names the file.
        build: Builds the backbone.
        same_name: Turns the name that a file holds into a backbone's own name.

    Raises:
        WeightsError: If the file holds another backbone, or cannot be read.
        BandError: If radar bands are given to weights of optical ones, or the other way round.
    """
    found = read_stored_trunk(str(options.weights))
    if same_name(found.backbone) != name:
        raise WeightsError(f'{found.path} holds the backbone {found.backbone}, not {name}; ask for {found.backbone}')
    random = replace(options, pretrained=False, weights=None)
    with loading.without_values():
        loading.refuse_small(found.state, build(name, bands, random).trunk.state_dict(), str(found.path))
    backbone = build(name, bands, random)
    state, notes = dict(found.state), []
    keys = _stem_keys(build, name, found.bands, random) if _differ(found.bands, bands) else []
    if keys:
        _require_kinds(found, bands)
    for key in keys:
        if key not in state or state[key].dim() not in (4, 5):
            have = ', '.join(band.name for band in found.bands)
            raise WeightsError(f'{key} of {found.path} cannot be carried over to other bands; use its own: {have}')
        state[key], how = building.adapt_input_kernel(state[key], found.bands, bands)
        notes.append(f'{key}: {how}')
    needed = backbone.trunk.state_dict()
    for key in [k for k, v in state.items() if k in needed and _patch_differs(v, needed[k])]:
        state[key] = building.resample_kernel(state[key], needed[key].shape[-1])
        notes.append(f'{key}: resampled to patches of {needed[key].shape[-1]}')
        keys.append(key)
    note = f' ({"; ".join(notes)})' if notes else ''
    new = ('*.rel_pos_h', '*.rel_pos_w') if options.relative_positions else ()
    backbone.load_report = loading.load_strict(
        backbone.trunk,
        state,
        may_be_missing=new,
        resized=tuple(dict.fromkeys(keys)),
        source=f'{found.path}{note}',
    )
    if found.class_token is not None and isinstance(backbone.trunk, Trunk):
        backbone.trunk.class_token_is_trained = found.class_token
    return backbone


def _require_kinds(found: StoredTrunk, bands: Sequence[Band]) -> None:
    """Refuse kernels of optical bands for radar ones, and the other way round, as published weights do."""
    kinds = {band.is_radar for band in found.bands}
    if strange := [band.name for band in bands if band.is_radar not in kinds]:
        kind, other = ('radar', 'optical') if True not in kinds else ('optical', 'radar')
        raise BandError(
            f'the weights of {found.path} were trained on {other} bands only; found {kind}: '
            f'{", ".join(map(repr, strange))}. Leave them out, or pretrain on such bands'
        )


def _stem_keys(build: Builder, name: str, bands: Sequence[Band], options: BackboneOptions) -> list[str]:
    """Name the weights whose shape depends on the number of bands."""
    extra = Band('one more band', 0.6)
    with loading.without_values():
        states = [build(name, tuple(b), options).trunk.state_dict() for b in (bands, (*bands, extra))]
    return [key for key, value in states[0].items() if value.shape != states[1][key].shape]


def _differ(ours: Sequence[Band], theirs: Sequence[Band]) -> bool:
    """Whether kernels for one list of bands would be wrong for the other."""
    pairs = [[(b.name.lower(), b.wavelength_um, b.common_name, b.is_radar) for b in bands] for bands in (ours, theirs)]
    return pairs[0] != pairs[1]


def _patch_differs(found: Tensor, needed: Tensor) -> bool:
    return found.dim() >= 4 and found.shape[:-2] == needed.shape[:-2] and found.shape != needed.shape


ALLOWED_STRIDES = (1, 2, 4, 8, 16, 32)

PROBE_SIDE = 64
"""Side in pixels of the blank image by which a module's facts are checked."""


class ModuleBackbone(Backbone):
    """A module of one's own as a backbone.

    Args:
        module: Maps normalized images (N, bands, H, W), sides multiples of its coarsest stride, to feature maps, finest
            first: a list, a tuple, a dict, or one map. It keeps the weights that it has.
        channels: Of each map.
        strides: Of each map, in pixels: some of 1, 2, 4, 8, 16, 32.
        name: What bundles call it; in a new session `register_module` tells them which module that is.

    Raises:
        BackboneError: If these are no facts that a module can have.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        channels: Sequence[int],
        strides: Sequence[int],
        name: str = 'custom',
        load_report: loading.LoadReport | None = None,
    ) -> None:
        _check_facts(module, channels, strides, name)
        super().__init__(name, module, channels=channels, strides=strides, load_report=load_report)
        self.taken = tuple(range(len(self.strides)))
        self.step = max(self.strides)

    def __repr__(self) -> str:
        """Show the facts, not the layers."""
        facts = f'channels={self.channels}, strides={self.strides}, name={self.name!r}'
        return f'ModuleBackbone({type(self.trunk).__name__}, {facts})'

    def select(self, strides: Sequence[int] | None) -> 'ModuleBackbone':
        """Return a backbone of the same module that gives the maps of these strides alone; None for all.

        Where 16 or 32 is the coarsest asked for, the module's own coarsest map stands in its place.

        Raises:
            BackboneError: If the module has no such maps.
        """
        chosen = choose_strides(self.name, strides, self.strides)
        chosen = chosen if strides is None else end_at_coarsest(chosen, self.strides)
        other = ModuleBackbone(self.trunk, channels=self.channels, strides=self.strides, name=self.name)
        other.taken = tuple(self.strides.index(stride) for stride in chosen)
        other.channels, other.strides = tuple(self.channels[i] for i in other.taken), chosen
        return other

    def forward(self, x: Tensor) -> list[Tensor]:
        """Compute one map per stride from images (N, bands, H, W), padded with zeros to the coarsest stride."""
        maps = self.trunk(vit.pad_to_multiple(x, self.step))
        found = [maps] if isinstance(maps, Tensor) else list(maps.values() if isinstance(maps, Mapping) else maps)
        if max(self.taken) >= len(found):
            raise BackboneError(f'{self.name} returns {len(found)} maps, needed at least {max(self.taken) + 1}')
        return vit.crop_maps([found[i] for i in self.taken], x, self.strides)

    @torch.no_grad()
    def check(self, bands: Sequence[Band]) -> None:
        """Run a blank image of these bands through the module, and compare its maps with what was declared.

        Raises:
            BackboneError: If it cannot take such an image, or its maps are others.
        """
        training = self.training
        device = next((p.device for p in self.parameters()), torch.device('cpu'))
        try:
            maps = self.eval()(torch.zeros(1, len(bands), PROBE_SIDE, PROBE_SIDE, device=device))
        except (RuntimeError, TypeError, ValueError, AttributeError, LookupError) as error:
            if isinstance(error, BackboneError):
                raise
            reason = str(error).split('\n')[0]
            raise BackboneError(f'{self.name} cannot take images of {len(bands)} bands: {reason}') from error
        finally:
            self.train(training)
        found = [tuple(m.shape[1:]) for m in maps]
        needed = [(c, PROBE_SIDE // s, PROBE_SIDE // s) for c, s in zip(self.channels, self.strides)]
        if found != needed:
            raise BackboneError(
                f'{self.name} was declared to give maps of {list(self.channels)} channels at strides '
                f'{list(self.strides)}: of {PROBE_SIDE} pixels {needed}; found {found}'
            )


def register_module(backbone: ModuleBackbone) -> str:
    """Let `create_backbone`, the models and `load_model` know a module by its name, from now on in this process.

    Every backbone that is built takes a copy of the module, with the weights that it has at that time.

    Returns:
        The name.

    Raises:
        BackboneError: If the name is that of another backbone.
    """
    name = backbone.name
    if name in BUILDERS and name not in _MODULES:
        raise BackboneError(f'{name!r} is the name of a backbone of geolearn; give the module another name')
    if name not in BUILDERS:
        register_backbone(name, tokens=False)(_build)
    _MODULES[name] = backbone
    return name


def name_backbone(backbone: object) -> str:
    """Return the name of what a user gave as a backbone, registering a module of their own.

    Raises:
        BackboneError: If it is neither a name nor a module with declared facts.
    """
    if isinstance(backbone, str):
        return backbone
    if isinstance(backbone, ModuleBackbone):
        return register_module(backbone)
    found = type(backbone).__name__
    if isinstance(backbone, nn.Module):
        raise BackboneError(
            f'{found} must say what maps it gives: pass backbone=ModuleBackbone(module, channels=(64, 128, 256, 512), '
            "strides=(4, 8, 16, 32), name='mine')"
        )
    raise BackboneError(f"backbone must be a name such as 'dofa_base', got {backbone!r}; list_backbones() has them all")


_MODULES: dict[str, ModuleBackbone] = {}


def _build(name: str, bands: tuple[Band, ...], options: BackboneOptions) -> Backbone:
    """Build a registered module as a backbone."""
    refuse_transformer_options(name, options)
    if options.drop_path:
        raise BackboneError(f'{name} is a module of its own; drop_path cannot be changed, pass drop_path=0')
    registered = _MODULES[name]
    registered.check(bands)
    module = copy.deepcopy(registered.trunk)
    backbone = ModuleBackbone(module, channels=registered.channels, strides=registered.strides, name=name)
    backbone = backbone.select(options.strides)
    if options.weights is not None:
        backbone.load_report = _load(module, Path(options.weights))
    return backbone


def _load(module: nn.Module, path: Path) -> loading.LoadReport:
    needed = module.state_dict()
    found = loading.find_state(loading.load_weights_file(path), needed, str(path))
    heads = [name for name in found.state if name not in needed and loading.is_head(name)]
    state = {name: value for name, value in found.state.items() if name not in heads}
    source = f'{path} ({found.note})' if found.note else str(path)
    return loading.load_strict(module, state, dropped=(*found.ignored, *heads), source=source)


def _check_facts(module: object, channels: Sequence[int], strides: Sequence[int], name: object) -> None:
    if not isinstance(module, nn.Module):
        raise BackboneError(f'module must be a torch.nn.Module, got {type(module).__name__}')
    if not isinstance(name, str) or not name.isprintable() or not name.strip() or ':' in name:
        raise BackboneError(f"name must be a text without colons, such as 'mine', got {name!r}")
    for what, values in (('channels', channels), ('strides', strides)):
        whole = isinstance(values, Sequence) and values and all(is_whole(v) and v > 0 for v in values)
        if not whole or len(values) != len(channels):
            raise BackboneError(f'{what} must be a list of whole numbers, one for each map, got {values!r}')
    if list(strides) != sorted(set(strides)) or not set(strides) <= set(ALLOWED_STRIDES):
        raise BackboneError(f'strides must be some of {ALLOWED_STRIDES}, finest first, got {tuple(strides)}')
