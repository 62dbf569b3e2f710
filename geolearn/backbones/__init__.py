"""Backbones: encoders that turn images of any size and bands into feature maps, by name."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from geolearn.backbones import dofa as _dofa  # noqa: F401 - registers its names
from geolearn.backbones._backbone import BUILDERS, Backbone, BackboneOptions, Builder, Form, register_backbone
from geolearn.backbones.pyramid import STRIDES
from geolearn.backbones.timm import build_timm, is_timm_model, list_timm_models
from geolearn.backbones.torchvision import build_torchvision, list_torchvision_models
from geolearn.backbones.weights import LoadReport
from geolearn.bands import Band
from geolearn.errors import BandError, UnknownNameError

__all__ = [
    'Backbone',
    'BackboneOptions',
    'Form',
    'LoadReport',
    'create_backbone',
    'list_backbones',
    'register_backbone',
]


def create_backbone(
    name: str,
    bands: Sequence[Band],
    *,
    pretrained: bool = True,
    weights: str | Path | None = None,
    form: Form = 'pyramid',
    window: int | None = None,
    drop_path: float = 0.0,
    strides: Sequence[int] = STRIDES,
) -> Backbone:
    """Build a backbone for images with these bands.

    Args:
        name: One of `list_backbones()`, or a model of timm, or else of torchvision; ``'timm:...'`` and
            ``'torchvision:...'`` say which.
        bands: The images' bands, in order. Backbones that need wavelengths refuse bands without one.
        pretrained: Whether to fill the trunk with pretrained weights.
        weights: A file, or a folder that holds a published one, to load instead of fetching; implies `pretrained`.
        form: ``'pyramid'`` for feature maps at strides 4 to 32; ``'tokens'`` for a transformer's native tokens.
        window: Side of a transformer's attention windows, in tokens: None to choose per image, 0 for global attention.
        drop_path: Rate of stochastic depth at the last block.
        strides: Of the maps, some of 4, 8, 16, 32. A convolutional network's last map is its coarsest: where 16 is the
            coarsest asked for, its last stage is dilated to stay there; one that cannot be dilated gives stride 32.

    Raises:
        UnknownNameError: If no registry holds `name`.
        BackboneError: If the model cannot serve as a backbone.
        BandError: If bands lack a wavelength that the backbone needs.
        WeightsError: If weights cannot be had or do not fit.
    """
    if not bands:
        raise BandError(f'{name} needs at least one band, got none')
    options = BackboneOptions(pretrained, weights, form, window, drop_path, tuple(strides))
    build, bare = _find_builder(name)
    return build(bare, tuple(bands), options)


def list_backbones(pattern: str = '*') -> list[str]:
    """List backbones whose names match a shell pattern, sorted: geolearn's own, else those of timm and torchvision.

    ``'timm:*'`` and ``'torchvision:*'`` list those of one library. Not all of them offer maps at strides 4 to 32;
    `create_backbone` says so where one does not.
    """
    for prefix, listed in (('timm:', list_timm_models), ('torchvision:', list_torchvision_models)):
        if pattern.startswith(prefix):
            return sorted(prefix + n for n in listed() if fnmatchcase(n, pattern.removeprefix(prefix)))
    own = sorted(n for n in BUILDERS if fnmatchcase(n, pattern))
    return own or sorted(n for n in {*list_timm_models(), *list_torchvision_models()} if fnmatchcase(n, pattern))


def _find_builder(name: str) -> tuple[Builder, str]:
    library, _, bare = name.rpartition(':')
    if library == '' and bare in BUILDERS:
        return BUILDERS[bare], bare
    if library in ('', 'timm') and is_timm_model(bare):
        return build_timm, bare
    if library in ('', 'torchvision') and bare in list_torchvision_models():
        return build_torchvision, bare
    raise UnknownNameError('backbone', bare, {*BUILDERS, *list_timm_models(), *list_torchvision_models()})
