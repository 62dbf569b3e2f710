"""A map of where the chips of each part lie."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from geolearn.chips.splits.overlaps import find_footprints
from geolearn.chips.splits.split import Split
from geolearn.plotting.canvas import PART_COLORS, plain, short, tidy
from geolearn.raster import GeoBox

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CRS_LIMIT = 4
"""Each CRS has a map of its own; so many of them, those with the most chips."""

DOT_SHARE = 1 / 150
"""Chips narrower than this share of the map would not be seen; they are drawn as dots."""

_WORDS = {'train': 'training', 'valid': 'validation', 'test': 'test', 'dropped': 'in no part'}


def show_split_map(geoboxes: Sequence[GeoBox], split: Split) -> 'Figure | None':
    """Draw the outlines of the chips on the ground, coloured by part, a map for each CRS.

    Args:
        geoboxes: Place of each chip; those in pixel space have none and are only counted.
        split: Positions of the chips in each part.

    Returns:
        The figure, or None where no chip has a place.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    places = find_footprints(geoboxes)
    parts = {name: np.asarray(getattr(split, name), np.int64) for name in PART_COLORS}
    members = sorted(places.members(), key=len, reverse=True)
    drawn = [positions for positions in members if len(positions)][:CRS_LIMIT]
    if not drawn:
        return None
    figure = Figure(figsize=(0.6 + 5.2 * len(drawn), 5), layout='constrained')
    for ax, positions in zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn):
        groups = {name: places.bounds[np.intersect1d(part, positions)] for name, part in parts.items()}
        _draw_map(ax, groups, title=_crs_name(places.crs[places.groups[positions[0]]]))
    handles = [
        Patch(facecolor=PART_COLORS[name], alpha=0.6, label=f'{_WORDS[name]}: {_chips(len(part))}')
        for name, part in parts.items()
        if len(part)
    ]
    figure.legend(handles=handles, loc='outside lower center', ncols=2 * len(drawn), frameon=False, fontsize=9)
    if hidden := sum(map(len, parts.values())) - sum(map(len, drawn)):
        figure.suptitle(f'Not shown: {_chips(hidden)} without a place or in other CRSs', fontsize=9)
    return figure


def _draw_map(ax: 'Axes', groups: dict[str, np.ndarray], *, title: str) -> None:
    from matplotlib.collections import PolyCollection
    from matplotlib.ticker import MaxNLocator

    tidy(ax)
    everything = np.concatenate([*groups.values()])
    extent = max(np.ptp(everything[:, 0::2]), np.ptp(everything[:, 1::2]))
    dots = np.median(everything[:, 2] - everything[:, 0]) < DOT_SHARE * extent
    for name in ('dropped', 'train', 'test', 'valid'):  # what is rare lies on top
        left, bottom, right, top = groups[name].T
        if dots:
            ax.scatter((left + right) / 2, (bottom + top) / 2, s=9, color=PART_COLORS[name], alpha=0.7, linewidth=0)
            continue
        corners = np.stack([left, bottom, right, bottom, right, top, left, top], axis=-1).reshape(-1, 4, 2)
        color = PART_COLORS[name]
        ax.add_collection(PolyCollection(list(corners), facecolor=color, edgecolor=color, alpha=0.6, linewidth=0.8))
    ax.autoscale_view()
    ax.set_aspect('equal', adjustable='datalim')
    ax.ticklabel_format(style='plain', useOffset=False)
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.yaxis.set_major_locator(MaxNLocator(5))
    ax.tick_params(labelsize=8)
    plain(ax.set_title(title, fontsize=10))


def _chips(count: int) -> str:
    return f'{count:,} chip' if count == 1 else f'{count:,} chips'


def _crs_name(crs: str | None) -> str:
    """Return what a WKT calls itself, which is its first quoted text."""
    if crs is None:
        return 'CRS unknown'
    quoted = crs.split('"')
    return short(quoted[1] if len(quoted) > 2 else crs, 48)
