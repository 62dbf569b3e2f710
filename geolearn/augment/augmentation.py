"""The changes that training uses unless told otherwise, with the rest as options."""

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from geolearn.augment import transforms
from geolearn.augment import transforms as draws
from geolearn.augment.turning import Turn
from geolearn.batch import Batch


@dataclass(frozen=True)
class _Mix:
    """Each image takes something of another one of its batch, so that it depends on which chips are in a batch.

    Args:
        alpha: The share of the other image follows Beta(alpha, alpha), at most one half; 0.2 mixes little, 1 evenly.
        class_count: Needed where labels are class indices; the changed ones are (n, classes) float32.
    """

    alpha: float
    class_count: int | None = None

    def __post_init__(self) -> None:
        transforms.check_between('alpha', self.alpha, 1e-3)

    def _draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, np.ndarray]:
        """Return for each image which other one it takes from, and the share that it takes."""
        partner = draws.permutation(generator, count)
        # torch's own Beta takes no generator
        seeds = draws.randint(generator, 2**62, count).tolist()
        shares = np.array([np.random.default_rng(seed).beta(self.alpha, self.alpha) for seed in seeds])
        return partner, np.minimum(shares, 1 - shares)


@dataclass(frozen=True)
class Mixup(_Mix):
    """Blend each image with another one of its batch, and their labels in the same shares.

    Only for labels of whole images. Where the other image has no data, the image stays as it is; its own NaN stays.

    Args:
        alpha: The share of the other image follows Beta(alpha, alpha), at most one half; 0.2 blends little, 1 evenly.
        class_count: Needed where labels are class indices; the changed ones are (n, classes) float32.
    """

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Return a blended copy.

        Raises:
            ValueError: If the batch has masks, values or objects, or the number of classes is needed and unknown.
        """
        _refuse(batch, 'mixup', pixels='a pixel of two blended images would belong to two classes or places')
        partner, shares = self._draw(len(batch.images), generator)
        partner = partner.to(batch.images.device)
        weight = torch.from_numpy(shares).to(batch.images)
        images, other = batch.images, batch.images[partner]
        other = torch.where(other.isnan(), images, other)
        mixed = torch.lerp(images, other, weight.view(-1, *[1] * (images.ndim - 1)))
        return replace(batch, images=mixed, labels=_mixed(batch.labels, partner, weight, self.class_count))


@dataclass(frozen=True)
class CutMix(_Mix):
    """Paste into each image a rectangle of another one of its batch: all bands and dates, mask and values with them.

    Labels of whole images are mixed by the share of the area. NoData moves with its pixels.

    Args:
        alpha: The share of the other image follows Beta(alpha, alpha), at most one half; 1 is usual.
        class_count: Needed where labels are class indices; the changed ones are (n, classes) float32.
    """

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Return a copy with rectangles pasted.

        Raises:
            ValueError: If the batch has objects, or the number of classes is needed and unknown.
        """
        _refuse(batch, 'cutmix')
        count, height, width = len(batch.images), batch.images.shape[-2], batch.images.shape[-1]
        partner, shares = self._draw(count, generator)
        images = batch.images.clone()
        masks, values = (
            None if planes is None else planes.clone() for planes in (batch.masks, batch.regression_targets)
        )
        areas = []
        for index, (other, share, place) in enumerate(
            zip(partner.tolist(), shares.tolist(), draws.rand(generator, count, 2).tolist())
        ):
            rows, cols = _piece(height, place[0], share), _piece(width, place[1], share)
            images[index, ..., rows, cols] = batch.images[other, ..., rows, cols]
            for planes, given in ((masks, batch.masks), (values, batch.regression_targets)):
                if planes is not None and given is not None:
                    times = planes.shape[-1] // width  # images that are to be predicted may be finer
                    part = (slice(rows.start * times, rows.stop * times), slice(cols.start * times, cols.stop * times))
                    planes[index, ..., part[0], part[1]] = given[other, ..., part[0], part[1]]
            areas.append((rows.stop - rows.start) * (cols.stop - cols.start) / (height * width))
        weight, partner = torch.tensor(areas).to(images), partner.to(images.device)
        labels = _mixed(batch.labels, partner, weight, self.class_count)
        return replace(batch, images=images, masks=masks, regression_targets=values, labels=labels)


def _piece(size: int, place: float, share: float) -> slice:
    length = round(size * math.sqrt(share))
    start = round(place * (size - length))
    return slice(start, start + length)


