"""A running mean of the weights, which is often better than the last ones."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


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
