"""What every model's network starts with: images in stored units, normalized, to a backbone's maps."""

from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from geolearn.adaptation import Adaptation
from geolearn.backbones import Backbone, Form, create_backbone
from geolearn.backbones.adapt import ParamGroup, adapt, own_parameters, param_groups
from geolearn.networks.spec import ModelSpec


class Normalize(nn.Module):
    """(x - mean) / std per band; NaN, which stands for no data, becomes 0, the mean, unless `keeps_missing` is set.

    Args:
        mean: Of each band.
        std: Of each band; 0 counts as 1, because such a band is constant.
    """

    keeps_missing = False
    """Whether NaN stays what it is, for backbones that leave missing values out."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer('mean', torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        spread = [value if value > 0 else 1.0 for value in std]
        self.register_buffer('std', torch.tensor(spread, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize images (N, bands, H, W) in stored units."""
        normalized = (x - self.mean) / self.std
        return normalized if self.keeps_missing else torch.nan_to_num(normalized, nan=0.0)


class Network(nn.Module):
    """A normalization, a backbone, and what a task puts on top.

    Args:
        normalize: Takes the images first.
        backbone: Takes the normalized images.
    """

    context: int | None = None
    """Pixels around a pixel that its output depends on: 0 where each is computed by itself; None where not known."""

    finer: int = 1
    """Pixels of its output for each of its input, down and across."""

    def __init__(self, normalize: Normalize, backbone: Backbone) -> None:
        super().__init__()
        # under the name that bundles and checkpoints have for it
        self.normalise = normalize
        self.backbone = backbone
        normalize.keeps_missing = backbone.takes_missing
        self.layer_decay: float | None = None
        self.keeps_statistics = False
        """Whether batch norms of the trunk normalize by their running statistics in training too, and leave them."""

    @property
    def normalize(self) -> Normalize:
        """The first layer."""
        return self.normalise

    def train(self, mode: bool = True) -> Self:
        """Switch to training or evaluation; batch norms of the trunk stay in evaluation with `keeps_statistics`."""
        super().train(mode)
        if mode and self.keeps_statistics:
            for module in self.backbone.trunk.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def adapt(self, adaptation: Adaptation) -> None:
        """Freeze parts of the backbone and put in low-rank updates; once, after weights are loaded.

        Raises:
            BackboneError: If the backbone cannot be so adapted.
        """
        adapt(self.backbone, adaptation)
        self.layer_decay = adaptation.layer_decay

    def param_groups(self) -> list[ParamGroup]:
        """Divide all parameters that can learn: the trunk's own, by depth where rates decay by layer, then all others.

        Low-rank updates of the trunk are among the others: they are new, so they learn at the full rate.

        Returns:
            At least two groups, that of the trunk first; it is empty where the trunk is frozen.
        """
        held = {id(parameter) for parameter in own_parameters(self.backbone)}
        learning = [parameter for parameter in self.parameters() if parameter.requires_grad]
        trunk = [ParamGroup([p for p in learning if id(p) in held], 1.0)]
        if self.layer_decay is not None:
            trunk = param_groups(self.backbone, self.layer_decay) or trunk
        return [*trunk, ParamGroup([p for p in learning if id(p) not in held], 1.0)]


def build_normalize(spec: ModelSpec) -> Normalize:
    """Build the first layer of the network that a spec describes."""
    return Normalize(spec.normalization.mean, spec.normalization.std)


def build_backbone(
    spec: ModelSpec,
    *,
    pretrained: bool,
    weights: str | Path | None,
    form: Form = 'pyramid',
    strides: Sequence[int] | None = None,
) -> Backbone:
    """Build the backbone of the network that a spec describes.

    Args:
        spec: Names it, its bands and its dates.
        pretrained: Whether to fill it with its published weights.
        weights: The user's own, instead of fetching them.
        form: What the task takes of it.
        strides: Of the maps that the task takes; None takes all that it offers.
    """
    return create_backbone(
        spec.backbone,
        spec.bands,
        pretrained=pretrained,
        weights=weights,
        form=form,
        strides=strides,
        drop_path=spec.adaptation.drop_path,
        checkpointing=spec.adaptation.checkpointing,
        resolution_m=spec.resolution_m,
        dates=[date.fromisoformat(day) for day in spec.acquired] or spec.dates,
        temporal=spec.temporal,
        location=spec.location,
    )
