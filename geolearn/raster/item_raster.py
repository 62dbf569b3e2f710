"""The scene of a STAC item as one raster: bands by name, in the units that the item states."""

import logging
from collections.abc import Mapping, Sequence

import numpy as np
from rasterio.windows import Window

from geolearn.errors import RasterError
from geolearn.raster.acquisition import TAG
from geolearn.raster.mosaic import BandStack
from geolearn.raster.nodata import check_nodata
from geolearn.raster.raster import NoData, OpenFiles, Raster
from geolearn.raster.stac import AssetBand, Item

log = logging.getLogger('geolearn')


class StatedRaster(Raster):
    """A file with what its item states of it: stored values are scaled, and wavelengths are tags.

    Args:
        raster: The file.
        bands: What is stated of each of its bands.
        time: When it was taken, empty where that is not stated.

    Raises:
        RasterError: If values that are scaled are complex.
    """

    def __init__(self, raster: Raster, bands: Sequence[AssetBand], *, time: str = '') -> None:
        self._raster, self._bands, self._time = raster, tuple(bands), time
        self._scaled = any((band.scale, band.offset) != (1.0, 0.0) for band in bands)
        if self._scaled:
            raster.require_real()
        super().__init__(
            raster.name,
            raster.geobox,
            dtypes=['float32'] * raster.count if self._scaled else raster.dtypes,
            descriptions=[band.name for band in bands],
            # the mask says which pixels lack data; scaled, the value would be another
            nodatavals=[None] * raster.count if self._scaled else raster.nodatavals,
            block_shapes=raster.block_shapes,
            scales=[1.0] * raster.count,
            offsets=[0.0] * raster.count,
            colorinterp=raster.colorinterp,
            crs=raster.crs,
        )
        self.files, self.gcps, self.rpcs = raster.files, raster.gcps, raster.rpcs
        self.rescaled = self._scaled

    def tags(self, index: int = 0, ns: str | None = None) -> Mapping[str, str]:
        """Return metadata of the file, when it was taken, and the wavelength of a band."""
        found = self._raster.tags(index, ns=ns)
        if not index and ns == 'IMAGERY' and self._time:
            return {**found, TAG: self._time}
        if not index or ns is not None or (wavelength := self._bands[index - 1].wavelength_um) is None:
            return found
        return {**found, 'wavelength': str(wavelength), 'wavelength_units': 'micrometers'}

    def read_masked(
        self, window: Window, indexes: Sequence[int], out: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Read a window that lies inside the raster."""
        if not self._scaled:
            return self._raster.read_masked(window, indexes, out)
        stored, mask = self._raster.read_masked(window, indexes)
        if out is None:
            out = np.empty(stored.shape, np.float32)
        for plane, values, index in zip(out, stored, indexes):
            band = self._bands[index - 1]
            with np.errstate(over='ignore', invalid='ignore'):  # what float32 cannot hold is no data
                np.multiply(values, band.scale, out=plane, casting='unsafe')
                plane += np.float32(band.offset)
        return out, mask

    def close(self) -> None:
        """Close the file."""
        self._raster.close()


def open_item(item: Item, files: OpenFiles, *, bands: Sequence[str] | None, nodata: NoData, level: int) -> BandStack:
    """Open the assets of an item as one raster.

    Args:
        item: The item.
        files: Keeps them open.
        bands: Names of the bands to take, in order: as the item names them, their assets or by color; None for all.
        nodata: Value that means NoData besides what item and files state.
        level: Of the log that says what was taken.

    Raises:
        RasterError: If a band is not there, an asset cannot be opened, or the assets do not cover the same ground.
    """
    if nodata is not None and not isinstance(nodata, int | float):
        raise RasterError('nodata= must be one number for a STAC item, which states the value of each band itself')
    assets = item.assets
    wanted = None if bands is None else [_find(item, name) for name in bands]
    if wanted is not None:
        assets = tuple(asset for asset in assets if any(band in asset.bands for band in wanted))
    rasters: list[Raster] = []
    stored: list[str] = []
    for asset in assets:
        declared = next((band.nodata for band in asset.bands if band.nodata is not None), None)
        raster = files.open(asset.href, nodata=nodata, declared=declared)
        if raster.count != len(asset.bands):
            raise RasterError(
                f'{item.name} states {len(asset.bands)} bands of {asset.href}, which holds {raster.count}; correct the '
                'item, or pass the files themselves'
            )
        stored += raster.dtypes
        rasters.append(StatedRaster(raster, asset.bands, time=item.time))
    check_nodata([nodata] * len(stored), stored, f'the item {item.name}')
    listed = [band for asset in assets for band in asset.bands]
    stack = BandStack(rasters, [band.name for band in listed], sensor=item.sensor)
    if not any(raster.rescaled for raster in rasters):
        stack.product_offset = item.product_offset
    scaled = {(band.scale, band.offset) for band in listed} - {(1.0, 0.0)}
    log.log(
        level,
        'STAC item %s (%s): %s bands: %s%s',
        item.name,
        item.time or 'no time',
        stack.count,
        ', '.join(stack.descriptions[number] or '' for number in range(stack.count)),
        ''.join(f'; values are stored * {scale:g} {offset:+g}, as it states' for scale, offset in sorted(scaled)[:3]),
    )
    return stack


def _find(item: Item, name: str) -> AssetBand:
    listed = [band for asset in item.assets for band in asset.bands]
    for found in (
        [band for band in listed if band.name.lower() == name.lower()],
        [band for band in listed if name.lower() in (other.lower() for other in band.others)],
    ):
        if len(found) == 1:
            return found[0]
        if found:
            raise RasterError(
                f'{item.name} holds {len(found)} bands that are {name!r}: {", ".join(b.name for b in found)}'
            )
    raise RasterError(f'{item.name} holds no band {name!r}; it holds {", ".join(band.name for band in listed)}')
