"""What a probe found: scores of embeddings beside those of the baselines, as tables and figures."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from geolearn import files, notebook, plotting
from geolearn.errors import UnknownNameError
from geolearn.probe.options import METHOD_TITLES, METHODS, Method
from geolearn.probe.scores import CLASS_METRICS, METRIC_LABELS, METRICS, Counts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EMBEDDINGS = 'embeddings'
"""What the rows of the embeddings are called, beside those of the baselines."""

UNDEFINED = '–'  # noqa: RUF001
"""Stands in tables for a score that is not defined."""

SHOWN = (
    'f1_macro',
    'f1_micro',
    'f2_macro',
    'f2_micro',
    'precision_macro',
    'precision_micro',
    'accuracy',
    'hamming_loss',
)
"""Metrics of a Markdown table."""


@dataclass(frozen=True, eq=False)
class ProbeScore:
    """How well one classifier does on one kind of vectors.

    Args:
        features: ``'embeddings'``, or the name of a baseline.
        method: The classifier.
        counts: Of each seed, over all tested items.
    """

    features: str
    method: Method
    counts: tuple[Counts, ...]

    @cached_property
    def values(self) -> dict[str, np.ndarray]:
        """Each metric by name: (seeds,) float64."""
        rows = [counts.values() for counts in self.counts]
        return {metric.name: np.array([row[metric.name] for row in rows]) for metric in METRICS}

    @cached_property
    def class_values(self) -> dict[str, np.ndarray]:
        """F1, F2, precision and recall of each class: (seeds, classes) float64; NaN for classes without a test item."""
        rows = [counts.per_class() for counts in self.counts]
        return {name: np.stack([row[name] for row in rows]) for name in CLASS_METRICS}

    def mean(self, metric: str) -> float:
        """Return the mean of a metric over the seeds; NaN where it is undefined."""
        return float(self.values[metric].mean())

    def std(self, metric: str) -> float:
        """Return the standard deviation of a metric over the seeds; NaN for a single seed."""
        return _std(self.values[metric])


@dataclass(frozen=True, slots=True)
class PublishedScore:
    """A score that others published; it was not computed here.

    Args:
        method: Classifier that it belongs to.
        metric: Name of the metric, such as ``'f2_macro'``.
        value: In 0..1.
        source: Where it stands.
        features: What it is a score of.
    """

    method: Method
    metric: str
    value: float
    source: str
    features: str = EMBEDDINGS


@dataclass(frozen=True, eq=False, repr=False)
class ProbeResult:
    """What `probe` returns.

    Args:
        scores: A row for each kind of vectors and each classifier.
        class_names: Of all classes.
        multi_label: Whether items may have several classes.
        items: How many items there were.
        cooccurrence: (classes, classes) int64 items that have both classes; the diagonal counts the items of a class.
        folds: How items were divided, in words.
        seeds: Of folds and classifiers; each gives one value of a score.
        notes: What a reader of the scores must know, such as items without data, or why there are no baselines.
        published: Scores of others, for a column of their own.
    """

    scores: tuple[ProbeScore, ...]
    class_names: tuple[str, ...]
    multi_label: bool
    items: int
    cooccurrence: np.ndarray
    folds: str
    seeds: tuple[int, ...]
    notes: tuple[str, ...] = ()
    published: tuple[PublishedScore, ...] = ()

    def score(self, method: Method | None = None, *, features: str = EMBEDDINGS) -> ProbeScore:
        """Return a row.

        Args:
            method: The classifier; None for the one with the best macro F1 on the embeddings.
            features: Whose row: ``'embeddings'``, ``'band statistics'`` or ``'random convolutions'``.

        Raises:
            UnknownNameError: If there is no such row.
        """
        method = self.best_method if method is None else method
        for score in self.scores:
            if (score.features, score.method) == (features, method):
                return score
        if features not in self.features:
            raise UnknownNameError('kind of vectors', features, self.features)
        raise UnknownNameError('method of this probe', method, self.methods)

    @property
    def features(self) -> tuple[str, ...]:
        """Kinds of vectors, the embeddings first."""
        return tuple(dict.fromkeys(score.features for score in self.scores))

    @property
    def methods(self) -> tuple[Method, ...]:
        """The classifiers."""
        found = {score.method for score in self.scores}
        return tuple(method for method in METHODS if method in found)

    @property
    def best_method(self) -> Method:
        """The classifier with the best macro F1 on the embeddings."""
        own = [score for score in self.scores if score.features == self.features[0]]
        return max(own, key=lambda score: np.nan_to_num(score.mean('f1_macro'), nan=-1)).method

    @property
    def has_baselines(self) -> bool:
        """Whether scores of the baselines stand beside those of the embeddings."""
        return len(self.features) > 1

    def with_published(self, published: Sequence[PublishedScore]) -> 'ProbeResult':
        """Return the result with scores of others in a column of their own."""
        return replace(self, published=tuple(published))

    def table(self) -> pd.DataFrame:
        """Return a row for each kind of vectors and each classifier.

        For each metric there is its mean over the seeds and, in a column that ends in ``_std``, its standard deviation;
        in one that ends in ``_published``, where there is any, what others published. NaN where undefined.
        """
        rows = []
        for score in self.scores:
            row: dict[str, object] = {'features': score.features, 'method': score.method}
            for metric in METRICS:
                row[metric.name] = score.mean(metric.name)
                row[f'{metric.name}_std'] = score.std(metric.name)
                if metric.name in {entry.metric for entry in self.published}:
                    row[f'{metric.name}_published'] = self._published_value(score, metric.name)
            rows.append(row)
        return pd.DataFrame(rows).set_index(['features', 'method'])

    def _published_value(self, score: ProbeScore, metric: str) -> float:
        wanted = score.features, score.method, metric
        found = [e.value for e in self.published if (e.features, e.method, e.metric) == wanted]
        return found[0] if found else math.nan

    def class_table(self, method: Method | None = None, *, features: str = EMBEDDINGS) -> pd.DataFrame:
        """Return a row for each class: its items, and F1, F2, precision and recall with their spread over the seeds.

        Args:
            method: The classifier; None for the best.
            features: Whose row of scores.
        """
        score = self.score(method, features=features)
        columns: dict[str, object] = {'items': self.cooccurrence.diagonal()}
        for name, values in score.class_values.items():
            columns[name] = values.mean(axis=0)
            columns[f'{name}_std'] = [_std(column) for column in values.T]
        return pd.DataFrame(columns, index=pd.Index(self.class_names, name='class'))

    def cooccurrence_table(self) -> pd.DataFrame:
        """Return how many items have both of two classes; the diagonal counts the items of a class."""
        return pd.DataFrame(self.cooccurrence, index=list(self.class_names), columns=list(self.class_names))

    def confusion(self, method: Method | None = None, *, features: str = EMBEDDINGS) -> np.ndarray:
        """Return truth (rows) against prediction, summed over the seeds.

        Args:
            method: The classifier; None for the best.
            features: Whose row of scores.

        Returns:
            int64 (classes, classes); where items may have several classes (classes, 2, 2), absent and present for each.
        """
        counts = self.score(method, features=features).counts
        return np.sum([own.confusion if own.matrix is None else own.matrix for own in counts], axis=0)

    def to_markdown(self) -> str:
        """Return the scores as a Markdown table, with the notes below it."""
        published = [name for name in SHOWN if name in {entry.metric for entry in self.published}]
        heads = ['vectors', 'classifier']
        for name in SHOWN:
            heads += [METRIC_LABELS[name], *([f'{METRIC_LABELS[name]}, published'] if name in published else [])]
        lines = [_line(heads), _line(['---'] * len(heads))]
        for score in self.scores:
            cells = [score.features, METHOD_TITLES[score.method]]
            for name in SHOWN:
                cells.append(format_score(score.mean(name), score.std(name)))
                if name in published:
                    cells.append(format_score(self._published_value(score, name)))
            lines.append(_line(cells))
        return '\n'.join([*lines, '', *self._footer()])

    def class_markdown(self, method: Method | None = None) -> str:
        """Return a Markdown table of the F1 of each class, embeddings beside the baselines.

        Args:
            method: The classifier; None for the best.
        """
        rows = [self.score(method, features=features) for features in self.features]
        heads = ['class', 'items', *(f'F1, {row.features}' for row in rows)]
        lines = [_line(heads), _line(['---'] * len(heads))]
        for index, (name, count) in enumerate(zip(self.class_names, self.cooccurrence.diagonal().tolist())):
            values = [row.class_values['f1'][:, index] for row in rows]
            lines.append(_line([name, f'{count:,}', *(format_score(float(v.mean()), _std(v)) for v in values)]))
        return '\n'.join([*lines, '', f'Classifier: {METHOD_TITLES[rows[0].method]}.'])

    def _footer(self) -> list[str]:
        spread = 'mean ± standard deviation over the seeds' if len(self.seeds) > 1 else 'a single seed, so no spread'
        lines = [
            f'{self.items:,} items, {len(self.class_names)} classes'
            f'{", several for an item" if self.multi_label else ""}; {self.folds}; seeds '
            f'{", ".join(map(str, self.seeds))}; {spread}.'
        ]
        sources = dict.fromkeys(entry.source for entry in self.published)
        lines += [f'Published, not computed here: {source}.' for source in sources]
        return lines + [f'{note}.' for note in self.notes]

    def __repr__(self) -> str:
        rows = [(METHOD_TITLES[score.method], score) for score in self.scores]
        kind = 'several classes for an item' if self.multi_label else 'one class for each item'
        lines = [f'ProbeResult: {self.items:,} items, {len(self.class_names)} classes ({kind})']
        for title, score in rows:
            macro, micro = (format_score(score.mean(name), score.std(name)) for name in ('f1_macro', 'f1_micro'))
            lines.append(f'  {score.features.replace(" ", "_")} {title}: F1 macro {macro}, micro {micro}')
        lines.append(f'  folds {self.folds}; seeds {", ".join(map(str, self.seeds))}')
        return '\n'.join([*lines, *(f'  note {note}' for note in self.notes)])

    def _repr_html_(self) -> str:
        return notebook.rows_as_html(repr(self))

    def save(self, folder: str | Path, *, suffix: str = '') -> list[Path]:
        """Write tables (CSV, and Markdown) and figures (PNG) to a folder.

        Args:
            folder: Made where it does not exist; files that are there are replaced.
            suffix: Of the files' names, before their type.

        Returns:
            The files.

        Raises:
            FileWriteError: If a file cannot be written.
        """
        from geolearn.plotting.figure import draw_png

        root, written = Path(folder), []
        tables = {'scores': self.table(), 'classes': self.class_table(), 'cooccurrence': self.cooccurrence_table()}
        figures = {
            'f1_macro': self.show_scores('f1_macro'),
            'f2_macro': self.show_scores('f2_macro'),
            'classes': self.show_classes(),
            'confusion': self.show_confusion(),
        }
        if self.multi_label:
            figures['cooccurrence'] = self.show_cooccurrence()
        written.append(root / f'probe{suffix}.md')
        with files.atomic_write(written[-1], make_folder=True) as part:
            part.write_text(f'{self.to_markdown()}\n\n{self.class_markdown()}\n', encoding='utf-8')
        for name, table in tables.items():
            written.append(root / f'{name}{suffix}.csv')
            with files.atomic_write(written[-1]) as part:
                table.to_csv(part)
        for name, figure in figures.items():
            written.append(root / f'{name}{suffix}.png')
            with files.atomic_write(written[-1]) as part:
                part.write_bytes(draw_png(figure, dpi=120))
        return written

    def show_scores(self, metric: str = 'f1_macro') -> 'Figure':
        """Draw a metric as bars with their spread over the seeds, embeddings beside the baselines.

        Args:
            metric: Name of the metric.

        Raises:
            UnknownNameError: If there is no such metric.
        """
        if metric not in METRIC_LABELS:
            raise UnknownNameError('metric', metric, METRIC_LABELS)
        methods = self.methods
        bars = {features: [self._bar(method, features, metric) for method in methods] for features in self.features}
        marks = [(e.features, methods.index(e.method), e.value) for e in self.published if self._has(e, metric)]
        titles = [METHOD_TITLES[method] for method in methods]
        return plotting.show_score_bars(titles, bars, label=METRIC_LABELS[metric], published=marks)

    def _has(self, entry: PublishedScore, metric: str) -> bool:
        return entry.metric == metric and entry.method in self.methods and entry.features in self.features

    def _bar(self, method: Method, features: str, metric: str) -> tuple[float, float]:
        score = self.score(method, features=features)
        return score.mean(metric), score.std(metric)

    def show_classes(self, method: Method | None = None, metric: str = 'f1') -> 'Figure':
        """Draw a metric of each class with its spread over the seeds, embeddings beside the baselines.

        Args:
            method: The classifier; None for the best.
            metric: ``'f1'``, ``'f2'``, ``'precision'`` or ``'recall'``.

        Raises:
            UnknownNameError: If there is no such metric or row.
        """
        if metric not in CLASS_METRICS:
            raise UnknownNameError('metric of classes', metric, CLASS_METRICS)
        bars = {}
        for features in self.features:
            values = self.score(method, features=features).class_values[metric]
            bars[features] = [(float(v.mean()), _std(v)) for v in values.T]
        label = f'{metric.upper() if metric in ("f1", "f2") else metric}, {METHOD_TITLES[method or self.best_method]}'
        return plotting.show_class_bars(self.class_names, self.cooccurrence.diagonal(), bars, label=label)

    def show_confusion(self, method: Method | None = None, *, features: str = EMBEDDINGS) -> 'Figure':
        """Draw truth against prediction, summed over the seeds; of several classes for an item one matrix for each.

        Args:
            method: The classifier; None for the best.
            features: Whose row of scores.
        """
        counts = self.confusion(method, features=features)
        if self.multi_label:
            return plotting.show_binary_matrices(counts, self.class_names)
        return plotting.show_confusion_matrix(counts, self.class_names, unit='items')

    def show_cooccurrence(self) -> 'Figure':
        """Draw which share of the items of a class has each other class.

        Raises:
            ValueError: If items have one class each, so that none occur together.
        """
        if not self.multi_label:
            raise ValueError('items have one class each, so no classes occur together')
        return plotting.show_cooccurrence(self.cooccurrence, self.class_names)


def _std(values: np.ndarray) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def format_score(mean: float, std: float = math.nan) -> str:
    """Return a score with its spread, where there is one, for a table; `UNDEFINED` where there is no score."""
    if math.isnan(mean):
        return UNDEFINED
    return f'{mean:.3f}' if math.isnan(std) else f'{mean:.3f} ± {std:.3f}'


def _line(cells: Sequence[str]) -> str:
    return '| ' + ' | '.join(cell.replace('|', r'\|') for cell in cells) + ' |'
