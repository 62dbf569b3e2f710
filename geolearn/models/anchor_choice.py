"""Anchors of a new detector: what the user gave, and the rest from the sizes of the training boxes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from geolearn.data import ChipData
from geolearn.networks.detection.anchors import USUAL_RATIOS, choose_ratios, choose_sizes
from geolearn.networks.detection.architecture import DetectorArchitecture, DetectorOptions, HeadOptions


@dataclass(frozen=True)
class AnchorChoice:
    """Anchors as a user gave them; None takes them from the training boxes.

    Args:
        sizes: Sides of square anchors in pixels by level, finest first.
        scales: Factors of the usual size of each level (32 pixels, twice that on each coarser level).
        ratios: Height over width.
    """

    sizes: tuple[tuple[float, ...], ...] | None = None
    scales: tuple[float, ...] | None = None
    ratios: tuple[float, ...] | None = None


def choose_options(
    data: ChipData,
    architecture: DetectorArchitecture,
    anchors: AnchorChoice,
    *,
    resize_to: int | None,
    head: HeadOptions,
) -> DetectorOptions:
    """Choose the options of a new detector from the sizes of the training boxes.

    Args:
        data: To train on.
        architecture: Of the class of model.
        anchors: As the user gave them.
        resize_to: Side to which chips are resized, or None.
        head: Options of the head.

    Raises:
        ValueError: If anchors are given for other levels, or to a detector that has none.
    """
    sides = training_sides(data)
    typical = float(np.percentile(sides.max(axis=1), 98)) if len(sides) else 64.0
    options = DetectorOptions(resize_to=resize_to, typical_side=max(typical, 1.0), head=head)
    if not architecture.per_level:
        if anchors != AnchorChoice():
            raise ValueError('this detector has no anchors; omit anchor_sizes, scales and ratios')
        return options
    if anchors.sizes is not None and len(anchors.sizes) != architecture.levels:
        raise ValueError(f'anchor_sizes must have {architecture.levels} levels, finest first, got {len(anchors.sizes)}')
    seen = sides * (1.0 if resize_to is None else resize_to / data.chip_size)
    sizes = anchors.sizes
    if anchors.scales is not None:
        usual = choose_sizes(np.zeros((0, 2)), levels=architecture.levels, per_level=1)
        sizes = tuple(tuple(size * scale for scale in anchors.scales) for (size,) in usual)
    if sizes is None:
        sizes = choose_sizes(seen, levels=architecture.levels, per_level=architecture.per_level)
    ratios = choose_ratios(seen) if anchors.ratios is None else anchors.ratios
    return DetectorOptions(sizes, ratios or USUAL_RATIOS, resize_to, options.typical_side, head)


def training_sides(data: ChipData) -> np.ndarray:
    """Return widths and heights (n, 2) in pixels of the training boxes of trained classes."""
    trained = [info.value for info in data.class_infos]
    parts = []
    for position in data.split.train:
        values, boxes = data.table.objects(position)
        if boxes is not None and len(boxes):
            chosen = boxes[np.isin(values, trained)]
            parts.append(chosen[:, 2:] - chosen[:, :2])
    sides = np.concatenate(parts) if parts else np.zeros((0, 2))
    return sides[(sides > 0).all(axis=1)].astype(np.float64)


def as_rows(sizes: Sequence[float] | Sequence[Sequence[float]] | None) -> tuple[tuple[float, ...], ...] | None:
    """Read anchor sizes: one for each level, or several."""
    if sizes is None:
        return None
    return tuple(tuple(row) if isinstance(row, Sequence) else (float(row),) for row in sizes)


def as_row(numbers: Sequence[float] | None) -> tuple[float, ...] | None:
    """Read scales or ratios."""
    return None if numbers is None else tuple(float(number) for number in numbers)
