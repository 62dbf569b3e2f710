"""Draw what a transformer attends to."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from geolearn.bands import Band
from geolearn.plotting import canvas
from geolearn.plotting.display import natural_colors

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def show_attention(
    maps: np.ndarray,
    titles: Sequence[str],
    bands: Sequence[Band],
    *,
    image: np.ndarray | None = None,
    columns: int = 4,
) -> 'Figure':
    """Draw attention maps, all on one scale: brown gets less than an equal share of the attention, green gets more.

    Args:
        maps: (n, rows, columns), 0 for an equal share; NaN is left empty.
        titles: Of the maps.
        bands: Of the image.
        image: Pixels (bands, height, width), drawn first; None draws the maps alone.
        columns: Most maps per row.
    """
    extra = 0 if image is None else 1
    count = len(maps) + extra
    # rows of nearly one length: no map is alone in the last
    figure, axes = canvas.grid(count, -(-count // -(-count // columns)))
    if image is not None:
        axes[0].imshow(natural_colors(image, bands))
        axes[0].set_title('image', fontsize=9)
    known = np.abs(maps[np.isfinite(maps)])
    limit = max(float(np.percentile(known, 98)) if known.size else 1.0, 1e-6)
    shown = None
    for ax, title, values in zip(axes[extra:], titles, maps):
        shown = ax.imshow(values, cmap='BrBG', vmin=-limit, vmax=limit, interpolation='nearest')
        ax.set_title(title, fontsize=9)
    if shown is not None:
        bar = figure.colorbar(shown, ax=axes.tolist(), shrink=0.6, fraction=0.04)
        bar.set_label('attention over equal share - 1', fontsize=8)
        bar.ax.tick_params(labelsize=8)
    return figure
