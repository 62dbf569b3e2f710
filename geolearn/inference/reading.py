"""Open rasters for a model: find its bands in them, and check units, dates and grids."""

import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from functools import cache
from typing import Any, cast

import numpy as np
from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import CRSError

from geolearn import errors, units
from geolearn.arguments import advise
from geolearn.inference.options import ReadOptions, Resolution
from geolearn.inference.source import Source
from geolearn.networks.spec import ModelSpec
from geolearn.raster import (
    Dequantize,
    EmbeddingProduct,
    GeoBox,
    find_band_indexes,
    find_product,
    open_raster,
    raster,
    raster_geobox,
    reading,
    require_place,
    require_same_grid,
    sample_pixels,
)
from geolearn.raster.area import CroppedRaster, PixelArea
from geolearn.raster.border import BorderCheck, find_marker
from geolearn.raster.embeddings import ALPHAEARTH_BANDS, TITLES, check_lengths, difference
from geolearn.raster.ground import METERS_PER_DEGREE, latitude_of, meters_per_unit, unit_of
from geolearn.raster.nodata import check_nodata, differs
from geolearn.raster.stac import is_stac

log = logging.getLogger('geolearn')

MAX_RATIO = 1.5
"""Networks lose accuracy on pixels that are larger or smaller than those of training by more than this factor."""

SAME = 0.01
"""Pixel sizes that differ by a smaller share are equal: no resampling."""


PIXEL_SPACE = 'PIXEL_SPACE'
"""ArcGIS's ImageSpaceUsed for images without a place on the ground."""


def choose_geobox(box: GeoBox, spec: ModelSpec, resolution: Resolution | None, *, shown: str) -> GeoBox | None:
    """Check a raster's pixel size against that of the training chips, and return the grid to read it on.

    Args:
        box: Place of the raster.
        spec: Of the model; its cell size is that of the training chips.
        resolution: What the caller asks for; None reads the raster as it is.
        shown: Name of the raster in messages.

    Returns:
        None where the raster is read as it is.

    Raises:
        RasterError: If pixels are more than `MAX_RATIO` times larger or smaller than in training and `resolution` is
            not given; or it is ``'training'`` and the sizes cannot be compared.
        ValueError: If `resolution` is not a size.
    """
    trained = _training_sides(spec, box)
    if trained is None and not box.transform.is_identity:
        _warn_unchecked(spec.model)
    if resolution is None:
        _check(box, trained, shown)
        return None
    sides = trained if resolution == 'training' else _given_sides(resolution, box)
    if sides is None:
        raise errors.RasterError(
            f"resolution='training' needs the pixel size of the training chips and the place of {shown}, and one of "
            "them is not known; pass resolution= as a number in the raster's units"
        )
    if trained is not None and (ratio := _ratio(sides, trained)) > MAX_RATIO:
        log.warning(
            'pixels of %s are %.3g times off those of the training chips, %s', shown, ratio, _text(trained, box)
        )
    factors = [wanted / own for wanted, own in zip(sides, box.resolution)]
    if all(abs(factor - 1) < SAME for factor in factors):
        return None
    return _rescaled(box, factors[0], factors[1])


def _check(box: GeoBox, trained: tuple[float, float] | None, shown: str) -> None:
    if trained is None:
        return
    ratio = _ratio(box.resolution, trained)
    if ratio > MAX_RATIO:
        larger = _side(box.resolution) > _side(trained)
        raise errors.RasterError(
            f'pixels of {shown} measure {_text(box.resolution, box)}, those of the training chips '
            f"{_text(trained, box)}: {ratio:.3g} times {'larger' if larger else 'smaller'}. Pass resolution='training' "
            f'to resample while reading, or resolution={_side(box.resolution):.6g} to read the raster as it is'
        )


@cache
def _warn_unchecked(model: str) -> None:
    """Log once that pixel sizes are not compared."""
    log.warning(
        'the pixel size of the training chips of this %s is not known, so that of rasters is not checked', model
    )


def _given_sides(resolution: float, box: GeoBox) -> tuple[float, float]:
    size = max(own * length for own, length in zip(box.resolution, reversed(box.shape)))
    if resolution > size:
        unit = _unit(box)
        degrees = resolution / METERS_PER_DEGREE
        advice = f'; {resolution:g} m are about {degrees:.3g} degrees' if unit == 'degrees' else ''
        raise ValueError(
            f'resolution={resolution:g} {unit} is larger than the whole raster ({size:.3g} {unit}){advice}'
        )
    return float(resolution), float(resolution)


