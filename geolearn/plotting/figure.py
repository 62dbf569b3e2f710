"""The figures that geolearn returns: matplotlib's, which notebooks show without pyplot."""

import io

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as PlainFigure


class Figure(PlainFigure):
    """A figure that a notebook shows where it is the last line of a cell."""

    def _repr_png_(self) -> bytes:
        return draw_png(self, dpi=self.dpi)


def draw_png(figure: PlainFigure, *, dpi: float) -> bytes:
    """Return a figure as the bytes of a PNG of `dpi` pixels an inch.

    It is laid out and drawn once; `savefig` does both twice where a figure has a layout engine.
    """
    buffer, own = io.BytesIO(), figure.dpi
    figure.dpi = dpi
    try:
        FigureCanvasAgg(figure).print_png(buffer)
    finally:
        figure.dpi = own
    return buffer.getvalue()
