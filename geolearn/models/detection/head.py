"""What every detection head does: levels in, found objects and losses out."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from geolearn.batch import Objects
from geolearn.inference.found import Found

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
    'bbox_ctrness': 'centres',
    'loss_vfl': 'classes',
    'loss_bbox': 'boxes',
    'loss_giou': 'overlap',
    'loss_dn': 'denoising',
}
"""torchvision's and transformers' names of losses, and the columns that they get."""


class DetectionHead(nn.Module):
    """Turns levels into objects.

    Args:
        background: Whether torchvision counts the classes of this head from 1, and 0 is background.
    """

    def __init__(self, *, background: bool) -> None:
        super().__init__()
        self._first = int(background)

    def forward(
        self, images: Tensor, levels: list[Tensor], targets: Sequence[Objects] | None
    ) -> tuple[list[Found], dict[str, Tensor]]:
        """Return what is found, unless the head is training, and the losses, if there are targets.

        Args:
            images: (N, bands, H, W), H and W multiples of the coarsest stride of the backbone.
            levels: Of the images, finest first.
            targets: Objects of each image in its pixels.

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
        """Do the same in torchvision's terms."""
        raise NotImplementedError

    def _as_target(self, objects: Objects) -> dict[str, Tensor]:
        # what has no area has no logarithm of it either
        real = (objects.boxes[:, 2:] > objects.boxes[:, :2]).all(1)
        target = {'boxes': objects.boxes[real].float(), 'labels': objects.labels[real] + self._first}
        return target if objects.masks is None else target | {'masks': objects.masks[real].to(torch.uint8)}

    def _as_found(self, row: dict[str, Any]) -> Found:
        masks = row.get('masks')
        labels = row['labels'] - self._first
        return Found(row['boxes'], labels, row['scores'], None if masks is None else masks[:, 0])
