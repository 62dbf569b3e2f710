"""The network of every detector: normalize, backbone, levels, head."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import FeaturePyramidNetwork, clip_boxes_to_image

from geolearn.backbones import Backbone
from geolearn.backbones.vit import pad_to_multiple
from geolearn.batch import Detections, Objects
from geolearn.bundle import PADDED_MULTIPLE, SMALLEST_SIDE
from geolearn.errors import ArgumentError
from geolearn.losses.options import check_loss_value, loss_name
from geolearn.networks.network import Network, Normalize
from geolearn.oriented import geometry

WIDTH = 256
"""Channels of every level."""


class FeaturePyramid(nn.Module):
    """Bring a backbone's maps to one width, and add coarser levels.

    Convolutional networks' maps go through a feature pyramid network (Lin et al. 2017, arXiv:1612.03144); maps that
    already are of that width are a simple feature pyramid, and stay as they are.

    Args:
        channels: Of the maps, finest first.
        strides: Of the maps.
        pooled: How many levels to add, each every second pixel of the one before.
        width: Channels of every level.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], *, pooled: int, width: int = WIDTH) -> None:
        super().__init__()
        self.width = width
        self.strides = (*strides, *(strides[-1] * 2**step for step in range(1, pooled + 1)))
        self.fpn = None if set(channels) == {width} else FeaturePyramidNetwork(list(channels), width)
        self._pooled = pooled

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the levels (N, width, ceil(H / stride), ceil(W / stride)), finest first."""
        if self.fpn is not None:
            maps = list(self.fpn(OrderedDict((str(i), found) for i, found in enumerate(maps))).values())
        levels = list(maps)
        for _ in range(self._pooled):
            levels.append(levels[-1][..., ::2, ::2])
        return levels


Targets = list[dict[str, Tensor]]
"""What torchvision calls targets: `boxes` (n, 4), `labels` (n,), and `masks` (n, H, W) where there are any."""

LOSS_NAMES = {
    'loss_objectness': 'objectness',
    'loss_rpn_box_reg': 'proposals',
    'loss_classifier': 'classes',
    'loss_box_reg': 'boxes',
    'loss_mask': 'masks',
    'classification': 'classes',
    'bbox_regression': 'boxes',
    'bbox_ctrness': 'centers',
    'loss_vfl': 'classes',
    'loss_bbox': 'boxes',
    'loss_giou': 'overlap',
    'loss_dn': 'denoising',
    'loss_angle': 'angles',
}
"""torchvision's and transformers' names of losses, and the columns that they get."""


class DetectionHead(nn.Module):
    """Turns levels into objects.

    Args:
        background: Whether torchvision counts the classes of this head from 1, and 0 is background.
    """

    window = 0
    """Side in pixels of the windows through which images are seen; 0 where they are seen whole."""
    queries = 0
    """Boxes of each window."""

    def __init__(self, *, background: bool) -> None:
        super().__init__()
        self._first = int(background)

    def forward(
        self, images: Tensor, levels: list[Tensor], targets: Sequence[Objects] | None
    ) -> tuple[list[Detections], dict[str, Tensor]]:
        """Return the detections, unless the head is training, and the losses, if there are targets.

        Args:
            images: (N, bands, H, W), H and W multiples of the coarsest stride of the backbone.
            levels: Of the images, finest first.
            targets: Objects of each image in its pixels; those that are ignored are left out, so level detectors learn
                nothing from them, and take their places for background.

        Returns:
            Objects of each image, with masks (n, 28, 28) float32 of what is inside the box, 0..1; and losses by name.
        """
        shape = (images.shape[-2], images.shape[-1])
        sizes = ImageList(images, [shape] * len(images))
        known = None if targets is None else [self._as_target(objects) for objects in targets]
        found, losses = self.compute(sizes, levels, known)
        return [self._as_found(row) for row in found], {LOSS_NAMES[name]: loss for name, loss in losses.items()}

    def compute(
        self, images: ImageList, levels: list[Tensor], targets: Targets | None
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Return the same with torchvision's types."""
        raise NotImplementedError

    def places(self, levels: list[Tensor]) -> Tensor:
        """Return what every place of every level gives, for graphs: (N, places, 4 + classes), or 5 + classes.

        These are left, top, right and bottom, or x, y, width, height and angle, in pixels, and the score of each class.
        """
        raise NotImplementedError

    def _as_target(self, objects: Objects) -> dict[str, Tensor]:
        # what has no area has no logarithm of it either
        real = (objects.boxes[:, 2:] > objects.boxes[:, :2]).all(1)
        if objects.ignored is not None:
            real &= ~objects.ignored
        target = {'boxes': objects.boxes[real].float(), 'labels': objects.labels[real] + self._first}
        return target if objects.masks is None else target | {'masks': objects.masks[real].to(torch.uint8)}

    def _as_found(self, row: dict[str, Any]) -> Detections:
        masks = row.get('masks')
        labels = row['labels'] - self._first
        return Detections(row['boxes'], labels, row['scores'], None if masks is None else masks[:, 0])


@contextmanager
def same_samples(device: torch.device) -> Iterator[None]:
    """Draw the same random numbers each time, so that losses of evaluations can be compared; no others change."""
    with torch.random.fork_rng([device] if device.type == 'cuda' else []):
        torch.manual_seed(0)
        yield


DetectorOutput = tuple[list[Detections], dict[str, Tensor]]
"""Objects of each image, none in training; and losses by name, none without targets."""


