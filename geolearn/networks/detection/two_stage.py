"""Faster R-CNN and Mask R-CNN: proposals, then what they are and where exactly."""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import MultiScaleRoIAlign

from geolearn.backbones.backbone import LayerNorm2d
from geolearn.networks.detection.anchors import LevelAnchors
from geolearn.networks.detection.architecture import RCNNOptions
from geolearn.networks.detection.detector import WIDTH, DetectionHead, Targets

POOLED_LEVELS = 4
"""Boxes are pooled from the backbone's own levels; the pooled one after them only proposes."""

BOX_SIDE, MASK_SIDE = 7, 14

BOX_WIDTH = 1024


class TwoStageHead(DetectionHead):
    """torchvision's region proposals and heads on their boxes (Ren et al. 2015, He et al. 2017).

    Args:
        anchors: Of all levels.
        class_count: Without background.
        options: Numbers and style.
        masks: Whether objects get outlines.
    """

    def __init__(self, anchors: LevelAnchors, class_count: int, options: RCNNOptions, *, masks: bool) -> None:
        super().__init__(background=True)
        self.rpn = _proposals(anchors, options)
        self.roi_heads = _box_heads(class_count + 1, options)
        if masks:
            _add_masks(self.roi_heads, class_count + 1, options)

    def compute(
        self, images: ImageList, levels: list[Tensor], targets: Targets | None
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Propose regions, detect in them, and compute the losses."""
        named = OrderedDict((str(i), level) for i, level in enumerate(levels))
        losses: dict[str, Tensor] = {}
        if targets is not None:
            with _as_in_training(self.rpn, self.roi_heads):
                proposals, of_proposals = self.rpn(images, named, targets)
                _, of_boxes = self.roi_heads(named, proposals, images.image_sizes, targets)
            losses = {**of_proposals, **of_boxes}
        if self.training:
            return [], losses
        proposals, _ = self.rpn(images, named)
        found, _ = self.roi_heads(named, proposals, images.image_sizes)
        return found, losses


@contextmanager
def _as_in_training(*modules: nn.Module) -> Iterator[None]:
    """Let torchvision's parts compute losses, which they only do in training, without another change.

    In evaluation the samples that the loss takes are the same each time, so that losses of epochs can be compared.
    """
    training = [module.training for module in modules]
    if all(training):
        yield
        return
    device = next(modules[0].parameters()).device
    with torch.random.fork_rng([device] if device.type == 'cuda' else []):
        torch.manual_seed(0)
        try:
            for module in modules:
                module.training = True  # of this module alone: what is in it stays in evaluation
            yield
        finally:
            for module, mode in zip(modules, training):
                module.training = mode


def _proposals(anchors: LevelAnchors, options: RCNNOptions) -> RegionProposalNetwork:
    depth = 2 if options.style == 'vitdet' else 1
    return RegionProposalNetwork(
        anchors,
        RPNHead(WIDTH, anchors.num_anchors_per_location()[0], conv_depth=depth),
        fg_iou_thresh=options.rpn_fg_iou_thresh,
        bg_iou_thresh=options.rpn_bg_iou_thresh,
        batch_size_per_image=options.rpn_batch_size_per_image,
        positive_fraction=options.rpn_positive_fraction,
        pre_nms_top_n={'training': options.rpn_pre_nms_top_n_train, 'testing': options.rpn_pre_nms_top_n_test},
        post_nms_top_n={'training': options.rpn_post_nms_top_n_train, 'testing': options.rpn_post_nms_top_n_test},
        nms_thresh=options.rpn_nms_thresh,
    )


def _pool(side: int) -> MultiScaleRoIAlign:
    return MultiScaleRoIAlign([str(i) for i in range(POOLED_LEVELS)], output_size=side, sampling_ratio=2)


def _box_heads(class_count: int, options: RCNNOptions) -> RoIHeads:
    head: nn.Module = TwoMLPHead(WIDTH * BOX_SIDE**2, BOX_WIDTH)
    if options.style == 'vitdet':
        head = FastRCNNConvFCHead((WIDTH, BOX_SIDE, BOX_SIDE), [WIDTH] * 4, [BOX_WIDTH], norm_layer=_norm())
    return RoIHeads(
        _pool(BOX_SIDE),
        head,
        FastRCNNPredictor(BOX_WIDTH, class_count),
        fg_iou_thresh=options.box_fg_iou_thresh,
        bg_iou_thresh=options.box_bg_iou_thresh,
        batch_size_per_image=options.box_batch_size_per_image,
        positive_fraction=options.box_positive_fraction,
        bbox_reg_weights=None,
        score_thresh=options.box_score_thresh,
        nms_thresh=options.box_nms_thresh,
        detections_per_img=options.box_detections_per_img,
    )


def _add_masks(heads: RoIHeads, class_count: int, options: RCNNOptions) -> None:
    norm = _norm() if options.style == 'vitdet' else None
    heads.mask_roi_pool = _pool(MASK_SIDE)
    heads.mask_head = MaskRCNNHeads(WIDTH, (WIDTH,) * 4, 1, norm_layer=norm)
    heads.mask_predictor = MaskRCNNPredictor(WIDTH, WIDTH, class_count)


def _norm() -> partial[LayerNorm2d]:
    return partial(LayerNorm2d, eps=1e-6)
