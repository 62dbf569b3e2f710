"""Backbones: encoders that turn images of any size and bands into feature maps, by name."""

from geolearn.backbones.backbone import STRIDES, Backbone, BackboneOptions, Form, TokenBackbone, register_backbone
from geolearn.backbones.compiling import CompiledNetwork, compile_for_inference
from geolearn.backbones.create import (
    BackboneInfo,
    backbone_table,
    create_backbone,
    describe_backbone,
    list_backbones,
    offers_tokens,
)
from geolearn.backbones.custom import ModuleBackbone, register_module
from geolearn.backbones.loading import LoadReport
from geolearn.backbones.temporal import Temporal, TemporalBackbone

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