def _refuse(batch: Batch, name: str, *, pixels: str | None = None) -> None:
    if batch.objects is not None:
        raise ValueError(f'{name} is not defined for objects: their boxes would cover pixels of another image')
    if pixels is not None and (batch.masks is not None or batch.regression_targets is not None):
        what = 'masks' if batch.masks is not None else 'values'
        raise ValueError(f'{name} is not defined for {what}: {pixels}; use cutmix')


def _mixed(labels: Tensor | None, partner: Tensor, weight: Tensor, class_count: int | None) -> Tensor | None:
    """Return labels (n, classes) float32, of which `weight` (n,) comes from the partner."""
    if labels is None:
        return None
    if labels.ndim == 1:
        if class_count is None:
            raise ValueError('labels that are class indices can be mixed only if class_count is given')
        labels = one_hot(labels, class_count).to(torch.float32)
    return torch.lerp(labels, labels[partner], weight.to(labels)[:, None])


@dataclass(frozen=True)
class Augmentation:
    """Flips, quarter turns and radiometric jitter; the rest is off until asked for.

    Args:
        band_std: Standard deviation of each band in the units of the images.
        dihedral: All eight flips and turns; without it only left-right flips (oblique images have an up).
        gain: Each band of each image is multiplied by 1 ± gain.
        offset: Each band of each image is moved by ± offset standard deviations.
        turn: Images are turned by up to so many degrees, 180 for any direction; see `Turn`.
        scale_crop: Lowest and highest zoom factor; see `ScaleCrop`.
        noise: Largest noise as a share of the band's standard deviation; see `Noise`.
        band_dropout: Probability that a band is set to its mean; needs `band_mean`.
        band_mean: Mean of each band in the units of the images.
        clouds: Probability of haze or clouds; needs `cloud_brightness`.
        cloud_brightness: What the function `cloud_brightness` returns; see `Clouds`.
        mixup_alpha: See `Mixup`; for labels of whole images.
        cutmix_alpha: See `CutMix`; for labels of whole images and for masks. With both, each batch takes one of them.
        class_count: Needed to mix labels that are class indices.
        keep_visible: Share of an oriented object that must be seen; see `ScaleCrop`.
        ignore_visible: With a smaller share, down to this one, it is ignored.
    """

    band_std: Sequence[float]
    dihedral: bool = True
    gain: float = 0.1
    offset: float = 0.1
    _: KW_ONLY
    turn: float = 0.0
    scale_crop: tuple[float, float] | None = None
    noise: float = 0.0
    band_dropout: float = 0.0
    band_mean: Sequence[float] | None = None
    clouds: float = 0.0
    cloud_brightness: Sequence[float | None] | None = None
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    class_count: int | None = None
    keep_visible: float = 0.7
    ignore_visible: float = 0.3

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
    def _chain(self) -> transforms.Chain:
        steps: list[transforms.BatchTransform] = [transforms.Dihedral(self.dihedral)]
        visible = {'keep_visible': self.keep_visible, 'ignore_visible': self.ignore_visible}
        if self.turn:
            steps.append(Turn(self.turn, **visible))
        if self.scale_crop is not None:
            steps.append(transforms.ScaleCrop(*self.scale_crop, **visible))
        mixes: list[transforms.BatchTransform] = []
        if self.mixup_alpha:
            mixes.append(Mixup(self.mixup_alpha, self.class_count))
        if self.cutmix_alpha:
            mixes.append(CutMix(self.cutmix_alpha, self.class_count))
        if mixes:
            steps.append(OneOf(mixes) if len(mixes) > 1 else mixes[0])
        if self.gain or self.offset:
            steps.append(transforms.Radiometry(self.band_std, self.gain, self.offset))
        if self.clouds and self.cloud_brightness is not None:
            steps.append(transforms.Clouds(self.cloud_brightness, self.clouds))
        if self.noise:
            steps.append(transforms.Noise(self.band_std, self.noise))
        if self.band_dropout and self.band_mean is not None:
            steps.append(transforms.BandDropout(self.band_mean, self.band_dropout))
        return transforms.Chain(steps)


@dataclass(frozen=True)
class OneOf:
    """One of several changes for each batch, each as likely as the others.

    Args:
        steps: The changes to choose from.
    """

    steps: Sequence[transforms.BatchTransform]

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Return a copy changed by one of them."""
        chosen = int(torch.randint(len(self.steps), (), generator=generator))
        return self.steps[chosen](batch, generator)
