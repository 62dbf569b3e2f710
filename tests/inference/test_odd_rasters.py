"""Rasters of every kind are mapped or refused in words: places, types, missing values, sizes, targets."""

import os
import shutil
from collections import namedtuple

import numpy as np
import pytest
import rasterio
import xarray as xr
from affine import Affine
from brighter import Brighter

from geolearn import export_training_data, from_rasters, prepare_data
from geolearn.errors import RasterError
from geolearn.inference.area import AreaOfInterest
from geolearn.inference.encoding import ClassEncoding
from geolearn.inference.mapping import MapOptions, map_raster
from geolearn.inference.options import ReadOptions, TilingOptions
from geolearn.inference.targets import check_target, claim_target
from geolearn.raster import open_raster

UTM = Affine(10, 0, 500000, 0, -10, 4000000)
PIXELS = np.random.default_rng(0).integers(1, 41, (2, 40, 50))
EXPECTED = np.where(PIXELS[0] - PIXELS[1] > 0, 1, 2)


@pytest.fixture
def run(make_spec, tmp_path):
    def run(src, dst=tmp_path / 'map.tif', **read):
        spec = make_spec()
        map_raster(
            spec,
            Brighter(),
            ClassEncoding(spec.class_infos),
            src,
            dst,
            read=ReadOptions(scale=1, **read),
            tiling=TilingOptions(tile_size=32, halo=4, device='cpu'),
            options=MapOptions(overwrite=True),
        )
        with rasterio.open(dst) as found:
            return found.read(1), found

    return run


def store(save, path, pixels, *, transform=UTM, crs='EPSG:32631', **profile):
    return save(path, pixels, transform=transform, crs=crs, names=('Red', 'Green'), **profile)


@pytest.mark.parametrize(
    'place',
    [
        {'crs': None, 'transform': UTM},
        {'crs': None, 'transform': None},
        {'transform': Affine(10, 0, 500000, 0, 10, 3000000)},
        {'transform': Affine(7, 7, 500000, 7, -7, 4000000)},
    ],
    ids=['no CRS', 'no place', 'south-up', 'turned'],
)
def test_a_map_lies_where_its_raster_lies(save, tmp_path, run, place):
    path = store(save, tmp_path / 'a.tif', PIXELS.astype(np.int16), **place)
    found, src = run(path)
    assert (found == EXPECTED).all()
    with open_raster(path) as original:
        assert src.transform == original.transform
        assert src.crs == original.crs


@pytest.mark.parametrize(
    'dtype', ['int8', 'uint8', 'int16', 'uint16', 'int32', 'uint32', 'int64', 'float32', 'float64']
)
def test_every_type_of_numbers_is_mapped(save, tmp_path, run, dtype):
    assert (run(store(save, tmp_path / 'a.tif', PIXELS.astype(dtype)))[0] == EXPECTED).all()


@pytest.mark.parametrize('compress', ['lzw', 'packbits', 'zstd', 'lzma', 'lerc', 'lerc_zstd'])
def test_rasters_are_mapped_however_they_are_compressed(save, tmp_path, run, compress):
    path = store(
        save, tmp_path / 'a.tif', PIXELS.astype(np.int16), compress=compress, tiled=True, blockxsize=16, blockysize=16
    )
    assert (run(path)[0] == EXPECTED).all()


def test_complex_numbers_are_refused_with_what_to_do(save, tmp_path, run):
    with pytest.raises(RasterError, match='complex64 numbers, which no network takes; write the amplitude first'):
        run(store(save, tmp_path / 'a.tif', PIXELS.astype(np.complex64)))


def test_pixels_that_are_no_numbers_come_out_as_nodata(save, tmp_path, run):
    pixels = PIXELS.astype(np.float32)
    pixels[0, 3, 4], pixels[1, 5, 6], pixels[0, 7, 8], pixels[1, 9, 9] = np.nan, np.inf, -np.inf, -3.4028235e38
    found, _ = run(store(save, tmp_path / 'a.tif', pixels))
    assert np.argwhere(found == 0).tolist() == [[3, 4], [5, 6], [7, 8], [9, 9]]


