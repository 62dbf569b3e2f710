"""Pretrain backbones on unlabelled imagery of one's own: self-distillation (DINO) and masked autoencoding (MAE)."""

from importlib import import_module
from typing import TYPE_CHECKING

_HOMES = {
    'DinoOptions': 'options',
    'MaeOptions': 'options',
    'Pretraining': 'result',
    'ViewOptions': 'options',
    'WindowOptions': 'windows',
    'pretrain': 'run',
}

__all__ = ['DinoOptions', 'MaeOptions', 'Pretraining', 'ViewOptions', 'WindowOptions', 'pretrain']

if TYPE_CHECKING:
    from geolearn.pretrain.options import DinoOptions, MaeOptions, ViewOptions
    from geolearn.pretrain.result import Pretraining
    from geolearn.pretrain.run import pretrain
    from geolearn.pretrain.windows import WindowOptions


def __getattr__(name: str) -> object:
    """Load a name on first use: options are read without torch."""
    if name not in _HOMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'geolearn.pretrain.{_HOMES[name]}'), name)
