"""AdamW in a few kernels, behind the interface of fastai's optimisers."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from geolearn.training._fastai import Optimizer

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
