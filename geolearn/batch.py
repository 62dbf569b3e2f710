"""Batch: images and what is known about them, on one device."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Objects:
    """The objects in one image.

    Args:
        boxes: (n, 4) float32 left, top, right, bottom in pixels.
        labels: (n,) int64 class indices, 0..classes-1.
        masks: (n, height, width) bool, or None where objects have no outline.
        turned: (n, 5) float32 x, y, width, height and angle of oriented boxes in the form le90, which may reach beyond
            the image; None where boxes are level. See `geolearn.oriented.geometry`.
        ignored: (n,) bool, True for objects that are neither to be detected nor background; None where there are none.
    """

    boxes: Tensor
    labels: Tensor
    masks: Tensor | None = None
    turned: Tensor | None = None
    ignored: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> 'Objects':
        """Return the same objects on a device."""
        return Objects(*(None if part is None else part.to(device) for part in self._parts()))  # type: ignore[arg-type]

    def select(self, rows: Tensor) -> 'Objects':
        """Return some of the objects, by a boolean mask (n,) or by their numbers."""
        return Objects(*(None if part is None else part[rows] for part in self._parts()))  # type: ignore[arg-type]

    def split(self, counts: Sequence[int]) -> tuple['Objects', ...]:
        """Return so many objects in each part, one part after the other."""
        parts = [[None] * len(counts) if part is None else part.split(list(counts)) for part in self._parts()]
        return tuple(Objects(*row) for row in zip(*parts))

    @classmethod
    def concatenate(cls, parts: Sequence['Objects']) -> 'Objects':
        """Return the objects of several images together; all have the same parts."""
        columns = zip(*(part._parts() for part in parts))
        return cls(*(None if column[0] is None else torch.cat(column) for column in columns))  # type: ignore[arg-type]

    def _parts(self) -> tuple[Tensor | None, ...]:
        return self.boxes, self.labels, self.masks, self.turned, self.ignored


@dataclass(frozen=True, slots=True)
class Batch:
    """Images and what is known about them; what a task does not need is None.

    Args:
        images: (n, bands, height, width) float32 in stored units, NaN where there is no data; (n, dates, bands, height,
            width) where a chip has several dates.
        masks: (n, height, width) int64 class indices, IGNORE_INDEX where a pixel takes no part.
        objects: Objects of each image.
        labels: Of whole images: (n,) int64 class indices, or (n, classes) float32 with 1 where a class is present and
            fractions after mixing.
        nodata: (n, height, width) bool, True where images in their stored dtype hold no data; None once `cast` has made
            NaN of them.
        regression_targets: (n, height, width) float32 in stored units, NaN where there is no truth; or of images to
            predict (n, bands, height, width), which may be finer by a whole number.
    """

    images: Tensor
    masks: Tensor | None = None
    objects: tuple[Objects, ...] | None = None
    labels: Tensor | None = None
    nodata: Tensor | None = None
    regression_targets: Tensor | None = None

    def to(self, device: torch.device) -> 'Batch':
        """Return the same batch on a device."""
        return Batch(
            self.images.to(device),
            None if self.masks is None else self.masks.to(device),
            None if self.objects is None else tuple(objects.to(device) for objects in self.objects),
            None if self.labels is None else self.labels.to(device),
            None if self.nodata is None else self.nodata.to(device),
            None if self.regression_targets is None else self.regression_targets.to(device),
        )

    def cast(self) -> 'Batch':
        """Return the batch with images as float32, NaN where there is no data, and masks as int64."""
        images = self.images.to(torch.float32)
        if self.nodata is not None:
            nodata = self.nodata.view(len(images), *[1] * (images.dim() - 3), *self.nodata.shape[1:])
            images = images.masked_fill(nodata, torch.nan)
        masks = None if self.masks is None else self.masks.to(torch.int64)
        return replace(self, images=images, masks=masks, nodata=None)

    @property
    def targets(self) -> tuple[Tensor | tuple[Objects, ...], ...]:
        """What is known, in the order masks, regression_targets, objects, labels; empty for images alone."""
        return tuple(
            known for known in (self.masks, self.regression_targets, self.objects, self.labels) if known is not None
        )


@dataclass(frozen=True, slots=True)
class PanopticMap:
    """The segments of one image: each pixel belongs to one at most.

    Args:
        classes: (height, width) int64 class indices, IGNORE_INDEX where there is no segment.
        ids: (height, width) int64 number of the object, 0 for stuff, whose pixels of one class are one segment.
    """

    classes: Tensor
    ids: Tensor


@dataclass(frozen=True, slots=True)
class Detections:
    """The objects that a network detected in one image.

    Args:
        boxes: (n, 4) float32 left, top, right, bottom in pixels.
        labels: (n,) int64 class indices, 0..classes-1.
        scores: (n,) float32, 0..1.
        masks: (n, height, width) bool, or None where the network draws no outlines.
        turned: (n, 5) float32 oriented boxes in the form le90; None where boxes are level.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    masks: Tensor | None = None
    turned: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, rows: Tensor) -> 'Detections':
        """Return some of the objects, by a boolean mask (n,) or by their numbers."""
        masks = None if self.masks is None else self.masks[rows]
        turned = None if self.turned is None else self.turned[rows]
        return Detections(self.boxes[rows], self.labels[rows], self.scores[rows], masks, turned)

    def filter_by_score(self, threshold: float) -> 'Detections':
        """Return the objects of this score or a higher one."""
        return self.select(self.scores >= threshold)

    def cpu(self) -> 'Detections':
        """Return the same objects on the CPU."""
        masks = None if self.masks is None else self.masks.cpu()
        turned = None if self.turned is None else self.turned.cpu()
        return Detections(self.boxes.cpu(), self.labels.cpu(), self.scores.cpu(), masks, turned)
