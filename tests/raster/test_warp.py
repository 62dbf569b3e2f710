"""Rasters of several CRSs, pixel sizes and NoData values make one mosaic on the grid of the first."""

import logging

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.enums import Resampling
from rasterio.warp import reproject, transform_bounds
from rasterio.windows import Window

from geolearn.errors import RasterError
from geolearn.raster import GeoBox, open_raster
from geolearn.raster.warp import WarpedRaster

HERE = Affine(10, 0, 499000, 0, -10, 5400000)


def scene(rows, cols):
    """A smooth field: (2, rows, cols) uint16."""
    y, x = np.indices((rows, cols))
    return np.stack([2000 + 900 * np.sin(x / 17) + 5 * y, 3000 + 800 * np.cos(y / 23)]).astype(np.uint16)


def warped_copy(save, path, pixels, *, crs='EPSG:32633', to, side=10, nodata=0):
    """What gdalwarp writes of a raster at HERE."""
    rows, cols = pixels.shape[1:]
    left, top = HERE.c, HERE.f
    west, south, east, north = transform_bounds(crs, to, left, top - 10 * rows, left + 10 * cols, top)
    place = Affine(side, 0, west, 0, -side, north)
    out = np.full((len(pixels), int((north - south) / side) + 1, int((east - west) / side) + 1), nodata, pixels.dtype)
    georeferenced = {'src_transform': HERE, 'src_crs': crs, 'dst_transform': place, 'dst_crs': to}
    reproject(pixels, out, resampling=Resampling.cubic, dst_nodata=nodata, **georeferenced)
    return save(path, out, transform=place, crs=to, nodata=nodata)


def read_all(paths, **options):
    with open_raster(paths, warp=True, **options) as src:
        pixels, mask = src.read_masked(Window(0, 0, src.width, src.height), src.indexes)
        valid = np.ones(pixels.shape[1:], bool) if mask is None else mask.all(axis=0)
        return pixels, valid, src.geobox


@pytest.mark.parametrize(
    ('to', 'side', 'close'), [('EPSG:32632', 10, 6), ('EPSG:4326', 1e-4, 6), ('EPSG:3035', 2.5, 6)]
)
def test_neighbors_of_other_crs_and_nodata_are_seen_on_the_grid_of_the_first(tmp_path, save, caplog, to, side, close):
    ground = scene(120, 160)
    first = save(tmp_path / 'first.tif', ground[:, :, :70], transform=HERE, crs='EPSG:32633')
    other = warped_copy(save, tmp_path / 'other.tif', ground, to=to, side=side)
    with caplog.at_level(logging.WARNING, 'geolearn'):
        pixels, valid, box = read_all([first, other])
    assert f'1 of 2 rasters are warped while reading to the grid of the first, {first}' in caplog.text
    assert 'later ones lie over earlier ones' in caplog.text
    assert rasterio.crs.CRS.from_wkt(box.crs).to_epsg() == 32633
    left, top = round((box.transform.c - HERE.c) / 10), round((HERE.f - box.transform.f) / 10)
    part = np.s_[-top + 3 : -top + 117, -left + 3 : -left + 157]
    assert valid[part].all()
    difference = pixels[(slice(None), *part)].astype(int) - ground[:, 3:117, 3:157]
    assert np.abs(difference).max() <= close


def test_pixels_do_not_depend_on_the_window(tmp_path, save):
    path = warped_copy(save, tmp_path / 'other.tif', scene(90, 80), to='EPSG:32632')
    box = GeoBox((95, 85), HERE, 'EPSG:32633')
    with open_raster(path) as src:
        warped = WarpedRaster(src, box)
        whole, mask = warped.read_masked(Window(0, 0, 85, 95), [1, 2])
        for col, row, width, height in ((0, 0, 7, 5), (13, 30, 40, 33), (60, 80, 25, 15)):
            part, inner = warped.read_masked(Window(col, row, width, height), [1, 2])
            place = np.s_[:, row : row + height, col : col + width]
            assert (part == whole[place]).all()
            inner = np.broadcast_to(True if inner is None else inner, part.shape)
            assert (inner == np.broadcast_to(mask, whole.shape)[place]).all()


def test_nodata_of_each_file_is_its_own_and_hides_nothing(tmp_path, save):
    ground = scene(30, 40)
    one, two = ground.copy(), ground.copy()
    one[:, 5:10, 5:10], two[:, 5:20, 20:30] = 0, 65535
    paths = [
        save(tmp_path / 'a.tif', one, transform=HERE, crs='EPSG:32633', nodata=0),
        save(tmp_path / 'b.tif', two, transform=HERE, crs='EPSG:32633', nodata=65535),
    ]
    pixels, valid, _ = read_all(paths)
    assert valid.all()
    assert (pixels == ground).all()


def test_other_pixel_sizes_and_shifted_grids_of_one_crs_are_resampled(tmp_path, save):
    ground = scene(60, 60)
    coarse = ground[:, :, 20:].reshape(2, 30, 2, 20, 2).mean(axis=(2, 4)).astype(np.uint16)
    paths = [
        save(tmp_path / 'a.tif', ground[:, :, :30], transform=HERE, crs='EPSG:32633'),
        save(tmp_path / 'b.tif', coarse, transform=Affine(20, 0, 499204, 0, -20, 5400000), crs='EPSG:32633'),
    ]
    pixels, valid, box = read_all(paths)
    assert box.shape[0] == 60
    assert valid[2:-2, :58].all()
    assert np.abs(pixels[:, 2:-2, 2:56].astype(int) - ground[:, 2:-2, 2:56]).max() <= 60


def test_turned_rasters_are_laid_over_others(tmp_path, save):
    angle = np.radians(30)
    place = Affine(10 * np.cos(angle), 10 * np.sin(angle), 499200, 10 * np.sin(angle), -10 * np.cos(angle), 5399600)
    paths = [
        save(tmp_path / 'a.tif', np.full((1, 80, 80), 7, np.uint8), transform=HERE, crs='EPSG:32633'),
        save(tmp_path / 'b.tif', np.full((1, 20, 20), 9, np.uint8), transform=place, crs='EPSG:32633'),
    ]
    pixels, valid, _ = read_all(paths)
    assert valid[:80, :80].all()
    assert (pixels == 9).sum() == pytest.approx(400, abs=12)


def test_what_has_no_place_is_not_warped(tmp_path, save):
    paths = [
        save(tmp_path / 'a.tif', scene(10, 10), transform=HERE, crs='EPSG:32633'),
        save(tmp_path / 'b.tif', scene(10, 10), transform=HERE, crs=None),
    ]
    with pytest.raises(RasterError, match='CRS EPSG:32633 and None'), open_raster(paths, warp=True):
        pass


def test_the_files_of_a_folder_are_a_mosaic_in_the_order_of_their_names(tmp_path, save):
    ground = scene(40, 40)
    folder = tmp_path / 'tiles'
    folder.mkdir()
    for number, (row, col) in enumerate(((0, 0), (0, 20), (20, 0), (20, 20))):
        place = Affine(10, 0, HERE.c + 10 * col, 0, -10, HERE.f - 10 * row)
        save(
            folder / f'area_tile{number}.tif',
            ground[:, row : row + 20, col : col + 20],
            transform=place,
            crs='EPSG:32633',
        )
    pixels, valid, _ = read_all(folder)
    assert valid.all()
    assert (pixels == ground).all()
