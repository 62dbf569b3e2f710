"""The demo, made small."""

import subprocess

import pytest
import rasterio

from geolearn import demo
from geolearn.cli import main
from geolearn.errors import ChipFolderError

pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.mark.slow
def test_the_demo_runs_and_leaves_what_it_promises(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, 'SCENE_SIZE', 256)
    monkeypatch.setattr(demo, 'CHIP_SIZE', 32)
    said = []
    scores = demo.run_demo(tmp_path / 'out', backbone='test_resnet', epochs=2, say=said.append)
    assert set(scores) == {'accuracy', 'miou', 'seconds'}
    assert 1 / 6 < scores['accuracy'] <= 1
    assert 0 < scores['miou'] <= 1
    names = {path.name for path in (tmp_path / 'out').iterdir()}
    assert {'chips', 'chips.png', 'landcover', 'scene_2_map.tif', 'scene_2.png'} <= names
    with (
        rasterio.open(tmp_path / 'out' / 'scene_2.tif') as src,
        rasterio.open(tmp_path / 'out' / 'scene_2_map.tif') as found,
    ):
        assert (found.shape, found.transform) == (src.shape, src.transform)
    text = '\n'.join(said)
    assert f'accuracy {scores["accuracy"]:.3f}, mIoU {scores["miou"]:.3f}' in text
    assert 'landcover/landcover.dlpk' in text


@pytest.mark.parametrize('kind', ['folder', 'file'])
def test_a_folder_that_holds_anything_is_refused_before_anything_is_written(tmp_path, kind):
    (tmp_path / 'note.txt').write_text('mine')
    with pytest.raises(ChipFolderError, match='is not empty; name a new folder for the demo'):
        demo.run_demo(tmp_path if kind == 'folder' else tmp_path / 'note.txt', say=print)
    assert [path.name for path in tmp_path.iterdir()] == ['note.txt']


@pytest.mark.parametrize('status', [2, -9])
def test_a_map_that_fails_in_its_process_ends_the_demo_in_words(tmp_path, monkeypatch, capsys, status):
    class Model:
        def __init__(self, *args, **options): ...

        def fit(self, *args, **options): ...

        def save(self, path):
            return path.with_suffix('.dlpk')

    monkeypatch.setattr(demo, 'SCENE_SIZE', 256)
    monkeypatch.setattr(demo, 'CHIP_SIZE', 32)
    monkeypatch.setattr(demo, 'DeepLab', Model)
    monkeypatch.setattr(demo.subprocess, 'run', lambda command, **options: subprocess.CompletedProcess(command, status))
    with pytest.raises(SystemExit) as ended:
        main(['demo', '--out', str(tmp_path / 'out')])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert f'the map of the demo was not made: geolearn predict ended with status {status}' in said
    assert f'geolearn predict {tmp_path}/out/landcover.dlpk' in said
    assert 'Traceback' not in said
