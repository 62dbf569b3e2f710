"""AdamW in a few kernels, behind the interface of fastai's optimisers."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw
from torch.optim.swa_utils import get_ema_multi_avg_fn

from geolearn.training.fastai import Optimizer, QuickCallback

WARM_UP = 0.1
"""Share of a run that warms up; fastai's quarter leaves short runs too little time to anneal."""

START_DIVISOR, END_DIVISOR = 25.0, 1e5

MOMENTA = (0.95, 0.85, 0.95)
"""As in fastai: rates from peak / 25 to the peak and to peak / 1e5, momentum the other way."""


class OneCycle(QuickCallback):
    """Warm up and anneal along half cosines (Smith & Topin 2017, arXiv:1708.07120).

    Where it is follows from the epoch and the batch alone, so that a resumed training needs no more.

    Args:
        peaks: Highest rate of each parameter group.
    """

    order = 60

    def __init__(self, peaks: Sequence[float]) -> None:
        self._peaks = [float(peak) for peak in peaks]

    def before_batch(self) -> None:
        """Set rate and momentum of the batch."""
        if self.learn.training:
            place = self.learn.pct_train
            factor = follow_cycle(place, (1 / START_DIVISOR, 1.0, 1 / END_DIVISOR))
            momentum = follow_cycle(place, MOMENTA)
            for hyper, peak in zip(self.learn.opt.hypers, self._peaks):
                hyper['lr'], hyper['mom'] = peak * factor, momentum


def follow_cycle(place: float, values: tuple[float, float, float]) -> float:
    """Return the value at a place from 0 to 1 between start, peak and end."""
    start, peak, end = values
    if place < WARM_UP:
        return _half_cosine(start, peak, place / WARM_UP)
    return _half_cosine(peak, end, (place - WARM_UP) / (1 - WARM_UP))


def _half_cosine(start: float, end: float, place: float) -> float:
    return start + (1 + math.cos(math.pi * (1 - place))) * (end - start) / 2


class MeanWeights:
    """Exponential moving average of what changes in a network: weights that learn, and running statistics.

    The first steps count less long: step t keeps min(decay, (1 + t) / (10 + t)) of the mean.

    Args:
        network: Whose weights are averaged.
        decay: Share of the mean that each step keeps.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self._live: dict[str, Tensor] = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self._live |= {name: b for name, b in network.named_buffers() if b.is_floating_point()}
        self.mean = {name: tensor.detach().clone() for name, tensor in self._live.items()}
        self.swapped = False

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
        """Go on from a mean that was kept."""
        self.steps = steps
        for name, tensor in mean.items():
            self.mean[name].copy_(tensor)

    @torch.no_grad()
    def heal(self) -> None:
        """Take the live value wherever the mean has become no number."""
        for name, tensor in self.mean.items():
            tensor.copy_(torch.where(tensor.isfinite(), tensor, self._live[name]))


_FUSED = ('cpu', 'cuda')
"""Kinds of device on which torch updates many weights in one kernel, and can be told there not to."""


class AdamW(Optimizer):
    """AdamW (Loshchilov & Hutter 2017, arXiv:1711.05101), computed by torch.

    fastai's own optimiser goes through the weights one by one in Python, which takes a graphics card longer than the
    step of a small network. Its defaults are kept: second moment 0.99, epsilon 1e-5, no decay of biases and norms.

    Args:
        params: Parameter groups.
        lr: Learning rate.
    """

    def __init__(self, params: Sequence[Sequence[nn.Parameter]], lr: float) -> None:
        super().__init__(params, [], lr=lr, mom=0.9, sqr_mom=0.99, eps=1e-5, wd=0.01)
        self.spoilt: Tensor | None = None
        """1 on the device where the gradients are no numbers: the step then changes nothing."""

    def step(self, closure: None = None) -> None:
        """Update every weight that has a gradient: all that learn alike at once."""
        alike: dict[tuple[float, ...], list[nn.Parameter]] = {}
        for group, hyper in zip(self.param_lists, self.hypers):
            common = float(hyper['lr']), float(hyper['mom']), float(hyper['sqr_mom']), float(hyper['eps'])
            decaying = alike.setdefault((*common, float(hyper['wd'])), [])
            others = alike.setdefault((*common, 0.0), [])
            for parameter in group:
                if parameter.grad is not None:
                    (decaying if self.state[parameter].get('do_wd', True) else others).append(parameter)
        with torch.no_grad():
            for values, parameters in alike.items():
                if parameters:
                    self._update(parameters, *values)

    def zero_grad(self) -> None:
        """Drop the gradients: without one, a weight is not decayed either."""
        for group in self.param_lists:
            for parameter in group:
                parameter.grad = None

    def _update(
        self, parameters: list[nn.Parameter], lr: float, mom: float, sqr_mom: float, eps: float, wd: float
    ) -> None:
        states = [self._state_of(parameter) for parameter in parameters]
        fused = parameters[0].device.type in _FUSED
        if not fused and self.spoilt is not None and bool(self.spoilt):
            return
        adamw(
            parameters,  # type: ignore[arg-type]
            [_laid_out(parameter.grad, parameter) for parameter in parameters if parameter.grad is not None],
            [state['grad_avg'] for state in states],
            [state['sqr_avg'] for state in states],
            [],
            [state['step'] for state in states],
            fused=fused,
            found_inf=self.spoilt if fused else None,
            amsgrad=False,
            beta1=mom,
            beta2=sqr_mom,
            lr=lr,
            weight_decay=wd,
            eps=eps,
            maximize=False,
        )

    def _state_of(self, parameter: nn.Parameter) -> dict[str, Any]:
        state = self.state[parameter]
        if 'step' not in state:
            state['step'] = torch.zeros((), device=parameter.device)
            state['grad_avg'], state['sqr_avg'] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        elif state['grad_avg'].stride() != parameter.stride():
            state |= {name: _laid_out(state[name], parameter) for name in ('grad_avg', 'sqr_avg')}
        return state


def _laid_out(tensor: Tensor, parameter: nn.Parameter) -> Tensor:
    """Return the tensor in the parameter's memory layout: the fused kernel takes it for granted."""
    if tensor.stride() == parameter.stride():
        return tensor
    return torch.empty_like(parameter).copy_(tensor)