def _training_sides(spec: ModelSpec, box: GeoBox) -> tuple[float, float] | None:
    """Return width and height of the training chips' pixels in units of a raster; None where these are not known."""
    cell = spec.cell_size or {}
    try:
        sides = (float(cell['x']), float(cell['y']))
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    if not all(0 < side < math.inf for side in sides) or spec.image_space == PIXEL_SPACE:
        return None
    crs = None if box.crs is None else CRS.from_user_input(box.crs)
    if cell.get('unit') == units.METERS and crs is not None:
        across, down = meters_per_unit(crs, latitude_of(box))
        return sides[0] / across, sides[1] / down
    trained = _read_crs(cell.get('spatialReference'))
    if trained is None or crs is None:
        # chips and rasters without a CRS are in the same unknown unit
        return sides if trained is None and crs is None and not box.transform.is_identity else None
    if trained == crs:
        return sides
    latitude = latitude_of(box)
    theirs, ours = (meters_per_unit(each, latitude) for each in (trained, crs))
    return sides[0] * theirs[0] / ours[0], sides[1] * theirs[1] / ours[1]


def _read_crs(reference: Any) -> CRS | None:
    """Return the CRS of Esri's spatialReference; None where it names none that PROJ knows."""
    if not isinstance(reference, Mapping):
        return None
    candidates: list[Any] = [reference.get('wkt')]
    for key in ('latestWkid', 'wkid'):
        if isinstance(number := reference.get(key), int):
            candidates += [f'EPSG:{number}', f'ESRI:{number}']
    for text in candidates:
        try:
            if text:
                return CRS.from_user_input(text)
        except (CRSError, ValueError):
            continue
    return None


def _unit(box: GeoBox) -> str:
    return unit_of(None if box.crs is None else CRS.from_user_input(box.crs))


def _text(sides: tuple[float, float], box: GeoBox) -> str:
    """Write a pixel size in units of a raster, and in meters where these are degrees."""
    unit = _unit(box)
    if unit == 'degrees':
        crs = CRS.from_user_input(box.crs)
        meters = _side((sides[0] * meters_per_unit(crs, latitude_of(box))[0], sides[1] * METERS_PER_DEGREE))
        return f'{_side(sides):.3g} degrees (about {meters:.3g} m)'
    return f'{_side(sides):.3g} {unit}'


def _side(sides: tuple[float, float]) -> float:
    """Return the side of the square with the area of a pixel."""
    return math.sqrt(sides[0] * sides[1])


def _ratio(sides: tuple[float, float], others: tuple[float, float]) -> float:
    """Return how many times larger the larger of two pixel sizes is."""
    ratio = _side(sides) / _side(others)
    return max(ratio, 1 / ratio)


def _rescaled(box: GeoBox, across: float, down: float) -> GeoBox:
    """Return a box of the same corner whose pixels are so many times larger; it covers the whole of the other."""
    t = box.transform
    shape = tuple(max(1, math.ceil(length / factor - 1e-6)) for length, factor in zip(box.shape, (down, across)))
    place = Affine(t.a * across, t.b * down, t.c, t.d * across, t.e * down, t.f)
    return GeoBox((shape[0], shape[1]), place, box.crs)


RasterSource = reading.RasterPath | Sequence[reading.RasterPath]
"""A raster, or several that make one mosaic; for models of several dates one such for each date, or one file of all."""

advise(RasterSource, 'pass the file, or write the array to one first', name='the path of a raster, or a list of them')


