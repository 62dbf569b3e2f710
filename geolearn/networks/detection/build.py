"""Build the network of a detector from its description, and choose its anchors from training boxes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geolearn.errors import BundleError
from geolearn.networks.detection.anchors import LevelAnchors
from geolearn.networks.detection.detector import DetectionHead, Detector, Levels
from geolearn.networks.detection.options import DetectorOptions, HeadOptions
from geolearn.networks.network import build_backbone, build_normalise
from geolearn.networks.spec import ModelSpec


@dataclass(frozen=True)
class Recipe:
    """What makes one detector different from another.

    Args:
        head: Builds the head from the anchors, the number of classes and the options.
        options: The class of the head's numbers.
        strides: Of the backbone's maps.
        pooled: How many coarser levels follow.
        per_level: Sizes of anchors on each level; 0 for detectors without anchors.
        masks: Whether objects get outlines.
    """

    head: Callable[[LevelAnchors, int, Any], DetectionHead]
    options: type[HeadOptions]
    strides: tuple[int, ...]
    pooled: int
    per_level: int
    masks: bool = False

    @property
    def levels(self) -> int:
        """Number of levels."""
        return len(self.strides) + self.pooled


def build_detector(
    spec: ModelSpec, options: DetectorOptions, recipe: Recipe, *, pretrained: bool, weights: str | Path | None
) -> Detector:
    """Build the network that a spec describes.

    Args:
        spec: Of the model.
        options: Those in the spec, read.
        recipe: Of the class of model.
        pretrained: Whether to fill the backbone with its published weights.
        weights: The user's own, instead of fetching them.

    Raises:
        BundleError: If there are no classes, or another number of levels.
    """
    if not spec.class_infos:
        raise BundleError(f'the manifest is broken: {spec.model} needs a class, found none')
    if len(options.anchor_sizes) != (recipe.levels if recipe.per_level else 0):
        raise BundleError(f'the manifest is broken: {spec.model} has {recipe.levels} levels, found {options}')
    backbone = build_backbone(spec, pretrained=pretrained, weights=weights, strides=recipe.strides)
    levels = Levels(backbone.channels, backbone.strides, pooled=recipe.pooled)
    # where there are no anchors, places are anchors as large as the stride
    sizes = options.anchor_sizes or [(float(stride),) for stride in levels.strides]
    anchors = LevelAnchors(sizes, options.aspect_ratios or (1.0,), levels.strides)
    head = recipe.head(anchors, len(spec.class_infos), options.head)
    zoom = 1.0 if options.resize_to is None else options.resize_to / spec.chip_size
    return Detector(build_normalise(spec), backbone, levels, head, zoom=zoom)
