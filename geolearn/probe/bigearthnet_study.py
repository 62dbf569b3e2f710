"""The study "DOFA on BigEarthNet Sentinel-1, 19 and 43 classes": embed the patches once, probe both nomenclatures."""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from geolearn import files, progress
from geolearn.embed.embeddings import Embeddings
from geolearn.embed.imagery import embed
from geolearn.errors import ChipFolderError, UnknownNameError
from geolearn.probe import baselines
from geolearn.probe.bigearthnet import BANDS, CLASSES_19, CLASSES_43, SENSORS, BigEarthNet, Sensor, read_bigearthnet
from geolearn.probe.folds import NEVER_TESTED, FoldPlan, find_blocks, plan_folds
from geolearn.probe.labels import read_labels
from geolearn.probe.options import METHOD_TITLES, Method, ProbeOptions
from geolearn.probe.result import EMBEDDINGS, ProbeResult, PublishedScore
from geolearn.probe.run import LARGE, measure, read_methods

log = logging.getLogger('geolearn')

AT_ONCE = 1024
"""Patches that are held in memory, embedded and kept on disk together."""

BLOCK_SIZE = 12_000.0
"""Side of a block of land in meters: ten patches."""

SPLITS = ('published', 'blocks', 'random')

Split = Literal['published', 'blocks', 'random']

_SOURCE = 'Frind, TU Berlin: frozen DOFA on BigEarthNet Sentinel-1, 19 classes'

_VALUES: dict[Method, tuple[float, float]] = {
    'mlp': (0.345, 0.478),
    'linear': (0.229, 0.353),
    'random_forest': (0.214, 0.358),
}

PUBLISHED_19 = tuple(
    PublishedScore(method, metric, value, _SOURCE)
    for method, values in _VALUES.items()
    for metric, value in zip(('f2_macro', 'f2_micro'), values)
)
"""Of the 43 classes none are known."""


@dataclass(frozen=True, eq=False)
class BigEarthNetStudy:
    """What `study_bigearthnet` returns.

    Args:
        results: By the number of classes.
        title: Backbone and sensor.
    """

    results: dict[int, ProbeResult]
    title: str

    def to_markdown(self) -> str:
        """Return a page with the tables of all results."""
        parts = [f'# {self.title}']
        for count, result in self.results.items():
            best = METHOD_TITLES[result.best_method]
            parts += [f'## {count} classes', result.to_markdown(), f'### By class, {best}', result.class_markdown()]
        return '\n\n'.join(parts) + '\n'

    def save(self, folder: str | Path) -> list[Path]:
        """Write ``study.md``, and for each number of classes tables and figures; return the files.

        Raises:
            FileWriteError: If a file cannot be written.
        """
        root = Path(folder)
        written = [root / 'study.md']
        with files.atomic_write(written[0], make_folder=True) as part:
            part.write_text(self.to_markdown(), encoding='utf-8')
        for count, result in self.results.items():
            written += result.save(root, suffix=f'_{count}')
        return written