@pytest.mark.parametrize(
    ('dtype', 'nodata', 'range_'),
    [
        ('uint8', -9999, 'whole numbers from 0 to 255'),
        ('uint8', [1, 300], 'whole numbers from 0 to 255'),
        ('int16', 0.5, 'whole numbers from -32768 to 32767'),
        ('uint16', 70000, 'whole numbers from 0 to 65535'),
    ],
)
def test_nodata_that_no_pixel_can_be_is_refused_everywhere(save, tmp_path, run, dtype, nodata, range_):
    path = store(save, tmp_path / 'a.tif', PIXELS.astype(dtype))
    labels = save(tmp_path / 'l.tif', EXPECTED.astype(np.uint8), transform=UTM, crs='EPSG:32631')
    words = f'holds {dtype} pixels, {range_}, so that none can be nodata=.*; pass the value that missing pixels have'
    with pytest.raises(RasterError, match=words):
        run(path, nodata=nodata)
    with pytest.raises(RasterError, match=words):
        export_training_data(path, labels, tmp_path / 'chips', tile_size=10, nodata=nodata)
    with pytest.raises(RasterError, match=words):
        from_rasters(path, labels, chip_size=10, nodata=nodata)
    chips = export_training_data(path, labels, tmp_path / 'chips', tile_size=10)
    with pytest.raises(RasterError, match=words):
        prepare_data(chips, chip_size=10, nodata=nodata)


def test_a_map_without_any_data_says_so(save, tmp_path, run, caplog):
    found, _ = run(store(save, tmp_path / 'a.tif', np.full(PIXELS.shape, 1e300)))
    assert (found == 0).all()
    assert 'map.tif holds NoData alone: no pixel of the raster holds data in all bands' in caplog.text


@pytest.mark.parametrize('kind', ['tag', 'mask', 'alpha'])
def test_missing_pixels_come_out_as_nodata(save, tmp_path, run, kind):
    pixels, valid = PIXELS.astype(np.uint8), np.ones(PIXELS.shape[1:], bool)
    valid[10:20, 5:9] = False
    path = tmp_path / 'a.tif'
    if kind == 'tag':
        store(save, path, np.where(valid, pixels, 99).astype(np.uint8), nodata=99)
    elif kind == 'mask':
        store(save, path, pixels)
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, 'r+') as dst:
            dst.write_mask(valid)
    else:
        opacity = np.where(valid, 255, 0).astype(np.uint8)
        save(
            path,
            np.concatenate([pixels, opacity[None]]),
            transform=UTM,
            crs='EPSG:32631',
            names=('Red', 'Green', 'alpha'),
        )
        with rasterio.open(path, 'r+') as dst:
            dst.colorinterp = (*dst.colorinterp[:2], rasterio.enums.ColorInterp.alpha)
    found, _ = run(path)
    assert ((found == 0) == ~valid).all()


def tiles_of(save, folder, pixels, place, **profile):
    """Two files side by side, or above each other."""
    rows, cols = pixels.shape[1:]
    cuts = ((0, slice(0, 20)), (20, slice(20, rows))) if cols == 1 else ((0, slice(0, 25)), (25, slice(25, cols)))
    paths = []
    for number, (start, part) in enumerate(cuts):
        shift = Affine.translation(0, start) if cols == 1 else Affine.translation(start, 0)
        cut = pixels[:, part] if cols == 1 else pixels[:, :, part]
        paths.append(store(save, folder / f'tile{number}.tif', cut, transform=place @ shift, **profile))
    return paths


def bands_of(save, folder, pixels, place, **profile):
    """A file for each band."""
    return [
        save(folder / f'{name}.tif', plane[None], transform=place, crs='EPSG:32631', names=(name,), **profile)
        for name, plane in zip(('Red', 'Green'), pixels)
    ]


