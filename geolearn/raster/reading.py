"""Open rasters, read windows with their masks, and find bands by name."""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
from rasterio.enums import ColorInterp
from rasterio.errors import RasterioError
from rasterio.windows import Window

from geolearn.bands import Band, find_sensor, is_placeholder, list_sensors, match_bands, resolve_bands
from geolearn.errors import BandError, RasterError, UnknownNameError
from geolearn.raster import geobox, opening
from geolearn.raster.arrays import ArrayRaster, is_array, is_zarr, open_zarr
from geolearn.raster.embeddings import Dequantize, as_vectors, check_one_product, open_tessera_tile
from geolearn.raster.item_raster import open_item
from geolearn.raster.mosaic import BandStack, Mosaic, ResampledRaster, covers_same_ground
from geolearn.raster.nodata import compact, valid_in_all_bands
from geolearn.raster.raster import NoData, OpenFiles, Raster, place_names
from geolearn.raster.scaling import Scaling, scaling_of
from geolearn.raster.scene import find_scene, image_files, is_quality, name_files, read_name, sensor_of
from geolearn.raster.stac import is_stac, read_items
from geolearn.raster.warp import bring_to_one_grid

log = logging.getLogger('geolearn')

_SENSOR_TAGS = ('SENSOR_NAME', 'SensorName', 'SENSOR', 'SATELLITEID', 'SPACECRAFT_NAME', 'PLATFORM', 'SATELLITE')

RasterPath = str | Path | Sequence[str | Path] | Any
"""A file; a folder that holds the bands of one scene, or tiles; a STAC item or collection; a DataArray or Dataset; or
several of these: the bands of one scene, or a mosaic."""

Bands = Sequence[str | Band] | None


@contextmanager
def open_raster(
    path: RasterPath,
    *,
    bands: Bands = None,
    nodata: NoData = None,
    chip: bool = False,
    quiet: bool = False,
    warp: bool = False,
    dequantize: Dequantize | None = None,
) -> Iterator[Raster]:
    """Open a raster, or several as one, for reading.

    Several files are the bands of one scene where they cover the same ground and their names, or `bands`, tell the
    bands apart; files of several resolutions are brought to the finest. Else they are the tiles of a mosaic, of the
    same bands, type, CRS and grid; where they overlap, later ones lie over earlier ones. What they were taken for is
    logged. A folder is a scene (a Sentinel-2 SAFE product, a Landsat Collection 2 scene, or a file for each band), or
    the files in it, by name.

    Args:
        path: A file that GDAL reads, a folder, or several.
        bands: Names of the bands in file order instead of those that the files state; of a folder, those to take.
        nodata: Value that means NoData, besides those that the files declare; or one for each band, None for none.
        chip: Whether the file lies in a folder of chips, and so must be a GeoTIFF, PNG, JPEG or MRF whose pixels lie
            in no other place.
        quiet: Whether what several files were taken for is not logged, since it was when they were opened before.
        warp: Whether the tiles of a mosaic may differ in CRS, grid and NoData: they are brought to the grid of the
            first while they are read.
        dequantize: Read stored codes of embeddings as vectors: ``'alphaearth'`` or ``'tessera'``.

    Yields:
        The raster.

    Raises:
        RasterError: If a file does not exist, is no raster, or breaks off while being read; if several fit together in
            no way, or in more than one.
    """
    if chip:
        opening.check_chip_file(str(path))
    with opening.small_cache():
        raster = open_unclosed(path, bands=bands, nodata=nodata, quiet=quiet, warp=warp, dequantize=dequantize)
        try:
            with reading_errors(raster):
                yield raster
        finally:
            raster.close()


def open_unclosed(
    path: RasterPath,
    *,
    bands: Bands = None,
    nodata: NoData = None,
    quiet: bool = False,
    warp: bool = False,
    dequantize: Dequantize | None = None,
) -> Raster:
    """Open a raster as `open_raster` does; `Raster.close` closes it."""
    names = None if bands is None else [band.name if isinstance(band, Band) else band for band in bands]
    return _open(path, names, nodata, _Files(logging.DEBUG if quiet else logging.WARNING, warp, dequantize))


