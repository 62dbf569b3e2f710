"""DeepLab: atrous spatial pyramid pooling over any backbone's maps."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path

import torch
from segmentation_models_pytorch.decoders.deeplabv3.decoder import DeepLabV3PlusDecoder
from torch import Tensor, nn
from torch.nn import functional

from geolearn.backbones import Backbone, create_backbone
from geolearn.backbones.adapt import DEFAULT_ADAPTATION, Adaptation
from geolearn.backbones.temporal import Temporal
from geolearn.data import ChipData
from geolearn.models._describing import require_pixels, spec_from_data
from geolearn.models._model import PixelClassifier
from geolearn.models._registry import register_model
from geolearn.models.segmenter import Normalise, Segmenter
from geolearn.models.spec import ModelSpec


class DeepLabHead(nn.Module):
    """The DeepLabV3+ decoder (Chen et al. 2018, arXiv:1802.02611) and a 1x1 classifier.

    Pooling works on the map of stride 16, the skip connection is the map of stride 4. A convolutional network that
    cannot keep its last stage at stride 16 gives it at stride 32, enlarged to 16.

    Args:
        backbone: Whose maps are taken; it must offer those of `STRIDES`.
        class_count: Number of output channels.
    """

    STRIDES = (4, 16)

    def __init__(self, backbone: Backbone, class_count: int) -> None:
        super().__init__()
        fine, coarse = backbone.channels
        self._enlarge = backbone.strides[1] / 16
        self.decoder = DeepLabV3PlusDecoder(
            (0, 0, fine, coarse),
            encoder_depth=4,
            out_channels=256,
            atrous_rates=(12, 24, 36),
            output_stride=16,
            aspp_separable=True,
            aspp_dropout=0.1,
        )
        self.classifier = nn.Conv2d(256, class_count, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Compute logits (N, classes, H/4, W/4) from feature maps, finest first."""
        fine, coarse = maps
        if self._enlarge != 1:
            coarse = functional.interpolate(coarse, scale_factor=self._enlarge, mode='bilinear', align_corners=False)
        # smp's decoder looks at position 2 for the skip and at the last for pooling
        unused = torch.empty(0)
        return self.classifier(self.decoder([unused, unused, fine, coarse]))


@register_model
class DeepLab(PixelClassifier):
    """Label every pixel with DeepLabV3+ on a foundation model's feature pyramid, or on any CNN.

    Args:
        data: From `prepare_data`.
        backbone: Such as ``'dofa_base'`` or ``'resnet50'``; see `geolearn.list_backbones`.
        pretrained: Fill the backbone with its published weights.
        weights: A file or folder with the backbone's weights, instead of fetching them.
        wavelengths: Centre wavelength of each band in micrometres, where the data does not name the bands well; None
            for radar.
        ignore_classes: Label values to leave out, on top of those that `data` ignores.
        temporal: How the maps of chips of several dates become one: ``'mean'``, ``'concat'`` or ``'ltae'``.
        class_balancing: Weigh classes in the loss by their rarity among the training chips.
        adapt: What of the backbone learns, how fast, and with low-rank updates or in full. The default trains all of
            it.

    Raises:
        ChipFolderError: If the labels are not one class per pixel.
        UnknownNameError: If there is no such backbone.
        BackboneError: If there is, but it gives no maps that DeepLab can use, cannot be adapted as `adapt` says, or
            states no mean and std for ``normalize='pretraining'``.
        BandError: If bands lack a wavelength that the backbone needs, or `wavelengths` do not fit.
        WeightsError: If weights cannot be had or do not fit.
    """

    def __init__(
        self,
        data: ChipData,
        backbone: str = 'dofa_base',
        *,
        pretrained: bool = True,
        weights: str | Path | None = None,
        wavelengths: Sequence[float | None] | None = None,
        ignore_classes: Sequence[int] = (),
        class_balancing: bool = False,
        adapt: Adaptation = DEFAULT_ADAPTATION,
        temporal: Temporal = 'mean',
    ) -> None:
        require_pixels(data, 'DeepLab')
        data = data.ignoring(ignore_classes) if ignore_classes else data
        spec = spec_from_data(
            data, model='DeepLab', backbone=backbone, wavelengths=wavelengths, weights=weights, temporal=temporal
        )
        network = self.build(spec, pretrained=pretrained, weights=weights)
        network.adapt(adapt)
        pretrained = network.backbone.load_report is not None
        spec = replace(spec, pretrained=pretrained, class_balancing=class_balancing, adaptation=adapt)
        super().__init__(spec, network, data)

    @classmethod
    def build(cls, spec: ModelSpec, *, pretrained: bool = False, weights: str | Path | None = None) -> Segmenter:
        """Build the network that a spec describes."""
        backbone = create_backbone(
            spec.backbone,
            spec.bands,
            pretrained=pretrained,
            weights=weights,
            strides=DeepLabHead.STRIDES,
            dates=[date.fromisoformat(day) for day in spec.acquired] or spec.dates,
            temporal=spec.temporal,
        )
        normalise = Normalise(spec.normalization.mean, spec.normalization.std)
        return Segmenter(normalise, backbone, DeepLabHead(backbone, len(spec.class_infos)))
