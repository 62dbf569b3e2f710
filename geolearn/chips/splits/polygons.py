"""Divide polygons into training and validation, so that none of them, and no ground, is in both."""

import numpy as np

from geolearn import errors
from geolearn.chips.exporting.vector_labels import Features, need_shapely


def divide_polygons(features: Features, fraction: float, *, seed: int) -> np.ndarray:
    """Choose the polygons to validate on: about a share of those of each class, and at least one of each.

    Polygons that touch or overlap stay together, as they would share pixels or be parts of one area.

    Args:
        features: All polygons.
        fraction: Share to validate on, over 0 and below 1.
        seed: Chooses them.

    Returns:
        (n,) bool, True for validation.

    Raises:
        ChipFolderError: If no polygon would be left to train or to validate on.
    """
    groups = _touching(features)
    random = np.random.default_rng(seed)
    chosen = np.zeros(len(features), bool)
    leading = np.array([features.class_ids[np.flatnonzero(groups == group)[0]] for group in range(groups.max() + 1)])
    for value in np.unique(leading):
        members = random.permutation(np.flatnonzero(leading == value))
        if len(members) < 2:  # the only one is to be trained on
            continue
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        chosen |= np.isin(groups, members[:count])
    if not chosen.any() or chosen.all() or fraction <= 0:
        left = 'train' if chosen.all() else 'validate'
        raise errors.ChipFolderError(
            f'{len(features)} polygons in {groups.max() + 1} places leave none to {left} on: '
            "split='polygons' needs two places of a class at least, and val_split_pct over 0; draw more polygons"
        )
    return chosen


def _touching(features: Features) -> np.ndarray:
    """Return the number of the group of each polygon: those that touch, directly or through others."""
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import connected_components

    one, other = need_shapely().STRtree(features.geometry).query(features.geometry, predicate='intersects')
    count = len(features)
    links = csr_matrix((np.ones(len(one), bool), (one, other)), (count, count))
    groups: np.ndarray = connected_components(links, directed=False)[1]
    return groups
