import numpy as np
import pytest
from affine import Affine

from geolearn.raster.writing import write_raster

BANDS = ('B02', 'B03', 'B04', 'B08')


@pytest.fixture(scope='session')
def scene_pixels():
    """Smooth reflectance x 10000 (4, 112, 144) uint16, so that tokens differ from place to place."""
    rows, columns = np.mgrid[:112, :144]
    rng = np.random.default_rng(3)
    waves = [np.sin(rows / (9 + 5 * k)) * np.cos(columns / (7 + 4 * k)) for k in range(4)]
    planes = [900 + 500 * k + 300 * wave + rng.normal(0, 30, rows.shape) for k, wave in enumerate(waves)]
    return np.clip(planes, 1, 9000).astype(np.uint16)


@pytest.fixture(scope='session')
def scene(scene_pixels, tmp_path_factory):
    """The same as a GeoTIFF of 10 m pixels that names its bands."""
    path = tmp_path_factory.mktemp('scene') / 'scene.tif'
    transform = Affine(10, 0, 500_000, 0, -10, 5_200_000)
    write_raster(path, scene_pixels, transform=transform, crs='EPSG:32632', band_names=BANDS)
    return path
