"""Exact search for the nearest of many vectors, in chunks of bounded memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from geolearn import errors, extras, notebook

Metric = Literal['cosine', 'euclidean']

METRICS: tuple[Metric, ...] = ('cosine', 'euclidean')

CHUNK_BYTES = 64 * 2**20
"""What the scores of one chunk of vectors take at most."""


@dataclass(frozen=True, eq=False, repr=False)
class Neighbors:
    """The vectors nearest to a query, or to several.

    Args:
        indices: Numbers of the neighbors, nearest first: int64 (k,), or (queries, k) for several.
        scores: Float32 of the same shape: cosine similarity, or euclidean distance.
        names: Of the neighbors, for one query of vectors that have names; else empty.
        metric: Which of the two the scores are.
    """

    indices: np.ndarray
    scores: np.ndarray
    names: tuple[str, ...]
    metric: Metric

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def _rows(self) -> list[tuple[str, str]]:
        labels = self.names or tuple(map(str, self.indices))
        return [(label, f'{score:.4f}') for label, score in zip(labels, self.scores)]

    def __repr__(self) -> str:
        word = 'similarity' if self.metric == 'cosine' else 'distance'
        if self.indices.ndim == 2:
            return f'Neighbors: {self.indices.shape[1]} of each of {len(self)} queries, by {self.metric} {word}'
        width = max([len(label) for label, _ in self._rows] + [4])
        lines = [f'  {label:<{width}} {score}' for label, score in self._rows]
        return '\n'.join([f'Neighbors, by {self.metric} {word}:', *lines])

    def _repr_html_(self) -> str:
        if self.indices.ndim == 2:
            return notebook.table_as_html(repr(self), ())
        return notebook.table_as_html(
            f'Nearest, by {self.metric}', [(label, str(score)) for label, score in self._rows]
        )


def find_nearest(
    vectors: np.ndarray,
    query: Any,
    k: int,
    *,
    metric: Metric = 'cosine',
    index: Literal['faiss'] | None = None,
    names: Sequence[str] = (),
    leave_out: int | None = None,
) -> Neighbors:
    """Find the vectors nearest to a query, or to each of several; vectors with NaN are nobody's neighbors.

    Args:
        vectors: Float32 (n, dimensions).
        query: (dimensions,) or (queries, dimensions).
        k: How many.
        metric: ``'cosine'`` or ``'euclidean'``.
        index: ``'faiss'`` for that library.
        names: Of the vectors.
        leave_out: Number of a vector that is not to be among the neighbors.

    Raises:
        UnknownNameError: If there is no such metric or index.
        ValueError: If the query does not fit or holds NaN, or there are fewer than `k` vectors.
        MissingExtraError: If FAISS is asked for and not installed.
    """
    for kind, value, known in (('metric', metric, METRICS), ('index', index, ('faiss', None))):
        if value not in known:
            raise errors.UnknownNameError(kind, str(value), [each for each in known if each])
    queries = np.asarray(query, np.float32)
    if queries.ndim not in (1, 2) or queries.shape[-1] != vectors.shape[1]:
        raise ValueError(
            f'a query is a vector of {vectors.shape[1]} numbers, or several (n, {vectors.shape[1]}); got an array of '
            f'shape {queries.shape}'
        )
    rows = np.flatnonzero(np.isfinite(vectors).all(axis=1))
    if leave_out is not None:
        rows = rows[rows != leave_out]
    if not isinstance(k, int | np.integer) or not 1 <= k <= len(rows):
        raise ValueError(f'k must lie in 1..{len(rows)}, the number of vectors that have data, got {k!r}')
    many = np.atleast_2d(queries)
    if not np.isfinite(many).all():
        raise ValueError('the query holds NaN or infinity; pass a vector of data')
    many = _unit(many) if metric == 'cosine' else many
    search = _search_faiss if index == 'faiss' else _search
    found, scores = search(vectors, rows, many, int(k), metric)
    if queries.ndim == 1:
        found, scores = found[0], scores[0]
    labels = tuple(names[i] for i in found) if len(names) and found.ndim == 1 else ()
    return Neighbors(found, scores, labels, metric)


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Scale vectors to length 1; a vector of zeros stays."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: np.ndarray = vectors / np.where(length > 0, length, 1).astype(np.float32)
    return scaled


def _search(
    vectors: np.ndarray, rows: np.ndarray, queries: np.ndarray, k: int, metric: Metric
) -> tuple[np.ndarray, np.ndarray]:
    """Compare with all vectors, a chunk at a time, and keep the `k` best so far; of equal ones the first."""
    count = len(queries)
    step = max(CHUNK_BYTES // 4 // (count + vectors.shape[1]), k)
    best = np.full((count, 0), 0.0, np.float32)
    place = np.zeros((count, 0), np.int64)
    for start in range(0, len(rows), step):
        numbers = rows[start : start + step]
        chunk = vectors[numbers]
        if metric == 'cosine':
            scores = queries @ _unit(chunk).T
        else:
            squares = np.square(chunk).sum(axis=1) - 2 * (queries @ chunk.T)
            scores = -(squares + np.square(queries).sum(axis=1, keepdims=True))
        scores = np.concatenate([best, scores], axis=1)
        where = np.concatenate([place, np.broadcast_to(numbers, (count, len(numbers)))], axis=1)
        # stable, so that equal scores stay in the order of the vectors
        order = np.argsort(-scores, axis=1, kind='stable')[:, :k]
        best, place = np.take_along_axis(scores, order, axis=1), np.take_along_axis(where, order, axis=1)
    return place, best if metric == 'cosine' else _distances(vectors, place, queries)


def _search_faiss(
    vectors: np.ndarray, rows: np.ndarray, queries: np.ndarray, k: int, metric: Metric
) -> tuple[np.ndarray, np.ndarray]:
    faiss = extras.require('faiss', extra='faiss', to="search with index='faiss'")
    base = np.ascontiguousarray(vectors[rows])
    table = faiss.IndexFlatIP(base.shape[1]) if metric == 'cosine' else faiss.IndexFlatL2(base.shape[1])
    table.add(_unit(base) if metric == 'cosine' else base)
    scores, found = table.search(np.ascontiguousarray(queries), k)
    place = rows[found]
    return place, scores if metric == 'cosine' else _distances(vectors, place, queries)


def _distances(vectors: np.ndarray, place: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Return the distances of neighbors (queries, k) without what the subtraction of squares loses."""
    far: np.ndarray = np.stack([np.linalg.norm(vectors[own] - query, axis=1) for own, query in zip(place, queries)])
    return far
