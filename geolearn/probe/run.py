"""Probe embeddings: how well simple classifiers tell classes apart by them, and by two baselines."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from geolearn import progress
from geolearn.embed.embeddings import Embeddings
from geolearn.errors import UnknownNameError
from geolearn.probe.baselines import Images, compute_baselines, find_images
from geolearn.probe.classifiers import Task, predict
from geolearn.probe.folds import FoldPlan, Folds, plan_folds
from geolearn.probe.labels import ProbeLabels, read_labels, require_two
from geolearn.probe.options import METHODS, Method, ProbeOptions
from geolearn.probe.result import EMBEDDINGS, ProbeResult, ProbeScore
from geolearn.probe.scores import Counts

log = logging.getLogger('geolearn')

LARGE = 50_000
"""From so many items on one fold is tested for each seed: the other folds would cost their time, and say the same."""

NO_BASELINES = (
    'baselines are absent, because the images were not at hand: pass images= (arrays or paths in the order of the '
    'embeddings); without statistics of the bands and random convolutions beside them these scores say little about '
    'the backbone'
)


def probe(
    embeddings: Embeddings | np.ndarray,
    labels: Any,
    *,
    method: Method | Sequence[Method] = ('knn', 'linear'),
    folds: int | np.ndarray = 5,
    groups: Any = None,
    positions: Any = None,
    block_size: float | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    images: Any = None,
    class_names: Sequence[str] = (),
    options: ProbeOptions | None = None,
) -> ProbeResult:
    """Measure how well simple classifiers predict classes from embeddings, beside two baselines.

    For each seed the items are divided into folds; every fold is predicted by classifiers that were trained on the
    others, scaling included, and the scores are computed over all tested items. From 50,000 items on, one fold is
    tested for each seed.

    The same classifiers and folds are run on statistics of the bands and on random convolutions, computed from the
    images. Where no images are at hand, the result says so.

    Args:
        embeddings: Pooled ones of `geolearn.embed`, tokens of a grid, or an array (items, dimensions). Items that have
            a NaN are left out.
        labels: A class for each item (items,), as whole numbers or texts; or several (items, classes), as 0 and 1. For
            a grid of tokens also (rows, columns).
        method: One or several of ``'knn'``, ``'linear'``, ``'logistic'``, ``'random_forest'``, ``'mlp'``.
        folds: How many; or the fold of each item (items,), -1 for items that are only trained on, such as those of a
            published training part.
        groups: Group of each item (items,), such as its scene, which no fold divides.
        positions: Map coordinates of each item (items, 2), so that whole blocks of land are tested: neighbors
            resemble each other, and scores of random folds are too good.
        block_size: Side of a block, in the units of `positions`; None for four times the distance between neighbors.
        seeds: Of folds and classifiers; scores are their mean and spread.
        images: Those that were embedded, in the same order: (items, bands, height, width), a sequence of arrays (bands,
            height, width), or a sequence of raster paths. None reads the rasters that the items are named after, where
            these still exist.
        class_names: Of the columns or values of the labels.
        options: Of the classifiers; None for the defaults.

    Raises:
        ValueError: If the arguments do not fit together.
        UnknownNameError: If there is no such method.
        MissingExtraError: If a method needs scikit-learn and it is not installed.
    """
    methods = read_methods(method)
    options = options or ProbeOptions()
    vectors, labels = _read_vectors(embeddings, labels)
    known = read_labels(labels, len(vectors), class_names=class_names)
    numbers = _read_seeds(seeds)
    valid = np.isfinite(vectors).all(axis=1)
    notes: list[str] = []
    source = _find_images(embeddings, images, len(vectors))
    if not valid.any():
        raise ValueError('every embedding holds a NaN or an infinity; there is nothing to probe')
    if not valid.all():
        notes.append(f'{int((~valid).sum()):,} of {len(vectors):,} items were left out: their embedding is not finite')
        vectors, known = vectors[valid], known.take(valid)
        folds = np.asarray(folds)[valid] if np.ndim(folds) == 1 and len(np.asarray(folds)) == len(valid) else folds
        groups, positions = (None if given is None else np.asarray(given)[valid] for given in (groups, positions))
        source = None if source is None else source.take(np.flatnonzero(valid))
    require_two(known)
    plan = plan_folds(
        known,
        folds=folds,
        groups=groups,
        positions=positions,
        block_size=block_size,
        single=len(vectors) >= LARGE,
    )
    kinds = {EMBEDDINGS: vectors}
    if source is None:
        log.warning(NO_BASELINES)
        notes.append(NO_BASELINES)
    else:
        kinds |= compute_baselines(source, seed=numbers[0])
    return measure(kinds, plan, methods=methods, seeds=numbers, options=options, notes=notes)


def measure(
    kinds: Mapping[str, np.ndarray],
    plan: FoldPlan,
    *,
    methods: Sequence[Method],
    seeds: Sequence[int],
    options: ProbeOptions,
    notes: Sequence[str] = (),
) -> ProbeResult:
    """Run classifiers on several kinds of vectors of the same items.

    Args:
        kinds: (items, dimensions) float32 each, finite, by name; the embeddings first.
        plan: Labels and folds.
        methods: The classifiers.
        seeds: Of folds and classifiers.
        options: Of the classifiers.
        notes: For the result.
    """
    labels = plan.labels
    divided = [plan.divide(seed) for seed in seeds]
    said = [*notes]
    empty = [name for name, count in zip(labels.names, labels.counts.tolist()) if not count]
    if empty:
        said.append(f'no item has the class {", ".join(empty)}, so it has no score')
    return ProbeResult(
        scores=_run(kinds, labels, methods, divided, seeds, options),
        class_names=labels.names,
        multi_label=labels.multi_label,
        items=len(labels.presence),
        cooccurrence=labels.cooccurrence,
        folds=divided[0].text,
        seeds=tuple(seeds),
        notes=tuple(said + _untrained_note(plan, divided)),
    )


def read_methods(method: Method | Sequence[Method]) -> tuple[Method, ...]:
    """Return the classifiers that are asked for, in the order of tables.

    Raises:
        UnknownNameError: If there is no such method.
        ValueError: If none is named.
    """
    given = (method,) if isinstance(method, str) else tuple(method)
    for name in given:
        if name not in METHODS:
            raise UnknownNameError('method', str(name), METHODS)
    if not given:
        raise ValueError(f'method names no classifier; pass one or several of {", ".join(METHODS)}')
    return tuple(name for name in METHODS if name in given)


def _read_seeds(seeds: Sequence[int]) -> tuple[int, ...]:
    numbers = () if np.ndim(seeds) != 1 else tuple(seeds)
    whole = all(isinstance(seed, int | np.integer) for seed in numbers)
    if not numbers or not whole or len(set(numbers)) < len(numbers) or min(numbers) < 0:
        raise ValueError(f'seeds must be different whole numbers from 0 on, one at least; got {seeds!r}')
    return tuple(map(int, numbers))


def _read_vectors(embeddings: Embeddings | np.ndarray, labels: Any) -> tuple[np.ndarray, Any]:
    """Return vectors (items, dimensions) float32, and the labels in the same order."""
    if isinstance(embeddings, Embeddings):
        if embeddings.is_grid and np.shape(labels) == (*embeddings.values.shape[:-3], *embeddings.values.shape[-2:]):
            labels = np.ravel(labels)
        return embeddings.vectors, labels
    vectors = np.asarray(embeddings)
    if vectors.ndim != 2 or vectors.dtype.kind not in 'fiu' or not vectors.size:
        raise ValueError(f'embeddings must be numbers (items, dimensions), got {vectors.dtype} of {vectors.shape}')
    return np.asarray(vectors, np.float32), labels


def _find_images(embeddings: Embeddings | np.ndarray, images: Any, count: int) -> Images | None:
    if images is None:
        named = isinstance(embeddings, Embeddings) and not embeddings.is_grid
        return find_images(embeddings.names) if named else None  # type: ignore[union-attr]
    if len(images) != count:
        raise ValueError(f'{count:,} embeddings need as many images, in the same order; got {len(images):,}')
    return Images(images)


def _run(
    kinds: Mapping[str, np.ndarray],
    labels: ProbeLabels,
    methods: Sequence[Method],
    divided: Sequence[Folds],
    seeds: Sequence[int],
    options: ProbeOptions,
) -> tuple[ProbeScore, ...]:
    total = len(kinds) * len(methods) * sum(len(folds.tested) for folds in divided)
    scores = []
    with progress.ProgressBar(total, 'probing', 'fit') as bar:
        for features, vectors in kinds.items():
            for method in methods:
                counts = []
                for seed, folds in zip(seeds, divided):
                    decided = np.zeros(labels.presence.shape, bool)
                    for fold in folds.tested:
                        train, test = np.flatnonzero(folds.number != fold), np.flatnonzero(folds.number == fold)
                        decided[test] = predict(method, Task(vectors, labels, train, test, seed, options))
                        bar.update()
                    tested = np.isin(folds.number, folds.tested)
                    counts.append(Counts.of(labels.presence[tested], decided[tested], multi_label=labels.multi_label))
                scores.append(ProbeScore(features, method, tuple(counts)))
    return tuple(scores)


def _untrained_note(plan: FoldPlan, divided: Sequence[Folds]) -> list[str]:
    """Say which classes lie in one fold alone, so that nothing could learn them for its test."""
    presence, alone = plan.labels.presence, set()
    for folds in divided:
        for fold in folds.tested:
            inside = folds.number == fold
            lost = presence[inside].any(axis=0) & ~presence[~inside].any(axis=0)
            alone |= {name for name, is_lost in zip(plan.labels.names, lost.tolist()) if is_lost}
    if not alone:
        return []
    return [f'the class {", ".join(sorted(alone))} has no training item in some fold, so it scores 0 there']
