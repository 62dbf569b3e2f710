"""One model on many scenes: a manifest of what became of each, and nothing twice."""

import csv
import json
import os
import shutil
from dataclasses import replace
from datetime import datetime

import geopandas
import numpy as np
import pystac
import pytest
import rasterio
import shapely
import torch
import xarray
from scaled import Scaled

from geolearn.errors import ArgumentError, CheckpointError, RasterError
from geolearn.inference.catalog import file_state, list_scenes
from geolearn.models import ChangeDetector, DeepLab, PixelRegressor

pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture
def folder(tmp_path, save):
    """A folder of three scenes, one of which is no raster, and what is no scene."""
    rng = np.random.default_rng(0)
    (tmp_path / 'scenes').mkdir()
    for name in ('a.tif', 'c.tif'):
        save(tmp_path / 'scenes' / name, rng.integers(0, 41, (2, 40, 50)).astype(np.int16), names=['Red', 'Green'])
    (tmp_path / 'scenes' / 'b.tif').write_text('no raster')
    (tmp_path / 'scenes' / 'notes.txt').write_text('no scene')
    return tmp_path / 'scenes'


@pytest.fixture
def model(make_spec):
    """A classifier of two classes."""
    return DeepLab.of(make_spec(), Scaled())


def read_manifest(folder):
    with (folder / 'manifest.csv').open(newline='') as file:
        return list(csv.DictReader(file))


def test_each_scene_has_a_map_or_a_reason_and_a_rerun_does_what_is_missing(model, folder, tmp_path, save):
    maps = tmp_path / 'maps'
    result = model.predict_many(folder, maps, options={'cog': False})
    rows = read_manifest(maps)
    assert [(row['scene'], row['state']) for row in rows] == [('a', 'done'), ('b', 'failed'), ('c', 'done')]
    assert [row['map'] for row in rows] == ['a.tif', 'b.tif', 'c.tif']
    assert 'cannot open raster' in rows[1]['error']
    assert all(float(row['seconds']) >= 0 for row in rows)
    assert [each.scene for each in result.failed] == ['b']
    assert str(result).startswith('2 of 3 scenes are mapped')
    model.predict_raster(folder / 'a.tif', tmp_path / 'a.tif', cog=False)
    assert (maps / 'a.tif').read_bytes() == (tmp_path / 'a.tif').read_bytes()
    model.network.calls = 0
    save(folder / 'b.tif', np.ones((2, 40, 50), np.int16), names=['Red', 'Green'])
    assert not model.predict_many(folder, maps, options={'cog': False}).failed
    assert model.network.calls == 1
    os.utime(folder / 'c.tif', (1, 1))  # a scene that was written anew
    (maps / 'a.tif').unlink()
    model.predict_many(folder, maps, options={'cog': False})
    assert model.network.calls == 3
    assert sorted(path.name for path in maps.glob('*.tif')) == ['a.tif', 'b.tif', 'c.tif']