def open_dates(
    src: RasterSource, spec: ModelSpec, read: ReadOptions, stack: ExitStack, *, whole: bool = False
) -> list[Source]:
    """Open a raster, or one of each date, and find the model's bands in it.

    Args:
        src: What the caller of `predict_raster` passed.
        spec: Of the model.
        read: How the raster is read.
        stack: Closes what is opened.
        whole: Open all of the raster, although only the values of `read.area` are checked.

    Raises:
        RasterError: If bands, units, dates or grids do not fit.
    """
    if spec.dates == 1:
        dataset = stack.enter_context(open_date(src, read, spec))
        part = crop(dataset, _locate(dataset, read))
        return [match_raster(dataset if whole else part, spec, read, checked=part)]
    if reading.is_one(src):
        dataset = stack.enter_context(open_raster(src, dequantize=_method(spec, read)))
        part = crop(dataset, _locate(dataset, read))
        return _dates_in_one(dataset if whole else part, spec, read, checked=part)
    dates = list(cast(Sequence[Any], src))
    if len(dates) != spec.dates:
        raise errors.RasterError(
            f'this model takes images of {spec.dates} dates, found {len(dates)} rasters; pass one for each date, '
            'oldest first, or a list of tiles for each date'
        )
    first, *others = opened = [stack.enter_context(open_date(date, read, spec)) for date in dates]
    area = _locate(first, read)
    if area is None:  # bands that do not fit say more
        sources = [match_raster(dataset, spec, read) for dataset in opened]
    for other in others:
        require_same_grid(first.geobox, other.geobox)
    if area is None:
        return sources
    parts = [crop(dataset, area) for dataset in opened]
    return [match_raster(dataset if whole else part, spec, read, checked=part) for dataset, part in zip(opened, parts)]


def locate_area(source: Source, read: ReadOptions) -> PixelArea | None:
    """Return the area that is wanted, in the pixels that are read; None for all of the raster."""
    return None if read.area is None else read.area.locate(source.box, shown=_shown(source.dataset))


def _locate(dataset: raster.Raster, read: ReadOptions) -> PixelArea | None:
    if read.area is None:
        return None
    require_place(dataset)
    return read.area.locate(dataset.geobox, shown=_shown(dataset))


def crop(dataset: raster.Raster, area: PixelArea | None) -> raster.Raster:
    """Return the part of an open raster; all of it where `area` is None."""
    return dataset if area is None else CroppedRaster(dataset, area)


def open_date(src: reading.RasterPath, read: ReadOptions, spec: ModelSpec) -> AbstractContextManager[raster.Raster]:
    """Open a raster of one date with the user's names of bands; in a mosaic their NoData must not cover other files."""
    # of one file, several values are counted and matched where its bands are
    single = reading.is_one(src) and not is_stac(src) and not isinstance(read.nodata, int | float)
    return open_raster(
        src, bands=read.bands, nodata=None if single else read.nodata, warp=True, dequantize=_method(spec, read)
    )


def _method(spec: ModelSpec, read: ReadOptions) -> Dequantize | None:
    """Return how codes of embeddings become vectors: as the caller says, else as in training."""
    return spec.product.dequantize if read.dequantize is None and spec.product else read.dequantize


def match_raster(dataset: Any, spec: ModelSpec, read: ReadOptions, *, checked: Any = None) -> Source:
    """Find a model's bands in an open raster, and check that its values are in the units of the training chips.

    Args:
        dataset: From `open_raster`.
        spec: Of the model.
        read: How the raster is read.
        checked: The part of it whose values are checked; None for all.

    Raises:
        RasterError: If it has no place, or bands or units do not fit.
    """
    require_place(dataset)
    indexes = find_band_indexes(dataset, spec.bands, names=read.bands, sensor=read.sensor)
    return _make_source(dataset, indexes, spec, read, dataset if checked is None else checked)


def _dates_in_one(dataset: Any, spec: ModelSpec, read: ReadOptions, *, checked: Any) -> list[Source]:
    """Part a file that holds all bands of the first date, then all of the second, and so on."""
    require_place(dataset)
    bands = len(spec.bands)
    if dataset.count != spec.dates * bands:
        raise errors.RasterError(
            f'this model takes {spec.dates} dates of {bands} bands, found one raster of {dataset.count} bands; pass a '
            'list of one raster for each date'
        )
    log.warning('%s bands taken as %s dates of %s bands, one date after the other', dataset.count, spec.dates, bands)
    firsts = range(1, dataset.count + 1, bands)
    return [_make_source(dataset, range(first, first + bands), spec, read, checked) for first in firsts]


def _make_source(dataset: Any, indexes: Sequence[int], spec: ModelSpec, read: ReadOptions, checked: Any) -> Source:
    """Check the units and the size of the pixels of some bands, and say how they are read."""
    product = _check_product(dataset, spec, read)
    # an item's values are scaled when they are read; its files were asked for this value as they store it
    nodata = (None,) * len(indexes) if dataset.rescaled else read.nodata_of(indexes, dataset.count)
    check_nodata(nodata, [dataset.dtypes[index - 1] for index in indexes], _shown(dataset))
    if not read.is_checked:
        _check_values(dataset, indexes, spec, read, product, nodata, checked)
    target = choose_geobox(raster_geobox(dataset), spec, read.resolution, shown=_shown(dataset))
    unit = product is not None and product.has_unit_length and len(indexes) == ALPHAEARTH_BANDS
    return Source(dataset, tuple(indexes), target, nodata, unit)