def item_of(save, folder, pixels, place, nodata=None, **stated):
    """A STAC item, which states NoData and scale."""
    bands = {'raster:bands': [{**stated, **({} if nodata is None else {'nodata': nodata})}]}
    files = bands_of(save, folder, pixels, place)
    assets = {path.stem: {'href': str(path), 'type': 'image/tiff', **bands} for path in files}
    return {'type': 'Feature', 'id': 'x', 'properties': {}, 'assets': assets}


def array_of(save, folder, pixels, place, nodata=None):
    """A DataArray with coordinates of the middles of pixels, of which the map takes its place."""
    (rows, cols), t = pixels.shape[1:], place
    coords = {'y': t.f + t.e * (np.arange(rows) + 0.5), 'x': t.c + t.a * (np.arange(cols) + 0.5)}
    stated = {'crs': 'EPSG:32631', 'long_name': ('Red', 'Green'), **({} if nodata is None else {'_FillValue': nodata})}
    return xr.DataArray(pixels, coords, ('band', 'y', 'x'), attrs=stated)


SOURCES = {
    'tiles': tiles_of,
    'bands': bands_of,
    'a folder': lambda save, folder, *given, **profile: (tiles_of(save, folder, *given, **profile), folder)[1],
    'an item': item_of,
    'a scaled item': lambda *given, **stated: item_of(*given, **stated, scale=2.0, offset=1.0),
    'an array': array_of,
}


@pytest.mark.parametrize('kind', list(SOURCES))
def test_other_sources_are_as_odd_as_files(save, tmp_path, run, kind):
    def find(pixels, place=UTM, read=None, **profile):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        found, dst = run(SOURCES[kind](save, folder, pixels, place, **profile), **(read or {}))
        assert dst.transform.almost_equals(place)
        return found

    small, lacking = PIXELS.astype(np.int16), np.zeros(EXPECTED.shape, bool)
    assert (find(small, Affine(10, 0, 500000, 0, 10, 3000000)) == EXPECTED).all()
    for dtype in ('int8', 'uint64', 'float64'):
        assert (find(PIXELS.astype(dtype)) == EXPECTED).all()
    assert (find(small[:, :, :1]) == EXPECTED[:, :1]).all()
    odd = PIXELS.astype(np.float32)
    for band, row, col, value in ((0, 3, 4, np.nan), (1, 5, 6, np.inf), (0, 7, 8, -np.inf), (1, 9, 9, -3.4028235e38)):
        odd[band, row, col], lacking[row, col] = value, True
    assert (find(odd) == np.where(lacking, 0, EXPECTED)).all()
    marked = np.where(lacking, 99, small).astype(np.int16)
    for options in ({'nodata': 99}, {'read': {'nodata': 99}}):
        assert (find(marked, **options) == np.where(lacking, 0, EXPECTED)).all()
    with pytest.raises(RasterError, match='complex64 numbers, which no network takes'):
        find(PIXELS.astype(np.complex64))
    with pytest.raises(RasterError, match='whole numbers from -32768 to 32767'):
        find(small, read={'nodata': 0.5})
    with pytest.raises(RasterError, match='share no pixel'):
        find(small, read={'area': AreaOfInterest(bbox=(0, 0, 10, 10))})


def test_half_floats_in_memory_are_mapped(save, tmp_path, run):
    assert (run(array_of(save, tmp_path, PIXELS.astype(np.float16), UTM))[0] == EXPECTED).all()


@pytest.mark.parametrize('part', [np.s_[:, :1, :], np.s_[:, :, :1], np.s_[:, :1, :1]], ids=['row', 'column', 'pixel'])
def test_rasters_of_one_row_or_column_are_mapped(save, tmp_path, run, part):
    found, _ = run(store(save, tmp_path / 'a.tif', PIXELS[part].astype(np.int16)))
    assert (found == EXPECTED[part[1:]]).all()


