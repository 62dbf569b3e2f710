"""Backbones: encoders that turn images of any size and bands into feature maps, by name."""

import math
from collections.abc import Sequence
from datetime import date
from fnmatch import fnmatchcase
from pathlib import Path

import pandas as pd

from geolearn.backbones import (  # noqa: F401 - each registers its names
    clay,
    croma,
    dofa,
    galileo,
    panopticon,
    plain,
    prithvi,
    satlas,
    scalemae,
    spectralgpt,
    ssl4eo,
    terramind,
)
from geolearn.backbones.backbone import BUILDERS, Backbone, Builder, register_backbone
from geolearn.backbones.bundled import build_from_bundle, is_bundle
from geolearn.backbones.catalog import read_aliases, read_catalog
from geolearn.backbones.compiling import CompiledNetwork, compile_for_inference
from geolearn.backbones.describe import BackboneInfo, describe_record, tabulate
from geolearn.backbones.options import BackboneOptions, Form
from geolearn.backbones.pyramid import STRIDES
from geolearn.backbones.temporal import Temporal, TemporalBackbone
from geolearn.backbones.timm import build_timm, is_timm_model, list_timm_models
from geolearn.backbones.torchvision import build_torchvision, list_torchvision_models
from geolearn.backbones.vit import Stage
from geolearn.backbones.weights import LoadReport
from geolearn.bands import Band
from geolearn.errors import BackboneError, BandError, UnknownNameError

__all__ = [
    'Backbone',
    'BackboneInfo',
    'BackboneOptions',
    'CompiledNetwork',
    'Form',
    'LoadReport',
    'Temporal',
    'TemporalBackbone',
    'backbone_table',
    'compile_for_inference',
    'create_backbone',
    'describe_backbone',
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
    strides: Sequence[int] | None = STRIDES,
    layers: Sequence[int] | None = None,
    relative_positions: bool = False,
    checkpointing: bool = False,
    resolution_m: float | None = None,
    dates: int | Sequence[date] = 1,
    temporal: Temporal = 'mean',
) -> Backbone:
    """Build a backbone for images with these bands.

    Args:
        name: One of `list_backbones()` or an alias of one (`describe_backbone` shows them), or a model of timm, or
            else of torchvision; ``'timm:...'`` and ``'torchvision:...'`` say which.
        bands: The images' bands, in order. Backbones that need wavelengths refuse bands without one.
        pretrained: Whether to fill the trunk with pretrained weights.
        weights: A file, a folder that holds a published one, or a .dlpk of geolearn whose backbone to take, to load
            instead of fetching; implies `pretrained`.
        form: ``'pyramid'`` for feature maps at strides 4 to 32; ``'layers'`` for such maps of a transformer from four
            of its layers, as UperNet takes them, and a convolutional network's own; ``'tokens'`` for a transformer's
            native tokens.
        window: Side of a transformer's attention windows, in tokens: None to choose per image, 0 for global attention.
        drop_path: Rate of stochastic depth at the last block.
        strides: Of the maps, finest first: some of 4, 8, 16, 32, or None for all that the network has, which may begin
            at 2 (the result's `strides` tell). A convolutional network's last map is its coarsest: where 16 is the
            coarsest asked for, its last stage is dilated to stay there; one that cannot be dilated gives stride 32.
        layers: Blocks of a transformer, counted from 0: four for the form ``'layers'`` (None spaces them evenly); any
            for ``'tokens'``, which then returns a list of their outputs before the final norm.
        relative_positions: Whether a transformer's maps also see relative positions, learned from zero.
        checkpointing: Whether training computes activations again instead of keeping them: less memory, more time.
        resolution_m: Of the images, in metres per pixel, for ScaleMAE, Clay and Galileo, whose positions depend on it;
            None leaves that of their pretraining.
        dates: Number of dates of each image, or when each was taken; with several the backbone takes images (N, dates,
            bands, H, W), and returns maps as for one. Prithvi sees all dates at once, others one after the other.
        temporal: How the maps of several dates become one: ``'mean'``; ``'concat'``, a learned mixture of the dates in
            their order; ``'ltae'``, attention over the dates and when they were taken (see `TemporalBackbone`).

    Raises:
        UnknownNameError: If no registry holds `name`.
        BackboneError: If the model cannot serve as a backbone, or has no maps at the strides asked for.
        BandError: If bands lack a wavelength that the backbone needs.
        WeightsError: If weights cannot be had or do not fit.
    """
    if not bands:
        raise BandError(f'{name} needs at least one band, got none')
    options = BackboneOptions(
        pretrained,
        weights,
        form,
        window,
        drop_path,
        None if strides is None else tuple(strides),
        None if layers is None else tuple(layers),
        relative_positions,
        checkpointing,
    )
    build, bare = _find_builder(name)
    if is_bundle(weights):
        backbone = build_from_bundle(bare, tuple(bands), options, build=build, same_name=lambda n: _find_builder(n)[1])
    else:
        backbone = build(bare, tuple(bands), options)
    if checkpointing:
        _enable_checkpointing(backbone)
    if resolution_m is not None:
        _set_resolution(backbone, resolution_m)
    alone = dates == 1 if isinstance(dates, int) else len(dates) == 1
    return backbone if alone else TemporalBackbone(backbone, dates, temporal)


def _enable_checkpointing(backbone: Backbone) -> None:
    stages = [module for module in backbone.trunk.modules() if isinstance(module, Stage)]
    for stage in stages:
        stage.checkpointing = True
    switch = getattr(backbone.trunk, 'set_grad_checkpointing', None)  # timm's own
    if switch is not None:
        switch(True)
    if not stages and switch is None:
        raise BackboneError(f'{backbone.name} cannot recompute activations; pass checkpointing=False')


def _set_resolution(backbone: Backbone, resolution_m: float) -> None:
    if not (math.isfinite(resolution_m) and resolution_m > 0):
        raise ValueError(f'resolution_m must be above 0 metres per pixel, got {resolution_m}')
    trunk = backbone.trunk
    if not isinstance(trunk, scalemae.ScaleMaeViT | clay.ClayViT | galileo.Galileo):
        raise BackboneError(f'{backbone.name} knows no ground resolution; leave resolution_m out')
    trunk.ground_resolution_m = resolution_m


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


def describe_backbone(name: str) -> BackboneInfo:
    """Say what one of geolearn's own backbones is and was trained on, by name or alias; nothing is loaded.

    Raises:
        UnknownNameError: If no registry holds `name`.
        BackboneError: If it is a model of timm or torchvision that geolearn keeps no record of.
    """
    if name not in {*read_catalog(), *read_aliases()}:
        library = _find_builder(name)[0].__module__.rpartition('.')[2]
        raise BackboneError(f'{name} comes from {library}, and geolearn keeps no record of it; see its own pages')
    return describe_record(name)


def backbone_table(pattern: str = '*') -> pd.DataFrame:
    """Tabulate geolearn's own backbones whose names match a shell pattern: parameters, bands, licence, weights."""
    return tabulate(sorted(n for n in BUILDERS if n in read_catalog() and fnmatchcase(n, pattern)))


def _find_builder(name: str) -> tuple[Builder, str]:
    library, _, bare = read_aliases().get(name, name).rpartition(':')
    if library == '' and bare in BUILDERS:
        return BUILDERS[bare], bare
    if library in ('', 'timm') and is_timm_model(bare):
        return build_timm, bare
    if library in ('', 'torchvision') and bare in list_torchvision_models():
        return build_torchvision, bare
    raise UnknownNameError(
        'backbone', bare, {*BUILDERS, *read_aliases(), *list_timm_models(), *list_torchvision_models()}
    )
