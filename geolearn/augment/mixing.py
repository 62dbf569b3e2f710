"""Mix images of a batch with one another: mixup blends two, cutmix pastes a rectangle."""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from geolearn.augment.step import check_between
from geolearn.batch import Batch


@dataclass(frozen=True)
class Mixup:
    """Blend each image with another one of its batch, and their labels in the same shares.

    Only for labels of whole images. Where the other image has no data, the image stays as it is; its own NaN stays.

    Args:
        alpha: The share of the other image follows Beta(alpha, alpha), at most one half; 0.2 blends little, 1 evenly.
        class_count: Needed where labels are class indices; the changed ones are (n, classes) float32.
    """

    alpha: float
    class_count: int | None = None

    def __post_init__(self) -> None:
        check_between('alpha', self.alpha, 1e-3)

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Return a blended copy.

        Raises:
            ValueError: If the batch has masks or objects, or the number of classes is needed and unknown.
        """
        _refuse(batch, 'mixup', masks='a pixel of two blended images would belong to two classes')
        partner = torch.randperm(len(batch.images), generator=generator).to(batch.images.device)
        shares = _shares(self.alpha, len(batch.images), generator)
        weight = torch.from_numpy(shares).to(batch.images)
        images, other = batch.images, batch.images[partner]
        other = torch.where(other.isnan(), images, other)
        mixed = torch.lerp(images, other, weight.view(-1, *[1] * (images.ndim - 1)))
        return replace(batch, images=mixed, labels=_mixed(batch.labels, partner, weight, self.class_count))


@dataclass(frozen=True)
class CutMix:
    """Paste into each image a rectangle of another one of its batch: all bands and dates, and the mask with them.

    Labels of whole images are mixed by the share of the area. NoData moves with its pixels.

    Args:
        alpha: The share of the other image follows Beta(alpha, alpha), at most one half; 1 is usual.
        class_count: Needed where labels are class indices; the changed ones are (n, classes) float32.
    """

    alpha: float
    class_count: int | None = None

    def __post_init__(self) -> None:
        check_between('alpha', self.alpha, 1e-3)

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Return a copy with rectangles pasted.

        Raises:
            ValueError: If the batch has objects, or the number of classes is needed and unknown.
        """
        _refuse(batch, 'cutmix')
        count, height, width = len(batch.images), batch.images.shape[-2], batch.images.shape[-1]
        partner = torch.randperm(count, generator=generator)
        shares = _shares(self.alpha, count, generator)
        images = batch.images.clone()
        masks = None if batch.masks is None else batch.masks.clone()
        areas = []
        for index, (other, share, place) in enumerate(
            zip(partner.tolist(), shares.tolist(), torch.rand((count, 2), generator=generator).tolist())
        ):
            rows, cols = _piece(height, place[0], share), _piece(width, place[1], share)
            images[index, ..., rows, cols] = batch.images[other, ..., rows, cols]
            if masks is not None and batch.masks is not None:
                masks[index, rows, cols] = batch.masks[other, rows, cols]
            areas.append((rows.stop - rows.start) * (cols.stop - cols.start) / (height * width))
        weight, partner = torch.tensor(areas).to(images), partner.to(images.device)
        return replace(
            batch, images=images, masks=masks, labels=_mixed(batch.labels, partner, weight, self.class_count)
        )


def _piece(size: int, place: float, share: float) -> slice:
    length = round(size * math.sqrt(share))
    start = round(place * (size - length))
    return slice(start, start + length)


def _shares(alpha: float, count: int, generator: torch.Generator) -> np.ndarray:
    # torch's own Beta takes no generator
    seed = int(torch.randint(2**62, (), generator=generator))
    shares = np.random.default_rng(seed).beta(alpha, alpha, count)
    return np.minimum(shares, 1 - shares)


def _refuse(batch: Batch, name: str, *, masks: str | None = None) -> None:
    if batch.objects is not None:
        raise ValueError(f'{name} is not defined for objects: their boxes would cover pixels of another image')
    if masks is not None and batch.masks is not None:
        raise ValueError(f'{name} is not defined for masks: {masks}; use cutmix')


def _mixed(labels: Tensor | None, partner: Tensor, weight: Tensor, class_count: int | None) -> Tensor | None:
    """Return labels (n, classes) float32, of which `weight` (n,) comes from the partner."""
    if labels is None:
        return None
    if labels.ndim == 1:
        if class_count is None:
            raise ValueError('labels that are class indices can be mixed only if class_count is given')
        labels = one_hot(labels, class_count).to(torch.float32)
    return torch.lerp(labels, labels[partner], weight.to(labels)[:, None])