@contextmanager
def reading_errors(raster: Raster) -> Iterator[None]:
    """Raise what goes wrong while a raster is read as RasterError with its name."""
    try:
        yield
    except (RasterioError, UnicodeDecodeError) as error:
        raise RasterError(f'cannot read raster {raster.name}: {error}') from error


class _Files(OpenFiles):
    """The files of one raster, and how loudly is said what they were taken for."""

    def __init__(self, level: int = logging.WARNING, warp: bool = False, dequantize: Dequantize | None = None) -> None:
        super().__init__()
        self.level, self.warp, self.dequantize = level, warp, dequantize

    def open(
        self,
        path: str | Path,
        *,
        bands: Sequence[str] | None = None,
        nodata: NoData = None,
        declared: float | None = None,
    ) -> Raster:
        """Return a file as a raster, with codes of embeddings as vectors where that is asked for."""
        if self.dequantize == 'tessera' and str(path).lower().endswith('.npy'):
            return open_tessera_tile(Path(path), self)
        raster = super().open(path, bands=bands, nodata=nodata, declared=declared)
        return raster if self.dequantize is None else as_vectors(raster, self.dequantize, self)

    def array(self, source: Any, *, bands: list[str] | None, nodata: NoData, name: str | None = None) -> Raster:
        """Return an array as a raster, like `open`."""
        raster = ArrayRaster(source, bands=bands, nodata=nodata, name=name)
        return raster if self.dequantize is None else as_vectors(raster, self.dequantize, self)

    def mosaic(self, rasters: Sequence[Raster]) -> Mosaic:
        """Lay rasters over each other, the later ones on top."""
        check_one_product(rasters)
        return Mosaic(bring_to_one_grid(rasters, level=self.level) if self.warp else rasters)


def mosaic(paths: Sequence[str | Path]) -> Mosaic:
    """Open the tiles of a mosaic; `Mosaic.close` closes them.

    Raises:
        RasterError: If a file cannot be opened or does not fit the first; the message names both.
    """
    if not paths:
        raise RasterError('no raster was given; pass at least one file')
    files = _Files()
    try:
        return Mosaic([_open_one(path, files, None, None) for path in paths])
    except BaseException:
        files.close()
        raise


def _refuse_bytes(path: object) -> None:
    """Refuse a name as os.listdir(b'.') gives it, which would else be taken for a list of numbers."""
    if isinstance(path, bytes):
        raise RasterError(f'the name of a raster must be a text or a Path, got {path!r}; pass os.fsdecode(name)')


def _open(path: RasterPath, bands: list[str] | None, nodata: NoData, files: _Files) -> Raster:
    try:
        _refuse_bytes(path)
        if is_one(path):
            return _open_one(path, files, bands, nodata)
        if not isinstance(path, Iterable) or isinstance(path, Mapping | np.ndarray):
            shown = f'an array of shape {path.shape}' if isinstance(path, np.ndarray) else repr(path)[:100]
            raise RasterError(f'a raster must be a path, a STAC item, a DataArray or a list of these, got {shown}')
        several = list(cast(Sequence[Any], path))
        if not several:
            raise RasterError('no raster was given; pass at least one file')
        if len(several) == 1:
            return _open_one(several[0], files, bands, nodata)
        return _open_several(several, files, bands, nodata)
    except BaseException:
        files.close()
        raise


def is_one(source: object) -> bool:
    """Whether a source is one raster or collection, and not a list of several."""
    return isinstance(source, str | Path) or is_array(source) or is_stac(source)


def _open_one(path: Any, files: _Files, bands: list[str] | None, nodata: NoData) -> Raster:
    if is_array(path):
        return files.array(path, bands=bands, nodata=nodata)
    if is_zarr(path):
        return files.array(open_zarr(path), bands=bands, nodata=nodata, name=str(path))
    if is_stac(path):
        items = read_items(path)
        opened = [open_item(item, files, bands=bands, nodata=nodata, level=files.level) for item in items]
        return opened[0] if len(opened) == 1 else files.mosaic(opened)
    if os.path.isdir(path):
        return _open_folder(Path(path), files, bands, nodata)
    raster = files.open(path, bands=bands, nodata=nodata)
    if str(path).lower().endswith('.vrt'):
        others = [name for name in raster.files if os.path.abspath(name) != os.path.abspath(path)]
        if others:
            log.log(files.level, '%s takes its pixels from %s files, the first %s', path, len(others), others[0])
    return raster


