"""Embeddings in a plane, to look at: PCA, t-SNE, UMAP."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from geolearn import extras, plotting
from geolearn.embed.embeddings import Embeddings
from geolearn.errors import UnknownNameError
from geolearn.probe.labels import read_labels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ProjectionMethod = Literal['pca', 'tsne', 'umap']

COMPONENTS = 50
"""Principal components that t-SNE starts from, as its authors advise; more cost time and carry noise."""


@dataclass(frozen=True, eq=False)
class Projection:
    """Where items lie in a plane.

    Args:
        points: (items, 2) float32.
        items: Positions of the items among those that were given; more than the limit were drawn from.
        axis_labels: Of the two axes.
    """

    points: np.ndarray
    items: np.ndarray
    axis_labels: tuple[str, str]

    def show(
        self, labels: Any, *, class_names: Sequence[str] = (), highlight: str | None = None, title: str = ''
    ) -> 'Figure':
        """Draw the items, colored by their class, or one class against all others.

        Args:
            labels: Of all items that were given, as `geolearn.probe.probe` takes them.
            class_names: Of the columns or values of the labels.
            highlight: Name of a class to draw against the rest. Needed where items may have several classes.
            title: Above the figure.

        Raises:
            UnknownNameError: If there is no class of that name.
            ValueError: If items may have several classes and none is named, or the labels do not fit.
        """
        known = read_labels(labels, len(np.asarray(labels)), class_names=class_names)
        if len(known.presence) <= int(self.items.max()):
            raise ValueError(f'{len(known.presence)} labels are fewer than the items that were projected')
        shown = known.take(self.items)
        if highlight is not None:
            if highlight not in known.names:
                raise UnknownNameError('class', highlight, known.names)
            inside = shown.presence[:, known.names.index(highlight)]
            return plotting.show_one_class(self.points, inside, highlight, axis_labels=self.axis_labels, title=title)
        if known.multi_label:
            raise ValueError(
                f'items may have several classes; name one to draw against the rest: highlight={known.names[0]!r}'
            )
        return plotting.show_projection(
            self.points, shown.indices, known.names, axis_labels=self.axis_labels, title=title
        )


def project(
    embeddings: Embeddings | np.ndarray, method: ProjectionMethod = 'pca', *, seed: int = 0, limit: int = 5_000
) -> Projection:
    """Lay embeddings out in a plane, standardized first.

    Args:
        embeddings: Pooled ones, tokens of a grid, or an array (items, dimensions). Items with a NaN are left out.
        method: ``'pca'``: the two directions of the largest variance; ``'tsne'`` and ``'umap'`` keep neighbors
            together, but distances between groups mean nothing there.
        seed: Of whatever is random.
        limit: Of more items, so many are drawn: a figure shows no more, and t-SNE takes minutes.

    Raises:
        UnknownNameError: If there is no such method.
        ValueError: If there are fewer than 3 items or 2 dimensions.
        MissingExtraError: If scikit-learn, or UMAP, is not installed.
    """
    if method not in get_args(ProjectionMethod):
        raise UnknownNameError('projection', str(method), get_args(ProjectionMethod))
    vectors = embeddings.vectors if isinstance(embeddings, Embeddings) else np.asarray(embeddings, np.float32)
    if vectors.ndim != 2:
        raise ValueError(f'embeddings must be (items, dimensions), got an array of {vectors.shape}')
    items = np.flatnonzero(np.isfinite(vectors).all(axis=1))
    if len(items) < 3 or vectors.shape[1] < 2:
        raise ValueError(
            f'{len(items)} finite embeddings of {vectors.shape[1]} dimensions are too few; 3 items of 2 are needed'
        )
    if len(items) > limit:
        items = np.sort(np.random.default_rng(seed).permutation(items)[:limit])
    chosen = vectors[items].astype(np.float32)
    chosen -= chosen.mean(axis=0)
    chosen /= np.where((std := chosen.std(axis=0)) > 1e-6, std, 1)
    if method == 'umap':
        umap = extras.require('umap', extra='umap', to='lay embeddings out with UMAP')
        # one thread: a seed makes UMAP use one anyway, and it warns of that otherwise
        layout = umap.UMAP(n_neighbors=min(15, len(items) - 1), random_state=seed, n_jobs=1)
        return Projection(layout.fit_transform(chosen), items, ('UMAP 1', 'UMAP 2'))
    decomposition = extras.require('sklearn.decomposition', extra='sklearn', to='lay embeddings out in a plane')
    count = 2 if method == 'pca' else min(COMPONENTS, *chosen.shape)
    pca = decomposition.PCA(count, random_state=seed)
    components = pca.fit_transform(chosen)
    if method == 'pca':
        first, second = (f'component {i + 1} ({share:.0%} of the variance)' for i, share in enumerate(_shares(pca)))
        return Projection(components.astype(np.float32), items, (first, second))
    manifold = extras.require('sklearn.manifold', extra='sklearn', to='lay embeddings out with t-SNE')
    perplexity = min(30.0, max(1.0, (len(items) - 1) / 3))
    layout = manifold.TSNE(2, perplexity=perplexity, init='pca', random_state=seed)
    return Projection(layout.fit_transform(components), items, ('t-SNE 1', 't-SNE 2'))


def _shares(pca: Any) -> list[float]:
    return [float(share) for share in pca.explained_variance_ratio_[:2]]
