"""Maps as Zarr stores: the pixels of the GeoTIFF, with place, names and NoData, for xarray and for geolearn."""

from dataclasses import replace

import geopandas
import numpy as np
import pytest
import rasterio
import xarray
from affine import Affine
from scaled import Scaled

from geolearn import vectorize_map
from geolearn.errors import RasterError
from geolearn.inference.tiles import MicroBatches
from geolearn.models import DeepLab, PixelRegressor
from geolearn.raster import open_raster

pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture
def scene(tmp_path, save):
    pixels = np.random.default_rng(0).integers(0, 41, (2, 20, 30)).astype(np.int16)
    pixels = np.kron(pixels, np.ones((1, 4, 4), np.int16))
    pixels[:, :9, :7] = -1
    return save(tmp_path / 'scene.tif', pixels, names=['Red', 'Green'], nodata=-1)


@pytest.fixture
def model(make_spec):
    return DeepLab.of(make_spec(), Scaled())


def test_a_store_holds_what_the_geotiffs_do(model, scene, tmp_path):
    every = {'outputs': ('classes', 'confidence', 'probabilities')}
    model.predict_raster(scene, tmp_path / 'map.tif', **every)
    assert model.predict_raster(scene, tmp_path / 'map.zarr', **every) == tmp_path / 'map.zarr'
    assert not list(tmp_path.glob('*.part')) + list(tmp_path.glob('.*'))
    with (
        rasterio.open(tmp_path / 'map.tif') as tif,
        xarray.open_zarr(tmp_path / 'map.zarr', mask_and_scale=False) as cube,
    ):
        band = cube['class']
        np.testing.assert_array_equal(band.values, tif.read(1))
        assert band.dims == ('y', 'x')
        assert band.attrs['_FillValue'] == tif.nodata
        assert band.attrs['flag_values'] == [info.value for info in model.spec.class_infos]
        assert band.attrs['class_1'] == tif.tags(1)['class_1']
        assert cube.attrs['MODEL'] == tif.tags()['MODEL']
        assert rasterio.CRS.from_wkt(cube['spatial_ref'].attrs['crs_wkt']) == tif.crs
        assert cube.x.values[0] == tif.transform.c + tif.transform.a / 2
    with (
        rasterio.open(tmp_path / 'map_probabilities.tif') as tif,
        xarray.open_zarr(tmp_path / 'map_probabilities.zarr') as cube,
    ):
        names = [name.replace(' ', '_') for name in tif.descriptions]
        shares = np.stack([cube[name].values for name in names])
        stored = tif.read(masked=True)
        np.testing.assert_allclose(shares[~stored.mask], stored.compressed() / 250, atol=1e-6)
        assert np.isnan(shares[stored.mask]).all()
    with open_raster(tmp_path / 'map.zarr') as cube, open_raster(tmp_path / 'map.tif') as tif:
        assert (cube.geobox.transform, cube.crs, cube.shape) == (tif.geobox.transform, tif.crs, tif.shape)
        assert {value: cube.colormap(1)[value] for value in (1, 2)} == {
            value: tif.colormap(1)[value] for value in (1, 2)
        }


def test_polygons_of_a_store_are_those_of_the_geotiff(model, scene, tmp_path):
    for name in ('map.tif', 'map.zarr'):
        model.predict_raster(scene, tmp_path / name)
        vectorize_map(tmp_path / name, tmp_path / f'{name}.gpkg')
    one, other = (geopandas.read_file(tmp_path / f'{name}.gpkg') for name in ('map.tif', 'map.zarr'))
    assert len(one) > 10
    assert one.equals(other)
    assert one.crs == other.crs


def test_a_killed_run_is_resumed_and_a_store_is_replaced_only_where_asked_for(model, scene, tmp_path, monkeypatch):
    given = {'tile_size': 32, 'halo': 4}
    target = tmp_path / 'map.zarr'
    model.predict_raster(scene, tmp_path / 'whole.zarr', **given)
    parts, count = MicroBatches.parts, []

    def stop(self, pixels):
        count.append(1)
        if len(count) > 3:
            raise KeyboardInterrupt
        return parts(self, pixels)

    with monkeypatch.context() as patch:
        patch.setattr(MicroBatches, 'parts', stop)
        with pytest.raises(KeyboardInterrupt):
            model.predict_raster(scene, target, **given)
    assert not target.exists()
    model.predict_raster(scene, target, **given, resume=True)
    for path in (tmp_path / 'whole.zarr').rglob('*'):
        if path.is_file():
            assert path.read_bytes() == (target / path.relative_to(tmp_path / 'whole.zarr')).read_bytes(), path
    with pytest.raises(RasterError, match=r'map\.zarr exists; pass overwrite=True'):
        model.predict_raster(scene, target)
    (target / 'old').write_text('of the old one')
    model.predict_raster(scene, target, overwrite=True)
    assert not (target / 'old').exists()
    (tmp_path / 'mine.zarr').mkdir()
    (tmp_path / 'mine.zarr' / 'notes.txt').write_text('kept')
    with pytest.raises(RasterError, match='is no Zarr store, so it is not replaced'):
        model.predict_raster(scene, tmp_path / 'mine.zarr', overwrite=True)
    assert (tmp_path / 'mine.zarr' / 'notes.txt').exists()


def test_turned_rasters_state_their_transform_and_regression_its_values(make_spec, tmp_path, save):
    pixels = np.random.default_rng(0).integers(0, 41, (2, 40, 50)).astype(np.int16)
    place = Affine(8, 6, 400_000, 6, -8, 5_400_000)
    scene = save(tmp_path / 'turned.tif', pixels, names=['Red', 'Green'], transform=place)
    model = PixelRegressor.of(make_spec(), Scaled(1))
    model.predict_raster(scene, tmp_path / 'map.zarr')
    model.predict_raster(scene, tmp_path / 'map.tif')
    with open_raster(tmp_path / 'map.zarr') as src, rasterio.open(tmp_path / 'map.tif') as tif:
        assert src.geobox.transform == place
        np.testing.assert_array_equal(xarray.open_zarr(tmp_path / 'map.zarr')['prediction'].values, tif.read(1))


def test_a_suffix_that_no_map_has_is_refused_before_anything_is_computed(model, scene, tmp_path, monkeypatch):
    monkeypatch.setattr(model.network, 'forward', lambda x: pytest.fail('was computed'))
    with pytest.raises(RasterError, match="'.png' is not the suffix of a format"):
        model.predict_raster(scene, tmp_path / 'map.png')


def test_classes_of_one_name_are_variables_of_their_own(make_spec, scene, tmp_path):
    spec = make_spec()
    infos = tuple(replace(info, name=name) for info, name in zip(spec.class_infos, ('a b', 'a_b')))
    model = DeepLab.of(replace(spec, class_infos=infos), Scaled())
    model.predict_raster(scene, tmp_path / 'map.zarr', outputs=('probabilities',))
    with xarray.open_zarr(tmp_path / 'map.zarr') as cube:
        assert len([name for name in cube.data_vars if cube[name].ndim == 2]) == 2
