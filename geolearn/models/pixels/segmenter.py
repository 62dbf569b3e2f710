"""The network of every pixel classifier: normalise, backbone, decoder, logits at the image's own size."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from geolearn.backbones import Backbone
from geolearn.backbones.adapt import Adaptation, RateGroup, adapt, rate_groups


class Normalise(nn.Module):
    """(x - mean) / std per band; NaN, which stands for no data, becomes 0, the mean.

    Args:
        mean: Of each band.
        std: Of each band; 0 counts as 1, because such a band is constant.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer('mean', torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        spread = [value if value > 0 else 1.0 for value in std]
        self.register_buffer('std', torch.tensor(spread, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise images (N, bands, H, W) in stored units."""
        return torch.nan_to_num((x - self.mean) / self.std, nan=0.0)


class Segmenter(nn.Module):
    """Images in stored units, NaN where there is no data, to class logits.

    Args:
        normalise: Takes the images first.
        backbone: Gives feature maps.
        decoder: Takes the maps, finest first, and gives logits at the finest map's stride.
    """

    def __init__(self, normalise: Normalise, backbone: Backbone, decoder: nn.Module) -> None:
        super().__init__()
        self.normalise, self.backbone, self.decoder = normalise, backbone, decoder
        self.layer_decay: float | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits (N, classes, H, W) of images (N, bands, H, W) of any size."""
        height, width = x.shape[-2:]
        x = self.normalise(x)
        # decoders combine maps of several strides, which fit together only where the coarsest divides the image
        step = 32
        x = functional.pad(x, (0, -width % step, 0, -height % step))
        logits = self.decoder(self.backbone(x))
        logits = functional.interpolate(logits, size=x.shape[-2:], mode='bilinear', align_corners=False)
        return logits[..., :height, :width]

    def adapt(self, adaptation: Adaptation) -> None:
        """Freeze parts of the backbone and put in low-rank updates; once, after weights are loaded.

        Raises:
            BackboneError: If the backbone cannot be so adapted.
        """
        adapt(self.backbone, adaptation)
        self.layer_decay = adaptation.layer_decay

    def rate_groups(self) -> list[RateGroup]:
        """Divide all parameters that can learn: the trunk's, by depth where rates decay by layer, then all others.

        Returns:
            At least two groups, that of the trunk first; it is empty where the trunk is frozen.
        """
        held = {id(parameter) for parameter in self.backbone.trunk.parameters()}
        learning = [parameter for parameter in self.parameters() if parameter.requires_grad]
        trunk = [RateGroup([p for p in learning if id(p) in held], 1.0)]
        if self.layer_decay is not None:
            trunk = rate_groups(self.backbone, self.layer_decay) or trunk
        return [*trunk, RateGroup([p for p in learning if id(p) not in held], 1.0)]

    def parameter_groups(self) -> list[list[nn.Parameter]]:
        """Return the parameters of `rate_groups`, for training at different rates."""
        return [group.parameters for group in self.rate_groups()]