def test_a_map_that_the_disk_cannot_hold_is_refused_before_the_start(save, tmp_path, run, monkeypatch):
    path = store(save, tmp_path / 'a.tif', PIXELS.astype(np.int16))
    usage = namedtuple('usage', 'total used free')
    monkeypatch.setattr(shutil, 'disk_usage', lambda _: usage(100, 0, 100))
    with pytest.raises(RasterError, match=r'GiB are free on its disk; write to another disk, or map a part with bbox='):
        run(path)
    assert not (tmp_path / 'map.tif').exists()


def test_no_source_is_overwritten(save, tmp_path, monkeypatch):
    tiles = [
        store(
            save,
            tmp_path / f'{name}.tif',
            PIXELS.astype(np.int16),
            transform=Affine(10, 0, 500000 + 500 * at, 0, -10, 4000000),
        )
        for at, name in enumerate('ab')
    ]
    folder = tmp_path / 'tiles'
    folder.mkdir()
    (folder / 'link.tif').symlink_to(tiles[1])
    (folder / 'about.json').write_text('{}')
    os.link(tiles[1], tmp_path / 'hard.tif')
    for name, inner in (('all', 'b.tif'), ('outer', 'all.vrt')):
        (tmp_path / f'{name}.vrt').write_text(
            '<VRTDataset rasterXSize="50" rasterYSize="40"><VRTRasterBand dataType="Int16" band="1"><SimpleSource>'
            f'<SourceFilename relativeToVRT="1">{inner}</SourceFilename><SourceBand>1</SourceBand></SimpleSource>'
            '</VRTRasterBand></VRTDataset>'
        )
    items = [
        {'type': 'Feature', 'id': 'x', 'properties': {}, 'assets': {'a': {'href': str(path), 'type': 'image/tiff'}}}
        for path in (tiles[1], tmp_path / 'outer.vrt')
    ]
    array = xr.DataArray(np.zeros((2, 2)), dims=('y', 'x'))
    array.encoding['source'] = str(tiles[1])
    before = tiles[1].read_bytes()
    monkeypatch.chdir(tmp_path)
    named = f'GTIFF_DIR:1:{tiles[1]}', f'file://{tiles[1]}', '/vsisubfile/0_,b.tif', 'hard.tif', array, items
    several = tiles, [tiles], folder, tmp_path / 'all.vrt', 'outer.vrt', [tmp_path / 'a.tif', [folder]]
    for source in (*several, *items, *named):
        for target in (tiles[1], folder / 'link.tif'):
            with pytest.raises(RasterError, match='is the raster to map|takes its pixels from'):
                check_target(source, target, overwrite=True)
    assert tiles[1].read_bytes() == before
    assert check_target(tiles, tmp_path / 'c.tif', overwrite=False) == tmp_path / 'c.tif'
    assert check_target(folder, tiles[0], overwrite=True) == tiles[0]
    with pytest.raises(RasterError, match='is a layer that this run reads'):
        check_target(tiles[0], tiles[1], overwrite=True, layers=[None, 'hard.tif'])
    xr.Dataset({'a': array}).to_zarr(tmp_path / 'a.zarr', zarr_format=2)
    for source in ('a.zarr', xr.open_zarr('a.zarr'), xr.open_zarr('a.zarr', chunks=None)):
        with pytest.raises(RasterError, match=r'a\.zarr is (the raster to map|a file that the Dataset takes)'):
            check_target(source, tmp_path / 'a.zarr', overwrite=True)


def test_two_runs_without_a_journal_do_not_write_one_file(tmp_path):
    with (
        claim_target(tmp_path / 'a.gpkg'),
        claim_target(tmp_path / 'b.gpkg'),
        pytest.raises(RasterError, match='another run is writing .*a.gpkg; wait for it, or write to another file'),
        claim_target(tmp_path / 'a.gpkg'),
    ):
        pass
    assert list(tmp_path.iterdir()) == []
