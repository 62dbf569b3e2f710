"""RetinaNet, FCOS and SSD: every place of every level says at once what is there and where."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNetHead as RetinaNetLayers
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssd import SSDHead as SSDLayers
from torchvision.ops import box_iou

from geolearn.networks.detection.anchors import LevelAnchors
from geolearn.networks.detection.architecture import SingleStageOptions
from geolearn.networks.detection.detector import WIDTH, DetectionHead, Targets

HARD_NEGATIVES = 32
"""Hardest anchors of an image without objects that enter the loss of the SSD as background."""


class SingleStageHead(DetectionHead):
    """Heads of torchvision's detectors without their backbone and their resizing.

    Args:
        parts: A detector of torchvision: its head, anchors, losses and what it does with the head's output.
        background: Whether its classes count from 1.
    """

    def __init__(self, parts: Any, *, background: bool) -> None:
        super().__init__(background=background)
        self.parts = parts
        self.anchors: LevelAnchors = parts.anchor_generator

    def compute(
        self, images: ImageList, levels: list[Tensor], targets: Targets | None
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Detect at every place, and compute the losses."""
        outputs = self.parts.head(levels)
        anchors = self.anchors.by_level(levels)
        losses = {} if targets is None else self.losses(outputs, anchors, targets)
        return ([] if self.training else self.find(outputs, anchors, images.image_sizes)), losses

    def losses(self, outputs: dict[str, Tensor], anchors: Sequence[Tensor], targets: Targets) -> dict[str, Tensor]:
        """Return the losses by torchvision's names."""
        found: dict[str, Tensor] = self.parts.compute_loss(targets, outputs, [torch.cat(list(anchors))] * len(targets))
        return found

    def find(
        self, outputs: dict[str, Tensor], anchors: Sequence[Tensor], sizes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """Return the detections of each image."""
        counts = [len(level) for level in anchors]
        split = {name: list(values.split(counts, dim=1)) for name, values in outputs.items()}
        found: list[dict[str, Tensor]] = self.parts.postprocess_detections(split, [list(anchors)] * len(sizes), sizes)
        return found


class RetinaNetHead(SingleStageHead):
    """RetinaNet: focal loss over all anchors (Lin et al. 2017, arXiv:1708.02002).

    Args:
        anchors: Of all levels.
        class_count: Number of classes.
        options: Numbers.
    """

    def __init__(self, anchors: LevelAnchors, class_count: int, options: SingleStageOptions) -> None:
        parts = RetinaNet(
            _no_backbone(),
            class_count,
            anchor_generator=anchors,
            head=RetinaNetLayers(WIDTH, anchors.num_anchors_per_location()[0], class_count),
            fg_iou_thresh=options.fg_iou_thresh,
            bg_iou_thresh=options.bg_iou_thresh,
            **_limits(options),
        )
        super().__init__(parts, background=False)


class FCOSHead(SingleStageHead):
    """FCOS: no anchors, but the distances to the four sides at every place (Tian et al. 2019, arXiv:1904.01355).

    Args:
        anchors: A square as large as the stride on each level, which stands for a place.
        class_count: Number of classes.
        options: Numbers.
    """

    def __init__(self, anchors: LevelAnchors, class_count: int, options: SingleStageOptions) -> None:
        parts = FCOS(_no_backbone(), class_count, anchor_generator=anchors, **_limits(options))
        super().__init__(parts, background=False)

    def losses(self, outputs: dict[str, Tensor], anchors: Sequence[Tensor], targets: Targets) -> dict[str, Tensor]:
        """Return the losses by torchvision's names."""
        every = [torch.cat(list(anchors))] * len(targets)
        found: dict[str, Tensor] = self.parts.compute_loss(targets, outputs, every, [len(level) for level in anchors])
        return found


class SSDHead(SingleStageHead):
    """SSD: one convolution per level, trained on the hardest background (Liu et al. 2016, arXiv:1512.02325).

    Args:
        anchors: Of all levels.
        class_count: Without background.
        options: Numbers.
    """

    def __init__(self, anchors: LevelAnchors, class_count: int, options: SingleStageOptions) -> None:
        counts = anchors.num_anchors_per_location()
        parts = SSD(
            _no_backbone(),
            anchors,
            (1, 1),
            class_count + 1,
            head=SSDLayers([WIDTH] * len(counts), counts, class_count + 1),
            iou_thresh=options.fg_iou_thresh,
            **_limits(options),
        )
        super().__init__(parts, background=True)

    def losses(self, outputs: dict[str, Tensor], anchors: Sequence[Tensor], targets: Targets) -> dict[str, Tensor]:
        """Return the losses by torchvision's names, and count images without objects too, which it leaves out."""
        every = torch.cat(list(anchors))
        matched = [self._match(every, target['boxes']) for target in targets]
        found: dict[str, Tensor] = self.parts.compute_loss(targets, outputs, [every] * len(targets), matched)
        empty = [not len(target['boxes']) for target in targets]
        if any(empty):
            logits = outputs['cls_logits'][torch.tensor(empty, device=every.device)]
            wrong = functional.cross_entropy(
                logits.flatten(0, 1), logits.new_zeros(logits.shape[:2], dtype=torch.long).flatten(), reduction='none'
            ).view(logits.shape[:2])
            hardest = wrong.topk(min(HARD_NEGATIVES, wrong.shape[1]), dim=1).values
            found['classification'] = found['classification'] + hardest.mean() * (sum(empty) / len(empty))
        return found

    def _match(self, anchors: Tensor, boxes: Tensor) -> Tensor:
        if not len(boxes):
            return torch.full((len(anchors),), -1, dtype=torch.int64, device=anchors.device)
        matched: Tensor = self.parts.proposal_matcher(box_iou(boxes, anchors))
        return matched

    def find(
        self, outputs: dict[str, Tensor], anchors: Sequence[Tensor], sizes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """Return the detections of each image."""
        every = [torch.cat(list(anchors))] * len(sizes)
        found: list[dict[str, Tensor]] = self.parts.postprocess_detections(outputs, every, sizes)
        return found


def _limits(options: SingleStageOptions) -> dict[str, Any]:
    return {
        'score_thresh': options.score_thresh,
        'nms_thresh': options.nms_thresh,
        'detections_per_img': options.detections_per_img,
        'topk_candidates': options.topk_candidates,
    }


def _no_backbone() -> nn.Module:
    """Return what torchvision wants to see in the place of a backbone; only its parts after that are used."""
    nothing: Any = nn.Identity()
    nothing.out_channels = WIDTH
    return nothing
