"""Panoptic networks: objects and a class for every other pixel from one pyramid, merged into one map."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from geolearn.backbones.vit import pad_to_multiple
from geolearn.batch import Detections, Objects, PanopticMap
from geolearn.classes import IGNORE_INDEX
from geolearn.networks.detection import detector
from geolearn.networks.network import Network

SEMANTIC_WIDTH = 128

SEMANTIC_WEIGHT = 0.5
"""Of the loss of the semantic branch, as in the paper."""


@dataclass(frozen=True)
class MergeOptions:
    """How objects and classes become one map.

    Args:
        threshold: Lowest score of an object.
        least_free: Share of an object that higher-scoring ones must leave it, else it is dropped.
        min_area: Pixels of a connected region of stuff; smaller ones are void.

    Raises:
        ValueError: If a number is out of its range.
    """

    threshold: float = 0.5
    least_free: float = 0.5
    min_area: int = 64

    def __post_init__(self) -> None:
        for name in ('threshold', 'least_free'):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f'{name} must be in 0..1, got {getattr(self, name)}')
        if not 0 <= self.min_area <= 4096:
            raise ValueError(f'min_area must be in 0..4096 pixels, got {self.min_area}')


def merge_segments(
    found: Detections, logits: Tensor, stuff: Sequence[int], options: MergeOptions
) -> tuple[PanopticMap, Detections]:
    """Merge the objects and the classes of one image; objects are numbered from 1 by falling score.

    Args:
        found: With masks (n, H, W) bool.
        logits: (stuff + 1, H, W), of which the last stands for all things.
        stuff: Class index of each of the others.
        options: How.

    Returns:
        The map, VOID where there is neither; and the objects that are in it, in their order.
    """
    classes = torch.tensor([*stuff, IGNORE_INDEX], device=logits.device)[logits.argmax(0)]
    if options.min_area > 1:
        large = drop_small(classes.cpu().numpy(), options.min_area, IGNORE_INDEX)
        classes = torch.from_numpy(large).to(logits.device)
    ids = torch.zeros_like(classes)
    masks = found.masks
    assert masks is not None
    kept: list[int] = []
    for row in torch.argsort(found.scores, descending=True, stable=True).tolist():
        if found.scores[row] < options.threshold:
            break
        free = masks[row] & (ids == 0)
        area, left = int(masks[row].sum()), int(free.sum())
        if left == 0 or left < options.least_free * area:
            continue
        kept.append(row)
        classes[free], ids[free] = found.labels[row], len(kept)
    return PanopticMap(classes, ids), found.select(torch.tensor(kept, dtype=torch.long, device=found.labels.device))


def drop_small(classes: np.ndarray, min_area: int, void: int) -> np.ndarray:
    """Return classes (height, width) without connected regions of fewer pixels, which become `void`."""
    from scipy import ndimage

    kept = classes.copy()
    for value in np.unique(classes).tolist():
        if value != void:
            labels, _ = ndimage.label(classes == value)
            small = np.bincount(labels.ravel()) < min_area
            small[0] = False
            kept[small[labels]] = void
    return kept


class SemanticBranch(nn.Module):
    """Classes of all pixels from a pyramid (Kirillov et al. 2019, arXiv:1901.02446), at stride 4.

    Args:
        strides: Of the levels that it takes, 4 and its doubles.
        outputs: Per pixel.
        width: Channels of the levels.
    """

    def __init__(self, strides: Sequence[int], outputs: int, width: int) -> None:
        super().__init__()
        self.towers = nn.ModuleList(self._tower(stride, width) for stride in strides)
        self.predict = nn.Conv2d(SEMANTIC_WIDTH, outputs, 1)

    @staticmethod
    def _tower(stride: int, width: int) -> nn.Sequential:
        parts: list[nn.Module] = []
        doublings = (stride // 4).bit_length() - 1
        for _ in range(max(1, doublings)):
            parts += [
                nn.Conv2d(width, SEMANTIC_WIDTH, 3, padding=1, bias=False),
                nn.GroupNorm(32, SEMANTIC_WIDTH),
                nn.ReLU(inplace=True),
            ]
            if doublings:
                parts.append(nn.Upsample(scale_factor=2, mode='bilinear', align_corners=False))
            width = SEMANTIC_WIDTH
        return nn.Sequential(*parts)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Compute outputs (N, outputs, 4 * h, 4 * w) of levels of which the finest is (N, width, h, w)."""
        total = sum(tower(level) for tower, level in zip(self.towers, levels))
        outputs: Tensor = self.predict(total)
        return functional.interpolate(outputs, scale_factor=4, mode='bilinear', align_corners=False)


