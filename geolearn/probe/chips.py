"""Probe the chips of a training folder: their labels, their places, and their images for the baselines."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from geolearn.chips.label import Task
from geolearn.data import ChipData
from geolearn.embed.imagery import embed
from geolearn.errors import ChipFolderError
from geolearn.probe.options import Method, ProbeOptions
from geolearn.probe.result import ProbeResult
from geolearn.probe.run import probe
from geolearn.raster.geobox import apply_affine

LEAST_SHARE = 0.05
"""A class of pixels belongs to a chip where it covers this share of its labelled pixels."""

Split = Literal['blocks', 'random']


def probe_chips(
    data: ChipData,
    backbone: str = 'dofa_base',
    *,
    pretrained: bool = True,
    weights: str | Path | None = None,
    pooling: Literal['mean', 'max', 'cls'] = 'mean',
    method: Method | Sequence[Method] = ('knn', 'linear'),
    folds: int = 5,
    split: Split | None = None,
    block_size: float | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    device: str | None = None,
    options: ProbeOptions | None = None,
) -> ProbeResult:
    """Embed the chips of a folder and probe the classes of their labels, beside both baselines.

    Chips of one class each have that class; others those of their labels. Of labels per pixel, a class belongs to a
    chip where it covers 5 % of the labelled pixels or more.

    Args:
        data: From `geolearn.prepare_data`; all parts are used, and divided anew.
        backbone: Its name.
        pretrained: Whether to fill it with its published weights.
        weights: The user's own file of weights.
        pooling: Of the tokens of a chip.
        method: Classifiers.
        folds: How many.
        split: ``'blocks'`` tests whole blocks of land, ``'random'`` chips of any place. None takes blocks where all
            chips have places in one CRS.
        block_size: Side of a block in map units; None for four times the distance between neighbors.
        seeds: Of folds and classifiers.
        device: Torch device; None means CUDA where there is one.
        options: Of the classifiers; None for the defaults.

    Raises:
        ChipFolderError: If the chips have no classes, or no places for blocks.
        ValueError: If there are too few chips or blocks for the folds.
    """
    dataset = data.validating_on_all().valid_ds
    chosen = np.asarray(dataset.positions)
    labels = _labels(data)[chosen]
    images = [dataset.collate([item]).cast().images[0].numpy() for item in range(len(dataset))]
    positions = _positions(data, chosen)
    if split == 'blocks' and positions is None:
        raise ChipFolderError("split='blocks' needs chips with places in one CRS; pass split='random'")
    if split == 'random' or positions is None:
        positions = None
    found = embed(data, backbone, pooling=pooling, pretrained=pretrained, weights=weights, device=device)
    result = probe(
        found,
        labels if data.task is not Task.LABEL else labels.argmax(axis=1),
        method=method,
        folds=folds,
        positions=positions,
        block_size=None if positions is None else block_size,
        seeds=seeds,
        images=images,
        class_names=data.classes,
        options=options or ProbeOptions(device=device),
    )
    if positions is None and split is None:
        note = 'the chips have no places in one CRS, so folds are random: where neighbors are many, scores are too good'
        result = replace(result, notes=(*result.notes, note))
    return result


def _labels(data: ChipData) -> np.ndarray:
    """Return which chip of the table has which class: (chips, classes) bool."""
    if not data.class_infos or data.task in (Task.REGRESSION, Task.CHANGE, Task.UNLABELLED):
        raise ChipFolderError(f'a probe needs classes, but the labels of these chips are {data.task.value!r}')
    amounts = data.table.amounts([info.value for info in data.class_infos])
    if data.task in (Task.PIXELS, Task.PANOPTIC):
        totals: Any = np.maximum(amounts.sum(axis=1, keepdims=True), 1)
        return np.asarray(amounts >= LEAST_SHARE * totals) & (amounts > 0)
    return np.asarray(amounts > 0)


def _positions(data: ChipData, chosen: np.ndarray) -> np.ndarray | None:
    """Return the centers of chips in map units, where all have a place in one CRS, and not all the same."""
    boxes = [data.table.geobox(position) for position in chosen.tolist()]
    if len({box.crs for box in boxes}) > 1 or boxes[0].crs is None:
        return None
    middles = [np.array([[box.shape[1] / 2, box.shape[0] / 2]]) for box in boxes]
    places = np.concatenate([apply_affine(box.transform, middle) for box, middle in zip(boxes, middles)])
    return places if len(np.unique(places, axis=0)) > 1 else None