def _open_folder(folder: Path, files: _Files, bands: list[str] | None, nodata: NoData) -> Raster:
    images = image_files(folder)
    if len(images) > 1 and not any(read_name(path) for path in images):
        log.log(files.level, '%s: %s rasters, in the order of their names', folder, len(images))
        return _open_several(images, files, bands, nodata)
    scene = find_scene(folder, bands)
    stack = _stack(
        [file.path for file in scene.files],
        [file.name for file in scene.files],
        files,
        nodata,
        sensor=scene.sensor,
        declared=scene.nodata,
    )
    stack.product_offset = scene.offset
    log.log(
        files.level, '%s: a scene of %s bands: %s', folder, stack.count, ', '.join(file.name for file in scene.files)
    )
    if scene.note is not None:
        log.log(files.level, '%s: %s', folder, scene.note)
    return stack


def _stack(
    paths: Sequence[str | Path],
    names: Sequence[str],
    files: _Files,
    nodata: NoData,
    *,
    sensor: str | None,
    declared: float | None = None,
) -> BandStack:
    """Open a file for each band of a scene."""
    values = [nodata] if nodata is None or isinstance(nodata, int | float) else list(nodata)
    values = values * len(paths) if len(values) == 1 else values
    if len(values) != len(paths):
        raise RasterError(f'nodata= holds {len(values)} values for {len(paths)} bands; pass one, or one for each')
    stack = BandStack(
        [
            files.open(path, bands=[name], nodata=value, declared=declared)
            for path, name, value in zip(paths, names, values)
        ],
        names,
        sensor=sensor,
    )
    if stack.resampled:
        width, height = stack.geobox.resolution
        log.log(
            files.level,
            '%s of %s bands are resampled (bilinear) to pixels of %g x %g, the finest among them',
            len(stack.resampled),
            stack.count,
            width,
            height,
        )
    return stack


def _open_several(paths: Sequence[str | Path], files: _Files, bands: list[str] | None, nodata: NoData) -> Raster:
    """Open several files or folders as the bands of one scene, or as a mosaic, whichever they are."""
    if any(is_array(path) or is_stac(path) or is_zarr(path) or os.path.isdir(path) for path in paths):
        return files.mosaic([_open_one(path, files, bands, nodata) for path in paths])
    plain = [files.open(path) for path in paths]
    single = all(raster.count == 1 for raster in plain)
    same_ground = all(covers_same_ground(raster, plain[0]) for raster in plain[1:])
    if single and same_ground:
        names = bands if bands is not None and len(bands) == len(paths) else _names_of_bands(paths, plain)
        if bands is not None and bands != names:
            raise RasterError(f'bands= names {len(bands)} bands but {len(paths)} files of one band each are given')
        if bands is None and 0 < len(quality := [path for path in paths if is_quality(path)]) < len(paths):
            raise RasterError(
                f'{quality[0]} holds codes of quality, such as clouds, and no measurements: leave it out of the list '
                'of bands, or pass bands= with a name for each file if a network shall see it'
            )
        if names is None:
            raise RasterError(
                f'{paths[0]} and {paths[1]} cover the same ground with one band each, and their names do not tell '
                'which bands they are: pass bands= with a name for each file if they are the bands of one scene; '
                'pass one of them if they are dates or versions'
            )
        log.log(
            files.level,
            '%s files of one band each over the same ground are taken as the bands of one scene: %s',
            len(paths),
            ', '.join(f'{name} = {Path(path).name}' for name, path in zip(names, paths)),
        )
        return _stack(paths, names, files, nodata, sensor=sensor_of(paths))
    if not single and same_ground and bands is None and _hold_different_bands(plain):
        stack = BandStack(
            [files.open(path, nodata=nodata) for path in paths],
            [name for raster in plain for name in raster.descriptions],
            sensor=sensor_of(paths),
        )
        log.log(
            files.level,
            '%s files of different bands over the same ground are taken as one scene of %s bands',
            len(paths),
            stack.count,
        )
        return stack
    if single:
        _refuse_bands_of_different_places(paths, plain)
    if bands is None and nodata is None:
        return files.mosaic(plain)
    return files.mosaic([files.open(path, bands=bands, nodata=nodata) for path in paths])


