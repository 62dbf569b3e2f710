"""RotatedFCOS's head: every place of every level gives classes and one oriented box, assigned by how well both fit."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection.image_list import ImageList

from geolearn.batch import Detections, Objects
from geolearn.networks.detection import architecture, detector
from geolearn.oriented import geometry, overlap
from geolearn.oriented.suppression import suppress_oriented

SMALLEST_OBJECT = 2.0
"""Oriented objects with a shorter side, in pixels, are ignored in training: their angle is noise."""

PRIOR = 0.01
"""Score of every place at the start."""

OVERLAP_POWER, SCORE_POWER = 6, 0.5
"""How much the overlap and the score of a place decide which places are assigned to an object."""

FLOOR = 0.1
"""Overlap that places at the middle of an object count as from the start, falling outwards: all boxes are bad then."""

CLASS_WEIGHT, BOX_WEIGHT, ANGLE_WEIGHT = 0.5, 2.5, 1.0

LARGEST_EXPONENT = 6.0
"""Distances are at most e to the power of this times the stride."""


class Assigned(NamedTuple):
    """What the places of an image are trained on.

    Args:
        targets: (places, classes) soft class targets, 0..1.
        counted: (places,) bool, False where the image has an ignored object.
        positive: (k,) places with an object.
        objects: (k,) the object of each.
        weights: (k,) its soft target.
    """

    targets: Tensor
    counted: Tensor
    positive: Tensor
    objects: Tensor
    weights: Tensor


class OrientedHead(detector.DetectionHead):
    """A head that is trained on oriented boxes and gives them.

    Its targets have ``turned`` (n, 5) in the form le90, ``labels`` (n,) and ``ignored`` (n,) bool; what it detects has
    ``turned`` too.
    """

    def _as_target(self, objects: Objects) -> dict[str, Tensor]:
        if objects.turned is None:
            raise ValueError('this detector is trained on oriented boxes, and the objects have none (`turned`)')
        turned = objects.turned.float()
        small = (turned[:, 2:4] < SMALLEST_OBJECT).any(1)
        ignored = small if objects.ignored is None else small | objects.ignored
        real = (turned[:, 2:4] > 0).all(1) & turned.isfinite().all(1)
        return {'turned': turned[real], 'labels': objects.labels[real] + self._first, 'ignored': ignored[real]}

    def _as_found(self, row: dict[str, Any]) -> Detections:
        return Detections(row['boxes'], row['labels'] - self._first, row['scores'], turned=row['turned'])


class RotatedFCOSHead(OrientedHead):
    """Towers of convolutions, shared by all levels, that give classes, four distances and an angle at every place.

    The box of a place is turned about its own middle; the loss compares whole boxes, so that the angle has no seam, and
    places are assigned by the boxes that they give (task-aligned; Feng et al. 2021, arXiv:2108.07755).

    Args:
        anchors: A square as large as the stride on each level, which stands for a place.
        class_count: Number of classes.
        options: Numbers.
    """

    def __init__(
        self, anchors: architecture.LevelAnchors, class_count: int, options: architecture.RotatedOptions
    ) -> None:
        super().__init__(background=False)
        self.anchors, self.options, self.class_count = anchors, options, class_count
        width = options.width
        self.class_tower, self.box_tower = (_tower(width, options.depth) for _ in range(2))
        self.class_logits = nn.Conv2d(width, class_count, 3, padding=1)
        self.box_outputs = nn.Conv2d(width, 5, 3, padding=1)
        self.scales = nn.Parameter(torch.ones(len(anchors.strides)))
        for layer in (self.class_logits, self.box_outputs):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        nn.init.constant_(self.class_logits.bias, -math.log((1 - PRIOR) / PRIOR))  # type: ignore[arg-type]

    def compute(
        self, images: ImageList, levels: list[Tensor], targets: detector.Targets | None
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Detect at every place, and compute the losses."""
        logits, raw = self._outputs(levels)
        places, strides = self._places(levels)
        boxes = decode(raw, places, strides)
        losses = {} if targets is None else self.losses(logits, boxes, places, strides, targets)
        return ([] if self.training else [self._find(*row, levels) for row in zip(logits, boxes)]), losses

    def places(self, levels: list[Tensor]) -> Tensor:
        """Return boxes and scores (N, places, 5 + classes)."""
        logits, raw = self._outputs(levels)
        return torch.cat((decode(raw, *self._places(levels)), logits.sigmoid()), -1)

    def _outputs(self, levels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return class logits (N, places, classes) and, before decoding, boxes (N, places, 5)."""
        logits, raw = [], []
        for level, scale in zip(levels, self.scales):
            logits.append(self.class_logits(self.class_tower(level)).flatten(2).transpose(1, 2))
            output = self.box_outputs(self.box_tower(level)).flatten(2).transpose(1, 2)
            raw.append(torch.cat((output[..., :4] * scale, output[..., 4:]), -1))
        return torch.cat(logits, 1), torch.cat(raw, 1)

    def _places(self, levels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the middles (places, 2) of the cells of all levels, x and y in pixels, and their strides (places,)."""
        found, strides = [], []
        for level, stride in zip(levels, self.anchors.strides):
            height, width = level.shape[-2:]
            y, x = ((torch.arange(side, device=level.device) + 0.5) * stride for side in (height, width))
            found.append(torch.stack((x.expand(height, width), y[:, None].expand(height, width)), -1).view(-1, 2))
            strides.append(level.new_full((height * width,), stride))
        return torch.cat(found), torch.cat(strides)

    def losses(
        self, logits: Tensor, boxes: Tensor, places: Tensor, strides: Tensor, targets: detector.Targets
    ) -> dict[str, Tensor]:
        """Return the losses of classes, boxes and, unless boxes are compared exactly, of the angles of near-squares.

        Args:
            logits: (N, places, classes).
            boxes: (N, places, 5).
            places: (places, 2).
            strides: (places,).
            targets: Of each image.
        """
        scores = logits.detach().sigmoid()
        assigned = [
            self.assign(row, found.detach(), places, strides, target)
            for row, found, target in zip(scores, boxes, targets)
        ]
        soft = torch.stack([row.targets for row in assigned])
        counted = torch.stack([row.counted for row in assigned])
        total = soft.sum().clamp(min=1)
        wrong = functional.binary_cross_entropy_with_logits(logits, soft, reduction='none')
        predicted = torch.cat([found[row.positive] for found, row in zip(boxes, assigned)])
        true = torch.cat([target['turned'][row.objects] for target, row in zip(targets, assigned)])
        weights = torch.cat([row.weights for row in assigned])
        losses = {
            'classification': CLASS_WEIGHT * (wrong * counted[..., None]).sum() / total,
            'bbox_regression': BOX_WEIGHT * (weights * self._box_loss(predicted, true)).sum() / total,
        }
        if self.options.box_loss == 'probiou':
            angles = overlap.square_angle_loss(predicted, true)
            losses['loss_angle'] = ANGLE_WEIGHT * (weights * angles).sum() / total
        return losses

    def _box_loss(self, predicted: Tensor, true: Tensor) -> Tensor:
        if self.options.box_loss == 'probiou':
            return 1 - overlap.prob_iou(predicted, true)
        exact = overlap.pair_overlaps(predicted, true)
        # boxes that do not touch have no gradient; only those of tiny objects may be so
        apart = exact.detach() <= 0
        return torch.where(apart, 1 - overlap.prob_iou(predicted, true), 1 - exact.to(predicted.dtype))

    @torch.no_grad()
    def assign(
        self, scores: Tensor, boxes: Tensor, places: Tensor, strides: Tensor, target: dict[str, Tensor]
    ) -> Assigned:
        """Assign places of an image to its objects: those whose score and box fit an object best.

        Args:
            scores: (places, classes).
            boxes: (places, 5).
            places: (places, 2).
            strides: (places,).
            target: ``turned`` (n, 5), ``labels`` (n,) and ``ignored`` (n,).
        """
        wanted = (~target['ignored']).nonzero()[:, 0]
        objects, labels = target['turned'][wanted], target['labels'][wanted]
        counted = ~self._ignored(places, strides, target['turned'][target['ignored']])
        soft = torch.zeros_like(scores)
        if not len(objects):
            nothing = wanted.new_zeros(0)
            return Assigned(soft, counted, nothing, nothing, soft.new_zeros(0))
        inside, centered = _inside(places, strides, objects)
        lonely = ~inside.any(1)
        if lonely.any():
            inside[lonely, self._nearest(places, strides, objects[lonely])] = True
        row, place = inside.nonzero().unbind(1)
        fit = self._fit(objects[row], boxes[place])
        fit = torch.maximum(fit, FLOOR * torch.exp(-centered[row, place]))
        overlaps = scores.new_zeros(inside.shape)
        overlaps[row, place] = fit
        quality = scores.new_zeros(inside.shape)
        quality[row, place] = scores[place, labels[row]] ** SCORE_POWER * fit**OVERLAP_POWER
        chosen = torch.zeros_like(inside)
        top = quality.topk(min(self.options.assigned, quality.shape[1]), dim=1).indices
        chosen.scatter_(1, top, True)
        chosen &= inside
        owner = self._owners(chosen, overlaps, quality)
        positive = (owner >= 0).nonzero()[:, 0]
        of = owner[positive]
        quality, overlaps = quality[of, positive], overlaps[of, positive]
        best_quality, best_overlap = (
            scores.new_zeros(len(objects)).scatter_reduce(0, of, values, 'amax') for values in (quality, overlaps)
        )
        weights = quality / best_quality[of].clamp(min=1e-30) * best_overlap[of]
        soft[positive, labels[of]] = weights
        counted[positive] = True
        return Assigned(soft, counted, positive, wanted[of], weights)

    def _owners(self, chosen: Tensor, overlaps: Tensor, quality: Tensor) -> Tensor:
        """Return the object (places,) that has each place, -1 for none; each object has at least one."""
        best, owner = torch.where(chosen, overlaps, -1.0).max(0)
        owner = torch.where(best >= 0, owner, -1)
        held = owner[owner >= 0].bincount(minlength=len(chosen))
        for number in (held == 0).nonzero()[:, 0].tolist():
            # all its places went to others: it takes the best that is not another's last
            order = torch.where(chosen[number], quality[number], -1.0).argsort(descending=True)
            for place in order[: int(chosen[number].sum())].tolist():
                if held[owner[place]] > 1:
                    held[owner[place]] -= 1
                    held[number] += 1
                    owner[place] = number
                    break
        return owner

    def _fit(self, objects: Tensor, boxes: Tensor) -> Tensor:
        if self.options.box_loss == 'probiou':
            return overlap.prob_iou(objects, boxes).clamp(0, 1)
        return overlap.pair_overlaps(objects, boxes).to(boxes.dtype)

    def _ignored(self, places: Tensor, strides: Tensor, objects: Tensor) -> Tensor:
        if not len(objects):
            return torch.zeros_like(strides, dtype=torch.bool)
        return _inside(places, strides, objects)[0].any(0)

    def _nearest(self, places: Tensor, strides: Tensor, objects: Tensor) -> Tensor:
        """Return the place (n,) nearest to each object, on the level whose stride suits its size."""
        levels = places.new_tensor(self.anchors.strides)
        sizes = (objects[:, 2] * objects[:, 3]).clamp(min=1).sqrt() / 8
        level = levels[(sizes.log2()[:, None] - levels.log2()).abs().argmin(1)]
        away = (places - objects[:, None, :2]).square().sum(-1)
        return away.masked_fill(strides != level[:, None], math.inf).argmin(1)

    def _find(self, logits: Tensor, boxes: Tensor, levels: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the objects of one image: of each level the highest scores, without those that overlap higher ones."""
        picked = []
        start = 0
        for level in levels:
            count = level.shape[-2] * level.shape[-1]
            scores = logits[start : start + count].sigmoid().flatten()
            best, order = scores.topk(min(self.options.topk_candidates, len(scores)))
            order = order[best > self.options.score_thresh] + start * self.class_count
            picked.append(order)
            start += count
        chosen = torch.cat(picked)
        scores = logits.flatten()[chosen].sigmoid()
        most, order = scores.topk(min(self.options.topk_candidates, len(scores)))
        chosen = chosen[order]
        turned = geometry.canonical(boxes[chosen.div(self.class_count, rounding_mode='floor')])
        labels = chosen % self.class_count
        finite = turned.isfinite().all(1)
        turned, labels, most = turned[finite], labels[finite], most[finite]
        options = self.options
        return keep_highest(turned, labels, most, threshold=options.nms_thresh, most=options.detections_per_img)


def keep_highest(turned: Tensor, labels: Tensor, scores: Tensor, *, threshold: float, most: int) -> dict[str, Tensor]:
    """Return the objects of one image without those that overlap higher ones of their class, with their level hulls.

    Args:
        turned: Boxes (n, 5), finite.
        labels: (n,) int64.
        scores: (n,).
        threshold: Overlap over which the lower of two is dropped, 0..1.
        most: Objects that are kept at most.
    """
    kept = suppress_oriented(
        *(part.detach().cpu().numpy() for part in (turned.double(), labels, scores.double())),
        threshold=threshold,
        most=most,
    )
    rows = torch.from_numpy(kept).to(turned.device)
    kept_boxes = turned[rows]
    return {'boxes': geometry.hulls(kept_boxes), 'turned': kept_boxes, 'labels': labels[rows], 'scores': scores[rows]}


def decode(raw: Tensor, places: Tensor, strides: Tensor) -> Tensor:
    """Return oriented boxes (..., places, 5) of the outputs: logarithms of four distances in strides, and an angle."""
    distances = strides[:, None] * raw[..., :4].clamp(max=LARGEST_EXPONENT).exp()
    left, up, right, down = distances.unbind(-1)
    angle = raw[..., 4]
    across, along = (right - left) / 2, (down - up) / 2
    cos, sin = angle.cos(), angle.sin()
    x = places[:, 0] + across * cos - along * sin
    y = places[:, 1] + across * sin + along * cos
    return torch.stack((x, y, left + right, up + down, angle), -1)


def _inside(places: Tensor, strides: Tensor, objects: Tensor) -> tuple[Tensor, Tensor]:
    """Return which places lie in which objects (n, places), and how far from their middles: 1 at the ends of the axes.

    Objects that are smaller than a cell count as large as one.
    """
    offset = places - objects[:, None, :2]
    cos, sin = objects[:, 4].cos()[:, None], objects[:, 4].sin()[:, None]
    along, across = offset[..., 0] * cos + offset[..., 1] * sin, offset[..., 1] * cos - offset[..., 0] * sin
    width, height = torch.maximum(objects[:, 2, None], strides), torch.maximum(objects[:, 3, None], strides)
    inside = (along.abs() < width / 2) & (across.abs() < height / 2)
    centered = (2 * along / width) ** 2 + (2 * across / height) ** 2
    return inside, centered


def _tower(width: int, depth: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(depth):
        conv = nn.Conv2d(width, width, 3, padding=1)
        nn.init.normal_(conv.weight, std=0.01)
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        layers += [conv, nn.GroupNorm(min(32, width // 4), width), nn.ReLU()]
    return nn.Sequential(*layers)
