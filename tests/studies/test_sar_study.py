"""The radar study on a few generated chips: every kind of cell, its table, and what an interrupted study keeps."""

import json
import os
import shutil

import numpy as np
import pytest
from affine import Affine

from geolearn import export_training_data
from geolearn.cli import main
from geolearn.errors import UnknownNameError
from geolearn.studies import sar, study_sar

pytestmark = pytest.mark.usefixtures('one_thread')

ARGUMENTS = {
    'backbone': 'vit_nano',
    'pretrained': False,
    'shares': (0.1,),
    'epochs': 1,
    'batch_size': 4,
    'chip_size': 32,
}


@pytest.fixture(scope='module')
def chips(tmp_path_factory, save):
    """Two bands of radar and classes of WorldCover, 32 x 320 pixels from north to south: ten chips."""
    root = tmp_path_factory.mktemp('sar')
    rng = np.random.default_rng(0)
    labels = np.where(np.arange(32) < 16, 10, 80) * np.ones((320, 1), int)
    level = np.where(labels == 10, -10, -20)
    place = {'transform': Affine(10, 0, 500_000, 0, -10, 5_400_000), 'crs': 'EPSG:32633'}
    pixels = np.stack([level, level - 6]) + rng.normal(0, 1, (2, 320, 32))
    save(root / 'scene.tif', pixels.astype(np.float32), **place)
    save(root / 'labels.tif', labels.astype(np.uint8), **place)
    export_training_data(
        root / 'scene.tif', root / 'labels.tif', root / 'chips', tile_size=32, bands=['VV', 'VH'], sensor='Sentinel-1'
    )
    return root / 'chips'


@pytest.fixture(scope='module')
def trained(chips, tmp_path_factory):
    """Cells that were trained, one of each input."""
    out = tmp_path_factory.mktemp('trained')
    frozen = study_sar(chips, out, starts=['frozen'], inputs=['attention maps', 'tokens'], **ARGUMENTS)
    scratch = study_sar(chips, out, starts=['scratch'], inputs=['UNet', 'UNet + attention'], **ARGUMENTS)
    return [*frozen.cells, *scratch.cells]


@pytest.fixture(scope='module')
def study(chips, tmp_path_factory):
    """The whole study, as if its trainings had ended with these scores."""
    out, scores = tmp_path_factory.mktemp('study'), iter(np.linspace(0.3, 0.5, 10))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sar, '_train', lambda data, *_, **__: {'miou': next(scores), 'chips': len(data.split.train)})
        return study_sar(chips, out, **ARGUMENTS), out


def test_cells_are_trained_through_models_of_their_input(trained):
    assert {cell.input for cell in trained} == {*sar.INPUTS}
    assert all(0 < cell.miou[0] <= 1 for cell in trained)
    assert all(cell.chips == 2 for cell in trained)


def test_every_input_is_trained_from_every_start(study):
    cells = {(cell.input, cell.start) for cell in study[0].cells}
    assert len(cells) == 10
    assert {start for name, start in cells if name == 'UNet'} == {'scratch'}
    assert {start for name, start in cells if name == 'tokens'} == {*sar.STARTS}
    assert study[0].chips == (6, 2, 2)
    assert study[0].classes == ('Tree cover', 'Permanent water bodies')


def test_published_figures_have_their_own_column(study):
    table = study[0].table()
    assert table.loc[('UNet', 'scratch'), '10 %, published'] == 0.475
    assert table.loc[('UNet + attention', 'best'), '10 %, published'] == 0.480
    assert np.isnan(table.loc[('tokens', 'frozen'), '10 %, published'])
    own = table.loc['UNet + attention', '10 %']
    assert own['best'] == own.drop('best').max()
    text = study[0].to_markdown()
    assert '10 % are 2 chips' in text
    assert sar.SOURCE in text


def test_finished_cells_are_kept(study, chips, monkeypatch):
    result, out = study
    monkeypatch.setattr(sar, '_train', None)  # nothing is trained again
    again = study_sar(chips, out, **ARGUMENTS)
    assert again.table().equals(result.table())
    assert (out / 'study.md').read_text() == result.to_markdown() + '\n'


def test_one_command_runs_it(chips, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sar, '_train', lambda data, *_, **__: {'miou': 0.4, 'chips': 2})
    words = ['study', 'sar', str(chips), str(tmp_path), '--backbone', 'vit_nano', '--from-scratch', '--epochs', '1']
    words += ['--shares', '0.1', '--chip-size', '32', '--batch-size', '4']
    main([*words, '--inputs', 'UNet'])
    found = capsys.readouterr().out
    assert '| UNet | scratch |' in found
    assert 'tokens' not in found
    main(words)  # all inputs, as the help says
    found = capsys.readouterr().out
    assert all(f'| {name} |' in found for name in sar.INPUTS)


def test_names_of_the_folder_stay(chips, tmp_path, monkeypatch):
    named = shutil.copytree(chips, tmp_path / 'chips')
    emd = json.loads((named / 'esri_model_definition.emd').read_text())
    for info in emd['Classes']:
        info['Name'] = {10: 'forest', 80: 'lake'}[info['Value']]
    (named / 'esri_model_definition.emd').write_text(json.dumps(emd))
    done = []

    def train(data, *args, **given):
        done.append(data.classes)
        return {'miou': 0.5, 'chips': 2}

    monkeypatch.setattr(sar, '_train', train)
    small = ARGUMENTS | {'inputs': ['UNet'], 'starts': ['scratch']}
    assert study_sar(named, tmp_path / 'out', **small).classes == ('forest', 'lake')
    os.utime(next((named / 'labels').glob('*.tif')), (1, 1))
    study_sar(named, tmp_path / 'out', **small)
    assert len(done) == 2, 'cells of labels that were corrected since are not used'


def test_unknown_inputs_are_named(chips, tmp_path):
    with pytest.raises(UnknownNameError, match="did you mean 'UNet'"):
        study_sar(chips, tmp_path, inputs=['Unet'])
