"""Rasters drawn as interactive maps and as figures: classes, numbers, images."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from affine import Affine
from matplotlib.patches import Patch
from rasterio.enums import ColorInterp, Resampling
from rasterio.errors import CRSError, RasterioError
from rasterio.vrt import WarpedVRT
from rasterio.warp import calculate_default_transform, transform_bounds

from geolearn import extras
from geolearn.chips.formats.styles import read_raster_style, styled_classes
from geolearn.classes import ClassInfo
from geolearn.errors import RasterError
from geolearn.plotting import canvas
from geolearn.plotting.display import natural_colors
from geolearn.plotting.figure import Figure
from geolearn.raster import open_raster, raster_bands
from geolearn.raster.opening import open_quietly

if TYPE_CHECKING:
    import folium

MAX_SIDE = 1024
"""Pixels of the longer side of what is drawn, unless another number is given."""

MOST_CLASSES = 32
"""Of an integer raster without names of classes, more values than these are numbers."""

CLASS_BAND = 'class'
"""What geolearn calls the band of classes where a map has several."""

_WEB_MERCATOR = 'EPSG:3857'
_WIDEST = 20_037_509.0
"""Meters of Web Mercator from the middle to the 180th meridian."""
_EDGE = 85.0
"""Degrees of latitude beyond which web maps end."""

_RAMP = ('#440154', '#3b528b', '#21918c', '#5ec962', '#fde725')


@dataclass(frozen=True)
class Drawing:
    """A raster as it is drawn.

    Args:
        rgba: (height, width, 4) uint8, rows from north to south in Web Mercator; clear where there is no data.
        bounds: South, west, north, east in degrees.
        classes: That occur, of a map of classes.
        limits: Values at both ends of the colors, of a map of numbers.
    """

    rgba: np.ndarray
    bounds: tuple[float, float, float, float]
    classes: tuple[ClassInfo, ...] = ()
    limits: tuple[float, float] | None = None


def show_map(
    raster: str | Path, *, image: str | Path | None = None, opacity: float = 0.75, max_side: int = MAX_SIDE
) -> 'folium.Map':
    """Show a raster on an interactive map; a notebook displays what is returned, ``.save('map.html')`` writes a page.

    The page holds the pixels itself. Streets in the background, and the code that moves the map, come from the internet
    when a browser opens it.

    Args:
        raster: A map of classes, of numbers such as confidence, or an image; the file's own colors and names are taken.
        image: The scene to lay beneath it; both can be switched on and off.
        opacity: Of the map, 0..1.
        max_side: Pixels of the longer side that are drawn; larger rasters are reduced to it.

    Raises:
        MissingExtraError: If folium is not installed.
        RasterError: If a raster cannot be read or has no place on a web map.
        ValueError: If a number is out of its range.
    """
    if not 0 <= opacity <= 1:
        raise ValueError(f'opacity must be a number from 0 to 1, got {opacity}')
    folium = extras.require('folium', extra='web', to='show interactive maps')
    layers = [(Path(path).name, draw_raster(path, max_side)) for path in (image, raster) if path is not None]
    top = layers[-1][1]
    south, west, north, east = top.bounds
    shown: Any = folium.Map(location=((south + north) / 2, (west + east) / 2), control_scale=True)
    # of folium's scripts and styles only those of Leaflet are needed: fewer hosts are asked when the page is opened
    shown.default_js = [row for row in shown.default_js if row[0] == 'leaflet']
    shown.default_css = [row for row in shown.default_css if row[0] == 'leaflet_css']
    for name, drawing in layers:
        corners = ((drawing.bounds[0], drawing.bounds[1]), (drawing.bounds[2], drawing.bounds[3]))
        share = opacity if drawing is top else 1.0
        folium.raster_layers.ImageOverlay(
            drawing.rgba, bounds=corners, name=escape(name), opacity=share, zindex=1 if drawing is not top else 2
        ).add_to(shown)
    folium.LayerControl(collapsed=False).add_to(shown)
    if text := _legend(top):
        # folium's templates take an element's text as it is; what comes from files was escaped
        shown.get_root().html.add_child(folium.Element('{% raw %}' + text + '{% endraw %}'))
    shown.fit_bounds(((south, west), (north, east)))
    return shown


def plot_map(raster: str | Path, *, max_side: int = MAX_SIDE) -> Figure:
    """Draw a raster with its legend as a figure, north up, in Web Mercator.

    Args:
        raster: A map of classes, of numbers or an image.
        max_side: Pixels of the longer side that are drawn.

    Raises:
        RasterError: If the raster cannot be read or has no place on a web map.
    """
    drawing = draw_raster(raster, max_side)
    height, width = drawing.rgba.shape[:2]
    figure = Figure(figsize=(7, max(2.0, 7 * height / width + 0.8)), layout='constrained')
    ax = figure.subplots()
    ax.imshow(drawing.rgba, interpolation='nearest')
    ax.set_axis_off()
    if drawing.classes:
        canvas.add_legend(figure, drawing.classes, range(len(drawing.classes)))
    elif drawing.limits is not None:
        figure.legend(
            handles=[Patch(color=color, label=f'{value:.4g}') for color, value in _steps(drawing.limits)],
            ncols=len(_RAMP), loc='outside lower center', frameon=False,
        )  # fmt: skip
    return figure


def draw_raster(path: str | Path, max_side: int = MAX_SIDE) -> Drawing:
    """Draw a raster in Web Mercator, in the colors of its classes, in a ramp of colors, or as an image.

    Raises:
        RasterError: If it cannot be read or has no place on a web map.
        ValueError: If `max_side` is less than 1.
    """
    if max_side < 1:
        raise ValueError(f'max_side must be a number of pixels from 1, got {max_side}')
    with open_raster(path) as opened:
        bands = raster_bands(opened)
        names = [str(name or '') for name in opened.descriptions]
    try:
        with open_quietly(path) as src:
            if src.crs is None or src.transform.is_identity:
                raise RasterError(f'{path} names no place on the Earth; give it a CRS and a transform first')
            with _warped(src, path, max_side, nearest=True) as vrt:
                index = names.index(CLASS_BAND) + 1 if CLASS_BAND in names else 1
                bounds = _degrees(vrt.bounds)
                values, valid = _read(vrt, [index])
            style = read_raster_style(src, path)
            count = len(bands)  # without opacity
            is_class = np.dtype(src.dtypes[index - 1]).kind in 'iu' and (count == 1 or CLASS_BAND in names)
            present = np.unique(values[0][valid]) if is_class else np.empty(0)
            if is_class and (style or len(present) <= MOST_CLASSES):
                classes = styled_classes([int(value) for value in present], style)
                return Drawing(_paint(values[0], valid, classes), bounds, classes)
            if count >= 3 and CLASS_BAND not in names:
                with _warped(src, path, max_side) as vrt:
                    pixels, valid = _read(vrt, list(range(1, count + 1)))
                colors = natural_colors(np.where(valid, pixels, np.nan), bands)
                return Drawing(_with_alpha(255 * colors, valid), bounds)
            with _warped(src, path, max_side) as vrt:
                values, valid = _read(vrt, [1])
            limits = tuple(np.percentile(values[0][valid], [2, 98])) if valid.any() else (0.0, 1.0)
            return Drawing(_ramp(values[0], valid, limits), bounds, limits=(float(limits[0]), float(limits[1])))
    except (RasterioError, CRSError) as error:
        raise RasterError(f'cannot draw {path}: {error}') from error


def _warped(src: Any, path: str | Path, max_side: int, *, nearest: bool = False) -> WarpedVRT:
    """Return a raster in Web Mercator, reduced to `max_side` pixels."""
    transform, width, height = calculate_default_transform(
        src.crs, _WEB_MERCATOR, src.width, src.height, *_inside(src, path)
    )
    if not (np.isfinite(transform).all() and transform.a > 0 > transform.e and abs(transform.c) < _WIDEST):
        raise RasterError(f'{path} has no place on a web map, which ends at the 180th meridian')
    factor = max(1.0, max(width, height) / max_side)
    columns, rows = max(1, round(width / factor)), max(1, round(height / factor))
    masked = src.nodata is not None or ColorInterp.alpha in src.colorinterp
    return WarpedVRT(
        src, crs=_WEB_MERCATOR, width=columns, height=rows, add_alpha=not masked,
        transform=Affine(transform.a * width / columns, 0, transform.c, 0, transform.e * height / rows, transform.f),
        resampling=Resampling.nearest if nearest else Resampling.average if factor > 1 else Resampling.bilinear,
    )  # fmt: skip


def _inside(src: Any, path: str | Path) -> tuple[float, float, float, float]:
    """Return the bounds of a raster in its CRS, without what lies beyond the ends of web maps."""
    west, south, east, north = transform_bounds(src.crs, 'EPSG:4326', *src.bounds)
    if not np.isfinite([west, south, east, north]).all() or south >= _EDGE or north <= -_EDGE:
        raise RasterError(f'{path} has no place on a web map, which ends at {_EDGE:g} degrees north and south')
    # a little more than 180 degrees is rounding, as of global products
    if west > east or (src.crs.is_geographic and (src.bounds.left < -180.1 or src.bounds.right > 180.1)):
        raise RasterError(f'{path} has no place on a web map: it crosses the 180th meridian')
    if src.crs.is_geographic:
        bounds = src.bounds
        return bounds.left, max(bounds.bottom, -_EDGE), bounds.right, min(bounds.top, _EDGE)
    left, bottom, right, top = src.bounds
    return left, bottom, right, top


def _degrees(bounds: Any) -> tuple[float, float, float, float]:
    west, south, east, north = transform_bounds(_WEB_MERCATOR, 'EPSG:4326', *bounds)
    return south, west, north, east


def _read(vrt: WarpedVRT, indexes: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return pixels (bands, rows, columns) as float32, and where all of them hold data."""
    pixels = vrt.read(list(indexes)).astype(np.float32)
    valid = (vrt.read_masks(list(indexes)) > 0).all(0) & (vrt.dataset_mask() > 0) & np.isfinite(pixels).all(0)
    return pixels, valid


