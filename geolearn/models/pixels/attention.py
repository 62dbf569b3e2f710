"""AttentionUNet: a plain U-Net that sees where a frozen transformer looks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from geolearn.backbones import Backbone, create_backbone
from geolearn.backbones.adapt import Adaptation
from geolearn.bands import Band
from geolearn.chips.label import Task
from geolearn.data import ChipData
from geolearn.decoders import AttentionInput
from geolearn.decoders.attention_input import AttentionMode
from geolearn.errors import BundleError
from geolearn.inference.encoding import ClassEncoding
from geolearn.losses import PixelLossOptions
from geolearn.models._describing import BackboneChoice, require_task
from geolearn.models._registry import register_model
from geolearn.models.mapping import MapModel
from geolearn.models.network import build_backbone
from geolearn.models.pixels.base import PixelModel
from geolearn.models.pixels.judged import JudgedClassifier
from geolearn.models.pixels.options import PixelOptions
from geolearn.models.pixels.segmenter import Segmenter, put_decoder
from geolearn.models.spec import ModelSpec

ENCODER = 'plain_unet'


class AttentionEncoder(Backbone):
    """The plain U-Net encoder on images with a transformer's attention maps.

    Args:
        looker: A transformer in its native form; it is frozen.
        mode: Whether the maps join the bands or replace them.
        bands: Of the images.

    Raises:
        BackboneError: If the transformer offers no attention maps.
        ValueError: If there is no such mode.
    """

    has_position_grid = True

    def __init__(self, looker: Backbone, mode: AttentionMode, bands: Sequence[Band]) -> None:
        inputs = AttentionInput(looker, mode)
        heads = tuple(Band(f'attention {head}') for head in range(inputs.heads))
        encoder = create_backbone(
            ENCODER, (*bands, *heads) if mode == 'extra' else heads, pretrained=False, strides=None
        )
        super().__init__(
            looker.name,
            looker.trunk,
            channels=encoder.channels,
            strides=encoder.strides,
            load_report=looker.load_report,
        )
        del self._modules['trunk']  # it lies in `inputs`; a state dict is to hold it once
        self.inputs, self.encoder = inputs, encoder

    @property
    def trunk(self) -> nn.Module:  # type: ignore[override]
        """The transformer, which stays frozen."""
        return self.inputs.backbone.trunk

    def forward(self, x: Tensor) -> list[Tensor]:
        """Compute maps at strides 1 to 8 from normalised images (N, bands, H, W)."""
        return self.encoder(self.inputs(x))


@register_model
class AttentionUNet(JudgedClassifier, PixelModel):
    """Label every pixel with a plain U-Net that sees, beside the bands, where a foundation model looks.

    The transformer stays frozen; its last block's attention, one channel for each head, is enlarged to the image.

    Args:
        data: From `prepare_data`.
        backbone: A plain transformer, such as ``'dofa_base'`` or one pretrained with DINO.
        attention: ``'extra'`` joins the maps to the bands, ``'only'`` takes them alone.
        pretrained: Fill the transformer with its published weights; random ones look nowhere in particular.
        weights: A file or folder with its weights, or a .dlpk, instead of fetching them.
        wavelengths: Centre wavelength of each band in micrometres; None for radar.
        ignore_classes: Label values to leave out, on top of those that `data` ignores.
        class_balancing: Weigh classes in the loss by their rarity among the training chips.
        loss: What training minimises; None takes cross-entropy.

    Raises:
        ChipFolderError: If the labels are not one class per pixel, or chips are of several dates.
        UnknownNameError: If there is no such backbone.
        BackboneError: If it offers no attention maps.
        BandError: If bands lack a wavelength that the backbone needs.
        WeightsError: If weights cannot be had or do not fit.
        ValueError: If there is no such `attention`.
    """

    tasks = (Task.PIXELS,)
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
        loss: PixelLossOptions | None = None,
    ) -> None:
        require_task(data, type(self).__name__, self.tasks)
        if data.table.dates > 1:
            raise ValueError(f'AttentionUNet takes images of one date, and these chips have {data.table.dates}')
        choice = BackboneChoice(backbone, pretrained, weights, wavelengths, Adaptation(freeze='all'))
        options = PixelOptions(self.decoder, loss=loss or PixelLossOptions()).to_json() | {'attention': attention}
        super().__init__(data, choice, options=options, class_balancing=class_balancing, ignore_classes=ignore_classes)

    @classmethod
    def build(cls, spec: ModelSpec, *, pretrained: bool = False, weights: str | Path | None = None) -> Segmenter:
        """Build the network that a spec describes."""
        if len(spec.class_infos) < 2 or spec.dates != 1:
            raise BundleError(f'the manifest is broken: {spec.model} needs 2 classes or more, and one date')
        mode: Any = spec.options.get('attention', 'extra')
        looker = build_backbone(spec, pretrained=pretrained, weights=weights, form='tokens')
        encoder = AttentionEncoder(looker, mode, spec.bands)
        return put_decoder(spec, cls._options(spec), encoder, len(spec.class_infos))

    def _map_model(self) -> MapModel:
        return MapModel(self.spec, self.network, ClassEncoding(self.spec.class_infos))
