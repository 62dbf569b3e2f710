"""Classify the polygons of a layer: check that layer, raster and model fit together, compute, write the copy."""

import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from geolearn.device import choose_device
from geolearn.inference.polygons import ChipPlan, Crop, compute_chips, pixel_outlines, read_polygons
from geolearn.inference.vectors import check_vector_target, write_layer
from geolearn.models.classification._outputs import class_probabilities, decide
from geolearn.models.classification.network import ChipNetwork
from geolearn.models.classification.options import ChipOptions
from geolearn.models.mapping import RasterSource, Reading, check_reading, check_target, open_dates
from geolearn.models.spec import ModelSpec
from geolearn.raster import raster_geobox

log = logging.getLogger('geolearn')

LABEL, CONFIDENCE = 'ClassLabel', 'Confidence'
"""Columns of the copy; ArcGIS's names, which fit into shapefiles."""


class PolygonJob(NamedTuple):
    """What the caller of `classify_objects` asked for."""

    layer: str | None
    crop: Crop | None
    blacken: bool | None
    chip_size: int
    threshold: float
    batch_size: int
    device: str | None


def classify_layer(
    spec: ModelSpec,
    network: ChipNetwork,
    raster: RasterSource,
    polygons: Any,
    dst: str | Path,
    reading: Reading,
    job: PolygonJob,
) -> Path:
    """Do what `FeatureClassifier.classify_objects` says."""
    if job.chip_size < 1:
        raise ValueError(f'chip_size must be at least 1 pixel, got {job.chip_size}')
    check_reading(reading)
    target = check_target(raster, check_vector_target(dst))
    options = ChipOptions.from_json(spec.options)
    crop = options.crop if job.crop is None else job.crop
    blacken = options.blackened if job.blacken is None else job.blacken
    plan = ChipPlan(job.chip_size, job.batch_size, reading.pixel_scale, crop, blacken)
    frame = read_polygons(polygons, job.layer)
    device = choose_device(job.device)
    network.to(device).eval()
    with ExitStack() as stack:
        sources = open_dates(raster, spec, reading, stack)
        outlines = pixel_outlines(frame, raster_geobox(sources[0].dataset))
        logits = compute_chips(sources, outlines, lambda chips: network(chips.to(device)), plan)
    names = [info.name for info in spec.class_infos]
    labels, confidences = name_rows(logits, names, multi_label=options.multi_label, threshold=job.threshold)
    missing = sum(label is None for label in labels)
    if missing:
        log.warning(
            '%s of %s polygons lie outside of the raster or where it has no data; they get no label',
            missing,
            len(labels),
        )
    replaced = [name for name in (LABEL, CONFIDENCE) if name in frame.columns]
    if replaced:
        log.warning('the copy holds new values in the columns %s of the layer', ' and '.join(replaced))
    return write_layer(frame.assign(**{LABEL: labels, CONFIDENCE: confidences}), target)


def name_rows(
    logits: np.ndarray, class_names: list[str], *, multi_label: bool, threshold: float
) -> tuple[list[str | None], np.ndarray]:
    """Turn logits (n, classes), NaN where nothing was seen, into labels and confidences in percent (n,).

    Where several classes may be there, the confidence is that of the least certain decision: present or absent.
    """
    labels: list[str | None] = [None] * len(logits)
    confidences = np.full(len(logits), np.nan)
    seen = np.flatnonzero(~np.isnan(logits).any(1)) if logits.size else np.zeros(0, int)
    if len(seen):
        likely = class_probabilities(torch.from_numpy(logits[seen]), multi_label=multi_label)
        found = decide(likely, multi_label=multi_label, threshold=threshold)
        sure = torch.where(found, likely, 1 - likely).min(1).values if multi_label else likely.max(1).values
        confidences[seen] = 100 * sure.numpy()
        for row, present in zip(seen.tolist(), found.tolist()):
            labels[row] = ';'.join(name for name, there in zip(class_names, present) if there)
    return labels, confidences
