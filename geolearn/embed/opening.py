"""Open rasters to embed them: say what their bands are, and build the encoder for these."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rasterio.windows import Window

from geolearn.bands import Band, get_bands, match_bands
from geolearn.embed import scaling
from geolearn.embed.embeddings import KEY, EmbeddingSource
from geolearn.embed.encoder import Encoder, EncoderOptions, make_encoder
from geolearn.errors import BandError, RasterError
from geolearn.inference import reading
from geolearn.inference.options import NoData, ReadOptions, Scale
from geolearn.inference.source import Source
from geolearn.models.new_spec import with_wavelengths
from geolearn.raster import EmbeddingProduct, GeoBox, common_dtype, find_product, open_raster, sample_pixels
from geolearn.raster.nodata import differs
from geolearn.raster.raster import Raster
from geolearn.raster.reading import is_one, raster_bands, require_place
from geolearn.raster.scaling import Units, check_same_units
from geolearn.raster.stac import is_stac

POOLED = 2_000_000
"""Pixels that statistics of several rasters are taken from, at most."""


class Wanted(NamedTuple):
    """What the caller says of the bands of imagery, and of what is missing in it.

    Args:
        bands: A sensor's key, names or `Band` objects; of a raster that has more bands, those to take.
        sensor: Whose names these are, or those in the file.
        nodata: Value that marks missing pixels.
        scale: Multiplies stored values before they are normalized; ``'db'`` makes decibels of linear power.
        offset: Is added after that.
    """

    bands: str | Sequence[Band | str] | None = None
    sensor: str | None = None
    nodata: NoData = None
    scale: Scale | None = None
    offset: float = 0.0


@dataclass(frozen=True, eq=False)
class OpenRaster:
    """An open raster whose bands an encoder is bound to.

    Args:
        encoder: Of its bands.
        source: The raster.
        read: How stored values become the encoder's units.
    """

    encoder: Encoder
    source: Source
    read: ReadOptions


def open_to_embed(source: Any, options: EncoderOptions, wanted: Wanted, stack: ExitStack) -> OpenRaster:
    """Open a raster, and build the encoder for its bands and units.

    Args:
        source: A raster, or several that make one mosaic.
        options: Which encoder.
        wanted: What the caller says of the bands.
        stack: Closes the raster.

    Raises:
        RasterError: If it cannot be read, has no pixel with data, the bands that are wanted cannot be told, or it
            holds embeddings already.
        BandError: If nothing says what its bands are and the backbone needs to know.
    """
    _refuse_dates(source)
    # of one file, values of NoData are matched where its bands are
    shared = wanted.nodata if isinstance(wanted.nodata, int | float) or is_stac(source) or not is_one(source) else None
    dataset = stack.enter_context(open_raster(source, nodata=shared, warp=True))
    require_place(dataset)
    refuse_vectors(dataset.name, find_product(dataset), stated=dataset.tags().get(KEY.upper()))
    bands, indexes, names = choose_bands(dataset, wanted, options.wavelengths)
    radar = tuple(band.is_radar for band in bands)
    read = ReadOptions(names, wanted.sensor, wanted.scale, wanted.offset, wanted.nodata, radar=radar)
    pixels = _sample(dataset, indexes, read)
    converted = wanted.scale is not None or bool(wanted.offset)
    dtype = 'float32' if converted else str(common_dtype(dataset, indexes))
    encoder = make_encoder(options, bands, pixels, dtype=dtype)
    encoder = replace(encoder, spec=replace(encoder.spec, cell_size=cell_size(dataset.geobox)))
    return OpenRaster(encoder, reading.match_raster(dataset, encoder.spec, read), read)


def _sample(dataset: Raster, indexes: Sequence[int], read: ReadOptions) -> np.ndarray:
    """Return pixels with data (bands, n), as they are stored unless the caller converts them."""
    sample = sample_pixels(dataset, indexes)
    for number, value in enumerate(() if dataset.rescaled else read.nodata_of(indexes, dataset.count)):
        if (kept := differs(sample[number], value)) is not None:
            sample = sample[:, kept]
    return read.to_model_units(sample) if read.scale is not None or read.offset else sample


def count_all(first: OpenRaster, sources: Sequence[Any], options: EncoderOptions) -> OpenRaster:
    """Return the first of several rasters with an encoder whose statistics are those of all of them, in any order.

    Raises:
        RasterError: If a raster cannot be read, or has other bands, units or pixel sizes than the first.
    """
    samples = []
    for source in sources:
        with ExitStack() as stack:
            opened = open_as(first, source, stack).source
            pixels = _sample(opened.dataset, opened.indexes, first.read)
            step = max(1, -(-pixels.shape[1] * len(sources) // POOLED))
            samples.append(pixels[:, ::step])
    spec = first.encoder.spec
    encoder = make_encoder(options, spec.bands, scaling.pool_samples(samples), dtype=spec.dtype)
    return replace(first, encoder=replace(encoder, spec=replace(encoder.spec, cell_size=spec.cell_size)))


def refuse_vectors(name: str, product: EmbeddingProduct | None, *, stated: str | None = None) -> None:
    """Refuse what was computed from images already: an encoder takes images.

    Args:
        name: Of the raster or chips.
        product: Precomputed embeddings that it holds; None where it holds none.
        stated: What geolearn wrote beside vectors of its own; None for other rasters.

    Raises:
        RasterError: With what to do instead.
    """
    if product is not None:
        raise RasterError(
            f'{name} holds {product}, which are embeddings already; train PixelHead on them, or pass their vectors to '
            'probe. An encoder takes images'
        )
    if stated is not None:
        made = EmbeddingSource.from_json(stated)
        raise RasterError(
            f'{name} holds what {made.backbone} made of an image; read its vectors with Embeddings.load, or pass the '
            'image itself. An encoder takes images'
        )


def _refuse_dates(source: Any) -> None:
    """Refuse lists of rasters of several dates: an encoder sees one, and a mosaic would show the first of them alone.

    Raises:
        RasterError: If the list holds lists, or files of the same bands over the same ground.
    """
    if is_one(source):
        return
    advice = (
        'an encoder sees images of one date: embed each date by itself (embed_many embeds several in one run), and put '
        'the vectors side by side'
    )
    files = list(source)
    if any(isinstance(file, list | tuple) for file in files):
        raise RasterError(f'{len(files)} lists of rasters are those of several dates; {advice}')
    places: dict[tuple[Any, ...], Any] = {}
    for file in files:
        if not isinstance(file, str | Path):
            return
        with open_raster(file) as raster:
            if raster.count == 1:  # bands of one scene may lie in a file each
                return
            place = (raster.shape, tuple(raster.transform)[:6], raster.stated)
        if place in places:
            raise RasterError(
                f'{places[place]} and {file} hold the same bands of the same ground, so two dates; {advice}'
            )
        places[place] = file


def open_as(first: OpenRaster, source: Any, stack: ExitStack) -> OpenRaster:
    """Open another raster for the encoder of the first; its bands, units and pixel size must be the same.

    Raises:
        RasterError: If they are not.
    """
    (found,) = reading.open_dates(source, first.encoder.spec, first.read, stack)
    check_same_units(Units.of(first.source.dataset, first.source.indexes), Units.of(found.dataset, found.indexes))
    return replace(first, source=found)


def choose_bands(
    dataset: Raster, wanted: Wanted, wavelengths: Sequence[float | None] | None
) -> tuple[tuple[Band, ...], list[int], Sequence[str] | None]:
    """Say which bands of a raster are embedded.

    Args:
        dataset: The raster.
        wanted: What the caller says.
        wavelengths: Of each band that is taken, instead of what its name says; None for radar.

    Returns:
        The bands, their 1-based numbers, and the names of all bands of the file where the caller's replace them.

    Raises:
        RasterError: If the raster does not hold the bands that are wanted.
        BandError: If `wavelengths` are of another number.
    """
    known = raster_bands(dataset, sensor=wanted.sensor)
    if wanted.bands is None:
        chosen, indexes, names = known, list(dataset.indexes), None
        if wavelengths is not None and all(band.wavelength_um is None and not band.is_radar for band in known):
            chosen = scaling.name_bands(dataset.count, None, wavelengths=wavelengths)
            return chosen, indexes, [band.name for band in chosen]
    else:
        chosen = _listed(wanted)
        try:
            indexes, names = [index + 1 for index in match_bands(known, chosen)], None
        except BandError as error:
            if len(chosen) != dataset.count:
                raise RasterError(
                    f'{dataset.name}: {error}; or pass bands= with the names of all {dataset.count} bands in file order'
                ) from error
            indexes, names = list(dataset.indexes), [band.name for band in chosen]
    if wavelengths is not None:
        chosen = with_wavelengths(chosen, wavelengths)
    return tuple(chosen), indexes, names


def _listed(wanted: Wanted) -> tuple[Band, ...]:
    assert wanted.bands is not None  # the caller looked
    if isinstance(wanted.bands, str):
        return get_bands(wanted.bands)
    return scaling.name_bands(len(wanted.bands), wanted.bands, sensor=wanted.sensor)


def cell_size(box: GeoBox) -> dict[str, Any] | None:
    """Return the size of a raster's pixels as ArcGIS states it, by which others are compared; None without a place."""
    if box.transform.is_identity:
        return None
    across, down = box.resolution
    return {'x': across, 'y': down, 'spatialReference': {'wkt': box.crs}}


def read_whole(source: Source, read: ReadOptions) -> np.ndarray:
    """Read all of a raster, (bands, H, W) float32 in the encoder's units, NaN where there is no data."""
    height, width = source.shape
    pixels, valid = source.read(Window(0, 0, width, height))
    values = read.to_model_units(pixels)
    if valid is not None:
        values[:, ~valid] = np.nan
    values[:, ~np.isfinite(values).all(axis=0)] = np.nan
    return values


def name_source(source: Any, number: int) -> str:
    """Return the name of the item that a raster becomes."""
    while isinstance(source, list | tuple) and source:
        source = source[0]
    return Path(source).stem if isinstance(source, str | Path) else str(number)
