"""The pixel classifiers by name: each is one decoder, on any backbone. `PixelClassifier` has their arguments."""

from geolearn.models._registry import register_model
from geolearn.models.pixels.classifier import PixelClassifier


@register_model
class DeepLab(PixelClassifier):
    """DeepLabV3+ (Chen et al. 2018, arXiv:1802.02611): pooling at several rates, then a fine skip connection."""

    decoder = 'deeplab'
    default_backbone = 'dofa_base'


@register_model
class DeepLabV3(PixelClassifier):
    """DeepLabV3 (Chen et al. 2017, arXiv:1706.05587): pooling at several rates, no skip connection."""

    decoder = 'deeplab_v3'


@register_model
class UNet(PixelClassifier):
    """U-Net (Ronneberger et al. 2015, arXiv:1505.04597): every map that the backbone offers joins on the way up.

    ``backbone='plain_unet'`` is the paper's own encoder, with 64 to 512 channels and no weights.
    """

    decoder = 'unet'
    default_backbone = 'resnet34'


@register_model
class PSPNet(PixelClassifier):
    """PSPNet (Zhao et al. 2017, arXiv:1612.01105): the image's context, pooled in grids of several sizes."""

    decoder = 'pspnet'


@register_model
class UPerNet(PixelClassifier):
    """UPerNet (Xiao et al. 2018, arXiv:1807.10221): a CNN's stages or four layers of a transformer."""

    decoder = 'upernet'
    default_backbone = 'dofa_base'


@register_model
class FPN(PixelClassifier):
    """Feature pyramid network (Kirillov et al. 2019, arXiv:1901.02446): the sum of all maps at stride 4."""

    decoder = 'fpn'


@register_model
class SegFormer(PixelClassifier):
    """SegFormer's all-MLP head (Xie et al. 2021, arXiv:2105.15203)."""

    decoder = 'segformer'
    default_backbone = 'dofa_base'


@register_model
class FCN(PixelClassifier):
    """Fully convolutional head on one map of stride 16 (Long et al. 2015, arXiv:1411.4038)."""

    decoder = 'fcn'


@register_model
class LinearProbe(PixelClassifier):
    """One linear layer per token: what features hold as they are; usual with ``adapt=Adaptation(freeze='all')``."""

    decoder = 'linear'
    default_backbone = 'dofa_base'


@register_model
class MUSTER(PixelClassifier):
    """Multi-scale transformer decoder (Xu et al. 2022, arXiv:2211.13928)."""

    decoder = 'muster'
    default_backbone = 'dofa_base'


UnetClassifier = UNet
"""ArcGIS's name."""

PSPNetClassifier = PSPNet
"""ArcGIS's name."""
