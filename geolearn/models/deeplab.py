"""DeepLab: atrous spatial pyramid pooling over any backbone's maps."""

from collections.abc import Sequence
from pathlib import Path

import torch
from segmentation_models_pytorch.decoders.deeplabv3.decoder import DeepLabV3PlusDecoder
from torch import Tensor, nn
from torch.nn import functional

from geolearn.backbones import Backbone, create_backbone
from geolearn.data import ChipData
from geolearn.models._model import PixelClassifier, register_model, spec_from_data
from geolearn.models.segmenter import Normalise, Segmenter
from geolearn.models.spec import ModelSpec


class DeepLabHead(nn.Module):
    """The DeepLabV3+ decoder (Chen et al. 2018, arXiv:1802.02611) and a 1x1 classifier.

    Pooling works on the coarsest map of stride 16 or less, the skip connection is the map of stride 4. A backbone
    without a map of stride 8 or 16 gives its coarsest, enlarged to stride 16.

    Args:
        backbone: Whose maps are taken.
        class_count: Number of output channels.
    """

    def __init__(self, backbone: Backbone, class_count: int) -> None:
        super().__init__()
        strides, channels = backbone.strides, backbone.channels
        self._fine = strides.index(4)
        self._coarse = max((i for i, stride in enumerate(strides) if stride == 16), default=len(strides) - 1)
        self._enlarge = strides[self._coarse] / 16
        self.decoder = DeepLabV3PlusDecoder(
            (0, 0, channels[self._fine], channels[self._coarse]),
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
        coarse = maps[self._coarse]
        if self._enlarge != 1:
            coarse = functional.interpolate(coarse, scale_factor=self._enlarge, mode='bilinear', align_corners=False)
        # smp's decoder looks at position 2 for the skip and at the last for pooling
        unused = torch.empty(0)
        return self.classifier(self.decoder([unused, unused, maps[self._fine], coarse]))


@register_model
class DeepLab(PixelClassifier):
    """Label every pixel with DeepLabV3+ on a foundation model's feature pyramid, or on any CNN.

    Args:
        data: From `prepare_data`.
        backbone: Such as ``'dofa_base'`` or ``'resnet50'``; see `geolearn.list_backbones`.
        pretrained: Fill the backbone with its published weights.
        weights: A file or folder with the backbone's weights, instead of fetching them.
        wavelengths: Centre wavelength of each band in micrometres, where the data does not name the bands well.
        ignore_classes: Label values to leave out, on top of those that `data` ignores.
    """

    def __init__(
        self,
        data: ChipData,
        backbone: str = 'dofa_base',
        *,
        pretrained: bool = True,
        weights: str | Path | None = None,
        wavelengths: Sequence[float] | None = None,
        ignore_classes: Sequence[int] = (),
    ) -> None:
        data = data.ignoring(ignore_classes) if ignore_classes else data
        spec = spec_from_data(data, model='DeepLab', backbone=backbone, wavelengths=wavelengths)
        super().__init__(spec, self.build(spec, pretrained=pretrained, weights=weights), data)

    @classmethod
    def build(cls, spec: ModelSpec, *, pretrained: bool = False, weights: str | Path | None = None) -> Segmenter:
        """Build the network that a spec describes."""
        backbone = create_backbone(spec.backbone, spec.bands, pretrained=pretrained, weights=weights)
        normalise = Normalise(spec.statistics.mean, spec.statistics.std)
        return Segmenter(normalise, backbone, DeepLabHead(backbone, len(spec.class_infos)))
