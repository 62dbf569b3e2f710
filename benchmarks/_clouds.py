"""The cloud masks of Wieland et al. 2019 as chips: what the benchmarks on real imagery share.

ukis-csmask ships them as `sentinel2.npz` and `landsat5.npz` with `img` (512, 512, 6) float32 top-of-atmosphere
reflectance and `msk` (512, 512, 1) uint8.
"""

from pathlib import Path

import numpy as np
from affine import Affine

from geolearn import ChipData, ClassInfo, export_training_data, prepare_data
from geolearn.bands import resolve_bands
from geolearn.raster import write_raster

# The masks use 0 for cloud shadow, but 0 means unlabeled in a chip folder: values move up by one.
CLASSES = (
    ClassInfo(1, 'cloud shadow', (60, 60, 90)),
    ClassInfo(2, 'water', (46, 116, 196)),
    ClassInfo(3, 'snow', (160, 230, 240)),
    ClassInfo(4, 'land', (120, 160, 70)),
    ClassInfo(5, 'cloud', (245, 245, 245)),
)
BANDS = ('Blue', 'Green', 'Red', 'NIR', 'SWIR1', 'SWIR2')
SENSORS = {'sentinel2': ('Sentinel-2', 10.0), 'landsat5': ('Landsat 5', 30.0)}
CHIP_SIZE, STRIDE, BLOCK_M = 128, 64, 1600.0
"""Chips overlap by half; validation holds out whole squares of land and drops the chips that straddle."""


def export_clouds(source: Path, folder: Path, name: str, *, stride: int = STRIDE) -> Path:
    """Write one sensor's image and mask as chips.

    Args:
        source: Folder of the two archives.
        folder: Where to put rasters and chips.
        name: ``'sentinel2'`` or ``'landsat5'``.
        stride: Pixels from chip to chip.
    """
    sensor, resolution_m = SENSORS[name]
    with np.load(source / f'{name}.npz') as content:
        image, mask = content['img'].transpose(2, 0, 1), content['msk'][..., 0] + 1
    # the archive names no place, so pixels count from an origin
    place = {'transform': Affine.scale(resolution_m, -resolution_m), 'crs': None}
    rasters = folder / f'{name}.tif', folder / f'{name}_labels.tif'
    write_raster(rasters[0], np.ascontiguousarray(image), band_names=BANDS, **place)
    write_raster(rasters[1], mask.astype(np.uint8), colors={info.value: info.color for info in CLASSES}, **place)
    bands = resolve_bands(BANDS, sensor=sensor)
    return export_training_data(
        *rasters, folder / name, classes=CLASSES, tile_size=CHIP_SIZE, stride=stride, bands=bands, sensor=sensor
    )


def read_clouds(chips: Path) -> ChipData:
    """Read the Sentinel-2 chips, less the class that has no pixel, in the one split that all models share."""
    return prepare_data(
        chips,
        chip_size=CHIP_SIZE,
        batch_size=4,
        split='blocks',
        block_size=BLOCK_M,
        val_split_pct=0.2,
        ignore_classes=['snow'],
    )
