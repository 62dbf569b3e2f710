"""Oriented R-CNN's head: level anchors propose oriented boxes, and what lies in these says what they are and where."""

import math
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import batched_nms, box_iou

from geolearn.networks.detection import architecture, detector, heads, rotated
from geolearn.oriented import geometry, overlap

OFFSET_WEIGHTS = (1.0, 1.0, 1.0, 1.0, 2.0, 2.0)
"""Of the six numbers of a proposal: what the network gives is as many times larger."""

BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0, 10.0)
"""Of the five numbers of a box."""

BETA = 1 / 9
"""Up to this error the loss of a number is quadratic (torchvision's value)."""

LARGEST_LOG = math.log(1000 / 16)
"""Sides grow by at most this in one step, as a logarithm (torchvision's value)."""

SMALLEST_PROPOSAL = 1.0
"""Shorter sides of proposals, in pixels, are as long as this: something must be pooled."""

CANONICAL_SIDE, CANONICAL_LEVEL = 224.0, 16
"""Boxes of this size are pooled from the level of this stride, and others from finer or coarser ones."""

MOST_CANDIDATES = 2000
"""Boxes of an image that are compared with one another in non-maximum suppression."""

POOLED_AT_ONCE = 256
"""Boxes that are pooled in one go; some 50 MB at 256 channels."""


