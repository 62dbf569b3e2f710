"""The changes that training uses unless told otherwise, with the rest as options."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property

import torch

from geolearn.augment.geometry import Dihedral, ScaleCrop
from geolearn.augment.mixing import CutMix, Mixup
from geolearn.augment.radiometry import BandDropout, Clouds, Noise, Radiometry
from geolearn.augment.step import BatchTransform, Chain
from geolearn.batch import Batch


@dataclass(frozen=True)
class Augmentation:
    """Flips, quarter turns and radiometric jitter; the rest is off until asked for.

    Args:
        band_std: Standard deviation of each band in the units of the images.
        dihedral: All eight flips and turns; without it only left-right flips (oblique images have an up).
        gain: Each band of each image is multiplied by 1 ± gain.
        offset: Each band of each image is moved by ± offset standard deviations.
        scale_crop: Lowest and highest zoom factor; see `ScaleCrop`.
        noise: Largest noise as a share of the band's standard deviation; see `Noise`.
        band_dropout: Probability that a band is set to its mean; needs `band_mean`.
        band_mean: Mean of each band in the units of the images.
        clouds: Probability of haze or clouds; needs `cloud_brightness`.
        cloud_brightness: What the function `cloud_brightness` returns; see `Clouds`.
        mixup_alpha: See `Mixup`; for labels of whole images.
        cutmix_alpha: See `CutMix`; for labels of whole images and for masks. With both, each batch takes one of them.
        class_count: Needed to mix labels that are class indices.
    """

    band_std: Sequence[float]
    dihedral: bool = True
    gain: float = 0.1
    offset: float = 0.1
    _: KW_ONLY
    scale_crop: tuple[float, float] | None = None
    noise: float = 0.0
    band_dropout: float = 0.0
    band_mean: Sequence[float] | None = None
    clouds: float = 0.0
    cloud_brightness: Sequence[float | None] | None = None
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    class_count: int | None = None

    def __post_init__(self) -> None:
        if self.band_dropout and self.band_mean is None:
            raise ValueError('band_dropout sets bands to their mean, so it needs band_mean')
        if self.clouds and self.cloud_brightness is None:
            raise ValueError('clouds need cloud_brightness; geolearn.augment.cloud_brightness gives it')
        self._chain  # noqa: B018  a wrong number is told now, not in the first batch

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Return a changed copy; NaN (NoData) stays NaN and does not spread."""
        return self._chain(batch, generator)

    @cached_property
    def _chain(self) -> Chain:
        steps: list[BatchTransform] = [Dihedral(self.dihedral)]
        if self.scale_crop is not None:
            steps.append(ScaleCrop(*self.scale_crop))
        mixes: list[BatchTransform] = []
        if self.mixup_alpha:
            mixes.append(Mixup(self.mixup_alpha, self.class_count))
        if self.cutmix_alpha:
            mixes.append(CutMix(self.cutmix_alpha, self.class_count))
        if mixes:
            steps.append(OneOf(mixes) if len(mixes) > 1 else mixes[0])
        if self.gain or self.offset:
            steps.append(Radiometry(self.band_std, self.gain, self.offset))
        if self.clouds and self.cloud_brightness is not None:
            steps.append(Clouds(self.cloud_brightness, self.clouds))
        if self.noise:
            steps.append(Noise(self.band_std, self.noise))
        if self.band_dropout and self.band_mean is not None:
            steps.append(BandDropout(self.band_mean, self.band_dropout))
        return Chain(steps)


@dataclass(frozen=True)
class OneOf:
    """One of several changes for each batch, each as likely as the others.

    Args:
        steps: The changes to choose from.
    """

    steps: Sequence[BatchTransform]

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Return a copy changed by one of them."""
        chosen = int(torch.randint(len(self.steps), (), generator=generator))
        return self.steps[chosen](batch, generator)