PanopticOutput = tuple[list[PanopticMap], dict[str, Tensor]]
"""The map of each image, none in training; and losses by name, none without targets."""


class PanopticNetwork(Network):
    """What both panoptic networks share: which classes are things, and how images become maps.

    Args:
        detector: Its first layer and backbone are those of the network.
        class_count: Of all classes.
        things: Indices of the countable ones.
        options: How objects and classes become one map.
    """

    def __init__(
        self, normalize: Any, backbone: Any, class_count: int, things: Sequence[int], options: MergeOptions
    ) -> None:
        super().__init__(normalize, backbone)
        self.things = tuple(things)
        self.stuff = tuple(index for index in range(class_count) if index not in set(things))
        self.options = options

    def segments(self, images: Tensor) -> tuple[list[Detections], Tensor]:
        """Compute objects of all scores with masks, by class index, and logits (N, stuff + 1, H, W)."""
        raise NotImplementedError

    def find_objects(self, images: Tensor) -> list[Detections]:
        """Compute objects alone."""
        return self.segments(images)[0]

    def find_classes(self, images: Tensor) -> Tensor:
        """Compute logits alone."""
        return self.segments(images)[1]

    def losses(self, images: Tensor, masks: Tensor, objects: Sequence[Objects]) -> dict[str, Tensor]:
        """Compute the losses by name."""
        raise NotImplementedError

    def forward(
        self, images: Tensor, masks: Tensor | None = None, objects: Sequence[Objects] | None = None
    ) -> PanopticOutput:
        """Segment images (N, [dates,] bands, H, W) of any size; compute the losses where targets are given.

        Args:
            images: In stored units, NaN where there is no data.
            masks: (N, H, W) class indices or IGNORE_INDEX; training needs them, and the objects.
            objects: Of each image, with masks.
        """
        if masks is None or objects is None:
            if self.training:
                raise ValueError('a panoptic network in training needs targets; call eval() to use it')
            return self._maps(images), {}
        losses = self.losses(images, masks, objects)
        return ([] if self.training else self._maps(images)), losses

    def _maps(self, images: Tensor) -> list[PanopticMap]:
        found, logits = self.segments(images)
        return [merge_segments(*pair, self.stuff, self.options)[0] for pair in zip(found, logits)]

    def known_objects(self, objects: Objects) -> Objects:
        """Return the objects that are things, with their index among things as label."""
        of_thing = torch.full((max([*self.things, *self.stuff]) + 1,), -1, device=objects.labels.device)
        of_thing[list(self.things)] = torch.arange(len(self.things), device=objects.labels.device)
        labels = of_thing[objects.labels]
        kept = labels >= 0
        return Objects(objects.boxes[kept], labels[kept], None if objects.masks is None else objects.masks[kept])


