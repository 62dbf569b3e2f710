"""Change whole batches at random, on their device: image and mask together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BatchTransform = Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]
"""Takes images (N, bands, H, W), masks (N, H, W) and a generator; returns both, changed."""


@dataclass(frozen=True)
class Augmentation:
    """Flips, quarter turns and radiometric jitter.

    Args:
        band_std: Standard deviation of each band in the units of the images.
        dihedral: All eight flips and turns; without it only left-right flips (oblique images have an up).
        gain: Each band of each image is multiplied by 1 ± gain.
        offset: Each band of each image is moved by ± offset standard deviations.
    """

    band_std: Sequence[float]
    dihedral: bool = True
    gain: float = 0.1
    offset: float = 0.1

    def __call__(self, images: Tensor, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return changed copies; NaN (NoData) stays NaN."""
        images, masks = self._flip(images, masks, generator)
        return self._jitter(images, generator), masks

    def _flip(self, images: Tensor, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        across, down, turn = (torch.rand(len(images), generator=generator) < 0.5 for _ in range(3))
        images, masks = _where(across, images, masks, lambda t: t.flip(-1))
        if self.dihedral:
            images, masks = _where(down, images, masks, lambda t: t.flip(-2))
            if images.shape[-1] == images.shape[-2]:
                images, masks = _where(turn, images, masks, lambda t: t.transpose(-1, -2))
        return images, masks

    def _jitter(self, images: Tensor, generator: torch.Generator) -> Tensor:
        shape = (len(images), images.shape[1], 1, 1)
        gain = 1 + self.gain * (2 * torch.rand(shape, generator=generator) - 1)
        offset = self.offset * (2 * torch.rand(shape, generator=generator) - 1)
        offset = offset * torch.tensor(self.band_std, dtype=torch.float32).view(1, -1, 1, 1)
        return images * gain.to(images.device) + offset.to(images.device)


def _where(chosen: Tensor, images: Tensor, masks: Tensor, change: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Apply a change to the chosen samples of a batch."""
    picked = chosen.to(images.device)
    return (
        torch.where(picked.view(-1, 1, 1, 1), change(images), images),
        torch.where(picked.view(-1, 1, 1), change(masks), masks),
    )
