"""Open rasters, read windows with their masks, and find bands by name."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import RasterioError
from rasterio.windows import Window

from geolearn.bands import Band, find_sensor, is_placeholder, list_sensors, match_bands, resolve_bands
from geolearn.errors import BandError, RasterError, UnknownNameError
from geolearn.raster.geobox import GeoBox
from geolearn.raster.mosaic import mosaic
from geolearn.raster.nodata import valid_by_band, valid_in_all_bands
from geolearn.raster.opening import open_quietly, small_cache

log = logging.getLogger('geolearn')

_SENSOR_TAGS = ('SENSOR_NAME', 'SensorName', 'SENSOR', 'SATELLITEID', 'SPACECRAFT_NAME', 'PLATFORM', 'SATELLITE')

RasterPath = str | Path | Sequence[str | Path]


@contextmanager
def open_raster(path: RasterPath) -> Iterator[Any]:
    """Open a raster, or several as one mosaic, for reading.

    Args:
        path: A file that GDAL reads, or several of the same bands, type, CRS and grid.

    Yields:
        The rasterio dataset.

    Raises:
        RasterError: If the file does not exist, is no raster, or breaks off while being read.
    """
    if not isinstance(path, str | Path) and len(path) == 1:
        path = path[0]
    if isinstance(path, str | Path):
        source, shown = str(path), str(path)
    else:
        source, shown = mosaic(path), f'mosaic of {len(path)} files'
    with small_cache():
        # text in a damaged file need not be UTF-8
        try:
            dataset = open_quietly(source)
        except (RasterioError, UnicodeDecodeError) as error:
            raise RasterError(f'cannot open raster {shown}: {error}') from error
        with dataset:
            try:
                yield dataset
            except (RasterioError, UnicodeDecodeError) as error:
                raise RasterError(f'cannot read raster {shown}: {error}') from error


def raster_geobox(src: Any) -> GeoBox:
    """Return where the dataset's pixels lie."""
    return GeoBox((src.height, src.width), src.transform, src.crs.to_wkt() if src.crs else None)


def require_place(src: Any) -> None:
    """Refuse a dataset whose place is known but lies on no grid; one without any place is fine.

    Raises:
        RasterError: If it has ground control points or rational polynomial coefficients instead of a transform.
    """
    if not src.transform.is_identity:
        return
    if src.gcps[0]:
        found, option = 'ground control points', '-tps'
    elif src.rpcs:
        found, option = 'rational polynomial coefficients', '-rpc'
    else:
        return
    raise RasterError(
        f'{_shown(src)} has {found} instead of a grid; warp it first, '
        f'e.g. gdalwarp {option} -r bilinear {_shown(src)} warped.tif'
    )


def raster_bands(src: Any, *, sensor: str | None = None) -> tuple[Band, ...]:
    """Name the dataset's bands from descriptions, wavelength tags and the sensor's table.

    Args:
        src: Dataset from `open_raster`.
        sensor: Whose bands these are; None takes the file's word.
    """
    tags = src.tags()
    if sensor is None:
        sensor = next((found for key in _SENSOR_TAGS if (found := find_sensor(tags.get(key)))), None)
    names = [description or '' for description in src.descriptions]
    return resolve_bands(names, sensor=sensor, tag_wavelengths_um=tag_wavelengths_um(src))


def tag_wavelengths_um(src: Any) -> list[float | None]:
    """Read each band's centre wavelength as GDAL's IMAGERY domain, ENVI and EnMAP write it; None where none is."""
    return [_tag_wavelength_um(src, index) for index in src.indexes]


def _tag_wavelength_um(src: Any, index: int) -> float | None:
    imagery, plain = src.tags(index, ns='IMAGERY'), src.tags(index)
    if 'CENTRAL_WAVELENGTH_UM' in imagery:
        return _micrometres(imagery['CENTRAL_WAVELENGTH_UM'], 'micrometers')
    lowered = {key.lower(): value for key, value in plain.items()}
    units = lowered.get('wavelength_units', lowered.get('wavelength_unit', ''))
    return _micrometres(lowered.get('wavelength', lowered.get('wavelength_um', '')), units)


def _micrometres(text: str, units: str) -> float | None:
    """Read a wavelength; None where it is no number, or none of light (radar, masks and elevation carry tags too)."""
    try:
        value = float(text)
    except ValueError:
        return None
    units = units.strip().lower()
    if units in ('', 'unknown'):
        units = 'nm' if value > 100 else 'um'  # no band of light is that long in one unit or that short in the other
    if units.startswith('nano') or units == 'nm':
        value /= 1000
    elif not (units.startswith('micro') or units in ('um', 'µm', 'μm')):
        return None
    return value if 0.3 <= value <= 15 else None