class PanopticDetector(PanopticNetwork):
    """A detector that draws masks, with a semantic branch on its pyramid.

    Args:
        detector: Of the things.
        class_count: Of all classes.
        things: Indices of the countable ones.
        options: How objects and classes become one map.
    """

    def __init__(
        self, parts: detector.Detector, class_count: int, things: Sequence[int], options: MergeOptions
    ) -> None:
        super().__init__(parts.normalize, parts.backbone, class_count, things, options)
        self.levels, self.head = parts.levels, parts.head
        strides = [stride for stride in parts.backbone.strides if stride >= 4]
        self.semantic = SemanticBranch(strides, len(self.stuff) + 1, parts.levels.width)

    def _pyramid(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        x = pad_to_multiple(self.normalize(images), 32)
        return x, self.levels(self.backbone(x))

    def _logits(self, levels: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        outputs: Tensor = self.semantic(levels)
        return outputs[..., : size[0], : size[1]].float()

    def segments(self, images: Tensor) -> tuple[list[Detections], Tensor]:
        """Compute objects of all scores with masks, by class index, and logits (N, stuff + 1, H, W)."""
        x, levels = self._pyramid(images)
        return self._objects(x, levels, images), self._logits(levels, images.shape[-2:])

    def find_objects(self, images: Tensor) -> list[Detections]:
        """Compute objects alone."""
        return self._objects(*self._pyramid(images), images)

    def find_classes(self, images: Tensor) -> Tensor:
        """Compute logits alone."""
        return self._logits(self._pyramid(images)[1], images.shape[-2:])

    def _objects(self, x: Tensor, levels: Sequence[Tensor], images: Tensor) -> list[Detections]:
        size = (images.shape[-2], images.shape[-1])
        with torch.autocast(x.device.type, enabled=False):
            found, _ = self.head(x, [level.float() for level in levels], None)
        placed = [detector.place_in_image(objects, size) for objects in found]
        classes = torch.tensor(self.things, device=images.device)
        return [replace(objects, labels=classes[objects.labels]) for objects in placed]

    def losses(self, images: Tensor, masks: Tensor, objects: Sequence[Objects]) -> dict[str, Tensor]:
        """Compute the losses of the detector, and 0.5 of the cross-entropy of the semantic branch."""
        x, levels = self._pyramid(images)
        logits = self._logits(levels, masks.shape[-2:])
        table = torch.full((IGNORE_INDEX + 1,), IGNORE_INDEX, device=masks.device)
        table[list(self.stuff)] = torch.arange(len(self.stuff), device=masks.device)
        table[list(self.things)] = len(self.stuff)
        target = table[masks.clamp(0, IGNORE_INDEX)]
        for number, found in enumerate(objects):
            if found.masks is not None and len(found.masks):
                known = self.known_objects(found)
                assert known.masks is not None
                target[number][known.masks.any(0)] = len(self.stuff)
        known_pixels = (target != IGNORE_INDEX).sum().clamp(min=1)
        semantic = functional.cross_entropy(logits, target, ignore_index=IGNORE_INDEX, reduction='sum') / known_pixels
        with torch.autocast(x.device.type, enabled=False):
            things = [self.known_objects(found) for found in objects]
            _, losses = self.head(x, [level.float() for level in levels], things)
        return losses | {'semantic': SEMANTIC_WEIGHT * semantic}


class Things(Network):
    """The objects of a panoptic network, as detectors give them."""

    def __init__(self, network: PanopticNetwork) -> None:
        super().__init__(network.normalize, network.backbone)
        self.network = network

    def forward(self, images: Tensor) -> detector.DetectorOutput:
        """Return the objects of images (N, bands, H, W), and no losses."""
        return self.network.find_objects(images), {}


class Classes(Network):
    """The classes of a panoptic network, as segmentation networks give them; the last stands for all things."""

    def __init__(self, network: PanopticNetwork) -> None:
        super().__init__(network.normalize, network.backbone)
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits (N, stuff + 1, H, W) of images (N, bands, H, W)."""
        return self.network.find_classes(images)


class PanopticLoss(nn.Module):
    """The sum of the losses that a panoptic network computes, whose parts it holds; see `DetectionLoss`."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: dict[str, Tensor] = {}

    def forward(self, output: PanopticOutput) -> Tensor:
        """Return the loss of a network's output."""
        losses = output[1]
        self.parts = {name: loss.detach() for name, loss in losses.items()}
        return torch.stack(list(losses.values())).sum()
