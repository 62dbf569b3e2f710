"""A STAC item describes a model, as pystac reads it; models of other software are shown."""

import json
import re
import zipfile

import pytest

from geolearn.bands import Band
from geolearn.bundle import Bundle, write_bundle
from geolearn.classes import ClassInfo
from geolearn.cli import main
from geolearn.errors import BundleError
from geolearn.networks.spec import ModelSpec
from geolearn.normalize import Normalization
from geolearn.stac import describe_bundle
from geolearn.statistics import BandStatistics

SPEC = ModelSpec(
    model='DeepLab',
    backbone='test_resnet',
    bands=(Band('Red', 0.66, 'red'), Band('NIR', 0.84, 'nir')),
    class_infos=(ClassInfo(1, 'open water', (0, 0, 255)), ClassInfo(300, 'land', (0, 128, 0))),
    ignored_values=(),
    chip_size=64,
    statistics=BandStatistics((0, 0), (255, 255), (100, 120), (20, 30)),
    normalization=Normalization((100.0, 120.0), (20.0, 30.0), 'given'),
    dtype='uint8',
)


@pytest.fixture
def bundle(tmp_path):
    emd = {'ModelType': 'ImageClassification', 'geolearn': SPEC.to_manifest()}
    return write_bundle(tmp_path / 'lc.dlpk', Bundle(emd, {}))


def test_pystac_reads_the_item(bundle):
    pystac = pytest.importorskip('pystac')
    mlm = pytest.importorskip('pystac.extensions.mlm')
    item = pystac.Item.from_dict(json.loads(json.dumps(describe_bundle(bundle))))
    model = mlm.MLMExtension.ext(item)
    assert (model.mlm_name, model.architecture) == ('model-lc', 'DeepLab on test_resnet')
    assert [str(task) for task in model.tasks] == ['semantic-segmentation']
    (given,), (output,) = model.input, model.output
    assert [band.name for band in given.bands] == ['Red', 'NIR']
    assert given.input.shape == [-1, 2, 64, 64]
    assert [(row['mean'], row['stddev']) for row in given.properties['value_scaling']] == [(100.0, 20.0), (120.0, 30.0)]
    assert output.result.shape == [-1, 2, 64, 64]
    assert [(row.value, row.name, row.color_hint) for row in output.classes] == [
        (1, 'open-water', '0000FF'),
        (300, 'land', '008000'),
    ]
    assert item.assets['model'].href.endswith('lc.dlpk')
    assert item.properties['bands'] == [
        {'name': 'Red', 'eo:center_wavelength': 0.66},
        {'name': 'NIR', 'eo:center_wavelength': 0.84},
    ]
    assert [row['description'] for row in output.to_dict()['classification:classes']] == ['open water', 'land']
    assert item.assets['model'].roles == ['mlm:model']


@pytest.mark.parametrize('name', ['a', 'lc 2024', '2024-landcover', 'größe', '42', 'x_', '-'])
def test_names_have_the_alphabet_of_the_extension(name, tmp_path):
    emd = {'ModelType': 'PanopticSegmenter', 'geolearn': SPEC.to_manifest()}
    row = describe_bundle(write_bundle(tmp_path / f'{name}.dlpk', Bundle(emd, {})))['properties']
    assert re.fullmatch(r'[a-zA-Z][a-zA-Z0-9_.\-\s]+[a-zA-Z0-9]', row['mlm:name'])  # MLM 1.4
    assert row['mlm:tasks'] == ['panoptic-segmentation']
    assert all(re.fullmatch('[a-z-_]+', word) for word in row['mlm:output'][0]['result']['dim_order'])


def test_info_shows_bundles_of_esri_and_what_cannot_be_run(tmp_path, capsys):
    emd = {
        'Framework': 'arcgis.learn.models._inferencing',
        'ModelConfiguration': '_unet',
        'ModelFile': 'roads.pth',
        'InferenceFunction': 'ArcGISImageClassifier.py',
        'ModelType': 'ImageClassification',
        'ExtractBands': [0, 1, 2],
        'ImageHeight': 256,
        'ImageWidth': 256,
        'Classes': [{'Value': 1, 'Name': 'road', 'Color': [255, 0, 0]}],
    }
    path = tmp_path / 'roads.dlpk'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('roads.emd', json.dumps(emd))
        archive.writestr('roads.pth', b'weights')
    main(['info', str(path)])
    shown = capsys.readouterr().out
    for part in ('ImageClassification', '256 x 256', 'bands 0, 1, 2', '1 road', 'roads.pth (7 bytes)', 'cannot run it'):
        assert part in shown
    with pytest.raises(BundleError, match='was not written by geolearn'):
        describe_bundle(path)
    with pytest.raises(SystemExit):
        main(['info', str(path), '--stac', str(tmp_path / 'item.json')])
    assert not (tmp_path / 'item.json').exists()
