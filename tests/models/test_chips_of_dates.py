"""Chips of several dates are learned, predicted and looked for around polygons."""

import json

import geopandas
import numpy as np
import pytest
import shapely
import torch
from affine import Affine

from geolearn.errors import RasterError
from geolearn.models import FeatureClassifier, load_model

pytestmark = pytest.mark.usefixtures('one_thread', 'small_dofa')

CRS = 'EPSG:32633'
PLACE = Affine(10, 0, 500_000, 0, -10, 5_400_000)
BANDS = ['Blue', 'Green', 'Red']


def drawn(seed, level):
    return np.random.default_rng(seed).normal(level, 30, (3, 32, 32)).clip(1).astype(np.uint16)


@pytest.fixture(scope='module')
def folder(tmp_path_factory, save):
    """Twelve chips of two dates, the bands of both in one file: fields that grew, and fields that dried."""
    folder = tmp_path_factory.mktemp('dates') / 'chips'
    (folder / 'images').mkdir(parents=True)
    (folder / 'labels').mkdir()
    for index in range(12):
        dates = [drawn(index, level) for level in ((300, 900) if index % 2 else (900, 300))]
        place = {'transform': Affine(10, 0, 320 * index, 0, -10, 0)}
        save(folder / 'images' / f'{index:09d}.tif', np.concatenate(dates), **place)
        text = f'<annotation><object><name>{1 + index % 2}</name></object></annotation>'
        (folder / 'labels' / f'{index:09d}.xml').write_text(text)
    emd = {
        'MetaDataMode': 'Labeled_Tiles',
        'ImageSpaceUsed': 'MAP_SPACE',
        'Classes': [{'Value': i, 'Name': name, 'Color': [9, 9, 90 * i]} for i, name in ((1, 'dried'), (2, 'grown'))],
        'InputRastersProps': {'RasterCount': 1, 'SensorName': 'Sentinel-2', 'BandNames': BANDS},
        'geolearn': {'dates': ['2021-05-01', '2021-07-15']},
    }
    (folder / 'esri_model_definition.emd').write_text(json.dumps(emd))
    return folder


def learned(data, backbone='test_resnet', **options):
    torch.manual_seed(0)
    return FeatureClassifier(data, backbone, pretrained=False, **options)


@pytest.mark.parametrize(('backbone', 'temporal'), [('test_resnet', 'concat'), ('dofa_tiny', 'ltae')])
def test_the_order_of_dates_is_learned_and_kept(folder, prepare, tmp_path, backbone, temporal):
    data = prepare(folder)
    images, _ = next(iter(data.valid_dl))
    assert images.shape[1:] == (2, 3, 32, 32)
    model = learned(data, backbone, temporal=temporal, dropout=0.0).fit(12, lr=3e-3, checkpoint=False)
    assert model.accuracy() == 1
    again = load_model(model.save(tmp_path / 'm.dlpk'))
    first, last = drawn(90, 300), drawn(91, 900)
    # the positions of an L-TAE are days, which arrays do not state
    taken = {'dates': ['2022-05-01', '2022-07-15']} if temporal == 'ltae' else {}
    assert again.predict([first, last], **taken).names == ('grown',)
    assert again.predict(np.stack([last, first]), **taken).names == ('dried',)
    assert again.explain([first, last], **taken).shape == (32, 32)
    assert model.show_results(2).axes


def test_dates_are_taken_from_files_on_one_grid(folder, prepare, save, tmp_path):
    model = learned(prepare(folder))
    files = [save(tmp_path / f'{name}.tif', drawn(i, 500), names=BANDS) for i, name in enumerate('ab')]
    pixels = np.stack([drawn(0, 500), drawn(1, 500)])
    assert model.predict(files).confidences == pytest.approx(model.predict(pixels).confidences, abs=1e-5)
    moved = save(tmp_path / 'c.tif', drawn(1, 500), names=BANDS, transform=Affine(10, 0, 5, 0, -10, 0))
    cases = [
        (pixels[0], 'this model takes images of 2 dates; pass a list of one for each, oldest first'),
        (files[0], 'this model takes images of 2 dates; pass a list'),
        ([files[0], moved], 'one is .* pixels across'),
        ([pixels[0], pixels[1, :, :20]], 'images of all dates must be of one size, got 32x32 and 32x20 pixels'),
    ]
    for image, match in cases:
        with pytest.raises(RasterError, match=match):
            model.predict(image)


def test_polygons_are_classified_on_all_dates(folder, prepare, save, tmp_path):
    model = learned(prepare(folder), temporal='concat', dropout=0.0).fit(12, lr=3e-3, checkpoint=False)
    before, after = np.full((3, 64, 128), 300, np.uint16), np.full((3, 64, 128), 900, np.uint16)
    before[:, :, 64:], after[:, :, 64:] = 900, 300
    place = {'transform': PLACE, 'crs': CRS, 'names': BANDS}
    files = [save(tmp_path / f'{name}.tif', image, **place) for name, image in (('a', before), ('b', after))]
    both = save(tmp_path / 'both.tif', np.concatenate([before, after]), transform=PLACE, crs=CRS)
    fields = [shapely.Point(500_000 + 10 * column, 5_399_700).buffer(50) for column in (20, 100)]
    layer = geopandas.GeoDataFrame(geometry=fields, crs=CRS)
    for raster in (files, both):
        out = geopandas.read_file(model.classify_objects(raster, layer, tmp_path / 'out.gpkg', overwrite=True))
        assert out['ClassLabel'].tolist() == ['grown', 'dried']
    with pytest.raises(RasterError, match='takes 2 dates of 3 bands, found one raster of 3 bands'):
        model.classify_objects(files[0], layer, tmp_path / 'other.gpkg')
