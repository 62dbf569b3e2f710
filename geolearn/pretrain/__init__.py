"""Pretrain backbones on unlabelled imagery of one's own: self-distillation (DINO) and masked autoencoding (MAE)."""

from geolearn.pretrain.options import DinoOptions, MaeOptions, ViewOptions
from geolearn.pretrain.result import Pretraining
from geolearn.pretrain.run import pretrain
from geolearn.pretrain.windows import WindowOptions

__all__ = ['DinoOptions', 'MaeOptions', 'Pretraining', 'ViewOptions', 'WindowOptions', 'pretrain']
