"""Backbones: encoders that turn images of any size and bands into feature maps, by name."""

from importlib import import_module
from typing import TYPE_CHECKING

import geolearn.progress  # noqa: F401  # before huggingface_hub, whose import of tqdm warns in notebooks

if TYPE_CHECKING:
    from geolearn.backbones.backbone import STRIDES, Backbone, BackboneOptions, Form, TokenBackbone, register_backbone
    from geolearn.backbones.compiling import CompiledNetwork, compile_for_inference
    from geolearn.backbones.create import backbone_table, create_backbone, list_backbones, offers_tokens
    from geolearn.backbones.custom import ModuleBackbone, register_module
    from geolearn.backbones.describe import BackboneInfo, describe_backbone
    from geolearn.backbones.loading import LoadReport
    from geolearn.backbones.temporal import Temporal, TemporalBackbone

_HOMES = {
    'STRIDES': 'backbone',
    'Backbone': 'backbone',
    'BackboneInfo': 'describe',
    'BackboneOptions': 'backbone',
    'CompiledNetwork': 'compiling',
    'Form': 'backbone',
    'LoadReport': 'loading',
    'ModuleBackbone': 'custom',
    'Temporal': 'temporal',
    'TemporalBackbone': 'temporal',
    'TokenBackbone': 'backbone',
    'backbone_table': 'create',
    'compile_for_inference': 'compiling',
    'create_backbone': 'create',
    'describe_backbone': 'describe',
    'list_backbones': 'create',
    'offers_tokens': 'create',
    'register_backbone': 'backbone',
    'register_module': 'custom',
}

__all__ = [
    'STRIDES',
    'Backbone',
    'BackboneInfo',
    'BackboneOptions',
    'CompiledNetwork',
    'Form',
    'LoadReport',
    'ModuleBackbone',
    'Temporal',
    'TemporalBackbone',
    'TokenBackbone',
    'backbone_table',
    'compile_for_inference',
    'create_backbone',
    'describe_backbone',
    'list_backbones',
    'offers_tokens',
    'register_backbone',
    'register_module',
]


def __getattr__(name: str) -> object:
    """Load a name on first use: backbones are described without torch."""
    if name not in _HOMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    if _HOMES[name] != 'describe':
        import_module('geolearn.backbones.create')  # all families register their names
    return getattr(import_module(f'geolearn.backbones.{_HOMES[name]}'), name)
