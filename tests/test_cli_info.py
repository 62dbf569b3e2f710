"""geolearn info on every kind of file and folder: in words, and as JSON for programs."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from geolearn import UNet, prepare_data, vectorize_map
from geolearn.cli import main

pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture(scope='module')
def files(scene_files, scene_chips, tmp_path_factory):
    """One of each kind."""
    folder = tmp_path_factory.mktemp('info')
    data = prepare_data(scene_chips, chip_size=32, batch_size=4, ignore_classes=[0], working_dir=folder)
    model = UNet(data, 'test_resnet', pretrained=False)
    model.fit(1, lr=1e-3)
    vectorize_map(scene_files[1], folder / 'l.gpkg')
    vectorize_map(scene_files[1], folder / 'l.parquet')
    save_file({'a.weight': torch.ones(2, 3)}, folder / 'w.safetensors')
    (folder / 'foreign.emd').write_text('{"Framework": "arcgis.learn", "ModelConfiguration": "_unet", "Classes": []}')
    found = {
        'raster': scene_files[0],
        'chips': scene_chips,
        'vector': folder / 'l.gpkg',
        'parquet': folder / 'l.parquet',
        'weights': folder / 'w.safetensors',
        'checkpoint': next(folder.rglob('last.safetensors')),
        'foreign model': folder / 'foreign.emd',
        'model': model.save(folder / 'm'),
    }
    found['folder of a model'] = found['model'].parent
    return found


KINDS = ('raster', 'chips', 'vector', 'parquet', 'weights', 'checkpoint', 'foreign model', 'model', 'folder of a model')


@pytest.mark.parametrize('name', KINDS)
def test_each_kind_is_described_in_words_and_as_json(name, files, capsys):
    path = str(files[name])
    main(['info', path])
    words = capsys.readouterr().out
    main(['info', path, '--json'])
    facts = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert words.strip()
    assert facts['kind'] == {'parquet': 'vector', 'folder of a model': 'model'}.get(name, name)
    assert facts['path'] == path


def test_the_facts(files, capsys):
    def facts(name):
        main(['info', str(files[name]), '--json'])
        return json.loads(capsys.readouterr().out)

    raster = facts('raster')
    assert (raster['width'], raster['height'], len(raster['bands'])) == (128, 128, 10)
    assert raster['bands'][0] == {'name': 'B02', 'wavelength_um': 0.49, 'common_name': 'blue', 'is_radar': False}
    chips = facts('chips')
    assert chips['chips_to_train'] + chips['chips_to_validate'] == 16
    assert 'water' in [row['name'] for row in chips['classes']]
    assert ['Class', 'object'] in facts('vector')['layers'][0]['fields']
    assert facts('vector')['layers'][0]['features'] == facts('parquet')['layers'][0]['features'] > 0
    assert facts('weights')['tensors'] == {'a.weight': [2, 3]}
    assert facts('checkpoint')['epoch'] == 1
    assert facts('checkpoint')['resumes']
    assert facts('model')['model'] == 'UNet'


def test_numbers_that_json_has_no_word_for_are_null(save, tmp_path, capsys):
    path = save(tmp_path / 'nan.tif', np.ones((4, 4), np.float32), nodata=np.nan)
    main(['info', str(path), '--json'])
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail)['nodata'] is None
