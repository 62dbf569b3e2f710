"""AdamW of torch behind fastai's wrapper, and an exponential moving average of the weights."""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from geolearn.training.fastai import OptimWrapper

WARM_UP = 0.1
"""Share of a run that warms up; fastai's quarter leaves short runs too little time to anneal."""

_HYPERS = ('lr', 'mom', 'sqr_mom', 'eps', 'wd')

_FUSED = ('cpu', 'cuda')
"""Kinds of device on which torch updates many weights in one kernel, and can be told there not to."""


class AdamW(OptimWrapper):
    """AdamW (Loshchilov & Hutter 2017, arXiv:1711.05101), computed by torch, with fastai's defaults.

    Each parameter group is two of torch's, one with weight decay and one without: `hypers`, `param_lists` and
    `set_hyper` speak of the groups that were given. The second moment is 0.99 and epsilon 1e-5, as in fastai.

    Args:
        params: Parameter groups.
        lr: Learning rate.
        no_decay: Parameters without weight decay, such as biases and the weights of norms.
    """

    def __init__(
        self, params: Sequence[Sequence[nn.Parameter]], lr: float, no_decay: Collection[nn.Parameter] = ()
    ) -> None:
        exempt = {id(parameter) for parameter in no_decay}
        self._groups = [list(group) for group in params]
        halves = [
            {'params': [p for p in group if (id(p) in exempt) is decays_not]}
            for group in self._groups
            for decays_not in (False, True)
        ]
        first = next((p for group in self._groups for p in group), None)
        self._fused = first is not None and first.device.type in _FUSED
        super().__init__(opt=torch.optim.AdamW(halves, lr=lr, betas=(0.9, 0.99), eps=1e-5, fused=self._fused or None))
        self.set_hyper('wd', 0.01)

    @property
    def param_lists(self) -> list[list[nn.Parameter]]:
        """Parameter groups as they were given."""
        return self._groups

    @property
    def hypers(self) -> list[dict[str, Any]]:
        """Hyper-parameters of each group; copies, to be changed by `set_hyper`."""
        return [{name: group[name] for name in _HYPERS} for group in super().hypers[::2]]

    def _set_hyper(self, k: str, v: Sequence[Any]) -> None:
        super()._set_hyper(k, [value for one in v for value in (one, 0.0 if k == 'wd' else one)])

    @property
    def moments(self) -> dict[nn.Parameter, dict[str, Tensor]]:
        """What torch keeps of each parameter: step, first and second moment."""
        return self.opt.state

    def step(self, *, nonfinite: Tensor | None = None) -> None:
        """Update every weight that has a gradient.

        Args:
            nonfinite: 1 on the device where a gradient is NaN or infinite: the step then changes nothing.
        """
        if not self._fused and nonfinite is not None and bool(nonfinite):
            return
        for parameter in (p for group in self._groups for p in group if p.grad is not None):
            _match_layout(parameter, self.opt.state.get(parameter, {}))
        self.opt.found_inf = nonfinite if self._fused else None
        self.opt.step()


def _match_layout(parameter: nn.Parameter, state: dict[str, Tensor]) -> None:
    """Bring gradient and moments into the parameter's memory layout: the fused kernel takes it for granted."""
    strides = parameter.stride()
    if parameter.grad is not None and parameter.grad.stride() != strides:
        parameter.grad = torch.empty_like(parameter).copy_(parameter.grad)
    if 'exp_avg' in state and state['exp_avg'].stride() != strides:
        for name in ('exp_avg', 'exp_avg_sq'):
            state[name] = torch.empty_like(parameter).copy_(state[name])


class MeanWeights:
    """Exponential moving average of what changes in a network: weights that train, and running statistics.

    The first steps count less: step t keeps min(decay, (1 + t) / (10 + t)) of the mean.

    Args:
        network: Whose weights are averaged.
        decay: Share of the mean that each step keeps.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay, self.steps = decay, 0
        saved = network.state_dict(keep_vars=True)  # what is not saved, such as tables of positions, is not averaged
        frozen = {id(p) for p in network.parameters() if not p.requires_grad}
        changing = {n: t for n, t in saved.items() if t.is_floating_point() and id(t) not in frozen}
        # tied weights have several names and one place
        places = [(tensor.data_ptr(), tensor.shape) for tensor in changing.values()]
        self._first_names = {name: [*changing][places.index(place)] for name, place in zip(changing, places)}
        self._live = {name: tensor for name, tensor in changing.items() if self._first_names[name] == name}
        self.mean = {name: tensor.detach().clone() for name, tensor in self._live.items()}
        self.swapped = False

    def named(self) -> dict[str, Tensor]:
        """Return the mean by each name that it has in the network's state."""
        return {name: self.mean[first] for name, first in self._first_names.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are after a step."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        get_ema_multi_avg_fn(decay)(list(self.mean.values()), list(self._live.values()), self.steps)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the network's weights and the means."""
        for name, tensor in self._live.items():
            kept = tensor.detach().clone()
            tensor.copy_(self.mean[name])
            self.mean[name].copy_(kept)
        self.swapped = not self.swapped

    @torch.no_grad()
    def load(self, mean: dict[str, Tensor], steps: int) -> None:
        """Continue from a mean that was kept."""
        self.steps = steps
        for name in self.mean.keys() & mean.keys():  # older checkpoints also hold what is not saved with a network
            self.mean[name].copy_(mean[name])

    @torch.no_grad()
    def replace_nonfinite(self) -> None:
        """Take the live value wherever the mean is NaN or infinite."""
        for name, tensor in self.mean.items():
            tensor.copy_(torch.where(tensor.isfinite(), tensor, self._live[name]))