def _names_of_bands(paths: Sequence[str | Path], rasters: Sequence[Raster]) -> list[str] | None:
    """Return a name for each file of one band: by the names of the files, else as the files name their bands."""
    if (names := name_files(paths)) is not None:
        return names
    stated = [raster.descriptions[0] or '' for raster in rasters]
    told = not any(is_placeholder(name) for name in stated)
    return stated if told and len({name.lower() for name in stated}) == len(stated) else None


def _hold_different_bands(rasters: Sequence[Raster]) -> bool:
    names = [name for raster in rasters for name in raster.descriptions]
    lowered = {name.lower() for name in names if name and not is_placeholder(name)}
    return len(lowered) == len(names)


def _refuse_bands_of_different_places(paths: Sequence[str | Path], rasters: Sequence[Raster]) -> None:
    """Refuse files of one band that are neither tiles of one band nor the bands of one scene."""
    known = [read_name(path) for path in paths]
    if all(known) and len({file.name for file in known if file is not None}) > 1:
        other = next(raster for raster in rasters if not covers_same_ground(raster, rasters[0]))
        raise RasterError(
            f'{rasters[0].name} covers {rasters[0].geobox.bounds} and {other.name} {other.geobox.bounds}: by their '
            'names they are different bands, but not of one scene. Pass the bands of one scene at a time, warped to '
            'one extent (gdalwarp -te), or tiles of one raster of all bands'
        )


def raster_geobox(src: Any) -> geobox.GeoBox:
    """Return where the dataset's pixels lie."""
    box: geobox.GeoBox = src.geobox
    return box


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
    if src.numbered:
        log.warning('%s gives several bands one name; they are taken as %s', _shown(src), ', '.join(names))
    return resolve_bands(names, sensor=sensor, tag_wavelengths_um=tag_wavelengths_um(src))


def tag_wavelengths_um(src: Any) -> list[float | None]:
    """Read each band's center wavelength as GDAL's IMAGERY domain, ENVI and EnMAP write it; None where none is."""
    return [_tag_wavelength_um(src, index) for index in src.indexes]


def _tag_wavelength_um(src: Any, index: int) -> float | None:
    imagery, plain = src.tags(index, ns='IMAGERY'), src.tags(index)
    if 'CENTRAL_WAVELENGTH_UM' in imagery:
        return _micrometers(imagery['CENTRAL_WAVELENGTH_UM'], 'micrometers')
    lowered = {key.lower(): value for key, value in plain.items()}
    units = lowered.get('wavelength_units', lowered.get('wavelength_unit', ''))
    return _micrometers(lowered.get('wavelength', lowered.get('wavelength_um', '')), units)


def _micrometers(text: str, units: str) -> float | None:
    """Read a wavelength; None where it is not a number, or not of light (radar, masks and elevation carry tags too)."""
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
    src.require_real()
    if names is not None:
        names = [name or '' for name in place_names(names, src.colorinterp, _shown(src))]
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
        raise RasterError(
            f'{_shown(src)}: {error}; or pass bands= with their names in file order, or sensor= whose names they are'
        ) from error


def _match_colors(src: Any, wanted: Sequence[Band]) -> list[int] | None:
    """Find wanted bands by red, green and blue as the file shows them; None where that does not give all of them.

    Any three bytes are shown so (false colors too), so this only chooses among bands and never names one.
    """
    colors = {ColorInterp.red: 'red', ColorInterp.green: 'green', ColorInterp.blue: 'blue'}
    found = {colors[color]: index for index, color in zip(src.indexes, src.colorinterp) if color in colors}
    indexes = [found.get(band.common_name or '') for band in wanted]
    return None if None in indexes else [index for index in indexes if index]


def _shown(src: Any) -> str:
    """Name the dataset in a message; a mosaic's name is a page of XML."""
    return str(src.name)


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
    pixels, masks = src.read_masked(window, indexes, out)
    return pixels, masks


def common_dtype(src: Raster, indexes: Sequence[int]) -> Any:
    """Return the dtype that holds every value of these 1-based bands; almost always the one that all share."""
    return src.common_dtype(indexes)


