"""The command line: the whole path on small data, and errors in one line."""

import subprocess
import sys

import numpy as np
import pytest
import rasterio

from geolearn.cli import main

pytestmark = pytest.mark.usefixtures('one_thread')

TRAIN = '--backbone test_resnet --from-scratch --chip-size 32 --batch-size 4 --valid 0.25 --ignore-classes 0'.split()


@pytest.fixture(scope='module')
def bundle(scene_chips, tmp_path_factory):
    path = tmp_path_factory.mktemp('cli') / 'm.dlpk'
    main(['train', str(scene_chips), str(path), *TRAIN, '--epochs', '1', '--lr', '1e-3'])
    return path


def fails(capsys, *argv):
    """Run a command that must fail on purpose; returns what it says."""
    with pytest.raises(SystemExit) as caught:
        main([str(word) for word in argv])
    out, err = capsys.readouterr()
    assert caught.value.code == 2
    assert 'wrote' not in out
    return err


def test_train_prints_what_it_found_and_writes_a_bundle(scene_chips, tmp_path, capsys):
    main(['train', str(scene_chips), str(tmp_path / 'm.dlpk'), *TRAIN, '--epochs', '2', '--lr', '1e-3', '--seed', '7'])
    out = capsys.readouterr().out
    assert '12 chips to train, 4 to validate, 32 px, batches of 4' in out
    assert len([line for line in out.splitlines() if line.split()[:1] in (['1'], ['2'])]) == 2, 'a row per epoch'
    assert 'precision' in out
    assert 'built-up' in out
    assert 'on the validation chips' in out
    assert f'wrote {tmp_path / "m.dlpk"}' in out
    assert (tmp_path / 'm.dlpk').is_file()


def test_the_same_seed_gives_the_same_rows(scene_chips, tmp_path, capsys):
    rows = []
    for name in ('a', 'b'):
        main(['train', str(scene_chips), str(tmp_path / f'{name}.dlpk'), *TRAIN, '--epochs', '1', '--lr', '1e-3'])
        lines = capsys.readouterr().out.splitlines()
        rows.append([line.split()[:-1] for line in lines if line.split()[:1] == ['1']])
    assert rows[0] == rows[1] != []


def test_predict_writes_the_map(bundle, scene_files, tmp_path, capsys):
    dst = tmp_path / 'map.tif'
    main(['predict', str(bundle), str(scene_files[0]), str(dst), '--tile-size', '64', '--halo', '8'])
    assert capsys.readouterr().out.startswith(f'wrote {dst} in ')
    with rasterio.open(scene_files[0]) as src, rasterio.open(dst) as found:
        assert (found.shape, found.transform, found.crs) == (src.shape, src.transform, src.crs)
        assert np.array_equal(found.read(1) == 0, (src.read() == 0).any(0))


def test_several_rasters_make_one_map(bundle, scene_files, tmp_path, capsys):
    main(['predict', str(bundle), str(scene_files[0]), str(scene_files[0]), str(tmp_path / 'map.tif')])
    with rasterio.open(tmp_path / 'map.tif') as found:
        assert found.shape == (128, 128)


def test_info_describes_models_folders_and_rasters(bundle, scene_chips, scene_files, capsys):
    main(['info', str(bundle)])
    assert capsys.readouterr().out.startswith('DeepLab on test_resnet: ')
    main(['info', str(scene_chips)])
    assert 'ChipData: ' in capsys.readouterr().out
    main(['info', str(scene_files[0])])
    out = capsys.readouterr().out
    assert '128 x 128 pixels, 10 bands of uint16, NoData 0' in out
    assert 'EPSG:32633' in out
    assert '10 x 10 map units' in out
    assert 'B02' in out


def test_an_error_is_one_line_on_stderr(bundle, scene_chips, scene_files, tmp_path, capsys):
    image = scene_files[0]
    for argv, said in [
        (['info', tmp_path / 'none.tif'], 'cannot open raster'),
        (['info', tmp_path], 'esri_model_definition.emd'),
        (['info', tmp_path / 'none.dlpk'], 'does not exist; pass the .dlpk'),
        (['predict', image, image, tmp_path / 'map.tif'], 'is no readable .dlpk'),
        (['predict', bundle, tmp_path / 'none.tif', tmp_path / 'map.tif'], 'cannot open raster'),
        (['predict', bundle, image, tmp_path / 'map.tif', '--scale', '100000'], 'other units than the training chips'),
        (['predict', bundle, image, tmp_path / 'none' / 'map.tif'], 'does not exist; create it first'),
        (['train', tmp_path, 'm', *TRAIN], 'esri_model_definition.emd'),
        (['train', scene_chips, 'm', *TRAIN, '--backbone', 'dofa_bse'], "did you mean 'dofa_base'"),
        (['train', scene_chips, 'm', *TRAIN, '--bands', 'a', 'b'], 'bands= names 2 bands but the chips hold 10'),
    ]:
        err = fails(capsys, *argv)
        assert err.startswith('geolearn: ')
        assert err.count('\n') == 1
        assert said in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ('argv', 'said'),
    [
        (['train', 'chips', 'm', '--epochs', '0'], '--epochs: must be a whole number from 1'),
        (['train', 'chips', 'm', '--batch-size', '1'], '--batch-size: must be a whole number from 2'),
        (['predict', 'm', 'a', 'b', '--halo', '-1'], '--halo: must be a whole number from 0'),
        (['predict', 'm', 'a', 'b', '--tile-size', 'x'], '--tile-size: must be a whole number from 1'),
        (['predict', 'm', 'a', 'b', '--tile-size', '64', '--halo', '32'], '--halo must be under half of --tile-size'),
        (['train', 'chips', 'm', '--split', 'odd'], "unknown split 'odd'"),
        (['nothing'], 'invalid choice'),
        ([], 'required: command'),
    ],
)
def test_impossible_arguments_are_refused_before_any_work(capsys, argv, said):
    assert said in fails(capsys, *argv)


def test_help_does_not_wait_for_torch():
    code = """if True:
        import sys
        from geolearn.cli import main
        try:
            main(['predict', '--help'])
        except SystemExit as end:
            assert end.code == 0
        slow = {'torch', 'fastai', 'rasterio', 'numpy', 'pandas', 'matplotlib'} & set(sys.modules)
        sys.exit(f'imported {slow}' if slow else 0)
    """
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, '')
    assert 'pixels dropped at inner tile edges' in done.stdout


def test_the_package_is_a_command():
    done = subprocess.run([sys.executable, '-m', 'geolearn', '--help'], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert all(name in done.stdout for name in ('train', 'predict', 'info', 'demo'))
