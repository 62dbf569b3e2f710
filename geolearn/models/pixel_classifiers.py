"""Pixel classifiers: any decoder on any backbone, judged by one confusion matrix, mapped over rasters."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from geolearn.backbones.adapt import DEFAULT_ADAPTATION, Adaptation
from geolearn.backbones.temporal import Temporal
from geolearn.chips.label import Task
from geolearn.data import ChipData
from geolearn.errors import BundleError
from geolearn.losses import PixelLossOptions
from geolearn.models.base import register_model
from geolearn.models.new_spec import BackboneChoice
from geolearn.models.segmentation import JudgedClassifier, PixelModel
from geolearn.networks.segmentation import PixelOptions, Segmenter, build_segmenter
from geolearn.networks.spec import ModelSpec


class PixelClassifier(JudgedClassifier, PixelModel):
    """Label every pixel with a decoder on any backbone's maps; the subclasses name the decoder.

    Args:
        data: From `prepare_data`.
        backbone: Such as ``'dofa_base'`` or ``'resnet50'``; see `geolearn.list_backbones`. None takes the class's own.
        pretrained: Fill the backbone with its published weights.
        weights: A file or folder with the backbone's weights, or another model's .dlpk, instead of fetching them.
        wavelengths: Centre wavelength of each band in micrometres, where the data does not name the bands well; None
            for radar.
        ignore_classes: Label values to leave out, on top of those that `data` ignores.
        class_balancing: Weigh classes in the loss by their rarity among the training chips.
        focal_loss: Let pixels that are right already count less (Lin et al. 2017, arXiv:1708.02002); gamma is 2.
        dice_loss_fraction: Share of the dice loss in the whole, 0..1.
        dice_loss_average: Dice over all pixels together (``'micro'``) or by class (``'macro'``).
        loss: All that can be said of the loss, in place of the three before it.
        auxiliary_head: Train a small head on the map of stride 16 beside the decoder, with 0.4 of its loss.
        decoder_options: Passed to the decoder; see its class in `geolearn.decoders`.
        adapt: What of the backbone learns, how fast, and with low-rank updates or in full. The default trains all of
            it.
        temporal: How the maps of chips of several dates become one: ``'mean'``, ``'concat'`` or ``'ltae'``.
        resolution_m: Of the images in metres per pixel, for backbones whose positions depend on it.

    Raises:
        ChipFolderError: If the labels are not one class per pixel.
        UnknownNameError: If there is no such backbone.
        BackboneError: If there is, but it gives no maps that the decoder can use, cannot be adapted as `adapt` says, or
            states no mean and std for ``normalize='pretraining'``.
        BandError: If bands lack a wavelength that the backbone needs, or `wavelengths` do not fit.
        WeightsError: If weights cannot be had or do not fit.
        ValueError: If an option of loss or decoder makes no sense.
    """

    tasks = (Task.PIXELS,)
    default_backbone: ClassVar[str] = 'resnet50'

    def __init__(
        self,
        data: ChipData,
        backbone: str | None = None,
        *,
        pretrained: bool = True,
        weights: str | Path | None = None,
        wavelengths: Sequence[float | None] | None = None,
        ignore_classes: Sequence[int] = (),
        class_balancing: bool = False,
        focal_loss: bool = False,
        dice_loss_fraction: float = 0.0,
        dice_loss_average: Literal['micro', 'macro'] = 'micro',
        loss: PixelLossOptions | None = None,
        auxiliary_head: bool = False,
        decoder_options: Mapping[str, Any] | None = None,
        adapt: Adaptation = DEFAULT_ADAPTATION,
        temporal: Temporal = 'mean',
        resolution_m: float | None = None,
    ) -> None:
        name = self.default_backbone if backbone is None else backbone
        choice = BackboneChoice(name, pretrained, weights, wavelengths, adapt, temporal, resolution_m)
        short = PixelLossOptions(
            loss='focal' if focal_loss else 'cross_entropy',
            dice_fraction=dice_loss_fraction,
            dice_average=dice_loss_average,
        )
        if loss is not None and short != PixelLossOptions():
            raise ValueError('pass either loss, or focal_loss and dice_loss_fraction; loss holds what they say')
        options = PixelOptions(self.decoder, decoder_options or {}, loss or short, auxiliary_head=auxiliary_head)
        super().__init__(
            data, choice, options=options.to_json(), class_balancing=class_balancing, ignore_classes=ignore_classes
        )

    # -- what a task says

    @classmethod
    def build(cls, spec: ModelSpec, *, pretrained: bool = False, weights: str | Path | None = None) -> Segmenter:
        """Build the network that a spec describes."""
        if len(spec.class_infos) < 2:
            raise BundleError(f'the manifest is broken: {spec.model} needs 2 classes or more, found {spec.class_infos}')
        return build_segmenter(spec, cls._options(spec), len(spec.class_infos), pretrained=pretrained, weights=weights)


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
