"""An open raster: a file, or several files seen as one, with names of bands that are unique and one rule of NoData."""

import logging
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import RasterioError
from rasterio.windows import Window

from geolearn.bands import is_placeholder, unique_names
from geolearn.errors import RasterError
from geolearn.raster.border import BorderCheck
from geolearn.raster.geobox import GeoBox
from geolearn.raster.nodata import valid_by_band
from geolearn.raster.opening import open_quietly
from geolearn.raster.remote import is_remote, remote_access

log = logging.getLogger('geolearn')

MOST_LISTED = 12
"""Rasters of a container that a message names."""

REMOTE_ADVICE = 'Run it again when the host answers, or copy the file here and pass the copy'

NoData = float | Sequence[float | None] | None
"""Values that mean NoData besides those that a file declares: one for all bands, or one for each."""


class Raster:
    """What every open raster offers, under the names that rasterio has for it.

    Args:
        name: Of the file or the files, for messages.
        geobox: Place.
        dtypes: numpy's name of the type of each band.
        descriptions: Name of each band, or None.
        nodatavals: NoData value of each band as its file declares it, or None.
    """

    def __init__(
        self,
        name: str,
        geobox: GeoBox,
        *,
        dtypes: Sequence[str],
        descriptions: Sequence[str | None],
        nodatavals: Sequence[float | None],
        block_shapes: Sequence[tuple[int, int]],
        scales: Sequence[float],
        offsets: Sequence[float],
        colorinterp: Sequence[ColorInterp],
        crs: Any,
    ) -> None:
        self.name, self.geobox, self.crs = name, geobox, crs
        self.dtypes, self.descriptions = tuple(dtypes), tuple(descriptions)
        self.nodatavals, self.block_shapes = tuple(nodatavals), list(block_shapes)
        self.scales, self.offsets, self.colorinterp = tuple(scales), tuple(offsets), tuple(colorinterp)
        self.gcps: Any = ([], None)
        self.rpcs: Any = None
        self.files: tuple[str, ...] = ()
        self.border: BorderCheck | None = None
        """Takes in what is read, to notice a border that no file declares as NoData; see `check_border`."""
        self.driver = ''
        """GDAL's format of the file, empty where there are several."""
        self.stated = tuple(name or '' for name in descriptions)
        """Names of the bands before equal ones were numbered."""
        self.numbered = False
        """Whether several bands had one name."""
        self.dequantized: Any = None
        """How stored codes of embeddings were made vectors; see `geolearn.raster.embeddings`."""
        self.rescaled = False
        """Whether values are those of a STAC item's scale and offset, and no longer as they are stored."""
        self.product_offset: float | None = None
        """What the product's metadata add to stored values before they are divided; None where they do not say."""
        self.code_dtype = ''
        """Type of the codes that values follow from one by one, which take less memory; empty where there are none."""

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.geobox.shape

    @property
    def height(self) -> int:
        """Number of rows."""
        return self.geobox.shape[0]

    @property
    def width(self) -> int:
        """Number of columns."""
        return self.geobox.shape[1]

    @property
    def transform(self) -> Affine:
        """From (column, row) to map coordinates."""
        return self.geobox.transform

    @property
    def count(self) -> int:
        """Number of bands."""
        return len(self.dtypes)

    @property
    def indexes(self) -> tuple[int, ...]:
        """The 1-based numbers of the bands."""
        return tuple(range(1, self.count + 1))

    @property
    def nodata(self) -> float | None:
        """NoData value of the first band."""
        return self.nodatavals[0]

    def tags(self, index: int = 0, ns: str | None = None) -> Mapping[str, str]:
        """Return metadata of the raster, or of a band by its number, in one of GDAL's domains."""
        return {}

    def colormap(self, index: int) -> Mapping[int, tuple[int, int, int, int]]:
        """Return the colors of a band's values.

        Raises:
            ValueError: If it has none.
        """
        raise ValueError(f'{self.name} has no colors')

    def read_masked(
        self, window: Window, indexes: Sequence[int], out: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Read a window that lies inside the raster: pixels, and a mask as `geolearn.raster.nodata` has it."""
        raise NotImplementedError

    def read_codes(
        self, window: Window, indexes: Sequence[int], out: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Read a window as `read_masked` does, but codes in `code_dtype`, which `put_values` makes values of."""
        raise NotImplementedError

    def put_values(self, codes: np.ndarray, values: np.ndarray) -> None:
        """Put the values of codes (bands, height, width) into an array float32 of the same shape."""
        raise NotImplementedError

    def read(self, index: int) -> np.ndarray:
        """Return one whole band (height, width) as it is stored."""
        band: np.ndarray = self.read_masked(Window(0, 0, self.width, self.height), [index])[0][0]
        return band

    def check_border(self, check: BorderCheck) -> None:
        """Report with `check` where what is read from now on shows a border that no file declares as NoData."""
        self.border = check

    def close(self) -> None:
        """Close the files."""

    def require_real(self) -> None:
        """Refuse complex values, of which networks see neither amplitude nor phase.

        Raises:
            RasterError: If there are any; the message says how to write amplitudes.
        """
        if strange := sorted({dtype for dtype in self.dtypes if 'complex' in dtype}):
            raise RasterError(
                f'{self.name} holds {strange[0]} numbers, which no network takes; write the amplitude first: '
                f'gdal_translate DERIVED_SUBDATASET:AMPLITUDE:{self.name} amplitude.tif'
            )

    def common_dtype(self, indexes: Sequence[int]) -> Any:
        """Return the dtype that holds every value of these 1-based bands; almost always the one that all share."""
        dtypes = {self.dtypes[index - 1] for index in indexes}
        return dtypes.pop() if len(dtypes) == 1 else np.result_type(*dtypes)


class RasterView(Raster):
    """A raster seen on another grid; whatever is not about the grid is that of the source, also its border check.

    Args:
        raster: The source, which is closed with the view.
        geobox: The grid to have.
        block_shapes: Of each band; None for blocks of up to 256 pixels a side.
        crs: Of the grid; None for that of the source.
    """

    def __init__(
        self, raster: Raster, geobox: GeoBox, *, block_shapes: Sequence[tuple[int, int]] | None = None, crs: Any = None
    ) -> None:
        height, width = geobox.shape
        super().__init__(
            raster.name,
            geobox,
            dtypes=raster.dtypes,
            descriptions=raster.descriptions,
            nodatavals=raster.nodatavals,
            block_shapes=block_shapes or [(min(256, height), min(256, width))] * raster.count,
            scales=raster.scales,
            offsets=raster.offsets,
            colorinterp=raster.colorinterp,
            crs=raster.crs if crs is None else crs,
        )
        self._raster = raster
        self.files, self.driver = raster.files, raster.driver
        self.stated, self.numbered = raster.stated, raster.numbered
        self.dequantized, self.rescaled = raster.dequantized, raster.rescaled
        self.product_offset = raster.product_offset

    def colormap(self, index: int) -> Mapping[int, tuple[int, int, int, int]]:
        """Return the colors of the source."""
        return self._raster.colormap(index)

    def check_border(self, check: BorderCheck) -> None:
        """Check the border of what is read from the source."""
        self._raster.check_border(check)

    def tags(self, index: int = 0, ns: str | None = None) -> Mapping[str, str]:
        """Return metadata of the source."""
        return self._raster.tags(index, ns=ns)

    def close(self) -> None:
        """Close the source."""
        self._raster.close()


class OpenFiles:
    """Datasets that are open at the moment; the one that was not used for longest is closed for a new one.

    Args:
        most: How many may be open.
    """

    def __init__(self, most: int = 64) -> None:
        self._most = most
        self._open: OrderedDict[str, Any] = OrderedDict()

    def get(self, path: str) -> Any:
        """Return the open dataset of a file."""
        dataset = self._open.pop(path, None)
        if dataset is None:
            while len(self._open) >= self._most:
                self._open.popitem(last=False)[1].close()
            # text in a damaged file need not be UTF-8
            try:
                with remote_access(is_remote(path)):
                    dataset = open_quietly(path)
            except UnicodeEncodeError as error:
                shown = path.encode('utf-8', 'backslashreplace').decode()
                raise RasterError(f'cannot open raster {shown}: its name is not UTF-8; rename it') from error
            except (RasterioError, UnicodeDecodeError) as error:
                advice = f'. {REMOTE_ADVICE}' if is_remote(path) else _advise_on(path)
                raise RasterError(
                    f'cannot open raster {path}: {str(error).rstrip(".") if advice else error}{advice}'
                ) from error
        self._open[path] = dataset
        return dataset

    def open(
        self,
        path: str | Path,
        *,
        bands: Sequence[str] | None = None,
        nodata: NoData = None,
        declared: float | None = None,
    ) -> 'Raster':
        """Return a file as a raster; see `FileRaster`."""
        return FileRaster(path, self, bands=bands, nodata=nodata, declared=declared)

    def close(self) -> None:
        """Close all of them."""
        while self._open:
            self._open.popitem()[1].close()


class FileRaster(Raster):
    """One file.

    Args:
        path: What GDAL opens.
        files: Keeps it open.
        bands: Names of its bands in file order; None takes those that it states.
        nodata: Values that mean NoData besides those that it declares.
        declared: What the product that the file belongs to declares as NoData, where the file itself does not.

    Raises:
        RasterError: If it cannot be opened, or names or NoData values do not fit its bands.
    """

    def __init__(
        self,
        path: str | Path,
        files: OpenFiles,
        *,
        bands: Sequence[str] | None = None,
        nodata: NoData = None,
        declared: float | None = None,
    ) -> None:
        self._path, self._files = str(path), files
        dataset = files.get(self._path)
        if not dataset.count:
            raise RasterError(_subdatasets(dataset, self._path))
        self._remote = any(is_remote(name) for name in (self._path, *dataset.files))
        named = _named_nodata(nodata, dataset.count, self._path)
        stated = [printable_name(text) for text in dataset.descriptions]
        if stated == ['']:
            stated = [printable_name(_variable(dataset, self._path))]
        names = unique_names(stated) if bands is None else place_names(bands, dataset.colorinterp, self._path)
        super().__init__(
            self._path,
            GeoBox((dataset.height, dataset.width), dataset.transform, dataset.crs.to_wkt() if dataset.crs else None),
            dtypes=dataset.dtypes,
            descriptions=[name or None for name in names],
            nodatavals=[declared if own is None else own for own in dataset.nodatavals],
            block_shapes=dataset.block_shapes,
            scales=dataset.scales,
            offsets=dataset.offsets,
            colorinterp=dataset.colorinterp,
            crs=dataset.crs,
        )
        self.gcps, self.rpcs, self.files = dataset.gcps, dataset.rpcs, tuple(dataset.files)
        self.driver = dataset.driver
        self.numbered = bands is None and names != stated
        self.stated = tuple(stated if bands is None else names)
        self._flags = dataset.mask_flag_enums
        self._nodata = [*zip(self.nodatavals, named)]
        self._opacity: tuple[int, ...] | None = None

    @property
    def _dataset(self) -> Any:
        return self._files.get(self._path)

    def tags(self, index: int = 0, ns: str | None = None) -> Mapping[str, str]:
        """Return metadata of the raster, or of a band by its number, in one of GDAL's domains."""
        found: Mapping[str, str] = self._dataset.tags(index, ns=ns)
        return found

    def colormap(self, index: int) -> Mapping[int, tuple[int, int, int, int]]:
        """Return the colors of a band's values."""
        found: Mapping[int, tuple[int, int, int, int]] = self._dataset.colormap(index)
        return found

    def close(self) -> None:
        """Close the file."""
        self._files.close()

    @property
    def opacity(self) -> tuple[int, ...]:
        """The 1-based bands that say how opaque pixels are, and are no data themselves (see `raster.nodata`)."""
        if self._opacity is None:
            flagged = [i for i, color in zip(self.indexes, self.colorinterp) if color == ColorInterp.alpha]
            self._opacity = tuple(index for index in flagged if self._is_opacity(index))
        return self._opacity

    def _is_opacity(self, index: int) -> bool:
        name = self.descriptions[index - 1] or ''
        if 'alpha' in name.lower() or 'opacity' in name.lower():
            return True
        if not is_placeholder(name):
            return False
        values = np.concatenate([part.ravel() for part in self._samples(index)])
        limits = (0, 255) if values.dtype.kind not in 'iu' else (0, 255, np.iinfo(values.dtype).max)
        if np.isin(values, limits).mean() > 0.9:
            return True
        _SAID.say(str(Path(self.name).parent), self.name, index)
        return False

    def _samples(self, index: int, side: int = 128) -> list[np.ndarray]:
        rows, cols = (
            sorted({0, (length - min(side, length)) // 2, length - min(side, length)}) for length in self.shape
        )
        size = min(side, self.width), min(side, self.height)
        return [self._dataset.read(index, window=Window(col, row, *size)) for row in rows for col in cols]

    def read_masked(
        self, window: Window, indexes: Sequence[int], out: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Read a window that lies inside the raster: pixels, and a mask as `geolearn.raster.nodata` has it."""
        try:
            with remote_access(self._remote):
                dataset = self._dataset
                pixels = self._read(dataset, window, indexes, out)
                shared = [dataset.read(index, window=window) > 0 for index in self.opacity]
                shared += self._masks(dataset, window, indexes)
        except (RasterioError, MemoryError) as error:  # a damaged header may claim any size
            rows = f'{int(window.row_off)}..{int(window.row_off + window.height)}'
            advice = f'. {REMOTE_ADVICE}' if self._remote else ''
            raise RasterError(f'cannot read rows {rows} of {self.name}: {error.__cause__ or error}{advice}') from error
        valid = valid_by_band(pixels, [self._nodata[index - 1] for index in indexes], shared)
        if self.border is not None:
            self.border.add(pixels, valid, window, self.shape, indexes)
        return pixels, valid

    def _read(self, dataset: Any, window: Window, indexes: Sequence[int], out: np.ndarray | None) -> np.ndarray:
        if len({self.dtypes[index - 1] for index in indexes}) == 1:
            found: np.ndarray = dataset.read(list(indexes), window=window, out=out)
            return found
        if out is None:
            out = np.empty((len(indexes), int(window.height), int(window.width)), self.common_dtype(indexes))
        for plane, index in zip(out, indexes):  # rasterio reads bands of several types one by one only
            plane[:] = dataset.read(index, window=window)
        return out

    def _masks(self, dataset: Any, window: Window, indexes: Sequence[int]) -> list[np.ndarray]:
        """Return the masks of the file's own, besides what GDAL derives from NoData values and from opacity."""
        flags = [self._flags[index - 1] for index in indexes]
        if not any(_has_mask(flag) for flag in flags):
            return []
        if all(MaskFlags.per_dataset in flag for flag in flags):
            return [dataset.read_masks(indexes[0], window=window) > 0]
        return [np.stack([dataset.read_masks(index, window=window) > 0 for index in indexes])]


def _subdatasets(dataset: Any, name: str) -> str:
    """Return what to say of a file that is a container of rasters."""
    tags, listed = dataset.tags(ns='SUBDATASETS'), []
    for number, path in enumerate(dataset.subdatasets, 1):
        text = tags.get(f'SUBDATASET_{number}_DESC')
        listed.append(f'{path} ({text})' if text else path)
    if not listed:
        return f'{name} holds no raster that GDAL ({dataset.driver}) finds'
    more = f'; and {len(listed) - MOST_LISTED} more' if len(listed) > MOST_LISTED else ''
    return (
        f'{name} holds {len(listed)} rasters; pass the name of one, or a list of the bands of one scene: '
        f'{"; ".join(listed[:MOST_LISTED])}{more}'
    )


def _variable(dataset: Any, path: str) -> str:
    """Return the name of the variable of a netCDF or HDF5 file that a raster of one band is; empty for other files."""
    if dataset.driver == 'netCDF':
        return str(dataset.tags(1).get('NETCDF_VARNAME', ''))
    if dataset.driver.startswith('HDF5') and '://' in path:
        return path.rpartition('/')[2]
    return ''


class _OncePerFolder:
    """Says of the chips of a folder once what holds for all of them."""

    def __init__(self) -> None:
        self._folders: set[str] = set()

    def say(self, folder: str, name: str, index: int) -> None:
        if folder not in self._folders:
            self._folders.add(folder)
            log.warning(
                '%s: band %s is flagged as alpha but holds many values, so it is taken for data (near infrared?); name '
                'it with bands=',
                name,
                index,
            )


_SAID = _OncePerFolder()


def _has_mask(flags: Sequence[MaskFlags]) -> bool:
    if MaskFlags.alpha in flags or MaskFlags.all_valid in flags:
        return False
    return MaskFlags.nodata not in flags or MaskFlags.per_dataset in flags


def _named_nodata(nodata: NoData, count: int, name: str) -> list[float | None]:
    """Return the user's NoData value of each band.

    Raises:
        RasterError: If their number is not that of the bands.
    """
    if nodata is None or isinstance(nodata, int | float | np.number):
        return [None if nodata is None else float(nodata)] * count
    if len(nodata) == 1:
        nodata = [*nodata] * count
    if len(nodata) != count:
        raise RasterError(f'nodata= holds {len(nodata)} values but {name} has {count} bands; pass one, or one for each')
    return [None if value is None else float(value) for value in nodata]


def place_names(names: Sequence[str], colors: Sequence[ColorInterp], shown: str) -> list[str]:
    """Return the given name of each band of a file; they may leave out the bands that are flagged as alpha.

    Raises:
        RasterError: If their number is not that of the bands, or one stands for several of them.
    """
    twice = [name for name, number in zip(names, unique_names(names)) if name != number]
    if twice:
        raise RasterError(f'bands= names {twice[0]!r} {names.count(twice[0])} times; each band needs a name of its own')
    opaque = [color != ColorInterp.alpha for color in colors]
    if len(names) == sum(opaque) < len(colors):
        rest = iter(names)
        return [next(rest) if color else 'alpha' for color in opaque]
    if len(names) != len(colors):
        raise RasterError(f'bands= names {len(names)} bands but {shown} holds {len(colors)}')
    return list(names)


def printable_name(text: str | None) -> str:
    """Return the name of a band without what cannot be shown, such as control characters."""
    return ''.join(letter if letter.isprintable() else '\ufffd' for letter in text or '').strip()


def _advise_on(path: str) -> str:
    """Return what to pass instead of a file that is part of a product, or holds one."""
    if path.lower().endswith(('.zip', '.tar', '.tgz', '.tar.gz')):
        kind = 'zip' if path.lower().endswith('.zip') else 'tar'
        return f'. Unpack it, or pass the files in it, such as /vsi{kind}/{path}/NAME.tif'
    if os.path.basename(path).upper().startswith(('MTD_', 'LC0', 'LE0', 'LT0')) and os.path.dirname(path):
        return f'. It describes a product: pass its folder, {os.path.dirname(path)}'
    return ''
