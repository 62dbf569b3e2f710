"""Pretrain backbones on unlabelled imagery of one's own: self-distillation (DINO) and masked autoencoding (MAE).

The package can be called as the function of its name: ``geolearn.pretrain(rasters)`` is
``geolearn.pretrain.pretrain(rasters)``.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

_HOMES = {
    'DinoOptions': 'options',
    'MaeOptions': 'options',
    'Pretraining': 'result',
    'ViewOptions': 'options',
    'WindowOptions': 'windows',
    'pretrain': 'run',
}

__all__ = ['DinoOptions', 'MaeOptions', 'Pretraining', 'ViewOptions', 'WindowOptions', 'pretrain']


def __getattr__(name: str) -> object:
    """Load a name on first use: options are read without torch."""
    if name not in _HOMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'geolearn.pretrain.{_HOMES[name]}'), name)


class _Package(ModuleType):
    """The package as a function; `geolearn.pretrain.run.pretrain` says what it takes."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        return import_module('geolearn.pretrain.run').pretrain(*args, **options)


sys.modules[__name__].__class__ = _Package
