"""Real scenes are mapped as they are delivered: a folder of tiles, an undeclared border, a file for each band."""

import numpy as np
import pytest
import rasterio
import torch
from torch import nn

from geolearn.inference.area import AreaOfInterest
from geolearn.inference.encoding import RegressionEncoding
from geolearn.inference.mapping import MapOptions, map_raster
from geolearn.inference.options import ReadOptions, TilingOptions
from geolearn.raster import read_image, write_raster

pytestmark = [pytest.mark.real_data, pytest.mark.usefixtures('one_thread')]


class Blurred(nn.Module):
    """The mean of all bands around each pixel, in tenths."""

    context, finer = None, 1

    class backbone:
        has_position_grid = False
        strides = (16,)

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.1))

    def forward(self, x):
        x = torch.nan_to_num(x).mean(dim=1, keepdim=True)
        return nn.functional.avg_pool2d(x, 5, 1, 2) * self.weight


@pytest.fixture
def run(make_spec, tmp_path):
    def run(src, wanted, name, **read):
        spec = make_spec(bands=wanted, classes=1)
        options = MapOptions(overwrite=True)
        tiling = TilingOptions(tile_size=256, halo=16, device='cpu')
        dst = tmp_path / name
        read = ReadOptions(scale=1, **read)
        map_raster(spec, Blurred(), RegressionEncoding(), src, dst, read=read, tiling=tiling, options=options)
        with rasterio.open(dst) as found:
            return found.read(1, masked=True), found.transform

    return run


TEN = tuple(f'B{band}' for band in '2 3 4 5 6 7 8 8A 11 12'.split())


def test_a_folder_of_tiles_is_mapped_as_one_scene(shared, run, tmp_path):
    folder, names = shared / 'data' / 'aberystwyth_s2' / 's2_tiles', ('B2', 'B3', 'B4')
    pixels, mask, box = read_image(sorted(folder.glob('*.tif')), (1, 2, 3))
    assert pixels.shape == (3, 947, 930)
    place = {'transform': box.transform, 'crs': box.crs, 'nodata': 0, 'band_names': names}
    single = write_raster(tmp_path / 'scene.tif', np.where(mask, pixels, 0), **place)
    found, placed = run(folder, names, 'folder.tif', bands=TEN, sensor='Sentinel-2')
    expected, same = run(single, names, 'single.tif', sensor='Sentinel-2')
    assert placed == same
    np.testing.assert_array_equal(found.mask, expected.mask)
    np.testing.assert_array_equal(found.compressed(), expected.compressed())
    assert np.flatnonzero(found.mask.all(axis=1)).tolist() == [250], 'the row that no tile holds'


def test_a_scene_with_an_undeclared_border_is_mapped_from_any_layout(shared, run, tmp_path, caplog):
    (scene,) = (shared / 'data' / 'landsat8_224078').glob('*.TIF')
    names = ('B2', 'B3', 'B4')
    with rasterio.open(scene) as src:
        pixels, profile = src.read(), src.profile
        left, top = src.bounds[0], src.bounds[3]
        area = AreaOfInterest(bbox=(left, top - 18_000, left + 15_000, top))
    found, _ = run(scene, names, 'border.tif', bands=names, sensor='Landsat 8', area=area)
    assert caplog.text.count('pass nodata=0') == 1
    given = {'bands': names, 'sensor': 'Landsat 8', 'nodata': 0}
    whole, _ = run(scene, names, 'whole.tif', **given)
    np.testing.assert_array_equal(whole.mask, (pixels == 0).any(axis=0))
    part, _ = run(scene, names, 'part.tif', area=area, **given)
    np.testing.assert_array_equal(part.filled(-1), whole[:600, :500].filled(-1))
    assert part.mask.any()
    assert not found.mask.any()
    files = []
    for name, band in zip(names, pixels):
        files.append(tmp_path / f'LC08_{name}.TIF')
        with rasterio.open(files[-1], 'w', **{**profile, 'count': 1, 'photometric': None}) as dst:
            dst.write(band, 1)
    by_band, _ = run(files, names, 'by_band.tif', sensor='Landsat 8', nodata=0)
    np.testing.assert_array_equal(by_band.filled(-1), whole.filled(-1))
