"""Scores of continuous values per pixel, such as height or biomass."""

from typing import ClassVar

import torch
from torch import Tensor

from geolearn.metrics.scores import Metric, main_output, sum_over_processes, widest


class RegressionScores:
    """Root mean square error, mean absolute error, bias and R2; see `Scores`.

    The first three are in units of the target. The bias is prediction minus truth. R2 is 1 - the squared error / the
    spread of the truth around its mean, NaN where the truth does not vary. Sums are kept as mean and spread around it
    (Chan et al. 1983), so that values far from 0 lose no digits.
    """

    columns: ClassVar = (
        Metric('rmse', 'RMSE', False),
        Metric('mae', 'MAE', False),
        Metric('bias'),
        Metric('r2', 'R²', True),
    )

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        self.sums = torch.zeros(4, dtype=torch.float64)  # number of pixels, of errors: sum, absolute sum, squared sum
        self.mean = torch.zeros((), dtype=torch.float64)  # of the truth
        self.spread = torch.zeros((), dtype=torch.float64)  # sum of squared distances from that mean

    def add(self, output: Tensor | tuple[Tensor, ...], target: Tensor) -> None:
        """Count predictions (N, 1, H, W), or (main, auxiliary), against (N, H, W) values, NaN where there is no truth.

        Those of images are (N, C, H, W) in both.

        Raises:
            ValueError: If the shapes do not fit.
        """
        given = tuple(target.shape)
        target = target if target.dim() == 4 else target[:, None]
        predicted, known = main_output(output), ~target.isnan()
        if predicted.shape != target.shape:
            raise ValueError(
                f'predictions must be (N, 1, H, W) for targets (N, H, W), or (N, C, H, W) for both, '
                f'got {tuple(predicted.shape)} for {given}'
            )
        wide = widest(target.device)
        truth = target.to(wide).where(known, 0)
        errors = (predicted.to(wide) - truth).where(known, 0)
        count = known.sum().to(wide)
        mean = truth.sum() / count.clamp(min=1)
        spread = (truth - mean).where(known, 0).square().sum()
        self._merge(torch.stack([count, errors.sum(), errors.abs().sum(), errors.square().sum()]), mean, spread)

    def _merge(self, sums: Tensor, mean: Tensor, spread: Tensor) -> None:
        """Take in another set of pixels: its sums, and its truth's mean and spread."""
        own = [kept.to(sums) for kept in (self.sums, self.mean, self.spread)]
        total = own[0] + sums
        share = sums[0] / total[0].clamp(min=1)
        step = mean - own[1]
        self.sums, self.mean = total, own[1] + share * step
        self.spread = own[2] + spread + own[0][0] * share * step.square()

    def reduce(self) -> None:
        """Merge the sums of all processes."""
        sums = sum_over_processes(self.sums)
        mean = sum_over_processes(self.sums[0] * self.mean) / sums[0].clamp(min=1)
        self.spread = sum_over_processes(self.spread + self.sums[0] * (self.mean - mean).square())
        self.sums, self.mean = sums, mean

    def values(self) -> dict[str, float]:
        """Return the scores; NaN if no pixel has a truth."""
        count, errors, absolute, squared = self.sums.cpu()
        spread = self.spread.cpu()
        r2 = 1 - squared / spread if spread > 0 else torch.nan
        found = ((squared / count).sqrt(), absolute / count, errors / count, r2)
        return {metric.name: float(value) for metric, value in zip(self.columns, found)}