def test_a_file_that_is_replaced_in_the_folder_of_a_scene_is_noticed(model, tmp_path, save):
    scene = tmp_path / 'scenes' / 'S2_T33UUP'
    scene.mkdir(parents=True)
    pixels = np.ones((1, 40, 50), np.int16)
    for name in ('B03', 'B04'):
        save(scene / f'{name}.tif', pixels, names=[{'B03': 'Green', 'B04': 'Red'}[name]])
    given = {'options': {'bands': ['Green', 'Red'], 'cog': False}}
    assert not model.predict_many(scene.parent, tmp_path / 'maps', **given).failed
    assert not model.predict_many(scene.parent, tmp_path / 'maps', **given).failed
    assert model.network.calls == 1
    times = os.stat(scene)
    with (scene / 'B04.tif').open('r+b') as file:  # of the same size
        file.seek(-2, os.SEEK_END)
        file.write(b'xx')
    os.utime(scene, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert not model.predict_many(scene.parent, tmp_path / 'maps', **given).failed
    assert model.network.calls == 2


def test_another_area_in_the_same_file_is_noticed(model, folder, tmp_path):
    (folder / 'b.tif').unlink()
    for number, side in enumerate((20, 30)):
        area = geopandas.GeoSeries([shapely.box(400_000, 5_399_900, 400_000 + 10 * side, 5_400_000)], crs='EPSG:32633')
        area.to_file(tmp_path / 'area.gpkg')
        given = {'options': {'aoi': tmp_path / 'area.gpkg', 'cog': False}}
        if number:
            with pytest.raises(CheckpointError, match='area of interest'):
                model.predict_many(folder, tmp_path / 'maps', **given)
        else:
            model.predict_many(folder, tmp_path / 'maps', **given)


def test_maps_of_another_model_or_of_other_options_are_not_taken_for_these(model, make_spec, folder, tmp_path):
    maps = tmp_path / 'maps'
    model.predict_many(folder, maps)
    with pytest.raises(CheckpointError, match=r'what differs: options.*pass overwrite=True to map all scenes anew'):
        model.predict_many(folder, maps, options={'cog': False})
    with torch.no_grad():
        model.network.weight += 1
    with pytest.raises(CheckpointError, match='what differs: weights'):
        model.predict_many(folder, maps)
    model.network.calls = 0
    model.predict_many(folder, maps, overwrite=True)
    assert model.network.calls == 2


def test_a_map_that_a_killed_run_wrote_and_did_not_note_is_made_again(model, folder, tmp_path, monkeypatch):
    maps = tmp_path / 'maps'

    def killed(self, scene, result):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr('geolearn.inference.catalog.Manifest.add', killed)
        with pytest.raises(KeyboardInterrupt):
            model.predict_many(folder, maps)
    assert (maps / 'a.tif').exists()
    assert [each.scene for each in model.predict_many(folder, maps).failed] == ['b']


def test_what_no_scene_could_be_mapped_with_is_said_at_once(model, folder, tmp_path):
    with pytest.raises(ArgumentError, match=r'options of a DeepLab are aoi, .*; got blending'):
        model.predict_many(folder, tmp_path / 'maps', options={'blending': 'hann'})
    for wrong in ({'mixed_precision': 'half'}, {'mixed_precision': 'bf16', 'engine': 'onnx'}, {'batch_size': 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            model.predict_many(folder, tmp_path / 'maps', options=wrong)
        assert not (tmp_path / 'maps').exists()
    for wrong, said in (
        ({'mixed_precision': 'fp16', 'device': 'cpu'}, 'needs a CUDA device'),
        ({'mixed_precision': 'fp16', 'engine': 'openvino'}, 'needs a CUDA device'),
        ({'device': 'cuda:99'}, 'is not on this machine'),
    ):
        with pytest.raises(ValueError, match=said):
            model.predict_many(folder, tmp_path / 'maps', options=wrong)
        assert not (tmp_path / 'maps').exists()
    with pytest.raises(ArgumentError, match='got resume'):
        model.predict_many(folder, tmp_path / 'maps', options={'resume': True})
    with pytest.raises(RasterError, match='is the folder of the scenes; write the maps to another folder'):
        model.predict_many(folder, folder)
    assert not (tmp_path / 'maps').exists()
    # the map of the first scene would be a file of the second
    (folder / 'tiles').mkdir()
    scenes = [folder / 'a.tif', [folder / 'b.tif', shutil.copy(folder / 'a.tif', folder / 'tiles' / 'a.tif')]]
    before = (folder / 'tiles' / 'a.tif').read_bytes()
    with pytest.raises(RasterError, match=r'a\.tif is a raster of this catalog, and would be the map of a scene'):
        model.predict_many(scenes, folder / 'tiles', overwrite=True)
    assert (folder / 'tiles' / 'a.tif').read_bytes() == before


def test_regression_and_change_are_mapped_too(make_spec, folder, tmp_path):
    values = PixelRegressor.of(make_spec(), Scaled(1))
    assert not values.predict_many([folder / 'a.tif'], tmp_path / 'values').failed
    change = ChangeDetector.of(replace(make_spec(), dates=2), Scaled())
    result = change.predict_many([[folder / 'a.tif', folder / 'c.tif']], tmp_path / 'change')
    assert [(each.map, each.state) for each in result.scenes] == [('a.tif', 'done')]


def test_scenes_come_from_lists_tables_folders_and_collections(folder, tmp_path, save):
    def names(catalog):
        return [scene.name for scene in list_scenes(catalog)]

    (folder / 'tiles').mkdir()
    assert names(folder) == ['a', 'b', 'c', 'tiles']
    assert [scene.name for scene in list_scenes(folder, folder=folder / 'tiles')] == ['a', 'b', 'c']
    (tmp_path / 'other').mkdir()
    other = save(tmp_path / 'other' / 'a.tif', np.ones((1, 9, 9), np.int16))
    assert names([folder / 'a.tif', str(other), [str(folder / 'c.tif'), str(other)]]) == ['scenes_a', 'other_a', 'c']
    boxes = [shapely.box(0, 0, 1, 1)] * 2
    table = geopandas.GeoDataFrame({'location': [str(folder / 'a.tif'), str(other)]}, geometry=boxes, crs=4326)
    assert names(table) == ['scenes_a', 'other_a']
    table.to_file(tmp_path / 'index.gpkg')
    assert names(tmp_path / 'index.gpkg') == ['scenes_a', 'other_a']
    asset = {'href': 'a.tif', 'type': 'image/tiff', 'eo:bands': [{'name': 'Red'}, {'name': 'Green'}]}
    items = [
        {'type': 'Feature', 'id': name, 'properties': {'datetime': name}, 'links': [], 'assets': {'data': asset}}
        for name in ('late', 'early')
    ]
    path = folder / 'items.json'
    path.write_text(json.dumps({'type': 'FeatureCollection', 'features': items}))
    assert names(path) == ['early', 'late']
    assert list_scenes(path)[0].source['id'] == 'early'
    with pytest.raises(RasterError, match='columns name, geometry; call the one of the files location or path'):
        list_scenes(table.rename(columns={'location': 'name'}))
    with pytest.raises(RasterError, match='2 scenes are called scenes_a; give their files different names'):
        list_scenes([folder / 'a.tif', folder / 'a.tif'])
    for nothing in ([], tmp_path / 'none'):
        with pytest.raises(RasterError, match='pass a folder'):
            list_scenes(nothing)


def test_items_of_a_file_are_read_beside_it(model, folder, tmp_path):
    asset = {'href': 'a.tif', 'type': 'image/tiff', 'eo:bands': [{'name': 'Red'}, {'name': 'Green'}]}
    item = {'type': 'Feature', 'id': 'one', 'properties': {}, 'links': [], 'assets': {'data': asset}}
    (folder / 'items.json').write_text(json.dumps({'type': 'FeatureCollection', 'features': [item]}))
    assert not model.predict_many(folder / 'items.json', tmp_path / 'maps').failed
    assert (tmp_path / 'maps' / 'one.tif').exists()


def test_scenes_and_areas_in_memory_are_told_apart_by_what_they_hold(model, tmp_path, save):
    """Arrays, items and tables have no size and time of a file."""
    rng = np.random.default_rng(0)
    path = save(tmp_path / 'a.tif', rng.integers(0, 41, (2, 40, 50)).astype(np.int16), names=['Red', 'Green'])
    with rasterio.open(path) as src:
        values, place = src.read(), src.transform
    coords = {
        'band': ['Red', 'Green'],
        'y': place.f + place.e * (np.arange(40) + 0.5),
        'x': place.c + place.a * (np.arange(50) + 0.5),
    }
    arrays = [xarray.DataArray(values + shift, dims=('band', 'y', 'x'), coords=coords, attrs={'crs': 'EPSG:32633'})
              for shift in (0, 1)]  # fmt: skip
    given = {'options': {'cog': False}}
    for array, calls in ((arrays[0], 1), (arrays[0], 1), (arrays[1], 2)):
        result = model.predict_many([array], tmp_path / 'maps', **given)
        assert not result.failed
        assert model.network.calls == calls
    item = pystac.Item('i', None, None, datetime(2024, 1, 1), {})
    assert file_state(item) == file_state(item.clone())
    item.add_asset('red', pystac.Asset('other.tif', roles=['data'], extra_fields={'eo:bands': [{'name': 'B04'}]}))
    assert file_state(item) != file_state(pystac.Item('i', None, None, datetime(2024, 1, 1), {}))
    corners = [[(0, 0), (1, 0), (1, 1), (0.5, 0.5 + shift), (0, 1)] for shift in (0, 1e-9)]
    first, second = (geopandas.GeoDataFrame(geometry=[shapely.Polygon(ring)], crs=4326) for ring in corners)
    assert str(first) == str(second)
    assert file_state(first) != file_state(second)
    area = geopandas.GeoDataFrame(geometry=[shapely.box(*src.bounds)], crs=src.crs)
    model.predict_many([path], tmp_path / 'part', options={'aoi': area, 'cog': False})
    area.geometry = area.buffer(-100)
    with pytest.raises(CheckpointError, match='area of interest'):
        model.predict_many([path], tmp_path / 'part', options={'aoi': area, 'cog': False})