def find_band_indexes(
    src: Any, wanted: Sequence[Band], *, names: Sequence[str] | None = None, sensor: str | None = None
) -> list[int]:
    """Find the dataset's 1-based index of each wanted band: by name, else by count.

    Args:
        src: Dataset from `open_raster`.
        wanted: Bands in the order needed.
        names: What the dataset's bands are, in file order, instead of what the file says.
        sensor: Whose names these (or the file's) are, such as ``'Sentinel-2'`` for ``'B04'``.

    Raises:
        UnknownNameError: If `sensor` is none that geolearn knows.
        RasterError: If the names do not cover what is wanted, or there are no names and the count differs.
    """
    if sensor is not None and find_sensor(sensor) is None:
        raise UnknownNameError('sensor', sensor, list_sensors())
    if names is not None and len(names) != src.count:
        raise RasterError(f'bands= names {len(names)} bands but {_shown(src)} holds {src.count}')
    available = raster_bands(src, sensor=sensor) if names is None else resolve_bands(names, sensor=sensor)
    nameless = all(is_placeholder(band.name) and band.wavelength_um is None for band in available)
    if nameless or all(is_placeholder(band.name) and band.wavelength_um is None for band in wanted):
        if nameless and (found := _match_colors(src, wanted)):
            return found
        color_indexes = [i for i, color in zip(src.indexes, src.colorinterp) if color != ColorInterp.alpha]
        for indexes in (color_indexes, list(src.indexes)):  # GDAL calls the last of four bytes opacity, unasked
            if len(indexes) == len(wanted):
                assumed = ', '.join(f'{index} = {band.name!r}' for index, band in zip(indexes, wanted))
                log.warning('%s: bands are taken in file order, as nothing names them: %s', _shown(src), assumed)
                return indexes
        raise RasterError(
            f'{_shown(src)} holds {src.count} bands, which cannot be told apart by name; the model needs '
            f'{len(wanted)}: {[band.name for band in wanted]}. Pass bands= with the name of each band in file order'
        )
    try:
        return [index + 1 for index in match_bands(available, wanted)]
    except BandError as error:
        raise RasterError(f'{_shown(src)}: {error}; or pass bands= with their names in file order') from error


def _match_colors(src: Any, wanted: Sequence[Band]) -> list[int] | None:
    """Find wanted bands by red, green and blue as the file shows them; None where that does not give all of them.

    Any three bytes are shown so (false colours too), so this only chooses among bands and never names one.
    """
    colors = {ColorInterp.red: 'red', ColorInterp.green: 'green', ColorInterp.blue: 'blue'}
    found = {colors[color]: index for index, color in zip(src.indexes, src.colorinterp) if color in colors}
    indexes = [found.get(band.common_name or '') for band in wanted]
    return None if None in indexes else [index for index in indexes if index]


def _shown(src: Any) -> str:
    """Name the dataset in a message; a mosaic's name is a page of XML."""
    return 'the mosaic' if str(src.name).startswith('<') else str(src.name)