def study_bigearthnet(
    folder: str | Path,
    *,
    out: str | Path | None = None,
    sensor: Sensor = 's1',
    backbone: str = 'dofa_base',
    pretrained: bool = True,
    weights: str | Path | None = None,
    pooling: Literal['mean', 'max', 'cls'] = 'mean',
    classes: Sequence[int] = (19, 43),
    method: Method | Sequence[Method] = ('knn', 'linear', 'random_forest', 'mlp'),
    split: Split | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    options: ProbeOptions | None = None,
) -> BigEarthNetStudy:
    """Embed the patches of a folder in the layout of BigEarthNet, and probe 19 and 43 classes beside both baselines.

    Scores that were published for frozen DOFA on Sentinel-1 and 19 classes stand in a column of their own.

    Args:
        folder: With patches of version 1 or 2.
        out: Folder for tables and figures. Embeddings are kept there too, and read again by the same study.
        sensor: ``'s1'`` or ``'s2'``.
        backbone: Its name.
        pretrained: Whether to fill it with its published weights.
        weights: The user's own file of weights.
        pooling: Of the tokens of a patch.
        classes: Which nomenclatures: 19, 43 or both. A folder of version 2 has 19 alone.
        method: Classifiers.
        split: ``'published'``: trained on the part ``train``, tested on ``test``; ``'blocks'``: five folds of blocks of
            land 12 km wide; ``'random'``: five folds stratified by class, whose scores are too good where neighbors are
            many. None takes the first that the folder has what it needs for.
        seeds: Of folds and classifiers.
        options: Of the classifiers.

    Raises:
        ChipFolderError: If the folder holds no such patches.
        UnknownNameError: If there is no such split, sensor or method.
        ValueError: If a nomenclature is not that of the folder, or there are too few patches or blocks for the folds.
    """
    methods = read_methods(method)
    if split is not None and split not in SPLITS:
        raise UnknownNameError('split', str(split), SPLITS)
    patches = read_bigearthnet(folder, sensor)
    counts = tuple(dict.fromkeys(classes))
    if classes == (19, 43) and len(patches.classes) == 19:
        counts = (19,)
        log.warning('this folder names the 19 classes alone, as version 2 does; those of 43 classes are left out')
    presences = {count: patches.presence(count) for count in counts}
    chosen = split or _choose_split(patches)
    where = None if out is None else Path(out)
    vectors = _embed_patches(patches, where, backbone, pretrained, weights, pooling)
    valid = np.isfinite(vectors).all(axis=1)
    kinds = {EMBEDDINGS: vectors, **baselines.compute_baselines(baselines.Images(patches.images), seed=seeds[0])}
    results = {}
    for count, presence in presences.items():
        kept = valid & presence.any(axis=1)
        if chosen == 'published':
            kept &= np.isin(patches.parts, ('train', 'test'))
        plan = _plan(patches, presence, np.flatnonzero(kept), chosen)
        result = measure(
            {name: values[kept] for name, values in kinds.items()},
            plan,
            methods=methods,
            seeds=tuple(seeds),
            options=options or ProbeOptions(),
            notes=_notes(patches, presence, valid, kept),
        )
        with_scores = count == 19 and sensor == 's1' and backbone == 'dofa_base' and (pretrained or weights is not None)
        results[count] = result.with_published(PUBLISHED_19) if with_scores else result
    study = BigEarthNetStudy(
        results, f'{backbone}{"" if pretrained or weights else " at random"} on BigEarthNet {sensor}'
    )
    if where is not None:
        study.save(where)
    return study


def _choose_split(patches: BigEarthNet) -> Split:
    if {'train', 'test'} <= {*patches.parts}:
        return 'published'
    return 'blocks' if np.isfinite(patches.positions).all() else 'random'


def _plan(patches: BigEarthNet, presence: np.ndarray, kept: np.ndarray, split: Split) -> FoldPlan:
    names = CLASSES_19 if presence.shape[1] == 19 else CLASSES_43
    labels = read_labels(presence[kept], len(kept), class_names=names)
    if split == 'published':
        parts = np.array(patches.parts)[kept] if patches.parts else np.array([])
        if not {'train', 'test'} <= {*parts.tolist()}:
            raise ChipFolderError(
                "split='published' needs patches of the parts train and test, from train.csv and test.csv in the "
                "folder, or from metadata.parquet; pass split='blocks'"
            )
        return plan_folds(labels, folds=np.where(parts == 'test', 0, NEVER_TESTED))
    if split == 'random':
        return plan_folds(labels, folds=5, single=len(kept) >= LARGE)
    blocks = np.empty(len(kept), object)
    zones = np.array(patches.zones)[kept]
    for zone in np.unique(zones):
        inside = np.flatnonzero(zones == zone)
        places = patches.positions[kept[inside]]
        if not np.isfinite(places).all():
            raise ChipFolderError("split='blocks' needs the coordinates of all patches; pass split='random'")
        numbers = find_blocks(places, len(inside), BLOCK_SIZE)[0] if len(inside) > 1 else np.zeros(1, int)
        blocks[inside] = [f'{zone} {number}' for number in numbers.tolist()]
    plan = plan_folds(labels, folds=5, groups=blocks, single=len(kept) >= LARGE)
    return FoldPlan(plan.labels, plan.count, plan.groups, f'blocks of land {BLOCK_SIZE / 1000:g} km wide', plan.single)


