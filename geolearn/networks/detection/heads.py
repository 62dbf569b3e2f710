"""RetinaNet, FCOS and SSD: every place of every level says at once what is there and where."""

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.retinanet import RetinaNetHead as RetinaNetLayers
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssd import SSDHead as SSDLayers
from torchvision.ops import MultiScaleRoIAlign, box_convert, box_iou

from geolearn.backbones.backbone import LayerNorm2d
from geolearn.extras import require
from geolearn.networks.detection import architecture, detector
from geolearn.tiling import Span, count_windows, spread_windows

POOLED_LEVELS = 4
"""Boxes are pooled from the backbone's own levels; the pooled one after them only proposes."""

BOX_SIDE, MASK_SIDE = 7, 14

BOX_WIDTH = 4
"""Features of a box, as multiples of the channels of the levels."""


class TwoStageHead(detector.DetectionHead):
    """torchvision's region proposals and heads on their boxes (Ren et al. 2015, He et al. 2017).

    Args:
        anchors: Of all levels.
        class_count: Without background.
        options: Numbers and style.
        masks: Whether objects get outlines.
    """

    def __init__(
        self, anchors: architecture.LevelAnchors, class_count: int, options: architecture.RCNNOptions, *, masks: bool
    ) -> None:
        super().__init__(background=True)
        self.rpn = _proposals(anchors, options)
        self.roi_heads = _box_heads(class_count + 1, options)
        if masks:
            _add_masks(self.roi_heads, class_count + 1, options)

    def compute(
        self, images: ImageList, levels: list[Tensor], targets: detector.Targets | None
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
    with detector.same_samples(next(modules[0].parameters()).device):
        try:
            for module in modules:
                module.training = True  # of this module alone: what is in it stays in evaluation
            yield
        finally:
            for module, mode in zip(modules, training):
                module.training = mode


def proposal_layers(anchors: architecture.LevelAnchors, options: architecture.RCNNOptions) -> RPNHead:
    """Return layers that say of every anchor whether it holds an object, and four numbers of its box."""
    depth = 2 if options.style == 'vitdet' else 1
    return RPNHead(options.width, anchors.num_anchors_per_location()[0], conv_depth=depth)


def _proposals(anchors: architecture.LevelAnchors, options: architecture.RCNNOptions) -> RegionProposalNetwork:
    return RegionProposalNetwork(
        anchors,
        proposal_layers(anchors, options),
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


def box_layers(options: architecture.RCNNOptions) -> nn.Module:
    """Return layers that turn what was pooled of boxes (n, width, 7, 7) into features (n, 4 * width)."""
    features = options.width * BOX_WIDTH
    if options.style == 'vitdet':
        convolutions = [options.width] * 4
        return FastRCNNConvFCHead((options.width, BOX_SIDE, BOX_SIDE), convolutions, [features], norm_layer=_norm())
    return TwoMLPHead(options.width * BOX_SIDE**2, features)


def _box_heads(class_count: int, options: architecture.RCNNOptions) -> RoIHeads:
    return RoIHeads(
        _pool(BOX_SIDE),
        box_layers(options),
        FastRCNNPredictor(options.width * BOX_WIDTH, class_count),
        fg_iou_thresh=options.box_fg_iou_thresh,
        bg_iou_thresh=options.box_bg_iou_thresh,
        batch_size_per_image=options.box_batch_size_per_image,
        positive_fraction=options.box_positive_fraction,
        bbox_reg_weights=None,
        score_thresh=options.box_score_thresh,
        nms_thresh=options.box_nms_thresh,
        detections_per_img=options.box_detections_per_img,
    )


def _add_masks(heads: RoIHeads, class_count: int, options: architecture.RCNNOptions) -> None:
    norm = _norm() if options.style == 'vitdet' else None
    heads.mask_roi_pool = _pool(MASK_SIDE)
    heads.mask_head = MaskRCNNHeads(options.width, (options.width,) * 4, 1, norm_layer=norm)
    heads.mask_predictor = MaskRCNNPredictor(options.width, options.width, class_count)


def _norm() -> partial[LayerNorm2d]:
    return partial(LayerNorm2d, eps=1e-6)


HARD_NEGATIVES = 32
"""Hardest anchors of an image without objects that enter the loss of the SSD as background."""


class SingleStageHead(detector.DetectionHead):
    """Heads of torchvision's detectors without their backbone and their resizing.

    Args:
        parts: A detector of torchvision: its head, anchors, losses and what it does with the head's output.
        background: Whether its classes count from 1.
    """

    def __init__(self, parts: Any, *, background: bool) -> None:
        super().__init__(background=background)
        self.parts = parts
        self.anchors: architecture.LevelAnchors = parts.anchor_generator

    def compute(
        self, images: ImageList, levels: list[Tensor], targets: detector.Targets | None
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Detect at every place, and compute the losses."""
        outputs = self.parts.head(levels)
        anchors = self.anchors.by_level(levels)
        losses = {} if targets is None else self.losses(outputs, anchors, targets)
        return ([] if self.training else self.find(outputs, anchors, images.image_sizes)), losses

    def places(self, levels: list[Tensor]) -> Tensor:
        """Return boxes and scores (N, places, 4 + classes)."""
        outputs = self.parts.head(levels)
        numbers = outputs['bbox_regression']
        anchors = torch.cat(self.anchors.by_level(levels)).expand_as(numbers)
        return torch.cat((self.boxes(numbers, anchors), self.scores(outputs)), -1)

    def boxes(self, numbers: Tensor, anchors: Tensor) -> Tensor:
        """Return the boxes (N, places, 4) that four numbers each make of anchors."""
        made: Tensor = self.parts.box_coder.decode_single(numbers.reshape(-1, 4), anchors.reshape(-1, 4))
        return made.view_as(numbers)

    def scores(self, outputs: dict[str, Tensor]) -> Tensor:
        """Return the scores (N, places, classes)."""
        return outputs['cls_logits'].sigmoid()

    def losses(
        self, outputs: dict[str, Tensor], anchors: Sequence[Tensor], targets: detector.Targets
    ) -> dict[str, Tensor]:
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

    def __init__(
        self, anchors: architecture.LevelAnchors, class_count: int, options: architecture.SingleStageOptions
    ) -> None:
        parts = RetinaNet(
            _no_backbone(options.width),
            class_count,
            anchor_generator=anchors,
            head=RetinaNetLayers(options.width, anchors.num_anchors_per_location()[0], class_count),
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

    def __init__(
        self, anchors: architecture.LevelAnchors, class_count: int, options: architecture.SingleStageOptions
    ) -> None:
        parts = FCOS(_no_backbone(options.width), class_count, anchor_generator=anchors, **_limits(options))
        for layer in parts.head.modules():
            if isinstance(layer, nn.GroupNorm):
                # torchvision's 32 groups of narrow heads hold one channel each, and fail on a level of one place
                layer.num_groups = min(layer.num_groups, options.width // 4)
        super().__init__(parts, background=False)

    def boxes(self, numbers: Tensor, anchors: Tensor) -> Tensor:
        """Return the boxes (N, places, 4) that four distances each make of places."""
        made: Tensor = self.parts.box_coder.decode(numbers, anchors)
        return made

    def scores(self, outputs: dict[str, Tensor]) -> Tensor:
        """Return the scores (N, places, classes)."""
        return (outputs['cls_logits'].sigmoid() * outputs['bbox_ctrness'].sigmoid()).sqrt()

    def losses(
        self, outputs: dict[str, Tensor], anchors: Sequence[Tensor], targets: detector.Targets
    ) -> dict[str, Tensor]:
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

    def __init__(
        self, anchors: architecture.LevelAnchors, class_count: int, options: architecture.SingleStageOptions
    ) -> None:
        counts = anchors.num_anchors_per_location()
        parts = SSD(
            _no_backbone(options.width),
            anchors,
            (1, 1),
            class_count + 1,
            head=SSDLayers([options.width] * len(counts), counts, class_count + 1),
            iou_thresh=options.fg_iou_thresh,
            **_limits(options),
        )
        super().__init__(parts, background=True)

    def losses(
        self, outputs: dict[str, Tensor], anchors: Sequence[Tensor], targets: detector.Targets
    ) -> dict[str, Tensor]:
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

    def scores(self, outputs: dict[str, Tensor]) -> Tensor:
        """Return the scores (N, places, classes), without background."""
        return outputs['cls_logits'].softmax(-1)[..., 1:]

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


def _limits(options: architecture.SingleStageOptions) -> dict[str, Any]:
    return {
        'score_thresh': options.score_thresh,
        'nms_thresh': options.nms_thresh,
        'detections_per_img': options.detections_per_img,
        'topk_candidates': options.topk_candidates,
    }


def _no_backbone(width: int) -> nn.Module:
    """Return what torchvision wants to see in the place of a backbone; only its parts after that are used."""
    nothing: Any = nn.Identity()
    nothing.out_channels = width
    return nothing


STRIDES = (8, 16, 32)

CELL = STRIDES[-1]
"""Pixels of the coarsest level; images and windows are whole numbers of them."""

PLACES_PER_CELL = sum((CELL // stride) ** 2 for stride in STRIDES)
"""Of all levels; there cannot be more queries than places."""

PAPER_SIDE = 640

PRIOR = 0.01
"""Score of every place at the start, as in the paper; the 1 / (classes + 1) of transformers floods the loss."""


class RTDetrHead(detector.DetectionHead):
    """RT-DETR's encoder and decoder (Zhao et al. 2023, arXiv:2304.08069), as transformers builds them.

    Its boxes are shares of the image, so what it learned on chips holds for images of their size only: smaller ones are
    filled up with zeros, larger ones seen through windows of that size, which overlap by half. Each object comes from
    the window whose middle it is nearest to. What fills up an image is seen like the rest, and trained on as such.

    Args:
        anchors: Not used: places are RT-DETR's own.
        class_count: Number of classes.
        options: Numbers.
        side: Of the training images in pixels.

    Raises:
        MissingExtraError: If transformers is not installed.
    """

    def __init__(
        self,
        anchors: architecture.LevelAnchors,
        class_count: int,
        options: architecture.TransformerOptions,
        side: int = PAPER_SIDE,
    ) -> None:
        super().__init__(background=False)
        self._cells = math.ceil(side / CELL)
        self._options = options
        self.window = self._cells * CELL
        self.queries = min(options.num_queries, PLACES_PER_CELL * self._cells**2)
        self.layers = _build_layers(class_count, options, queries=self.queries)

    def compute(
        self, images: ImageList, levels: list[Tensor], targets: detector.Targets | None
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Detect in every window, and compute the losses over the whole image.

        The losses have a part for denoising in training alone.
        """
        levels = self._filled(levels)
        losses = {} if targets is None else self._losses(levels, targets)
        return ([] if self.training else self._find(levels)), losses

    def _filled(self, levels: list[Tensor]) -> list[Tensor]:
        """Add zeros right and below until no level is smaller than those of a training image."""
        filled = []
        for side, level in zip((self._cells * CELL // stride for stride in STRIDES), levels):
            height, width = (torch.sym_max(side, length) for length in level.shape[-2:])
            # graphs of any size are given numbers to pad by, and cut what is too much
            down, right = (
                side if isinstance(length, torch.SymInt) else max(0, side - length) for length in level.shape[-2:]
            )
            filled.append(functional.pad(level, (0, right, 0, down))[..., :height, :width])
        return filled

    def _look(self, levels: list[Tensor], labels: list[dict[str, Tensor]] | None = None) -> Any:
        model = self.layers.model
        projected = [project(level) for project, level in zip(model.encoder_input_proj, levels)]
        # of `inputs_embeds` only the number of images and the device are read where there are `encoder_outputs`
        return self.layers(None, inputs_embeds=projected[-1], encoder_outputs=model.encoder(projected), labels=labels)

    def _losses(self, levels: list[Tensor], targets: detector.Targets) -> dict[str, Tensor]:
        """Add up the losses of all layers by kind; those of boxes with noise on them, which only help, are one kind."""
        height, width = (CELL * cells for cells in levels[-1].shape[-2:])
        size = levels[-1].new_tensor([width, height, width, height])
        labels = [
            {'class_labels': target['labels'], 'boxes': box_convert(target['boxes'], 'xyxy', 'cxcywh') / size}
            for target in targets
        ]
        losses: dict[str, Tensor] = {}
        if self.training:
            # a batch without objects has no noise; processes that share gradients need one of this layer all the same
            losses['loss_dn'] = self.layers.model.denoising_class_embed.weight.sum() * 0
        for name, loss in self._look(levels, labels).loss_dict.items():
            kind = 'loss_dn' if '_dn_' in name else name.partition('_aux_')[0]
            losses[kind] = losses[kind] + loss if kind in losses else loss
        return losses

    def _find(self, levels: list[Tensor]) -> list[dict[str, Tensor]]:
        """Return the detections of each image, each object by the window that shows it best."""
        rows, cols = (spread_windows(length, self._cells) for length in levels[-1].shape[-2:])
        parts = [self._find_in_window(levels, row, col) for row, col in product(rows, cols)]
        return [
            {name: torch.cat([found[name] for found in of_image]) for name in of_image[0]} for of_image in zip(*parts)
        ]

    def places(self, levels: list[Tensor]) -> Tensor:
        """Return boxes and scores (N, windows * queries, 4 + classes) of the queries of every window, row by row."""
        levels = self._filled(levels)
        rows, cols = (_window_starts(length, self._cells) for length in levels[-1].shape[-2:])
        windows = [self._cut(level, rows, cols, CELL // stride) for stride, level in zip(STRIDES, levels)]
        output = self._look(windows)
        # queries come by score; in the order of places a score that rounds otherwise moves none
        best = output.enc_outputs_class.max(-1).values.topk(output.logits.shape[1], dim=1).indices
        order = best.argsort(dim=1)[..., None]
        boxes = output.pred_boxes.gather(1, order.expand(-1, -1, 4)) * self._cells
        scores = output.logits.gather(1, order.expand(-1, -1, output.logits.shape[2])).sigmoid()
        x, y = (axis.flatten() for axis in torch.meshgrid(cols, rows, indexing='xy'))
        corners = torch.stack([x, y], 1).to(boxes)[:, None]
        shape = (levels[0].shape[0], x.shape[0], *boxes.shape[1:])
        centers, sides = boxes.view(shape).split(2, dim=-1)
        centers = (centers + corners) * CELL
        halves = sides * (CELL / 2)
        found = torch.cat([centers - halves, centers + halves, scores.view(*shape[:-1], -1)], -1)
        return found.flatten(1, 2)

    def _cut(self, level: Tensor, rows: Tensor, cols: Tensor, per_cell: int) -> Tensor:
        """Return all windows of a level (N, channels, height, width) together, as images (N * windows, ...)."""
        inside = torch.arange(self._cells * per_cell)
        y, x = ((starts[:, None] * per_cell + inside).flatten() for starts in (rows, cols))
        windows = level[:, :, y][..., x].unflatten(-2, (-1, len(inside))).unflatten(-1, (-1, len(inside)))
        return windows.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)

    def _find_in_window(self, levels: list[Tensor], row: Span, col: Span) -> list[dict[str, Tensor]]:
        window = []
        for stride, level in zip(STRIDES, levels):
            per_cell = CELL // stride
            top, left, side = (per_cell * cells for cells in (row.start, col.start, self._cells))
            window.append(level[..., top : top + side, left : left + side])
        output = self._look(window)
        return [self._pick(logits, boxes, row, col) for logits, boxes in zip(output.logits, output.pred_boxes)]

    def _pick(self, logits: Tensor, boxes: Tensor, row: Span, col: Span) -> dict[str, Tensor]:
        """Take the top classes of queries (n, classes) whose boxes (n, 4), in shares of the window, belong to it."""
        most = min(self._options.detections_per_img, logits.numel())
        scores, order = logits.sigmoid().flatten().topk(most)
        queries = order.div(logits.shape[1], rounding_mode='floor')
        cells = boxes[queries] * self._cells + boxes.new_tensor([col.start, row.start, 0, 0])
        x, y = cells[:, 0], cells[:, 1]
        kept = (scores >= self._options.score_thresh) & (x >= col.core_start) & (x < col.core_end)
        kept &= (y >= row.core_start) & (y < row.core_end)
        found = box_convert(cells[kept] * CELL, 'cxcywh', 'xyxy')
        return {'boxes': found, 'labels': order[kept] % logits.shape[1], 'scores': scores[kept]}


def _window_starts(length: int, side: int) -> Tensor:
    """Return the starts (n,) of `spread_windows`; a graph computes them of the length that it is given."""
    count = count_windows(length, side)
    last: Any = torch.sym_max(1, count - 1)
    starts: Tensor = torch.arange(count, dtype=torch.float64) * (length - side) / last
    return starts.round().long()


def _build_layers(class_count: int, options: architecture.TransformerOptions, *, queries: int) -> Any:
    """Build transformers' RT-DETR with random weights and without its backbone; nothing is fetched."""
    transformers = require('transformers', extra='detr', to='build an RTDetr')
    # it cannot be built without one; only the width of the maps counts
    stand_in = transformers.RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[detector.WIDTH] * 4, depths=[1] * 4, out_indices=[2, 3, 4]
    )
    config = transformers.RTDetrConfig(
        backbone_config=stand_in,
        num_labels=class_count,
        num_queries=queries,
        num_denoising=options.num_denoising,
        decoder_layers=options.decoder_layers,
        initializer_bias_prior_prob=PRIOR,
    )
    layers = transformers.RTDetrForObjectDetection(config)
    layers.model.backbone = nn.Identity()
    for module in layers.modules():
        if isinstance(module, nn.BatchNorm2d):
            # transformers lets them begin near 0, for weights loaded later; without them that slows learning
            module.reset_parameters()
    return layers
