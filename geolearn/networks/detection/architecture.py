"""What a detector needs besides its backbone: options, levels and head; and how its network is built."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import numpy as np
import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from geolearn.bundle import Candidates, DetectionFacts
from geolearn.errors import BundleError, UnknownNameError
from geolearn.networks.detection.detector import WIDTH, DetectionHead, Detector, FeaturePyramid
from geolearn.networks.network import build_backbone, build_normalize
from geolearn.networks.spec import ModelSpec, decode

USUAL_SIDE = 32.0
"""Side in pixels of the anchors on the finest level; it doubles from level to level (torchvision's values)."""

USUAL_RATIOS = (0.5, 1.0, 2.0)
"""Heights over widths of anchors where the training boxes say nothing."""

MOST_BOXES = 20_000
"""More boxes are thinned out before they are grouped."""


class LevelAnchors(AnchorGenerator):
    """torchvision's anchors, at the strides that the levels have.

    torchvision divides the image's size by the map's, which moves anchors where a size is no multiple of the stride, so
    that they lie otherwise in tiles of another size.

    Args:
        sizes: Sides of square anchors by level, in pixels.
        ratios: Height over width; the area stays that of the square.
        strides: Of the levels, in pixels.
    """

    def __init__(self, sizes: Sequence[Sequence[float]], ratios: Sequence[float], strides: Sequence[int]) -> None:
        super().__init__(tuple(tuple(row) for row in sizes), (tuple(ratios),) * len(sizes))
        self.strides = tuple(strides)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """Return the anchors (n, 4) of each image, all levels one after the other."""
        return [torch.cat(self.by_level(feature_maps))] * len(image_list.image_sizes)

    def by_level(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the anchors (n, 4) of each level."""
        cells = self.cell_anchors[0]
        if (cells.dtype, cells.device) != (maps[0].dtype, maps[0].device):  # a graph cannot hold that they are changed
            self.set_cell_anchors(maps[0].dtype, maps[0].device)
        grids = [list(level.shape[-2:]) for level in maps]
        found: list[Tensor] = self.grid_anchors(grids, [[stride, stride] for stride in self.strides])
        return found


def choose_sizes(boxes: np.ndarray, *, levels: int, per_level: int) -> tuple[tuple[float, ...], ...]:
    """Choose the sides of square anchors by level from the sides of training boxes.

    Each level takes the boxes whose size is nearest to its usual anchor, and k-means over the logarithm of their sizes
    gives its anchors. A level without boxes keeps the usual ones.

    Args:
        boxes: (n, 2) widths and heights in pixels, above 0.
        levels: Number of levels.
        per_level: Anchors of each.
    """
    logs = np.log2(np.sqrt(boxes.prod(axis=1))) if len(boxes) else np.zeros(0)
    usual = math.log2(USUAL_SIDE)
    level_of = np.clip(np.rint(logs - usual), 0, levels - 1)
    rows = []
    for level in range(levels):
        centers = _centers(logs[level_of == level], per_level)
        if not centers:
            centers = [usual + level + step / 3 for step in range(per_level)]
        elif len(centers) < per_level:  # too few different sizes to tell apart: thirds of octaves around them
            middle = sum(centers) / len(centers)
            centers = [middle + (step - (per_level - 1) / 2) / 3 for step in range(per_level)]
        rows.append(tuple(round(2**center, 2) for center in sorted(centers)))
    return tuple(rows)


def choose_ratios(boxes: np.ndarray, *, count: int = 3) -> tuple[float, ...]:
    """Choose heights over widths of anchors by k-means over the logarithm of those of training boxes.

    Args:
        boxes: (n, 2) widths and heights in pixels, above 0.
        count: Most ratios; alike ones are one.
    """
    if not len(boxes):
        return USUAL_RATIOS
    logs = np.log2(boxes[:, 1] / boxes[:, 0])
    found: list[float] = []
    for center in sorted(_centers(logs, count)):
        if not found or center - found[-1] > 0.15:  # a tenth longer: the overlap of the two is still 0.9
            found.append(center)
    return tuple(round(2**center, 3) for center in found)


def _centers(values: np.ndarray, count: int) -> list[float]:
    """Group numbers by k-means; fewer groups where there are fewer different numbers."""
    count = min(count, len(np.unique(values.round(3))))
    if count < 2:
        return [float(values.mean())] if count else []
    # takes a second to import
    from sklearn.cluster import KMeans

    thinned = values[:: -(-len(values) // MOST_BOXES)].reshape(-1, 1)
    groups = KMeans(min(count, len(np.unique(thinned))), n_init=4, random_state=0).fit(thinned)
    return [float(center) for center in groups.cluster_centers_.ravel()]


HeadStyle = Literal['plain', 'vitdet']
"""How the heads of an R-CNN are built: as in torchvision, or deeper and with layer norms as in ViTDet."""

MOST_ANCHORS = 64
"""Per place and level; more would be a mistake."""


@dataclass(frozen=True)
class RCNNOptions:
    """The numbers of a Faster or Mask R-CNN, by torchvision's names, which ArcGIS uses too.

    Args:
        style: ``'plain'``: one convolution for proposals and two linear layers for boxes. ``'vitdet'``: two
            convolutions, and four with layer norm and one linear layer; layer norms in the mask head too (Li et al.
            2022, arXiv:2203.16527).
        rpn_pre_nms_top_n_train: Proposals per level before non-maximum suppression, in training.
        rpn_pre_nms_top_n_test: The same in use.
        rpn_post_nms_top_n_train: Proposals per image after it, in training.
        rpn_post_nms_top_n_test: The same in use.
        rpn_nms_thresh: Overlap from which on the lower-scoring of two proposals goes.
        rpn_fg_iou_thresh: Overlap from which on an anchor is an object.
        rpn_bg_iou_thresh: Overlap below which it is background.
        rpn_batch_size_per_image: Anchors that the loss samples.
        rpn_positive_fraction: Largest share of objects among them.
        box_score_thresh: Objects with a lower score are never found.
        box_nms_thresh: Overlap from which on the lower-scoring of two objects of one class goes.
        box_detections_per_img: Most objects per image.
        box_fg_iou_thresh: Overlap from which on a proposal is an object.
        box_bg_iou_thresh: Overlap below which it is background.
        box_batch_size_per_image: Proposals that the loss samples.
        box_positive_fraction: Largest share of objects among them.
        width: Channels of the levels and heads, a multiple of 32; small ones suit small backbones and CPUs.

    Raises:
        ValueError: If a number is out of its range.
    """

    style: HeadStyle = 'plain'
    rpn_pre_nms_top_n_train: int = 2000
    rpn_pre_nms_top_n_test: int = 1000
    rpn_post_nms_top_n_train: int = 2000
    rpn_post_nms_top_n_test: int = 1000
    rpn_nms_thresh: float = 0.7
    rpn_fg_iou_thresh: float = 0.7
    rpn_bg_iou_thresh: float = 0.3
    rpn_batch_size_per_image: int = 256
    rpn_positive_fraction: float = 0.5
    box_score_thresh: float = 0.05
    box_nms_thresh: float = 0.5
    box_detections_per_img: int = 300
    box_fg_iou_thresh: float = 0.5
    box_bg_iou_thresh: float = 0.5
    box_batch_size_per_image: int = 512
    box_positive_fraction: float = 0.25
    width: int = WIDTH

    def __post_init__(self) -> None:
        if self.style not in get_args(HeadStyle):
            raise UnknownNameError('style of heads', str(self.style), get_args(HeadStyle))
        _check_numbers(self)
        _check_width(self.width)

    @property
    def most(self) -> int:
        """Most objects per image."""
        return self.box_detections_per_img


@dataclass(frozen=True)
class SingleStageOptions:
    """The numbers of a detector without proposals, by torchvision's names.

    Args:
        score_thresh: Objects with a lower score are never found.
        nms_thresh: Overlap from which on the lower-scoring of two objects of one class goes.
        detections_per_img: Most objects per image.
        topk_candidates: Objects per level (SSD: per class) before non-maximum suppression.
        fg_iou_thresh: Overlap from which on an anchor is an object; FCOS has no anchors.
        bg_iou_thresh: Overlap below which it is background; the SSD takes the former.
        width: Channels of the levels and heads, a multiple of 32; small ones suit small backbones and CPUs.

    Raises:
        ValueError: If a number is out of its range.
    """

    score_thresh: float = 0.05
    nms_thresh: float = 0.5
    detections_per_img: int = 300
    topk_candidates: int = 1000
    fg_iou_thresh: float = 0.5
    bg_iou_thresh: float = 0.4
    width: int = WIDTH

    def __post_init__(self) -> None:
        _check_numbers(self)
        _check_width(self.width)

    @property
    def most(self) -> int:
        """Most objects per image."""
        return self.detections_per_img


@dataclass(frozen=True)
class TransformerOptions:
    """The numbers of a detection transformer, by the names of the library transformers.

    Args:
        score_thresh: Objects with a lower score are never found.
        detections_per_img: Most objects per image of the size of the training images.
        num_queries: Objects that the network can speak of in such an image; fewer where it has fewer places.
        num_denoising: Boxes with noise on them that help in training.
        decoder_layers: How often boxes are corrected.

    Raises:
        ValueError: If a number is out of its range.
    """

    score_thresh: float = 0.01
    detections_per_img: int = 300
    num_queries: int = 300
    num_denoising: int = 100
    decoder_layers: int = 6

    def __post_init__(self) -> None:
        _check_numbers(self)

    @property
    def most(self) -> int:
        """Most objects per image."""
        return self.detections_per_img


BoxLoss = Literal['probiou', 'iou']
"""How oriented boxes are compared in training: as Gaussians, or by their exact overlap."""


@dataclass(frozen=True)
class RotatedOptions:
    """The numbers of a detector of oriented boxes without proposals.

    Args:
        score_thresh: Objects with a lower score are never found.
        nms_thresh: Exact overlap from which on the lower-scoring of two objects of one class goes.
        detections_per_img: Most objects per image.
        topk_candidates: Objects per level, and in all, before non-maximum suppression.
        box_loss: ``'probiou'``: ProbIoU with a term for the angle of near-squares. ``'iou'``: the exact overlap, which
            takes some 15 % more time.
        assigned: Most places that an object is learned at.
        fine: Whether a level of stride 4 comes first, for objects under 16 pixels; it has four times as many places.
        width: Channels of the levels and towers.
        depth: Convolutions of each tower.

    Raises:
        ValueError: If a number is out of its range.
        UnknownNameError: If there is no such loss.
    """

    score_thresh: float = 0.05
    nms_thresh: float = 0.3
    detections_per_img: int = 300
    topk_candidates: int = 1000
    box_loss: BoxLoss = 'probiou'
    assigned: int = 10
    fine: bool = False
    width: int = WIDTH
    depth: int = 4

    def __post_init__(self) -> None:
        if self.box_loss not in get_args(BoxLoss):
            raise UnknownNameError('loss of oriented boxes', str(self.box_loss), get_args(BoxLoss))
        _check_numbers(self)
        groups = min(32, self.width // 4)
        if not groups or self.width % groups:
            raise ValueError(f'width must be a multiple of 32, or of 4 below 128, got {self.width}')

    @property
    def most(self) -> int:
        """Most objects per image."""
        return self.detections_per_img


HeadOptions = RCNNOptions | SingleStageOptions | TransformerOptions | RotatedOptions


@dataclass(frozen=True)
class DetectorOptions:
    """Options of a detector, and what was chosen from the training boxes.

    Args:
        anchor_sizes: Sides of square anchors in pixels by level, finest first; empty for detectors without anchors.
        aspect_ratios: Height over width of the anchors.
        resize_to: Side in pixels to which images of `chip_size` are brought, and others as much; None leaves them.
        typical_side: Side in pixels that 98 of 100 training boxes do not exceed.
        head: The numbers of the head.
    """

    anchor_sizes: tuple[tuple[float, ...], ...] = ()
    aspect_ratios: tuple[float, ...] = ()
    resize_to: int | None = None
    typical_side: float = 64.0
    head: HeadOptions = field(default_factory=RCNNOptions)

    def __post_init__(self) -> None:
        for what, numbers in (*(('anchor_sizes', row) for row in self.anchor_sizes), ('ratios', self.aspect_ratios)):
            if not all(0 < number < math.inf for number in numbers):
                raise ValueError(f'{what} must be numbers above 0, got {numbers}')
        counts = {len(row) * len(self.aspect_ratios) for row in self.anchor_sizes}
        if len(counts) > 1 or (counts and not 0 < min(counts) <= MOST_ANCHORS):
            raise ValueError(
                f'each level needs the same number of anchors, 1..{MOST_ANCHORS}, '
                f'got {self.anchor_sizes} in the ratios {self.aspect_ratios}'
            )
        if self.resize_to is not None and not 1 <= self.resize_to <= 16384:
            raise ValueError(f'resize_to must be in 1..16384 pixels, got {self.resize_to}')
        if not 0 < self.typical_side < math.inf:
            raise ValueError(f'typical_side must be above 0, got {self.typical_side}')

    def to_json(self) -> dict[str, Any]:
        """Return the options as plain JSON."""
        return asdict(self) | {
            'anchor_sizes': [list(row) for row in self.anchor_sizes],
            'aspect_ratios': list(self.aspect_ratios),
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any], *, head: type[HeadOptions]) -> 'DetectorOptions':
        """Read the options that a spec carries.

        Args:
            row: The spec's options.
            head: The class of the head's numbers.

        Raises:
            BundleError: If they are not what `to_json` returns.
        """
        kinds: dict[str, Any] = get_type_hints(cls) | {'head': head}
        missing, unknown = sorted(kinds.keys() - row.keys()), sorted(row.keys() - kinds.keys())
        if missing or unknown:
            raise BundleError(f'the manifest is broken: options lack {missing} and have the unknown {unknown}')
        values = {name: decode(kind, row[name], f'option {name}') for name, kind in kinds.items()}
        try:
            return cls(**values)
        except ValueError as error:
            raise BundleError(f'the manifest is broken: options: {error}') from error


def _check_numbers(options: HeadOptions) -> None:
    """Counts are at least 1, and all else lies in 0..1."""
    for item in fields(options):
        value = getattr(options, item.name)
        if isinstance(value, str) or (item.type in (bool, 'bool') and isinstance(value, bool)):
            continue
        if item.type in (int, 'int') and not (isinstance(value, int) and value >= 1):
            raise ValueError(f'{item.name} must be a whole number, at least 1, got {value!r}')
        if not (isinstance(value, int | float) and not isinstance(value, bool)):
            raise ValueError(f'{item.name} must be a number, got {value!r}')
        if item.type in (float, 'float') and not 0 <= value <= 1:
            raise ValueError(f'{item.name} must be in 0..1, got {value!r}')


def _check_width(width: int) -> None:
    if width % 32:
        raise ValueError(f'width must be a multiple of 32, which are normalized in as many groups, got {width}')


@dataclass(frozen=True)
class DetectorArchitecture:
    """What makes one detector different from another.

    Args:
        head: Builds the head from the anchors, the number of classes and the options.
        options: The class of the head's numbers.
        strides: Of the backbone's maps.
        pooled: How many coarser levels follow.
        per_level: Sizes of anchors on each level; 0 for detectors without anchors.
        masks: Whether objects get outlines.
        oriented: Whether boxes are oriented.
        candidates: Of what single-stage detectors take the highest scores; None for those whose graph cannot give the
            boxes of all places.
    """

    head: Callable[[LevelAnchors, int, Any], DetectionHead]
    options: type[HeadOptions]
    strides: tuple[int, ...]
    pooled: int
    per_level: int
    masks: bool = False
    oriented: bool = False
    candidates: Candidates | None = None

    @property
    def iou_type(self) -> Literal['bbox', 'segm', 'rotated']:
        """What the overlaps of objects are computed of."""
        return 'rotated' if self.oriented else 'segm' if self.masks else 'bbox'

    @property
    def levels(self) -> int:
        """Number of levels."""
        return len(self.strides) + self.pooled


def build_detector(
    spec: ModelSpec,
    options: DetectorOptions,
    architecture: DetectorArchitecture,
    *,
    pretrained: bool,
    weights: str | Path | None,
) -> Detector:
    """Build the network that a spec describes.

    Args:
        spec: Of the model.
        options: Those in the spec, read.
        architecture: Of the class of model.
        pretrained: Whether to fill the backbone with its published weights.
        weights: The user's own, instead of fetching them.

    Raises:
        BundleError: If there are no classes, or another number of levels.
    """
    if not spec.class_infos:
        raise BundleError(f'the manifest is broken: {spec.model} needs a class, found none')
    if len(options.anchor_sizes) != (architecture.levels if architecture.per_level else 0):
        raise BundleError(f'the manifest is broken: {spec.model} has {architecture.levels} levels, found {options}')
    backbone = build_backbone(spec, pretrained=pretrained, weights=weights, strides=architecture.strides)
    width = WIDTH if isinstance(options.head, TransformerOptions) else options.head.width
    levels = FeaturePyramid(backbone.channels, backbone.strides, pooled=architecture.pooled, width=width)
    # where there are no anchors, places are anchors as large as the stride
    sizes = options.anchor_sizes or [(float(stride),) for stride in levels.strides]
    anchors = LevelAnchors(sizes, options.aspect_ratios or (1.0,), levels.strides)
    head = architecture.head(anchors, len(spec.class_infos), options.head)
    zoom = 1.0 if options.resize_to is None else options.resize_to / spec.chip_size
    return Detector(build_normalize(spec), backbone, levels, head, zoom=zoom)


def detection_facts(
    options: DetectorOptions, architecture: DetectorArchitecture, network: Detector
) -> DetectionFacts | None:
    """Return how objects are made of what `Places` gives; None for detectors that it does not take."""
    head = options.head
    if isinstance(head, TransformerOptions):
        return DetectionFacts(
            strides=network.levels.strides,
            boxes_per_place=network.head.queries,
            oriented=False,
            score_thresh=head.score_thresh,
            nms_thresh=1.0,
            candidates='level',
            most_candidates=head.detections_per_img,
            most=head.detections_per_img,
            typical_side=options.typical_side,
            zoom=network.zoom,
            window=network.head.window,
        )
    if architecture.candidates is None or not isinstance(head, SingleStageOptions | RotatedOptions):
        return None
    return DetectionFacts(
        strides=network.levels.strides,
        boxes_per_place=len(options.anchor_sizes[0]) * len(options.aspect_ratios) if options.anchor_sizes else 1,
        oriented=architecture.oriented,
        score_thresh=head.score_thresh,
        nms_thresh=head.nms_thresh,
        candidates=architecture.candidates,
        most_candidates=head.topk_candidates,
        most=head.detections_per_img,
        typical_side=options.typical_side,
        zoom=network.zoom,
    )