class OrientedRCNNHead(rotated.OrientedHead):
    """Oriented proposals and a head on what is pooled from them (Xie et al. 2021, arXiv:2108.05699).

    A proposal is the level box around it and how far its top and right corners are off the middles of that box's sides.
    Anchors are matched to the level boxes of the objects, proposals to the objects by exact overlap.

    Args:
        anchors: Of all levels.
        class_count: Without background.
        options: Numbers and style.
    """

    def __init__(self, anchors: architecture.LevelAnchors, class_count: int, options: architecture.RCNNOptions) -> None:
        super().__init__(background=True)
        self.anchors, self.options = anchors, options
        self.proposals = heads.proposal_layers(anchors, options)
        self.proposals.bbox_pred = nn.Conv2d(options.width, 6 * anchors.num_anchors_per_location()[0], 1)
        self.box_layers = heads.box_layers(options)
        features = options.width * heads.BOX_WIDTH
        self.class_logits, self.box_outputs = nn.Linear(features, class_count + 1), nn.Linear(features, 5)
        for layer, deviation in (
            (self.proposals.bbox_pred, 0.01),
            (self.class_logits, 0.01),
            (self.box_outputs, 0.001),
        ):
            nn.init.normal_(layer.weight, std=deviation)
            nn.init.zeros_(layer.bias)

    def compute(
        self, images: ImageList, levels: list[Tensor], targets: detector.Targets | None
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Propose oriented boxes, detect in them, and compute the losses."""
        logits, offsets = self._outputs(levels)
        anchors = self.anchors.by_level(levels)
        size = images.image_sizes[0]
        losses: dict[str, Tensor] = {}
        if targets is not None:
            with nullcontext() if self.training else detector.same_samples(logits.device):
                losses = self._proposal_losses(logits, offsets, torch.cat(anchors), targets)
                proposals = self._propose(logits, offsets, anchors, size, training=True)
                losses |= self._box_losses(levels, proposals, targets)
        if self.training:
            return [], losses
        proposals = self._propose(logits, offsets, anchors, size, training=False)
        return self._find(levels, proposals), losses

    def _outputs(self, levels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return of every anchor the logit (N, anchors) of holding an object, and the numbers (N, anchors, 6)."""
        logits, offsets = self.proposals(list(levels))
        flat = [
            torch.cat(
                [
                    level.view(len(level), -1, numbers, *level.shape[-2:]).permute(0, 3, 4, 1, 2).flatten(1, 3)
                    for level in outputs
                ],
                1,
            )
            for outputs, numbers in ((logits, 1), (offsets, 6))
        ]
        return flat[0][..., 0], flat[1]

    @torch.no_grad()
    def _propose(
        self, logits: Tensor, offsets: Tensor, anchors: Sequence[Tensor], size: tuple[int, int], *, training: bool
    ) -> list[Tensor]:
        """Return the proposals (n, 5) of each image, the likeliest first, without those that overlap likelier ones."""
        options = self.options
        before = options.rpn_pre_nms_top_n_train if training else options.rpn_pre_nms_top_n_test
        after = options.rpn_post_nms_top_n_train if training else options.rpn_post_nms_top_n_test
        found = []
        for of_image, numbers in zip(logits, offsets):
            chosen, levels, start = [], [], 0
            for level, boxes in enumerate(anchors):
                best = of_image[start : start + len(boxes)].topk(min(before, len(boxes))).indices
                chosen.append(best + start)
                levels.append(torch.full_like(best, level))
                start += len(boxes)
            rows, level_of = torch.cat(chosen), torch.cat(levels)
            proposals = decode_offsets(numbers[rows], torch.cat(list(anchors))[rows])
            x, y = proposals[:, 0], proposals[:, 1]
            real = (x >= 0) & (y >= 0) & (x <= size[1]) & (y <= size[0]) & proposals.isfinite().all(1)
            rows, level_of, proposals = rows[real], level_of[real], proposals[real]
            kept = batched_nms(geometry.hulls(proposals), of_image[rows], level_of, options.rpn_nms_thresh)
            found.append(proposals[kept[:after]])
        return found

    def _proposal_losses(
        self, logits: Tensor, offsets: Tensor, anchors: Tensor, targets: detector.Targets
    ) -> dict[str, Tensor]:
        """Return the losses of a sample of the anchors of each image."""
        options = self.options
        labels, truth = [], []
        for target in targets:
            around = geometry.hulls(target['turned'])
            known = ~target['ignored']
            matched, of = self._match_anchors(anchors, around[known], around[~known])
            labels.append(matched)
            truth.append(target['turned'][known][of] if known.any() else anchors.new_zeros(len(anchors), 5))
        positive, sampled = sample(labels, options.rpn_batch_size_per_image, options.rpn_positive_fraction)
        wanted = torch.stack(labels).clamp(min=0).to(logits.dtype)
        wrong = functional.binary_cross_entropy_with_logits(logits[sampled], wanted[sampled], reduction='sum')
        many = sampled.sum().clamp(min=1)
        aims = encode_offsets(torch.stack(truth)[positive], anchors.expand(len(labels), -1, -1)[positive])
        off = functional.smooth_l1_loss(offsets[positive], aims, beta=BETA, reduction='sum')
        return {'loss_objectness': wrong / many, 'loss_rpn_box_reg': off / many}

    def _match_anchors(self, anchors: Tensor, boxes: Tensor, ignored: Tensor) -> tuple[Tensor, Tensor]:
        """Return 1 for anchors that are objects, 0 for background and -1 for neither; and the object of each."""
        labels = torch.zeros(len(anchors), dtype=torch.int64, device=anchors.device)
        of = torch.zeros_like(labels)
        if len(boxes):
            overlaps = box_iou(boxes, anchors)
            best, of = overlaps.max(0)
            labels[best >= self.options.rpn_bg_iou_thresh] = -1
            labels[best >= self.options.rpn_fg_iou_thresh] = 1
            # every object has the anchors that fit it best, however badly
            labels[((overlaps == overlaps.amax(1, keepdim=True)) & (overlaps > 0)).any(0)] = 1
        if len(ignored):
            near = (box_iou(ignored, anchors) >= self.options.rpn_bg_iou_thresh).any(0)
            labels[near & (labels == 0)] = -1
        return labels, of

    def _box_losses(
        self, levels: Sequence[Tensor], proposals: Sequence[Tensor], targets: detector.Targets
    ) -> dict[str, Tensor]:
        """Return the losses of a sample of the proposals of each image, among which are the objects themselves."""
        options = self.options
        chosen, labels, truth = [], [], []
        for found, target in zip(proposals, targets):
            boxes = torch.cat((found, target['turned'][~target['ignored']]))
            matched, of = self._match_proposals(boxes, target)
            _, sampled = sample([(matched > 0).long() - (matched < 0).long()],
                                options.box_batch_size_per_image, options.box_positive_fraction)  # fmt: skip
            rows = sampled[0].nonzero()[:, 0]
            chosen.append(boxes[rows])
            labels.append(matched[rows])
            truth.append(target['turned'][of[rows]] if len(target['turned']) else boxes[rows])
        features = self._features(levels, chosen)
        logits, numbers, every = self.class_logits(features), self.box_outputs(features), torch.cat(labels)
        many = max(1, len(every))
        positive = every > 0
        aims = encode_boxes(torch.cat(truth)[positive], torch.cat(chosen)[positive])
        off = functional.smooth_l1_loss(numbers[positive], aims, beta=BETA, reduction='sum')
        wrong = functional.cross_entropy(logits, every, reduction='sum')
        return {'loss_classifier': wrong / many, 'loss_box_reg': off / many}

    def _match_proposals(self, boxes: Tensor, target: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the label (n,) of each box, 0 for background and -1 for neither; and the object of each."""
        labels = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
        if not len(target['turned']):
            return labels, torch.zeros_like(labels)
        pair = (values.detach().double().cpu().numpy() for values in (target['turned'], boxes))
        overlaps = torch.from_numpy(overlap.overlap_matrix(*pair)).to(boxes.device)
        ignored = target['ignored']
        near = (overlaps[ignored] >= self.options.box_bg_iou_thresh).any(0)
        overlaps[ignored] = -1
        best, of = overlaps.max(0)
        labels[(best >= self.options.box_bg_iou_thresh) | near] = -1
        real = best >= self.options.box_fg_iou_thresh
        labels[real] = target['labels'][of[real]]
        return labels, of

    def _features(self, levels: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        count = heads.POOLED_LEVELS
        pooled = pool_oriented(levels[:count], self.anchors.strides[:count], boxes, heads.BOX_SIDE)
        features: Tensor = self.box_layers(pooled)
        return features

    def _find(self, levels: Sequence[Tensor], proposals: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """Return the objects of each image."""
        features = self._features(levels, proposals)
        scores = self.class_logits(features).softmax(-1)[:, 1:]
        boxes = geometry.canonical(decode_boxes(self.box_outputs(features), torch.cat(list(proposals))))
        counts = [len(found) for found in proposals]
        return [self._pick(*row) for row in zip(scores.split(counts), boxes.split(counts))]

    def _pick(self, scores: Tensor, boxes: Tensor) -> dict[str, Tensor]:
        """Return the objects of one image by scores (n, classes) of boxes (n, 5)."""
        options = self.options
        likely = (scores > options.box_score_thresh) & boxes.isfinite().all(1, keepdim=True)
        rows, columns = likely.nonzero().unbind(1)
        best, order = scores[rows, columns].topk(min(MOST_CANDIDATES, len(rows)))
        turned, labels = boxes[rows[order]], columns[order] + self._first
        return rotated.keep_highest(
            turned, labels, best, threshold=options.box_nms_thresh, most=options.box_detections_per_img
        )


def sample(labels: Sequence[Tensor], count: int, share: float) -> tuple[Tensor, Tensor]:
    """Draw boxes of each image that enter a loss, of which objects are a share at most.

    Args:
        labels: (n,) of each image: 1 for objects, 0 for background, -1 for neither.
        count: Boxes of each image at most.
        share: Of these, objects at most.

    Returns:
        Which objects (images, n) and which boxes in all (images, n) are drawn, bool.
    """
    every = torch.stack(list(labels))
    positive, sampled = torch.zeros_like(every, dtype=torch.bool), torch.zeros_like(every, dtype=torch.bool)
    for number, of_image in enumerate(every):
        objects, background = ((of_image == value).nonzero()[:, 0] for value in (1, 0))
        objects = objects[torch.randperm(len(objects), device=every.device)[: int(count * share)]]
        left = count - len(objects)
        background = background[torch.randperm(len(background), device=every.device)[:left]]
        positive[number, objects] = True
        sampled[number, objects] = sampled[number, background] = True
    return positive, sampled


def encode_offsets(turned: Tensor, anchors: Tensor) -> Tensor:
    """Return the six numbers (n, 6) that make oriented boxes (n, 5) of anchors (n, 4); see `decode_offsets`."""
    points = geometry.corners(turned)
    around = geometry.hulls(turned)
    low, high = around[:, :2], around[:, 2:]
    center, size = (low + high) / 2, (high - low).clamp(min=1e-6)
    place, extent = _centers(anchors)
    slack = 1e-4 * size
    # of corners at the same height the right one is the top, and of those at the right the lower one
    top = points[..., 1] <= (low[:, 1] + slack[:, 1])[:, None]
    right = points[..., 0] >= (high[:, 0] - slack[:, 0])[:, None]
    top_x = points[..., 0].masked_fill(~top, -math.inf).amax(1)
    right_y = points[..., 1].masked_fill(~right, -math.inf).amax(1)
    corner = (torch.stack((top_x, right_y), -1) - center) / size
    numbers = torch.cat(((center - place) / extent, (size / extent).log(), corner), -1)
    return numbers * numbers.new_tensor(OFFSET_WEIGHTS)


def decode_offsets(numbers: Tensor, anchors: Tensor) -> Tensor:
    """Return the oriented boxes (n, 5), in the form le90, that six numbers (n, 6) make of anchors (n, 4).

    These are how far the middle of the level box around it is off that of the anchor, in sides of the anchor; how much
    larger it is, as logarithms; and how far the top corner is to the right of its middle, and the right corner below
    it, in its sides. Four corners on the sides of a level box make a parallelogram; its shorter diagonal is stretched
    to the longer one, which makes it a rectangle.
    """
    numbers = numbers / numbers.new_tensor(OFFSET_WEIGHTS)
    place, extent = _centers(anchors)
    center = place + numbers[:, :2] * extent
    size = extent * numbers[:, 2:4].clamp(max=LARGEST_LOG).exp()
    corner = numbers[:, 4:6].clamp(-0.5, 0.5)
    top = torch.stack((corner[:, 0] * size[:, 0], -size[:, 1] / 2), -1)
    right = torch.stack((size[:, 0] / 2, corner[:, 1] * size[:, 1]), -1)
    lengths = torch.stack((top.norm(dim=1), right.norm(dim=1)), -1).clamp(min=1e-6)
    longest = lengths.amax(1, keepdim=True)
    top, right = top * (longest / lengths[:, :1]), right * (longest / lengths[:, 1:])
    side, other = right - top, right + top
    sides = torch.stack((side.norm(dim=1), other.norm(dim=1)), -1).clamp(min=SMALLEST_PROPOSAL)
    angle = torch.atan2(side[:, 1], side[:, 0])
    return geometry.canonical(torch.cat((center, sides, angle[:, None]), -1))


def _centers(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Return middles and sides (n, 2) of level boxes (n, 4)."""
    return (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]


def encode_boxes(true: Tensor, boxes: Tensor) -> Tensor:
    """Return the five numbers (n, 5) that make objects (n, 5) of proposals (n, 5); see `decode_boxes`.

    Of the forms of an object, the one turned by at most an eighth of a turn is taken, so that the angle has no seam.
    """
    away = true[:, :2] - boxes[:, :2]
    cos, sin = boxes[:, 4].cos(), boxes[:, 4].sin()
    along, across = away[:, 0] * cos + away[:, 1] * sin, away[:, 1] * cos - away[:, 0] * sin
    turn = (true[:, 4] - boxes[:, 4] + geometry.QUARTER_TURN / 2) % geometry.HALF_TURN - geometry.QUARTER_TURN / 2
    swapped = turn > geometry.QUARTER_TURN / 2
    turn = torch.where(swapped, turn - geometry.QUARTER_TURN, turn)
    sides = torch.where(swapped[:, None], true[:, [3, 2]], true[:, 2:4])
    numbers = torch.cat(
        (
            torch.stack((along, across), -1) / boxes[:, 2:4],
            (sides / boxes[:, 2:4]).log(),
            turn[:, None],
        ),
        -1,
    )
    return numbers * numbers.new_tensor(BOX_WEIGHTS)


def decode_boxes(numbers: Tensor, boxes: Tensor) -> Tensor:
    """Return the oriented boxes (n, 5) that five numbers (n, 5) make of proposals (n, 5).

    These are how far the middle moves along and across the proposal, in its sides; how much longer the sides are, as
    logarithms; and by how much it turns, in radians.
    """
    numbers = numbers / numbers.new_tensor(BOX_WEIGHTS)
    along, across = (numbers[:, :2] * boxes[:, 2:4]).unbind(-1)
    cos, sin = boxes[:, 4].cos(), boxes[:, 4].sin()
    return torch.cat(
        (
            (boxes[:, 0] + along * cos - across * sin)[:, None],
            (boxes[:, 1] + along * sin + across * cos)[:, None],
            boxes[:, 2:4] * numbers[:, 2:4].clamp(max=LARGEST_LOG).exp(),
            (boxes[:, 4] + numbers[:, 4])[:, None],
        ),
        -1,
    )


def pool_oriented(levels: Sequence[Tensor], strides: Sequence[int], boxes: Sequence[Tensor], side: int) -> Tensor:
    """Return what lies in oriented boxes, each turned level and brought to one size: (all boxes, channels, side, side).

    Every cell is the mean of four bilinear samples; what is outside of the level is 0. Of level boxes this is
    torchvision's ``roi_align(aligned=True, sampling_ratio=2)``.

    Args:
        levels: (N, channels, h, w), finest first; a box takes the one that suits its size.
        strides: Of the levels, in pixels.
        boxes: (n, 5) of each image, in pixels.
        side: Of what is returned.
    """
    parts, rows, start = [], [], 0
    finest, coarsest = (math.log2(stride) for stride in (strides[0], strides[-1]))
    for image, found in enumerate(boxes):
        size = found[:, 2:4].prod(1).clamp(min=1).sqrt()
        level_of = (math.log2(CANONICAL_LEVEL) + (size / CANONICAL_SIDE).log2() + 1e-6).floor().clamp(finest, coarsest)
        for level, stride in zip(levels, strides):
            chosen = (level_of == math.log2(stride)).nonzero()[:, 0]
            for some in chosen.split(POOLED_AT_ONCE):
                if len(some):
                    parts.append(_pooled(level[image : image + 1], stride, found[some], side))
                    rows.append(some + start)
        start += len(found)
    if not parts:
        # gradients reach the levels all the same, as processes that share them expect
        return levels[0].new_zeros(0, levels[0].shape[1], side, side) + sum(level.sum() * 0 for level in levels)
    return torch.cat(parts)[torch.cat(rows).argsort()]


def _pooled(level: Tensor, stride: int, boxes: Tensor, side: int) -> Tensor:
    """Return what lies in boxes (n, 5) of a level (1, channels, h, w)."""
    points, (height, width) = 2 * side, level.shape[-2:]
    steps = (torch.arange(points, device=boxes.device) + 0.5) / points - 0.5
    cos, sin = boxes[:, 4].cos()[:, None, None], boxes[:, 4].sin()[:, None, None]
    along, across = (steps * boxes[:, 2, None])[:, None], (steps * boxes[:, 3, None])[:, :, None]
    x = boxes[:, 0, None, None] + along * cos - across * sin
    y = boxes[:, 1, None, None] + along * sin + across * cos
    grid = torch.stack((2 * x / (stride * width) - 1, 2 * y / (stride * height) - 1), -1)
    sampled = functional.grid_sample(
        level, grid.view(1, -1, points, 2), mode='bilinear', padding_mode='zeros', align_corners=False
    )
    cells = sampled.view(level.shape[1], len(boxes), points, points).transpose(0, 1)
    return functional.avg_pool2d(cells, 2)