def read_window(
    src: Any, window: Window, indexes: Sequence[int], *, out: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Read a window that lies inside the raster.

    Args:
        src: Dataset from `open_raster`.
        window: Columns and rows.
        indexes: 1-based bands.
        out: Array of the result's shape to read into, or None for a new one.

    Returns:
        Pixels of shape (bands, height, width) in the stored dtype, and a boolean mask (height, width) that is True
        where every band holds valid data, or None where all of them do.

    Raises:
        RasterError: If the file cannot be read there.
    """
    pixels, masks = read_window_masks(src, window, indexes, out=out)
    return pixels, valid_in_all_bands(masks)


def read_window_masks(
    src: Any, window: Window, indexes: Sequence[int], *, out: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Read a window as `read_window` does, with masks by band.

    Returns:
        Pixels, and a mask of shape (bands, height, width), or (1, height, width) where one holds for all bands, or None
        where everything is valid.
    """
    try:
        pixels = _read(src, window, indexes, out)
        masks = _valid_masks(src, pixels, window, indexes)
    except (RasterioError, MemoryError) as error:  # a damaged header may claim any size
        rows = f'{int(window.row_off)}..{int(window.row_off + window.height)}'
        raise RasterError(f'cannot read rows {rows} of {_shown(src)}: {error.__cause__ or error}') from error
    return pixels, masks


def common_dtype(src: Any, indexes: Sequence[int]) -> Any:
    """Return the dtype that holds every value of these 1-based bands; almost always the one that all share."""
    dtypes = {src.dtypes[index - 1] for index in indexes}
    return dtypes.pop() if len(dtypes) == 1 else np.result_type(*dtypes)


def _read(src: Any, window: Window, indexes: Sequence[int], out: np.ndarray | None) -> np.ndarray:
    if len({src.dtypes[index - 1] for index in indexes}) == 1:
        found: np.ndarray = src.read(list(indexes), window=window, out=out)
        return found
    if out is None:
        out = np.empty((len(indexes), int(window.height), int(window.width)), common_dtype(src, indexes))
    for plane, index in zip(out, indexes):  # rasterio reads bands of several types one by one only
        plane[:] = src.read(index, window=window)
    return out


def _valid_masks(src: Any, pixels: np.ndarray, window: Window, indexes: Sequence[int]) -> np.ndarray | None:
    """Collect what the file says of NoData, and apply the rule of `geolearn.raster.nodata`."""
    shared = [src.read(index, window=window) > 0 for index in _opacity_indexes(src, indexes)]
    flags = [src.mask_flag_enums[index - 1] for index in indexes]
    if any(_has_mask(flag) for flag in flags):
        if all(MaskFlags.per_dataset in flag for flag in flags):
            shared.append(src.read_masks(indexes[0], window=window) > 0)
        else:
            shared.append(np.stack([src.read_masks(index, window=window) > 0 for index in indexes]))
    return valid_by_band(pixels, [(src.nodatavals[index - 1],) for index in indexes], shared)


def _has_mask(flags: Sequence[MaskFlags]) -> bool:
    """Whether there is a mask of its own, and not one that GDAL derives from one NoData value or from opacity."""
    if MaskFlags.alpha in flags or MaskFlags.all_valid in flags:
        return False
    return MaskFlags.nodata not in flags or MaskFlags.per_dataset in flags


def _opacity_indexes(src: Any, indexes: Sequence[int]) -> list[int]:
    """Return the 1-based bands that say how opaque pixels are, and are no data themselves."""
    return [
        index
        for index, color, name in zip(src.indexes, src.colorinterp, src.descriptions)
        if color == ColorInterp.alpha and index not in indexes and is_opacity_name(name)
    ]


def is_opacity_name(name: str | None) -> bool:
    """Whether a band that is flagged as alpha is called so, or has no name; any other name is that of data."""
    return is_placeholder(name or '') or 'alpha' in (name or '').lower() or 'opacity' in (name or '').lower()


def read_image(path: RasterPath, indexes: Sequence[int] | None = None) -> tuple[np.ndarray, np.ndarray | None, GeoBox]:
    """Read a whole small raster, such as a chip: pixels, mask (see `read_window`) and place."""
    with open_raster(path) as src:
        window = Window(0, 0, src.width, src.height)
        pixels, mask = read_window(src, window, indexes or src.indexes)
        return pixels, mask, raster_geobox(src)


def read_label(path: str | Path) -> np.ndarray:
    """Read a single-band label raster as class values; palette images give their indices.

    Returns:
        (height, width) array in the stored dtype.

    Raises:
        RasterError: If the file holds several bands or no integers.
    """
    with open_raster(path) as src:
        if src.count != 1:
            raise RasterError(f'label {path} holds {src.count} bands; a label raster has one band of class values')
        pixels, _ = read_window(src, Window(0, 0, src.width, src.height), [1])
    label = pixels[0]
    if np.issubdtype(label.dtype, np.integer):
        return label
    if not np.issubdtype(label.dtype, np.floating):
        raise RasterError(f'label {path} holds {label.dtype} numbers; class values are whole numbers')
    if not (np.abs(label) < 2**53).all() or (np.rint(label) != label).any():
        raise RasterError(
            f'label {path} holds fractions, NaN or infinity; class values are whole numbers; '
            "pass target='values' to learn numbers"
        )
    return label.astype(np.int64)


def sample_pixels(src: Any, indexes: Sequence[int], *, window_size: int = 128, per_side: int = 3) -> np.ndarray:
    """Read a few windows spread over the raster, to look at its values without reading all of it.

    Returns:
        Valid pixels of shape (bands, n), n possibly 0.
    """
    size_y, size_x = min(window_size, src.height), min(window_size, src.width)
    parts = []
    for row in np.linspace(0, src.height - size_y, per_side).astype(int):
        for col in np.linspace(0, src.width - size_x, per_side).astype(int):
            pixels, mask = read_window(src, Window(int(col), int(row), size_x, size_y), indexes)
            flat = pixels.reshape(len(indexes), -1)
            parts.append(flat if mask is None else flat[:, mask.ravel()])
    return np.concatenate(parts, axis=1)
