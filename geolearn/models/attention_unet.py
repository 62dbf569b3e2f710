"""AttentionUNet: a plain U-Net that takes the attention maps of a frozen transformer beside the bands."""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from geolearn.arguments import record_arguments
from geolearn.backbones.adapt import Adaptation
from geolearn.data import ChipData
from geolearn.errors import BundleError
from geolearn.losses import PixelLossOptions
from geolearn.models.base import register_model
from geolearn.models.new_spec import BackboneConfig, choose_loss, require_task
from geolearn.models.pixel_classifiers import PixelClassifier
from geolearn.networks.attention import AttentionEncoder, AttentionMode
from geolearn.networks.decoding import decode
from geolearn.networks.network import build_backbone
from geolearn.networks.segmentation import PixelOptions, Segmenter, put_decoder
from geolearn.networks.spec import ModelSpec


@register_model
class AttentionUNet(PixelClassifier):
    """Classify every pixel with a plain U-Net that takes a foundation model's attention maps beside the bands.

    The transformer stays frozen; its last block's attention, one channel for each head, is enlarged to the image.

    Args:
        data: From `prepare_data`.
        backbone: A plain transformer, such as ``'dofa_base'`` or one pretrained with DINO.
        attention: ``'extra'`` joins the maps to the bands, ``'only'`` takes them alone.
        pretrained: Fill the transformer with its published weights; random ones attend nowhere in particular.
        weights: A file or folder with its weights, or a .dlpk, instead of fetching them.
        wavelengths: Center wavelength of each band in micrometers; None for radar.
        ignore_classes: Label values to ignore, on top of those that `data` ignores.
        class_balancing: Weigh classes in the loss by their rarity among the training chips.
        loss: What training minimizes; None takes cross-entropy.

    Raises:
        ChipFolderError: If the labels are not one class per pixel, or chips are of several dates.
        UnknownNameError: If there is no such backbone.
        BackboneError: If it offers no attention maps.
        BandError: If bands lack a wavelength that the backbone needs.
        WeightsError: If weights cannot be had or do not fit.
        ValueError: If `attention` is not valid.
    """

    decoder = 'unet'

    def __init__(
        self,
        data: ChipData,
        backbone: str = 'dofa_base',
        *,
        attention: AttentionMode = 'extra',
        pretrained: bool = True,
        weights: str | Path | None = None,
        wavelengths: Sequence[float | None] | None = None,
        ignore_classes: Sequence[int] = (),
        class_balancing: bool = False,
        loss: PixelLossOptions | str | nn.Module | None = None,
    ) -> None:
        arguments = record_arguments(type(self), locals())
        require_task(data, type(self).__name__, self.tasks)
        if data.table.dates > 1:
            raise ValueError(f'AttentionUNet takes images of one date, and these chips have {data.table.dates}')
        config = BackboneConfig(backbone, pretrained, weights, wavelengths, Adaptation(freeze='all'))
        chosen, custom = choose_loss(loss, PixelLossOptions)
        options = PixelOptions(self.decoder, loss=chosen).to_json() | {'attention': attention}
        self._create(
            data,
            config,
            options=options,
            arguments=arguments,
            loss=custom,
            class_balancing=class_balancing,
            ignore_classes=ignore_classes,
        )

    @classmethod
    def build(cls, spec: ModelSpec, *, pretrained: bool = False, weights: str | Path | None = None) -> Segmenter:
        """Build the network that a spec describes."""
        if len(spec.class_infos) < 2 or spec.dates != 1:
            raise BundleError(f'the manifest is broken: {spec.model} needs 2 classes or more, and one date')
        mode: AttentionMode = decode(AttentionMode, spec.options.get('attention', 'extra'), 'attention')  # type: ignore[arg-type]
        transformer = build_backbone(spec, pretrained=pretrained, weights=weights, form='tokens')
        encoder = AttentionEncoder(transformer, mode, spec.bands)
        return put_decoder(spec, cls._options(spec), encoder, len(spec.class_infos))