def _check_values(
    dataset: Any,
    indexes: Sequence[int],
    spec: ModelSpec,
    read: ReadOptions,
    product: EmbeddingProduct | None,
    nodata: Sequence[float | None],
    checked: Any,
) -> None:
    """Check units and lengths of a sample of the pixels, and watch the border while the rest is read."""
    dataset.check_border(BorderCheck(_shown(dataset), nodata))
    # a few pixels tell of vectors what they are, and each window costs a block of many bands
    few = {} if product is None else {'window_size': 32, 'per_side': 2}
    sample = sample_pixels(checked, indexes, **few)
    for band, value in enumerate(nodata):
        if (kept := differs(sample[band], value)) is not None:
            sample = sample[:, kept]
    if (marker := find_marker(sample)) is not None:  # the border check reports it; it says nothing on units
        sample = sample[:, (sample != marker).all(axis=0)]
    if product is not None:
        check_lengths(sample, product, _shown(dataset))
    check_units(sample, spec, read)


def _check_product(dataset: Any, spec: ModelSpec, read: ReadOptions) -> EmbeddingProduct | None:
    """Refuse precomputed embeddings of another product, version or form than those of training.

    Raises:
        RasterError: If they differ; the message names both.
    """
    found, wanted = find_product(dataset, stated=read.product, by_method=False), spec.product
    if wanted is None:
        if found is not None:
            log.warning('%s holds %s; the model does not know what it was trained on', _shown(dataset), found)
        return found
    found = replace(found, name=wanted.name) if found is not None and not found.name else found
    if found is None:
        log.warning(
            '%s does not say which embeddings it holds; it is taken as %s, what the model was trained on. Pass '
            'product= with name and version to state it',
            _shown(dataset),
            wanted,
        )
        found = replace(wanted, form='codes' if np.dtype(dataset.dtypes[0]).kind in 'iu' else 'floats')
    differs_in = difference(found, wanted)
    if differs_in:
        advice = {
            'product': 'pass a raster of that product, or train a model on this one',
            'version': 'versions share no space: pass a raster of that version, or train a model on this one',
            'form': _form_advice(found, wanted),
        }
        raise errors.RasterError(
            f'{_shown(dataset)} holds {found}, but the model was trained on {wanted}; {advice[differs_in]}'
        )
    if found.version != wanted.version:
        log.warning('%s holds %s, the model was trained on %s: one names no version', _shown(dataset), found, wanted)
    return found


def _form_advice(found: EmbeddingProduct, wanted: EmbeddingProduct) -> str:
    if wanted.form == 'codes':
        return 'pass the raster of codes, or train a model on vectors (dequantize=)'
    method = next((key for key, title in TITLES.items() if title == found.name), None)
    return f'pass dequantize={method!r}' if method else 'pass the raster of float vectors'


def _shown(dataset: Any) -> str:
    return 'the mosaic' if str(dataset.name).startswith('<') else str(dataset.name)


def check_units(sample: np.ndarray, spec: ModelSpec, read: ReadOptions) -> None:
    """Refuse pixels in other units than the training chips; a caller who says scale=1 is only told.

    Args:
        sample: Valid pixels (bands, n) in stored units, n possibly 0.
        spec: Of the model.
        read: How the pixels are read.

    Raises:
        RasterError: If they are in other units.
    """
    found = units.typical_values(sample, read.to_model_units)
    if found is None:
        if sample.size:
            log.warning('the sampled pixels are 0 in all bands; if 0 means missing, pass nodata=0')
        return
    comparison = units.compare_units(found, spec.statistics, spec.bands)
    hint = f'The raster {comparison.hint}. ' if comparison.hint else ''
    if comparison.far and read.scale != 1:
        raise errors.RasterError(
            f"the raster's values are in other units than the training chips: medians {comparison.table}. {hint}"
            'Pass scale= (and offset=) so that value * scale + offset is what the model was trained on; scale=1 if it '
            'is already'
        )
    if comparison.odd:
        log.warning('the raster may be in other units than the training chips: medians %s. %s', comparison.table, hint)
