"""Adapt a backbone to new data: what learns, how fast, and low-rank updates in place of full ones."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from geolearn.backbones._backbone import Backbone
from geolearn.errors import BackboneError

LORA_TARGETS = ('qkv', 'proj', 'fc1', 'fc2')
"""Names of the linear layers that low-rank updates go to: attention and multilayer perceptron of each block."""

_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)


@dataclass(frozen=True, slots=True)
class Adaptation:
    """How a backbone's trunk is trained; pyramid and decoder always learn fully.

    Args:
        freeze: ``'none'``; ``'all'`` of the trunk; ``'all but norms'``; or how many blocks from the first on, with the
            patch embedding.
        layer_decay: Factor on the learning rate from each block to the one before it, as in ViTDet (0.7 for base, 0.8
            for large, 0.9 for huge; Li et al. 2022, arXiv:2203.16527); None for one rate.
        lora_rank: Rank of low-rank updates (Hu et al. 2021, arXiv:2106.09685) of attention and perceptron; with one,
            the rest of the trunk is frozen. 0 for none.
        lora_alpha: Strength of the updates, which are multiplied by lora_alpha / lora_rank; None means twice the rank.

    Raises:
        ValueError: If a number makes no sense.
    """

    freeze: str | int = 'none'
    layer_decay: float | None = None
    lora_rank: int = 0
    lora_alpha: float | None = None

    def __post_init__(self) -> None:
        words = ('none', 'all', 'all but norms')
        counted = isinstance(self.freeze, int) and not isinstance(self.freeze, bool) and self.freeze >= 0
        if not counted and self.freeze not in words:
            raise ValueError(f'freeze must be one of {words} or a number of blocks, got {self.freeze!r}')
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise ValueError(f'layer_decay must lie over 0 and up to 1, got {self.layer_decay}')
        if self.lora_rank < 0:
            raise ValueError(f'lora_rank must be at least 0, got {self.lora_rank}')


class LoraLinear(nn.Linear):
    """A linear layer whose weight stays, plus a low-rank update that learns; the update starts at zero.

    Args:
        linear: The layer; its parameters are shared and frozen.
        rank: Of the update.
        alpha: The update is multiplied by alpha / rank.
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        for parameter in linear.parameters():
            parameter.requires_grad_(False)
        self.lora_a = nn.Parameter(linear.weight.new_empty(rank, linear.in_features))
        self.lora_b = nn.Parameter(linear.weight.new_zeros(linear.out_features, rank))
        self.lora_scale = alpha / rank
        nn.init.kaiming_uniform_(self.lora_a, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Apply weight and update to `x` (..., in_features)."""
        update = functional.linear(functional.linear(x, self.lora_a), self.lora_b)
        return super().forward(x) + self.lora_scale * update

    def merged_weight(self) -> Tensor:
        """Return the weight with the update in it."""
        return self.weight + self.lora_scale * (self.lora_b @ self.lora_a)


def adapt(backbone: Backbone, adaptation: Adaptation) -> None:
    """Freeze parts of a backbone's trunk and put in low-rank updates; nothing that is frozen is ever thawed.

    Raises:
        BackboneError: If the trunk has no blocks to count or no layers for low-rank updates.
    """
    trunk = backbone.trunk
    if adaptation.lora_rank:
        _freeze(trunk.parameters())
        _add_lora(backbone, adaptation.lora_rank, adaptation.lora_alpha)
    if adaptation.freeze == 'all':
        _freeze(p for name, p in trunk.named_parameters() if 'lora_' not in name)
    elif adaptation.freeze == 'all but norms':
        kept = {id(p) for module in trunk.modules() if isinstance(module, _NORMS) for p in module.parameters()}
        _freeze(p for name, p in trunk.named_parameters() if id(p) not in kept and 'lora_' not in name)
    elif isinstance(adaptation.freeze, int) and adaptation.freeze:
        depths = _depths(backbone)
        _freeze(p for p in trunk.parameters() if depths[id(p)] <= adaptation.freeze)


def _freeze(parameters: Iterator[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.requires_grad_(False)


def _add_lora(backbone: Backbone, rank: int, alpha: float | None) -> None:
    found = [
        (parent, name, child)
        for stage in _stages(backbone)
        for parent in stage.modules()
        for name, child in parent.named_children()
        if name in LORA_TARGETS and type(child) is nn.Linear
    ]
    if not found:
        raise BackboneError(f'{backbone.name} has no layers called {LORA_TARGETS} for low-rank updates')
    for parent, name, child in found:
        setattr(parent, name, LoraLinear(child, rank, 2.0 * rank if alpha is None else alpha))


def merged_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """Return the state dict that the module would have without low-rank updates: they are merged into the weights."""
    state = {name: tensor for name, tensor in module.state_dict().items() if '.lora_' not in f'.{name}'}
    for name, child in module.named_modules():
        if isinstance(child, LoraLinear):
            with torch.no_grad():
                state[f'{name}.weight' if name else 'weight'] = child.merged_weight()
    return state


class RateGroup(NamedTuple):
    """Parameters that learn at one share of the learning rate."""

    parameters: list[nn.Parameter]
    scale: float


def rate_groups(backbone: Backbone, decay: float) -> list[RateGroup]:
    """Divide what learns in a backbone's trunk by depth, the patch embedding first.

    A parameter of block i of L (from 0) learns at decay ** (L - i), the patch embedding and whatever else comes before
    the blocks at decay ** (L + 1), as in detectron2's ViTDet; what comes after them at 1.

    Returns:
        Groups that are not empty, by depth.
    """
    last = len(_stages(backbone)) + 1
    depths = _depths(backbone)
    groups: dict[int, list[nn.Parameter]] = {}
    for parameter in backbone.trunk.parameters():
        if parameter.requires_grad:
            groups.setdefault(depths[id(parameter)], []).append(parameter)
    return [RateGroup(groups[depth], decay ** (last - depth)) for depth in sorted(groups)]


def _depths(backbone: Backbone) -> dict[int, int]:
    """Return the depth of each trunk parameter by id: 0 before the blocks, i + 1 in block i, L + 1 after them."""
    stages = _stages(backbone)
    after = len(stages) + 1
    depths = {id(p): 0 for p in backbone.trunk.parameters()}
    for name, child in backbone.trunk.named_children():
        if 'norm' in name:
            depths |= {id(p): after for p in child.parameters()}
    for index, stage in enumerate(stages):
        depths |= {id(p): index + 1 for p in stage.parameters()}
    return depths


def _stages(backbone: Backbone) -> nn.ModuleList:
    stages: nn.ModuleList | None = getattr(backbone.trunk, 'stages', None)
    if stages is None:
        raise BackboneError(
            f"{backbone.name} has no blocks in a row; pass freeze='none', 'all' or 'all but norms' without layer_decay"
        )
    return stages
