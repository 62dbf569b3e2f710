"""The network of every detector: normalise, backbone, levels, head."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import clip_boxes_to_image

from geolearn.backbones import Backbone
from geolearn.backbones.padding import pad_to_multiple
from geolearn.batch import Objects
from geolearn.inference.found import Found
from geolearn.models.detection.head import DetectionHead
from geolearn.models.detection.levels import Levels
from geolearn.models.network import Network, Normalise

SMALLEST_SIDE = 0.5
"""Boxes narrower than this, in pixels, show nothing."""

DetectorOutput = tuple[list[Found], dict[str, Tensor]]
"""Objects of each image, none in training; and losses by name, none without targets."""


class Detector(Network):
    """Images in stored units, NaN where there is no data, to objects.

    Args:
        normalise: Takes the images first.
        backbone: Gives feature maps.
        levels: Brings them to one width.
        head: Finds objects on the levels.
        zoom: Factor by which images are resampled before; 1 leaves them as they are.
    """

    def __init__(
        self, normalise: Normalise, backbone: Backbone, levels: Levels, head: DetectionHead, *, zoom: float = 1.0
    ) -> None:
        super().__init__(normalise, backbone)
        self.levels, self.head, self.zoom = levels, head, zoom

    def forward(self, images: Tensor, targets: Sequence[Objects] | None = None) -> DetectorOutput:
        """Find objects in images (N, bands, H, W) of any size, and compare them with the truth where it is given.

        Args:
            images: (N, bands, H, W), or with several dates (N, dates, bands, H, W).
            targets: Objects of each image; training needs them.

        Returns:
            Objects of each image in its pixels, none in training; and losses by name, none without targets.
        """
        if self.training and targets is None:
            raise ValueError('a detector in training needs targets; call eval() to use it')
        size = (images.shape[-2], images.shape[-1])
        x = pad_to_multiple(self._zoomed(self.normalise(images)), 32)
        levels = self.levels(self.backbone(x))
        # half precision holds coordinates to a few pixels only
        with torch.autocast(x.device.type, enabled=False):
            known = None if targets is None else [self._zoomed_objects(objects) for objects in targets]
            found, losses = self.head(x, [level.float() for level in levels], known)
            return [self._placed(objects, size) for objects in found], losses

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
        return Objects(objects.boxes * self.zoom, objects.labels, masks)

    def _placed(self, found: Found, size: tuple[int, int]) -> Found:
        """Bring objects from the padded image to the given one; their masks to its size."""
        found = Found(found.boxes / self.zoom, found.labels, found.scores, found.masks)
        inside = clip_boxes_to_image(found.boxes, size)
        real = ((inside[:, 2:] - inside[:, :2]) >= SMALLEST_SIDE).all(1)
        # what has its middle in the padding is the edge between it and the image
        middle = (found.boxes[:, :2] + found.boxes[:, 2:]) / 2
        real &= (middle <= middle.new_tensor([size[1], size[0]])).all(1)
        found, inside = found.select(real), inside[real]
        if found.masks is None:
            return Found(inside, found.labels, found.scores)
        masks = paste_masks_in_image(found.masks[:, None], found.boxes, size)[:, 0] > 0.5
        return Found(inside, found.labels, found.scores, masks).select(masks.flatten(1).any(1))


class DetectionLoss(nn.Module):
    """The sum of the losses that a detector computes; `parts` holds them after each call."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: dict[str, Tensor] = {}

    def forward(self, output: DetectorOutput) -> Tensor:
        """Return the sum over a detector's output."""
        losses = output[1]
        self.parts = {name: loss.detach() for name, loss in losses.items()}
        return torch.stack(list(losses.values())).sum()
