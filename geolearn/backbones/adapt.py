"""Adapt a backbone to new data: what learns, how fast, and low-rank updates in place of full ones."""

from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional

from geolearn.adaptation import Adaptation
from geolearn.backbones.backbone import Backbone
from geolearn.errors import BackboneError

LORA_TARGETS = ('qkv', 'q', 'k', 'v', 'proj', 'fc1', 'fc2', 'fc3')
"""Names of the linear layers that low-rank updates go to: attention and multilayer perceptron of each block."""

_AFTER_THE_BLOCKS = {'norm', 'fc_norm', 'encoder_norm'}
"""Modules of a trunk, outside its embeddings, that follow its blocks."""


class LoraLinear(nn.Linear):
    """A linear layer whose weight stays, plus a low-rank update that learns; the update starts at zero.

    `weight`, as an attribute, is the weight with the update in it, so that networks which read it past `forward`
    (torchvision's shifted windows) learn too. In the state dict it is the weight that stays.

    Args:
        linear: The layer; its parameters are shared and frozen.
        rank: Of the update.
        alpha: The update is multiplied by alpha / rank.
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        _freeze(linear.parameters())
        # not by assignment, which the property of the same name would refuse
        self._parameters['weight'] = linear._parameters['weight']
        self.bias = linear.bias
        self.lora_a = nn.Parameter(linear.weight.new_empty(rank, linear.in_features))
        self.lora_b = nn.Parameter(linear.weight.new_zeros(linear.out_features, rank))
        self.lora_scale = alpha / rank
        nn.init.kaiming_uniform_(self.lora_a, a=5**0.5)

    @property
    def frozen_weight(self) -> Tensor:
        """The weight without the update (out_features, in_features)."""
        weight = self._parameters['weight']
        assert weight is not None
        return weight

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight with the update in it (out_features, in_features)."""
        return self.frozen_weight + self.lora_scale * (self.lora_b @ self.lora_a)

    def forward(self, x: Tensor) -> Tensor:
        """Apply weight and update to `x` (..., in_features)."""
        update = functional.linear(functional.linear(x, self.lora_a), self.lora_scale * self.lora_b)
        return functional.linear(x, self.frozen_weight, self.bias) + update


def adapt(backbone: Backbone, adaptation: Adaptation) -> None:
    """Freeze parts of a backbone's trunk and put in low-rank updates; nothing that is frozen is ever thawed.

    Raises:
        BackboneError: If the trunk has no blocks to count, fewer than are to be frozen, or no layers for low-rank
            updates.
    """
    trunk, freeze = backbone.trunk, adaptation.freeze
    if adaptation.layer_decay is not None:
        _stages(backbone)
    if isinstance(freeze, int) and freeze:
        if freeze > (count := len(_stages(backbone))):
            raise BackboneError(f'{backbone.name} has {count} blocks, not {freeze} to freeze')
        depths = _depths(backbone)
        _freeze(p for p in trunk.parameters() if depths[id(p)] <= freeze)
    linears = _find_linears(backbone) if adaptation.lora_rank else []
    if freeze in ('all', 'all but norms') or linears:
        kept = {id(p) for p in _norm_parameters(trunk)} if freeze == 'all but norms' else set()
        _freeze(p for p in trunk.parameters() if id(p) not in kept)
    for parent, name, child in linears:
        alpha = 2.0 * adaptation.lora_rank if adaptation.lora_alpha is None else adaptation.lora_alpha
        setattr(parent, name, LoraLinear(child, adaptation.lora_rank, alpha))


def _norm_parameters(trunk: nn.Module) -> Iterable[nn.Parameter]:
    for module in trunk.modules():
        if 'Norm' in type(module).__name__:  # torch's, timm's and others' share no base class
            yield from module.parameters(recurse=False)


def _freeze(parameters: Iterable[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.requires_grad_(False)


def _find_linears(backbone: Backbone) -> list[tuple[nn.Module, str, nn.Linear]]:
    """List the layers that take low-rank updates, by parent and name: those of the blocks that still learn."""
    parts = _stages(backbone) if _has_stages(backbone) else [backbone.trunk]
    found = [
        (parent, name, child)
        for part in parts
        for parent in part.modules()
        for name, child in parent.named_children()
        if name in LORA_TARGETS and type(child) is nn.Linear and child.weight.requires_grad
    ]
    if not found:
        raise BackboneError(
            f'{backbone.name} has no linear layers {", ".join(LORA_TARGETS)} that learn, so lora_rank does not apply; '
            'pass lora_rank=0'
        )
    return found


def merged_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """Return the state dict that the module would have without low-rank updates: they are merged into the weights."""
    state: dict[str, Tensor] = module.state_dict()
    for name, child in module.named_modules():
        if isinstance(child, LoraLinear):
            prefix = f'{name}.' if name else ''
            state[f'{prefix}weight'] = child.weight.detach()
            for update in ('lora_a', 'lora_b'):
                del state[f'{prefix}{update}']
    return state


def own_parameters(backbone: Backbone) -> list[nn.Parameter]:
    """List the trunk's own parameters, which weights fill: all but low-rank updates, which are as new as a decoder."""
    updates = {
        id(parameter)
        for module in backbone.trunk.modules()
        if isinstance(module, LoraLinear)
        for parameter in (module.lora_a, module.lora_b)
    }
    return [parameter for parameter in backbone.trunk.parameters() if id(parameter) not in updates]


class ParamGroup(NamedTuple):
    """Parameters that learn at one share of the learning rate."""

    parameters: list[nn.Parameter]
    lr_scale: float


def param_groups(backbone: Backbone, decay: float) -> list[ParamGroup]:
    """Divide what learns of the trunk's own parameters by depth, the patch embedding first.

    A parameter of block i of L (from 0) learns at decay ** (L - i), the patch embedding and whatever else comes before
    the blocks at decay ** (L + 1), as in detectron2's ViTDet; what comes after them at 1. Low-rank updates are in no
    group: they are new layers, which learn at the full rate (see `own_parameters`).

    Returns:
        Groups that are not empty, by depth.

    Raises:
        BackboneError: If the trunk has no blocks in a row.
    """
    last = len(_stages(backbone)) + 1
    depths = _depths(backbone)
    groups: dict[int, list[nn.Parameter]] = {}
    for parameter in own_parameters(backbone):
        if parameter.requires_grad:
            groups.setdefault(depths[id(parameter)], []).append(parameter)
    return [ParamGroup(groups[depth], decay ** (last - depth)) for depth in sorted(groups)]


def _depths(backbone: Backbone) -> dict[int, int]:
    """Return the depth of each trunk parameter by id: 0 before the blocks, i + 1 in block i, L + 1 after them."""
    stages = _stages(backbone)
    depths = {
        id(parameter): len(stages) + 1 if _is_after(name) else 0
        for name, parameter in backbone.trunk.named_parameters()
    }
    for index, stage in enumerate(stages):
        depths |= {id(p): index + 1 for p in stage.parameters()}
    return depths


def _is_after(name: str) -> bool:
    parts = name.split('.')
    return bool(_AFTER_THE_BLOCKS.intersection(parts)) and not any('embed' in part for part in parts)


def _has_stages(backbone: Backbone) -> bool:
    return isinstance(getattr(backbone.trunk, 'stages', None), nn.ModuleList)


def _stages(backbone: Backbone) -> nn.ModuleList:
    stages = getattr(backbone.trunk, 'stages', None)
    if not isinstance(stages, nn.ModuleList):
        raise BackboneError(
            f"{backbone.name} has no blocks in a row; pass freeze='none', 'all' or 'all but norms', and no layer_decay"
        )
    return stages
