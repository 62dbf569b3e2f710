"""STAC items and arrays of xarray are rasters: bands by name, units and NoData as they state them."""

import json
import logging

import numpy as np
import pystac
import pytest
import xarray
from affine import Affine
from rasterio.windows import Window

from geolearn.chips.export import export_training_data
from geolearn.errors import RasterError
from geolearn.raster import open_raster, raster_bands, read_window
from geolearn.raster.identity import digest_of_samples

HERE = Affine(10, 0, 499000, 0, -10, 5400000)


def read_all(source, **options):
    with open_raster(source, warp=True, **options) as src:
        pixels, mask = src.read_masked(Window(0, 0, src.width, src.height), src.indexes)
        return src.descriptions, pixels, mask, raster_bands(src)


def make_item(save, folder, name='S2A_1', *, offset=-0.1, time='2024-06-01T00:00:00Z', base=3000, version='1.0.0'):
    """Write an item with assets as Earth Search has them; returns its file."""
    folder.mkdir(parents=True, exist_ok=True)
    assets = {}
    for key, code, wavelength, side in (
        ('red', 'B04', 0.665, 10),
        ('nir', 'B08', 0.842, 10),
        ('swir16', 'B11', 1.61, 20),
    ):
        size = 240 // side
        pixels = np.full((size, size), base, np.uint16)
        pixels[0, 0] = 0
        save(folder / f'{key}.tif', pixels, transform=Affine(side, 0, HERE.c, 0, -side, HERE.f), crs='EPSG:32633')
        row = {'nodata': 0, 'data_type': 'uint16'}
        names = {'name': code, 'common_name': key, 'center_wavelength': wavelength}
        assets[key] = {'href': f'./{key}.tif', 'type': 'image/tiff; application=geotiff', 'roles': ['data']}
        if version == '1.0.0':
            assets[key] |= {'eo:bands': [names], 'raster:bands': [row | {'scale': 0.0001, 'offset': offset}]}
        else:
            assets[key]['bands'] = [
                row | {'name': code, 'eo:common_name': key, 'eo:center_wavelength': wavelength,
                       'raster:scale': 0.0001, 'raster:offset': offset}
            ]  # fmt: skip
    save(folder / 'scl.tif', np.ones((12, 12), np.uint8), transform=HERE, crs='EPSG:32633')
    assets['scl'] = {'href': './scl.tif', 'type': 'image/tiff', 'roles': ['data']}
    assets['visual'] = {'href': './none.tif', 'type': 'image/tiff', 'roles': ['data'],
                        'eo:bands': [{'name': 'B04'}, {'name': 'B08'}, {'name': 'B11'}]}  # fmt: skip
    assets['thumbnail'] = {'href': './none.jpg', 'type': 'image/jpeg', 'roles': ['thumbnail']}
    item = {
        'type': 'Feature', 'stac_version': version, 'id': name, 'bbox': [0, 0, 1, 1], 'links': [], 'assets': assets,
        'geometry': {'type': 'Polygon', 'coordinates': [[[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]]},
        'properties': {'datetime': time, 'constellation': 'sentinel-2'}, 'stac_extensions': [],
    }  # fmt: skip
    (folder / 'item.json').write_text(json.dumps(item))
    return folder / 'item.json'


@pytest.mark.parametrize('version', ['1.0.0', '1.1.0'])
def test_an_item_is_a_scene_of_named_bands_in_the_units_that_it_states(tmp_path, save, caplog, version):
    path = make_item(save, tmp_path / 'a', version=version)
    with caplog.at_level(logging.WARNING, 'geolearn'):
        names, pixels, mask, bands = read_all(path)
    assert names == ('B04', 'B08', 'B11')
    assert [band.wavelength_um for band in bands] == [0.665, 0.842, 1.61]
    assert pixels.dtype == np.float32
    np.testing.assert_allclose(pixels[:, 5:, 5:], 0.2, rtol=1e-6)
    assert np.argwhere(~mask[0]).tolist() == [[0, 0]]
    assert 'values are stored * 0.0001 -0.1, as it states' in caplog.text


def test_objects_dictionaries_and_chosen_bands(tmp_path, save):
    path = make_item(save, tmp_path / 'a')
    item = pystac.Item.from_file(str(path))
    loaded = json.loads(path.read_text())
    loaded['links'] = [{'rel': 'self', 'href': str(path)}]
    for source in (item, loaded, pystac.ItemCollection([item])):
        names, pixels, _, _ = read_all(source, bands=['nir', 'B04'])
        assert sorted(names) == ['B04', 'B08']
        assert pixels.shape == (2, 24, 24)
    with pytest.raises(RasterError, match=r"S2A_1 holds no band 'blue'; it holds B04, B08, B11"):
        read_all(item, bands=['blue'])


def test_items_of_a_collection_lie_over_each_other_the_newest_on_top(tmp_path, save):
    new = json.loads(make_item(save, tmp_path / 'new', 'new', offset=-0.1, base=5000).read_text())
    old = json.loads(
        make_item(save, tmp_path / 'old', 'old', offset=0, base=1000, time='2020-01-01T00:00:00Z').read_text()
    )
    for name, item in (('new', new), ('old', old)):
        for asset in item['assets'].values():
            asset['href'] = str(tmp_path / name / asset['href'])
    _, pixels, _, _ = read_all({'type': 'FeatureCollection', 'features': [new, old]})
    assert np.median(pixels) == pytest.approx(0.4)  # 5000 * 0.0001 - 0.1, not 0.1
    with pytest.raises(RasterError, match='holds no item'):
        read_all({'type': 'FeatureCollection', 'features': []})
    with pytest.raises(RasterError, match='no STAC item: it has no assets'):
        read_all({'type': 'Feature', 'id': 'x'})


def array(**options):
    pixels = np.arange(2 * 20 * 30, dtype=np.int16).reshape(2, 20, 30)
    pixels[:, 0, 0] = -9999
    coords = {
        'band': ['red', 'nir'],
        'y': HERE.f - 10 * (np.arange(20) + 0.5),
        'x': HERE.c + 10 * (np.arange(30) + 0.5),
        'spatial_ref': xarray.DataArray(0, attrs={'crs_wkt': 'EPSG:32633'}),
    }
    return xarray.DataArray(
        pixels, coords, ('band', 'y', 'x'), name='reflectance', attrs={'_FillValue': -9999, **options}
    )


def test_data_arrays_datasets_and_zarr_are_rasters(tmp_path):
    one = array()
    one.to_dataset(name='reflectance').to_zarr(tmp_path / 'cube.zarr', zarr_format=2)
    sources = [
        one,
        one.transpose('y', 'x', 'band'),
        one.expand_dims('time'),
        one.to_dataset('band'),
        tmp_path / 'cube.zarr',
    ]
    for source in sources:
        names, pixels, mask, _ = read_all(source)
        assert names == ('red', 'nir')
        assert (pixels == one.to_numpy()).all()
        assert np.argwhere(~mask[0]).tolist() == [[0, 0]]
        with open_raster(source) as src:
            assert src.transform.almost_equals(HERE)
            assert src.crs.to_epsg() == 32633
            part, _ = src.read_masked(Window(3, 4, 5, 6), [2])
            assert (part == one.to_numpy()[1:, 4:10, 3:8]).all()


def test_arrays_that_are_no_rasters_are_refused_in_words():
    one = array()
    with pytest.raises(RasterError, match=r"take one of the 2 along 'time' first, such as array.isel\(time=0\)"):
        read_all(xarray.concat([one, one], 'time'))
    with pytest.raises(RasterError, match='are not evenly spaced'):
        read_all(one.isel(x=[0, 1, 5, 6]))
    with pytest.raises(RasterError, match='one called y or lat or latitude is needed'):
        read_all(one.rename(y='south'))
    with pytest.raises(RasterError, match='complex'), open_raster(one.astype(complex)) as src:
        src.require_real()


def test_arrays_are_cut_into_training_chips(tmp_path, save):
    labels = save(tmp_path / 'labels.tif', np.ones((20, 30), np.uint8), transform=HERE, crs='EPSG:32633')
    out = export_training_data(array(), labels, tmp_path / 'chips', tile_size=10)
    assert len(list((out / 'images').iterdir())) >= 6


def test_variables_of_netcdf_are_bands_of_their_names(tmp_path):
    values = {name: (('y', 'x'), np.full((5, 6), number, np.int16)) for number, name in enumerate(('Red', 'Green'))}
    place = {'y': 5_400_000 - 10 * np.arange(5.0), 'x': 400_000 + 10 * np.arange(6.0)}
    for name, chosen in (('two', ['Red', 'Green']), ('one', ['Green'])):
        # a writer of netCDF 3 that needs no other library
        xarray.Dataset(values, coords=place)[chosen].to_netcdf(tmp_path / f'{name}.nc', engine='scipy')
    with (
        pytest.raises(RasterError, match='two.nc holds 2 rasters; pass the name of one, or a list') as caught,
        open_raster(tmp_path / 'two.nc'),
    ):
        pass
    listed = [part.partition(' (')[0].rpartition(' ')[2] for part in str(caught.value).split('; ')[1:]]
    assert [name.rpartition(':')[2] for name in listed] == ['Red', 'Green']
    with open_raster(listed[::-1], quiet=True) as src:
        assert src.descriptions == ('Green', 'Red')
        assert read_window(src, Window(0, 0, 6, 5), [1, 2])[0].mean(axis=(1, 2)).tolist() == [1, 0]
    with open_raster(tmp_path / 'one.nc') as src:
        assert src.descriptions == ('Green',)


def test_decoded_values_are_not_compared_with_the_stored_fill_value():
    array = xarray.DataArray(np.zeros((4, 4), np.float32), dims=('y', 'x'))
    array.encoding = {'_FillValue': 0, 'scale_factor': 0.0001, 'add_offset': -0.1}
    with open_raster(array) as src:
        assert src.nodatavals == (None,)
    array.encoding = {'_FillValue': 0}
    with open_raster(array) as src:
        assert src.nodatavals == (0,)


@pytest.mark.parametrize(('shape', 'sides'), [((1, 4), (10, -10)), ((4, 1), (20, -20))])
def test_one_row_or_column_lies_where_its_coordinates_say(shape, sides):
    coords = {'y': 5_000_000 - 20 * np.arange(shape[0]), 'x': 400_000 + 10 * np.arange(shape[1])}
    array = xarray.DataArray(np.zeros(shape, np.float32), dims=('y', 'x'), coords=coords, attrs={'crs': 'EPSG:32633'})
    with open_raster(array) as src:
        assert (src.transform.a, src.transform.e) == sides
        assert (src.transform.c, src.transform.f) == (400_000 - sides[0] / 2, 5_000_000 - sides[1] / 2)


def test_an_array_that_says_nothing_of_its_pixels_is_refused():
    array = xarray.DataArray(np.zeros((1, 1), np.float32), dims=('y', 'x'), attrs={'crs': 'EPSG:32633'})
    with pytest.raises(RasterError, match='nothing that says how large its pixels are'), open_raster(array):
        pass


def test_samples_of_a_raster_change_with_its_pixels_grid_and_units(tmp_path, save):
    values = np.random.default_rng(0).integers(0, 9, (1, 200, 150)).astype(np.int16)
    found = set()
    for number, (pixels, place) in enumerate([(values, HERE), (values + 1, HERE), (values, Affine(20, *HERE[1:6]))]):
        with open_raster(save(tmp_path / f'{number}.tif', pixels, transform=place)) as src:
            found.add(digest_of_samples(src))
            found.add(digest_of_samples(src))
    assert len(found) == 3
    one, other = (make_item(save, tmp_path / f'item{offset}', offset=offset) for offset in (0.0, -0.1))
    with open_raster(one) as first, open_raster(other) as second:
        assert digest_of_samples(first) != digest_of_samples(second)
        assert (first.rescaled, second.rescaled) == (True, True)


def bare(path, name, *, scaled=False, plain=False, **properties):
    """Return an item as JSON that states no scale, unless it is `scaled` or `plain` (1 and 0), and these properties."""
    item = json.loads(path.read_text())
    item['properties'] |= properties
    for asset in item['assets'].values():
        asset['href'] = str(path.parent / asset['href'])
        for row in () if scaled else asset.get('raster:bands', ()):
            del row['scale'], row['offset']
            row |= {'scale': 1, 'offset': 0} if plain else {}
    return {**item, 'id': name}


OLD, NEW = {'s2:processing_baseline': '03.01'}, {'s2:processing_baseline': '05.09'}


@pytest.mark.parametrize(
    ('first', 'second', 'message'),
    [
        (OLD, NEW, 'offsets 0 and -1000'),
        (OLD, {'processing:version': '05.11'}, 'offsets 0 and -1000'),
        (OLD, NEW | {'earthsearch:boa_offset_applied': True}, ''),
        (OLD, OLD, ''),
        (OLD, {}, ''),
        (OLD, NEW | {'constellation': 'landsat'}, ''),
        (OLD, NEW | {'plain': True}, ''),
        (NEW | {'plain': True}, NEW | {'plain': True}, ''),
        (NEW | {'plain': True}, NEW, 'offsets 0 and -1000'),
        (OLD | {'scaled': True}, NEW, 'a scale and offset in the STAC item, and none'),
        (OLD | {'scaled': True}, NEW | {'scaled': True}, ''),
    ],
)
def test_items_in_other_units_are_no_mosaic(tmp_path, save, first, second, message):
    paths = [make_item(save, tmp_path / name, name, offset=0) for name in ('a', 'b')]
    items = [bare(path, path.parent.name, **facts) for path, facts in zip(paths, (first, second))]
    source = {'type': 'FeatureCollection', 'features': items}
    if message:
        with pytest.raises(RasterError, match=f'values of different units, {message}'):
            read_all(source)
        with pytest.raises(RasterError, match=r'different units: they state|values of different units'):
            read_all([items[0], items[1]])
    else:
        assert len(read_all(source)[0]) == 3