def read_image(
    path: RasterPath, indexes: Sequence[int] | None = None
) -> tuple[np.ndarray, np.ndarray | None, geobox.GeoBox]:
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
    with open_raster(path, chip=True) as src:
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
    src.require_real()
    size_y, size_x = min(window_size, src.height), min(window_size, src.width)
    # of a small raster fewer windows show all
    down, across = (min(per_side, -(-length // window_size)) for length in (src.height, src.width))
    parts = []
    for row in np.linspace(0, src.height - size_y, down).astype(int):
        for col in np.linspace(0, src.width - size_x, across).astype(int):
            pixels, mask = read_window(src, Window(int(col), int(row), size_x, size_y), indexes)
            flat = pixels.reshape(len(indexes), -1)
            parts.append(flat if mask is None else flat[:, mask.ravel()])
    return np.concatenate(parts, axis=1)


def read_stack(
    paths: Sequence[Path], *, dequantize: Dequantize | None = None
) -> tuple[np.ndarray, np.ndarray | None, geobox.GeoBox]:
    """Read all bands of a file, or several single-band files that cover the same ground, as one image.

    Files of coarser pixels are resampled to the finest of them: bilinear, since pixels are measurements.

    Args:
        paths: The file, or those of all bands.
        dequantize: Read the codes of embeddings in one file as vectors.

    Returns:
        Pixels (bands, height, width) in the stored dtype; a mask of shape (bands, height, width) or (1, height, width),
        True where valid, or None where everything is; and the image's place.

    Raises:
        RasterError: If a file cannot be read, or several files do not cover the same ground.
    """
    return read_stated_stack(paths, dequantize=dequantize)[:3]


def read_stated_stack(
    paths: Sequence[Path], *, dequantize: Dequantize | None = None
) -> tuple[np.ndarray, np.ndarray | None, geobox.GeoBox, Scaling]:
    """Read an image as `read_stack` does, with the scale and offset that files state of each band."""
    if len(paths) == 1:
        with open_raster(paths[0], chip=True, dequantize=dequantize) as src:
            pixels, masks = read_window_masks(src, Window(0, 0, src.width, src.height), src.indexes)
            return pixels, masks, raster_geobox(src), scaling_of(src)
    place = _finest(paths)
    planes, masks, stated = zip(*(_read_resampled(path, place) for path in paths))
    return np.stack(planes), compact(np.stack(masks)), place, sum(stated, ())


def _finest(paths: Sequence[Path]) -> geobox.GeoBox:
    places = []
    for path in paths:
        with open_raster(path, chip=True) as src:
            if src.count != 1:
                raise RasterError(f'{path} holds {src.count} bands; a file for each band holds one')
            places.append(raster_geobox(src))
    best = max(range(len(places)), key=lambda index: places[index].shape[0] * places[index].shape[1])
    finest = places[best]
    for path, box in zip(paths, places):
        if not geobox.same_crs(box.crs, finest.crs):
            raise RasterError(
                f'{path} has {geobox.crs_name(box.crs)}, but {paths[best]} {geobox.crs_name(finest.crs)}; '
                'warp them to one, or fetch again what is truncated'
            )
        apart = np.abs(np.subtract(box.bounds, finest.bounds)).max()
        if apart > 0.5 * max(finest.resolution):
            raise RasterError(
                f'{_place_text(path, box)}, but {_place_text(paths[best], finest)}: their edges lie up to {apart:g} '
                'map units apart; warp them to one extent, or fetch again what is truncated'
            )
    return finest


def _place_text(path: Path, box: geobox.GeoBox) -> str:
    width, height = box.resolution
    return f'{path} covers {box.bounds} in {box.shape[1]}x{box.shape[0]} pixels of {width:g} x {height:g}'


def _read_resampled(path: Path, place: geobox.GeoBox) -> tuple[np.ndarray, np.ndarray, Scaling]:
    with open_raster(path, chip=True) as src:
        aligned = src if geobox.same_grid(src.geobox, place) else ResampledRaster(src, place)
        pixels, masks = read_window_masks(aligned, Window(0, 0, aligned.width, aligned.height), [1])
        return pixels[0], np.ones(place.shape, bool) if masks is None else masks[0], scaling_of(src)
