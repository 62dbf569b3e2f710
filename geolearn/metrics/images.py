"""How alike images are: peak signal-to-noise ratio and structural similarity."""

import math
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from geolearn.metrics.regression import RegressionScores
from geolearn.metrics.scores import Metric, main_output, sum_over_processes

SIGMA, SIDE = 1.5, 11
"""Of the Gaussian window of structural similarity, in pixels (Wang et al. 2004)."""


class ImageScores:
    """PSNR in decibels over all pixels, SSIM as the mean over images, RMSE, MAE and others; see `Scores`.

    Both are those of torchmetrics with its defaults. Pixels without truth take no part in PSNR, and are equal in both
    images for SSIM.

    Args:
        span: From the lowest to the highest value of the truth.
    """

    columns: ClassVar = (
        Metric('psnr', 'PSNR', True),
        Metric('ssim', 'SSIM', True),
        *RegressionScores.columns,
    )

    def __init__(self, span: float) -> None:
        self.span = span
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        self.errors = RegressionScores()
        self.sums = torch.zeros(2, dtype=torch.float64)

    def add(self, output: Tensor | tuple[Tensor, ...], target: Tensor) -> None:
        """Count predictions (N, C, H, W) against (N, C, H, W), NaN where there is no truth."""
        predicted = main_output(output).float()
        self.errors.add(predicted, target)
        known = ~target.isnan()
        similar = structural_similarity(predicted.where(known, 0), target.where(known, 0), self.span)
        counted = torch.isfinite(similar) & known.flatten(1).any(1)
        found = torch.stack([similar[counted].double().sum(), counted.sum().double()]).cpu()
        self.sums = self.sums + found

    def reduce(self) -> None:
        """Add up what all processes counted."""
        self.errors.reduce()
        self.sums = sum_over_processes(self.sums)

    def values(self) -> dict[str, float]:
        """Return the scores; NaN if no pixel has a truth."""
        errors, (total, count) = self.errors.values(), self.sums.tolist()
        squared = errors['rmse'] ** 2
        psnr = math.inf if squared == 0 else 10 * math.log10(self.span**2 / squared) if squared == squared else math.nan
        return {'psnr': psnr, 'ssim': total / count if count else math.nan, **errors}


def structural_similarity(predicted: Tensor, truth: Tensor, span: float) -> Tensor:
    """Return the structural similarity (N,) of images (N, C, H, W), mirrored at their edges; NaN under 6 pixels."""
    if min(truth.shape[-2:]) <= SIDE // 2:
        return truth.new_full((len(truth),), math.nan)
    # shifted to the middle of the truth: squares of large numbers that differ little lose digits
    middle = truth.mean((-2, -1), keepdim=True)
    edge = (SIDE // 2,) * 4
    x, y = (functional.pad((image - middle).double(), edge, mode='reflect') for image in (predicted, truth))
    places = torch.arange(SIDE, dtype=torch.float64, device=truth.device) - SIDE // 2
    window = torch.exp(-((places / SIGMA) ** 2) / 2)
    window = window / window.sum()
    bands = truth.shape[1]

    def blur(maps: Tensor) -> Tensor:
        maps = functional.conv2d(maps, window.view(1, 1, -1, 1).expand(bands, 1, -1, 1), groups=bands)
        return functional.conv2d(maps, window.view(1, 1, 1, -1).expand(bands, 1, 1, -1), groups=bands)

    mean_x, mean_y = blur(x), blur(y)
    spread_x, spread_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    shared = blur(x * y) - mean_x * mean_y
    one, two = (0.01 * span) ** 2, (0.03 * span) ** 2
    level_x, level_y = mean_x + middle, mean_y + middle
    similar = (2 * level_x * level_y + one) * (2 * shared + two)
    similar = similar / ((level_x**2 + level_y**2 + one) * (spread_x.clamp(min=0) + spread_y.clamp(min=0) + two))
    return similar.flatten(1).mean(1)
