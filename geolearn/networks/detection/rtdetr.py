"""RT-DETR: a transformer that names each object once, on any backbone; layers and losses are transformers' own."""

import math
from itertools import pairwise, product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_convert

from geolearn.extras import require
from geolearn.networks.detection.anchors import LevelAnchors
from geolearn.networks.detection.architecture import TransformerOptions
from geolearn.networks.detection.detector import WIDTH, DetectionHead, Targets

STRIDES = (8, 16, 32)

CELL = STRIDES[-1]
"""Pixels of the coarsest level; images and windows are whole numbers of them."""

PLACES_PER_CELL = sum((CELL // stride) ** 2 for stride in STRIDES)
"""Of all levels; there cannot be more queries than places."""

PAPER_SIDE = 640

PRIOR = 0.01
"""Score of every place at the start, as in the paper; the 1 / (classes + 1) of transformers floods the loss."""


class Span(NamedTuple):
    """A window along one axis and the part of it whose objects count, in cells."""

    start: int
    core_start: float
    core_end: float


class RTDetrHead(DetectionHead):
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
        self, anchors: LevelAnchors, class_count: int, options: TransformerOptions, side: int = PAPER_SIDE
    ) -> None:
        super().__init__(background=False)
        self._cells = math.ceil(side / CELL)
        self._options = options
        queries = min(options.num_queries, PLACES_PER_CELL * self._cells**2)
        self.layers = _build_layers(class_count, options, queries=queries)

    def compute(
        self, images: ImageList, levels: list[Tensor], targets: Targets | None
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Detect in every window, and compute the losses over the whole image.

        The losses have a part for denoising in training alone.
        """
        levels = self._filled(levels)
        losses = {} if targets is None else self._losses(levels, targets)
        return ([] if self.training else self._find(levels)), losses

    def _filled(self, levels: list[Tensor]) -> list[Tensor]:
        """Add zeros right and below until no level is smaller than those of a training image."""
        sides = [self._cells * CELL // stride for stride in STRIDES]
        return [
            functional.pad(level, (0, max(0, side - level.shape[-1]), 0, max(0, side - level.shape[-2])))
            for side, level in zip(sides, levels)
        ]

    def _look(self, levels: list[Tensor], labels: list[dict[str, Tensor]] | None = None) -> Any:
        model = self.layers.model
        projected = [project(level) for project, level in zip(model.encoder_input_proj, levels)]
        # of `inputs_embeds` only the number of images and the device are read where there are `encoder_outputs`
        return self.layers(None, inputs_embeds=projected[-1], encoder_outputs=model.encoder(projected), labels=labels)

    def _losses(self, levels: list[Tensor], targets: Targets) -> dict[str, Tensor]:
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


def spread_windows(length: int, side: int) -> list[Span]:
    """Spread windows evenly over an axis, each at least half over the next; their cores cover it once.

    Args:
        length: Of the axis in cells, at least `side`.
        side: Of the windows in cells.
    """
    count = math.ceil((length - side) / max(1, side // 2)) + 1
    starts = [round(step * (length - side) / max(1, count - 1)) for step in range(count)]
    cuts = [-math.inf, *((start + side + other) / 2 for start, other in pairwise(starts)), math.inf]
    return [Span(*row) for row in zip(starts, cuts, cuts[1:])]


def _build_layers(class_count: int, options: TransformerOptions, *, queries: int) -> Any:
    """Build transformers' RT-DETR with random weights and without its backbone; nothing is fetched."""
    transformers = require('transformers', extra='detr', to='build an RTDetr')
    # it cannot be built without one; only the width of the maps counts
    stand_in = transformers.RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[WIDTH] * 4, depths=[1] * 4, out_indices=[2, 3, 4]
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