def _paint(values: np.ndarray, valid: np.ndarray, classes: Sequence[ClassInfo]) -> np.ndarray:
    colors = np.zeros((*values.shape, 3), np.uint8)
    for info in classes:
        colors[values == info.value] = info.color
    return _with_alpha(colors, valid)


def _ramp(values: np.ndarray, valid: np.ndarray, limits: tuple[float, ...]) -> np.ndarray:
    low, high = limits
    share = np.where(valid, values - low, 0) / max(high - low, 1e-12)
    stops = np.array([[int(color[start : start + 2], 16) for start in (1, 3, 5)] for color in _RAMP])
    places = np.linspace(0, 1, len(stops))
    colors = np.stack([np.interp(share.clip(0, 1), places, channel) for channel in stops.T], axis=-1)
    return _with_alpha(colors, valid)


def _with_alpha(colors: np.ndarray, valid: np.ndarray) -> np.ndarray:
    rgba = np.zeros((*valid.shape, 4), np.uint8)
    rgba[..., :3] = np.where(valid[..., None], colors, 0)
    rgba[..., 3] = 255 * valid
    return rgba


def _steps(limits: tuple[float, float]) -> list[tuple[str, float]]:
    return list(zip(_RAMP, np.linspace(*limits, len(_RAMP)).tolist()))


def _legend(drawing: Drawing) -> str:
    """Return the legend as HTML, empty where there is none; every text is escaped."""
    rows = [('#{:02x}{:02x}{:02x}'.format(*info.color), info.name) for info in drawing.classes]
    if drawing.limits is not None:
        rows = [(color, f'{value:.4g}') for color, value in _steps(drawing.limits)]
    if not rows:
        return ''
    items = ''.join(
        f'<div><span style="display:inline-block;width:1em;height:1em;background:{color};margin-right:.4em"></span>'
        f'{escape(text)}</div>'
        for color, text in rows
    )
    place = 'position:fixed;bottom:5em;left:.7em;z-index:1000;max-height:60vh;max-width:60vw;overflow:auto'
    look = 'background:#fffd;color:#222;padding:.6em .9em;border-radius:.3em;font:14px sans-serif'
    return f'<div style="{place};{look}">{items}</div>'