class Detector(Network):
    """Images in stored units, NaN where there is no data, to objects.

    Args:
        normalize: Takes the images first.
        backbone: Gives feature maps.
        levels: Brings them to one width.
        head: Finds objects on the levels.
        zoom: Factor by which images are resampled before; 1 leaves them as they are.
    """

    def __init__(
        self,
        normalize: Normalize,
        backbone: Backbone,
        levels: FeaturePyramid,
        head: DetectionHead,
        *,
        zoom: float = 1.0,
    ) -> None:
        super().__init__(normalize, backbone)
        self.levels, self.head, self.zoom = levels, head, zoom

    def forward(self, images: Tensor, targets: Sequence[Objects] | None = None) -> DetectorOutput:
        """Detect objects in images (N, bands, H, W) of any size; compute the losses where targets are given.

        Args:
            images: (N, bands, H, W), or with several dates (N, dates, bands, H, W).
            targets: Objects of each image; training needs them.

        Returns:
            Objects of each image in its pixels, none in training; and losses by name, none without targets.
        """
        if self.training and targets is None:
            raise ValueError('a detector in training needs targets; call eval() to use it')
        size = (images.shape[-2], images.shape[-1])
        x, levels = self.pyramid(images)
        # half precision holds coordinates to a few pixels only
        with torch.autocast(x.device.type, enabled=False):
            known = None if targets is None else [self._zoomed_objects(objects) for objects in targets]
            found, losses = self.head(x, [level.float() for level in levels], known)
            return [place_in_image(objects, size, zoom=self.zoom) for objects in found], losses

    def pyramid(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return normalized, zoomed and padded images, and their levels, finest first."""
        x = pad_to_multiple(self._zoomed(self.normalize(images)), PADDED_MULTIPLE)
        return x, self.levels(self.backbone(x))

    def _zoomed(self, x: Tensor) -> Tensor:
        if self.zoom == 1:
            return x
        size = [max(1, round(side * self.zoom)) for side in x.shape[-2:]]
        flat = functional.interpolate(
            x.flatten(0, -4), size=size, mode='bilinear', align_corners=False, antialias=self.zoom < 1
        )
        return flat.view(*x.shape[:-2], *size)

    def _zoomed_objects(self, objects: Objects) -> Objects:
        if self.zoom == 1:
            return objects
        masks = objects.masks
        if masks is not None:
            size = [max(1, round(side * self.zoom)) for side in masks.shape[-2:]]
            masks = functional.interpolate(masks[:, None].to(torch.uint8), size=size, mode='nearest')[:, 0] > 0
        turned = None if objects.turned is None else geometry.scaled(objects.turned, self.zoom)
        return replace(objects, boxes=objects.boxes * self.zoom, masks=masks, turned=turned)


class Places(Network):
    """A detector up to the boxes and scores of all places: what comes after depends on their values.

    Args:
        detector: Whose layers it shares; its head gives `DetectionHead.places`.
    """

    def __init__(self, detector: Detector) -> None:
        super().__init__(detector.normalize, detector.backbone)
        self.detector = detector

    def forward(self, images: Tensor) -> Tensor:
        """Compute boxes and scores (N, places, 4 + classes) of images ([dates,] bands, H, W), in zoomed pixels."""
        places: Tensor = self.detector.head.places(self.detector.pyramid(images)[1])
        return places


def place_in_image(found: Detections, size: tuple[int, int], *, zoom: float = 1.0) -> Detections:
    """Bring objects from the padded image to the given one; their masks to its size.

    Args:
        found: In pixels of the padded image.
        size: Height and width of the given one.
        zoom: By which it was resampled before it was padded.
    """
    turned = None if found.turned is None else geometry.scaled(found.turned, 1 / zoom)
    found = Detections(found.boxes / zoom, found.labels, found.scores, found.masks, turned)
    inside = clip_boxes_to_image(found.boxes, size)
    real = ((inside[:, 2:] - inside[:, :2]) >= SMALLEST_SIDE).all(1)
    # what has its middle in the padding is the edge between it and the image
    middle = (found.boxes[:, :2] + found.boxes[:, 2:]) / 2
    real &= (middle <= middle.new_tensor([size[1], size[0]])).all(1)
    found, inside = found.select(real), inside[real]
    if found.masks is None:
        # oriented boxes keep their shape; only what is around them ends at the edge
        return Detections(inside, found.labels, found.scores, turned=found.turned)
    masks = paste_masks_in_image(found.masks[:, None], found.boxes, size)[:, 0] > 0.5
    return Detections(inside, found.labels, found.scores, masks).select(masks.flatten(1).any(1))


class DetectionLoss(nn.Module):
    """The sum of the losses that a detector computes, or what a module makes of them.

    `parts` holds them after each call.

    Args:
        combine: Takes the losses by name, such as ``'classes'`` and ``'boxes'``, and returns one number.
    """

    def __init__(self, combine: nn.Module | None = None) -> None:
        super().__init__()
        self.parts: dict[str, Tensor] = {}
        self.combine = combine

    def forward(self, output: DetectorOutput) -> Tensor:
        """Return the loss of a detector's output."""
        losses = output[1]
        self.parts = {name: loss.detach() for name, loss in losses.items()}
        if self.combine is None:
            return torch.stack(list(losses.values())).sum()
        name = loss_name(self.combine)
        try:
            return check_loss_value(self.combine(dict(losses)), name)
        except KeyError as error:
            raise ArgumentError(
                f'{name} asks for the part {error} of the loss; this detector has {", ".join(map(repr, losses))}'
            ) from error
