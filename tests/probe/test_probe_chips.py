"""Probes of chip folders, from Python and from the command line."""

import numpy as np
import pytest

from geolearn import prepare_data
from geolearn.cli import main
from geolearn.errors import ChipFolderError
from geolearn.probe import probe_chips

pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture(scope='module')
def write(write_export):
    """Write 20 chips of 32 px, half of one class and half of two."""
    rng = np.random.default_rng(0)
    labels = [
        np.where(np.arange(32) < 32 * (number % 2 + 1) // 2, 1, 2) * np.ones((32, 1), int) for number in range(20)
    ]
    images = [(600 + 400 * label + rng.normal(0, 30, (3, 32, 32))).astype(np.uint16) for label in labels]
    names = ['Blue', 'Green', 'Red']
    masks = [label.astype(np.uint8) for label in labels]
    return lambda path, **profile: write_export(path, images, masks, band_names=names, image_profile=profile)


@pytest.fixture(scope='module')
def folder(tmp_path_factory, write):
    return write(tmp_path_factory.mktemp('chips') / 'chips')


def test_classes_of_pixels_are_those_that_a_chip_shows(folder):
    data = prepare_data(folder, batch_size=4)
    arguments = {'pretrained': False, 'method': 'linear', 'folds': 2, 'seeds': [0]}
    result = probe_chips(data, 'dofa_tiny', **arguments)
    assert result.multi_label
    assert result.class_names == ('one', 'two')
    assert result.cooccurrence.tolist() == [[20, 10], [10, 10]]
    assert result.features == ('embeddings', 'band statistics', 'random convolutions')
    assert result.score('linear', features='band statistics').mean('f1_macro') == 1
    assert 'whole blocks of land 1280 map units wide' in result.folds


def test_chips_without_a_place_cannot_be_divided_by_land(tmp_path, write):
    data = prepare_data(write(tmp_path / 'chips', crs=None), batch_size=4, split='stratified')
    with pytest.raises(ChipFolderError, match="pass split='random'"):
        probe_chips(data, 'dofa_tiny', split='blocks', pretrained=False)
    result = probe_chips(data, 'dofa_tiny', pretrained=False, method='linear', seeds=[0])
    assert any('no places in one CRS' in note for note in result.notes)


def test_the_command_line_prints_and_writes_tables(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr('geolearn.plotting.figure.draw_png', lambda figure, *, dpi: b'PNG')
    words = ['--backbone', 'dofa_tiny', '--from-scratch', '--methods', 'linear', '--seeds', '0', '--folds', '2']
    main(['probe', str(folder), *words, '--out', str(tmp_path / 'out')])
    printed = capsys.readouterr().out
    assert '| embeddings | linear (least squares) |' in printed
    assert '| random convolutions |' in printed
    assert {path.name for path in (tmp_path / 'out').iterdir()} >= {'probe.md', 'scores.csv', 'f1_macro.png'}