def _notes(patches: BigEarthNet, presence: np.ndarray, valid: np.ndarray, kept: np.ndarray) -> list[str]:
    notes = []
    if lost := int((~presence.any(axis=1)).sum()):
        notes.append(f'{lost:,} of {len(patches):,} patches have none of these classes and were left out')
    if lost := int((~valid).sum()):
        notes.append(f'{lost:,} patches hold no data and were left out')
    if lost := int((valid & presence.any(axis=1) & ~kept).sum()):
        notes.append(f'{lost:,} patches of the validation part, or of no part, were not used')
    return notes


def _embed_patches(
    patches: BigEarthNet,
    out: Path | None,
    backbone: str,
    pretrained: bool,
    weights: str | Path | None,
    pooling: Literal['mean', 'max', 'cls'],
) -> np.ndarray:
    """Return vectors (patches, dimensions); pieces that an earlier run has kept are read again."""
    normalize = None if pretrained or weights is not None else _sample_statistics(patches)
    made = {'backbone': backbone, 'pretrained': pretrained, 'weights': _describe_file(weights), 'pooling': pooling}
    made |= {'normalize': normalize, 'sensor': patches.sensor}
    if Path(backbone).is_file():  # written anew under the same name, it holds other weights
        made['file'] = _describe_file(backbone)
    key = hashlib.sha256(json.dumps(made).encode()).hexdigest()[:12]
    home = None if out is None else out / f'embeddings_{key}'
    found = []
    with progress.ProgressBar(len(patches), 'embedding', 'patch') as bar:
        for start, names in _pieces(patches.names):
            # which patches there are names the file too
            digest = hashlib.sha256('\n'.join(names).encode()).hexdigest()[:12]
            path = None if home is None else home / f'{start:07d}_{digest}.safetensors'
            if path is not None and path.is_file():
                found.append(np.asarray(Embeddings.load(path)))
            else:
                images = np.stack([patches.image(start + offset) for offset in range(len(names))])
                with progress.report_progress(lambda _: None):
                    piece = embed(
                        images,
                        backbone,
                        pooling=pooling,
                        normalize=normalize,
                        bands=list(BANDS[patches.sensor]),
                        sensor=SENSORS[patches.sensor],
                        pretrained=pretrained,
                        weights=weights,
                        names=names,
                    )
                if path is not None:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    piece.save(path)
                found.append(np.asarray(piece))
            bar.update(len(names))
    return np.concatenate(found)


def _pieces(names: Sequence[str]) -> Iterator[tuple[int, Sequence[str]]]:
    for start in range(0, len(names), AT_ONCE):
        yield start, names[start : start + AT_ONCE]


def _describe_file(path: str | Path | None) -> Any:
    if path is None:
        return None
    facts = Path(path).stat()
    return str(Path(path).resolve()), facts.st_size, facts.st_mtime_ns


def _sample_statistics(patches: BigEarthNet) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each band, of patches that are evenly chosen: the same for all pieces."""
    chosen = np.unique(np.linspace(0, len(patches) - 1, 128).astype(int))
    pixels = np.concatenate([patches.image(position).reshape(len(BANDS[patches.sensor]), -1) for position in chosen], 1)
    mean = np.atleast_1d(np.nanmean(pixels, axis=1, dtype=np.float64))
    std: np.ndarray = np.maximum(np.nanstd(pixels, axis=1, dtype=np.float64), 1e-6)
    return tuple(float(value) for value in mean), tuple(float(value) for value in std)
