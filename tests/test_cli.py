"""The command line: the whole path on small data, and errors in one line."""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from typing import get_args

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine

from geolearn import normalize
from geolearn.adaptation import Temporal
from geolearn.chips.formats import angles
from geolearn.chips.splits import divide
from geolearn.chips.splits.divide import PUBLISHED
from geolearn.cli import main
from geolearn.cli.arguments import BOX_ANGLES, NORMALIZATIONS, SPLITS, add_chips, read_chips
from geolearn.cli.train import FUSIONS, HEADS, TEMPORALS
from geolearn.networks.pixel_head import Head
from geolearn.networks.segmentation import Fusion
from geolearn.plotting.figure import Figure
from geolearn.training import Callback
from geolearn.training.checkpoints import write_snapshot

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


def test_the_same_seed_gives_the_same_rows(scene_chips, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr('geolearn.models.Model.save', lambda self, name: name)
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


def test_parts_of_a_map_are_computed_apart_and_merged(bundle, scene_files, tmp_path, capsys):
    dst = tmp_path / 'map.tif'
    words = ['predict', str(bundle), str(scene_files[0]), str(dst), '--tile-size', '64', '--halo', '8']
    main([*words, '--part', '2/2'])
    assert 'once all 2 are computed, run the command with --merge-parts instead' in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*words, '--merge-parts'])
    assert 'missing: 1. Compute these, such as with --part 1/2, and merge again' in capsys.readouterr().err
    main([*words, '--part', '1/2'])
    main([*words, '--merge-parts'])
    main([*words[:3], str(tmp_path / 'whole.tif'), *words[4:]])
    assert dst.read_bytes() == (tmp_path / 'whole.tif').read_bytes()


def test_each_scene_of_a_folder_gets_a_map(bundle, scene_files, tmp_path, capsys):
    (tmp_path / 'scenes').mkdir()
    shutil.copy(scene_files[0], tmp_path / 'scenes' / 'good.tif')
    words = ['predict', str(bundle), str(tmp_path / 'scenes'), str(tmp_path / 'maps'), '--each', '--tile-size', '64']
    main(words)
    assert f'1 of 1 scenes are mapped in {tmp_path / "maps"}, in ' in capsys.readouterr().out
    (tmp_path / 'scenes' / 'bad.tif').write_text('no raster')
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert '1 of 2 scenes are mapped' in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*words, '--resume'])
    assert '--each does what is missing by itself, leave --resume out' in capsys.readouterr().err


def test_show_draws_the_results_of_a_model(bundle, scene_chips, tmp_path, monkeypatch):
    monkeypatch.setattr('geolearn.models.PixelClassifier.show_results', lambda self: Figure())
    chips = '--batch-size 4 --valid 0.25 --ignore-classes 0'.split()
    main(['show', str(scene_chips), str(tmp_path / 'r.png'), '--model', str(bundle), *chips])
    assert (tmp_path / 'r.png').read_bytes().startswith(b'\x89PNG')


@pytest.mark.parametrize(
    ('words', 'said'),
    [
        (['--model', 'm.dlpk', '--chip-size', '224'], '--chip-size does not apply, because the model has a chip size'),
        (['--chip-size', '64'], '--chip-size does not apply, because a raster is shown as it is'),
        (['--ignore-classes', '0'], '--ignore-classes does not apply, because a raster is shown as it is'),
        (['--valid', '0.3'], '--valid does not apply, because a raster is shown as it is'),
    ],
)
def test_show_refuses_options_that_it_has_no_use_for(scene_chips, scene_files, tmp_path, capsys, words, said):
    shown = scene_chips if '--model' in words else scene_files[0]
    words = [str(tmp_path / word) if word == 'm.dlpk' else word for word in words]
    (tmp_path / 'm.dlpk').write_bytes(b'')
    with pytest.raises(SystemExit) as ended:
        main(['show', str(shown), str(tmp_path / 'r.png'), *words])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / 'r.png').exists()


def test_chips_that_were_trained_on_are_reported(bundle, scene_chips, capsys):
    chips = '--batch-size 4 --valid 0.25 --ignore-classes 0 --json'.split()
    main(['evaluate', str(bundle), str(scene_chips), *chips])
    assert 'trained on' not in capsys.readouterr().err
    main(['evaluate', str(bundle), str(scene_chips), *chips, '--all'])
    said = capsys.readouterr().err
    assert '12 of the 16 validation chips were trained on' in said
    assert 'with --valid 0.25, --seed 42, or take other chips' in said


def test_info_prints_one_json_object_beside_the_stac_item(bundle, tmp_path, capsys):
    main(['info', str(bundle), '--json', '--stac', str(tmp_path / 'item.json')])
    assert json.loads(capsys.readouterr().out)['kind'] == 'model'
    assert json.loads((tmp_path / 'item.json').read_text())['type'] == 'Feature'


def test_a_label_value_has_one_name(capsys):
    assert "label value 1 twice: 'a' and 'b'" in fails(capsys, 'train', '.', 'm', '--class-mapping', '1=a', '1=b')


def test_several_rasters_make_one_map(bundle, scene_files, tmp_path, capsys):
    main(['predict', str(bundle), str(scene_files[0]), str(scene_files[0]), str(tmp_path / 'map.tif')])
    with rasterio.open(tmp_path / 'map.tif') as found:
        assert found.shape == (128, 128)


def test_info_describes_models_folders_and_rasters(bundle, scene_chips, scene_files, capsys):
    main(['info', str(bundle)])
    assert capsys.readouterr().out.startswith('DeepLab on test_resnet: ')
    main(['info', str(scene_chips)])
    said, warned = capsys.readouterr()
    assert 'ChipData: ' in said
    assert 'pass --ignore-classes 0' in said, 'as the commands call it that train'
    assert not warned, 'what is printed is not said twice'
    main(['info', str(scene_files[0])])
    out = capsys.readouterr().out
    assert '128 x 128 pixels, 10 bands of uint16, NoData 0' in out
    assert 'EPSG:32633' in out
    assert '10 x 10 m\n' in out
    assert '  band     B02 (0.49 µm, blue)\n' in out


def test_info_describes_any_file_in_plain_words(bundle, scene_files, save, tmp_path, capsys):
    geopandas = pytest.importorskip('geopandas')
    squares = geopandas.GeoDataFrame({'use': ['wood']}, geometry=geopandas.points_from_xy([1], [2]), crs=4326)
    squares.to_file(tmp_path / 'v.gpkg', layer='one')
    squares.to_file(tmp_path / 'v.gpkg', layer='two')
    squares.to_file(tmp_path / 'v.geojson')
    squares.to_parquet(tmp_path / 'v.parquet')
    torch.save({'state': {'a': torch.zeros(2, 3)}}, tmp_path / 'w.pth')
    facts = {'run': '1f', 'epoch': 2, 'fingerprint': {'epochs': 4}, 'history': {'epochs': [{'epoch': 2, 'miou': 0.25}]}}
    write_snapshot(tmp_path / 'last.safetensors', {'network/a': torch.zeros(2)}, facts)
    (tmp_path / 'model').mkdir(), (tmp_path / 'scene').mkdir()
    shutil.copy(bundle, tmp_path / 'model')
    for name in ('B02.tif', 'B03.tif'):
        save(tmp_path / 'scene' / name, np.ones((1, 4, 4), np.uint16), transform=Affine(10, 0, 0, 0, -10, 0), crs=32632)
    for name, *said in (
        ('v.gpkg', 'a vector file of 2 layers', 'one: 1 feature, Point, EPSG:4326', 'use (text: wood)'),
        ('v.geojson', 'a vector file of 1 layer', '1, 2, 1, 2'),
        ('v.parquet', 'a vector file of 1 layer', '1 feature, Point, EPSG:4326'),
        ('w.pth', 'weights, 1 tensor of 6 numbers (float32)', 'state/a (2, 3)'),
        ('last.safetensors', 'a checkpoint of a training, after epoch 2 of 4', '1f', '0.25', 'train --resume'),
        ('model', 'DeepLab on test_resnet: '),
        ('scene', '4 x 4 pixels, 2 bands of uint16, no NoData value', 'B02'),
    ):
        main(['info', str(tmp_path / name)])
        out = capsys.readouterr().out
        assert all(words in out for words in said), out
    for name, content in (
        ('a.txt', b'text'),
        ('a.json', b'{}'),
        ('b.json', b'{'),
        ('a', b''),
        ('a.pth', b'1'),
        ('b', 0),
    ):
        path = tmp_path / name
        os.mkfifo(path) if content == 0 else path.write_bytes(content)
        with pytest.raises(SystemExit):
            main(['info', str(path)])
        said = capsys.readouterr().err
        assert re.fullmatch(rf'geolearn: {path} (is|cannot be read as).*\n', said), said
        assert 'weights_only' not in said


def test_an_error_is_one_line_on_stderr(bundle, scene_chips, scene_files, tmp_path, capsys):
    image = scene_files[0]
    for argv, said in [
        (['info', tmp_path / 'none.tif'], 'cannot open raster'),
        (['info', tmp_path], 'esri_model_definition.emd'),
        (['info', tmp_path / 'none.dlpk'], 'does not exist; pass the .dlpk'),
        (['predict', image, image, tmp_path / 'map.tif'], 'is no readable .dlpk'),
        (['predict', bundle, tmp_path / 'none.tif', tmp_path / 'map.tif'], 'none.tif: does not exist'),
        (['predict', bundle, image, tmp_path / 'map.tif', '--scale', '100000'], 'other units than the training chips'),
        (['predict', bundle, image, tmp_path / 'none' / 'map.tif'], 'does not exist; create it first'),
        (['train', tmp_path, 'm', *TRAIN], 'esri_model_definition.emd'),
        (['train', scene_chips, 'm', *TRAIN, '--backbone', 'dofa_bse'], "did you mean 'dofa_base'"),
        (['train', scene_chips, 'm', *TRAIN, '--bands', 'a', 'b'], '--bands names 2 bands but the chips hold 10'),
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
        (['predict', '.', '.', 'b', '--tile-size', '64', '--halo', '32'], '--halo must be under half of --tile-size'),
        (['train', '.', 'm', '--split', 'odd'], "unknown split 'odd'"),
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


def test_any_class_of_models_is_trained_by_name(scene_chips, tmp_path, capsys):
    page = tmp_path / 'report.html'
    extra = '--model UnetClassifier --loss focal --dice-fraction 0.5 --class-balancing --early-stopping --epochs 1'
    extra += f' --monitor miou --lr 1e-3 --report {page}'
    main(['train', str(scene_chips), str(tmp_path / 'm.dlpk'), *TRAIN, *extra.split()])
    assert f'wrote {page}' in capsys.readouterr().out
    assert page.read_text(encoding='utf-8').startswith('<!doctype html>')
    from geolearn.models import UNet, load_model

    model = load_model(tmp_path / 'm.dlpk')
    assert isinstance(model, UNet)
    assert model.spec.options['loss']['loss'] == 'focal'
    assert model.spec.options['loss']['dice_fraction'] == 0.5
    assert model.spec.class_balancing


def test_names_that_help_does_not_wait_for_are_those_of_python():
    assert {*SPLITS} == {PUBLISHED, *divide.KINDS}
    assert {*NORMALIZATIONS} == {*normalize.KINDS}
    assert (get_args(Fusion), get_args(Temporal), get_args(Head)) == (FUSIONS, TEMPORALS, HEADS)


def test_oriented_chips_are_read_as_options_say(tmp_path):
    parser = argparse.ArgumentParser()
    add_chips(parser)
    assert [*BOX_ANGLES] == [*angles.BOX_ANGLES]
    options = ['--box-angles', 'detectron2', '--keep-visible', '0.6', '--dataset-type', 'COCO_OBB']
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('geolearn.prepare.prepare_data', lambda chips, **given: given)
        given = read_chips(parser.parse_args(options), ['chips'])
        usual = read_chips(parser.parse_args([]), ['chips'])
    assert (given['box_angles'], given['keep_visible']) == ('detectron2', 0.6)
    assert usual['box_angles'] is None
    assert not {'keep_visible', 'ignore_visible'} & usual.keys()


def test_regression_is_trained_too(scene_chips, tmp_path, capsys):
    options = '--backbone test_resnet --from-scratch --chip-size 32 --batch-size 4 --valid 0.25 --epochs 1 --lr 1e-3'
    extra = f'{options} --model PixelRegressor --values --loss huber --decoder fpn'
    main(['train', str(scene_chips), str(tmp_path / 'm.dlpk'), *extra.split()])
    assert 'rmse' in capsys.readouterr().out


def test_an_interrupted_training_is_resumed(scene_chips, tmp_path, capsys, monkeypatch):
    from geolearn.models import Model

    argv = ['train', str(scene_chips), str(tmp_path / 'm.dlpk'), *TRAIN, '--epochs', '2', '--lr', '1e-3']
    chips = tmp_path / 'chips'
    shutil.copytree(scene_chips, chips)  # checkpoints go beside the chips
    argv[1] = str(chips)
    fit = Model.fit

    def interrupted(self, *args, **options):
        class Stop(Callback):
            def before_batch(self):
                if self.learn.epoch == 1:
                    raise KeyboardInterrupt

        return fit(self, *args, **options, callbacks=[Stop()])

    with monkeypatch.context() as patch:
        patch.setattr(Model, 'fit', interrupted)
        with pytest.raises(SystemExit) as caught:
            main(argv)
    assert caught.value.code == 130
    said = capsys.readouterr().err
    assert said.splitlines()[-1].startswith('geolearn: interrupted; what is finished was kept. Continue with: ')
    assert shlex.split(said.partition('Continue with: ')[2]) == ['geolearn', *argv, '--resume']
    main([*argv, '--resume'])
    rows = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.split()[:1] in (['1'], ['2'])]
    assert rows == ['2']


@pytest.mark.parametrize(
    ('argv', 'said'),
    [
        (['--model', 'Unett'], "did you mean 'UNet'"),
        (['--model', 'UNet', '--mixup'], '--mixup does not apply to UNet; leave it out'),
        (['--model', 'FasterRCNN', '--loss', 'focal'], 'FasterRCNN has a loss of its own'),
        (
            ['--model', 'PixelRegressor', '--loss', 'mse', '--dice-fraction', '0.5'],
            'takes no other option of losses than --loss mse',
        ),
        (['--loss', 'focal', '--label-smoothing', '0.1'], '--label-smoothing works with --loss cross_entropy alone'),
        (['--loss', 'odd'], "unknown loss 'odd'"),
        (['--freeze', 'some'], '--freeze must be one of'),
        (['--dice-fraction', '2'], '--dice-fraction: must be a number in 0..1'),
        (['--lr', 'fast'], '--lr: must be a number from 1e-12'),
    ],
)
def test_invalid_trainings_are_refused_before_chips_are_read(capsys, argv, said, tmp_path):
    assert said in fails(capsys, 'train', tmp_path, 'm', *argv)  # an empty folder, which is no chip folder


def test_a_report_is_written_from_bundle_and_chips(bundle, scene_chips, tmp_path, capsys):
    page = tmp_path / 'report.html'
    main(['report', str(bundle), str(scene_chips), str(page), '--batch-size', '4', '--valid', '0.25'])
    assert capsys.readouterr().out == f'wrote {page}\n'
    text = page.read_text(encoding='utf-8')
    assert text.startswith('<!doctype html>')
    assert 'built-up' in text


# -- weights


@pytest.fixture
def no_weights(tmp_path, monkeypatch):
    """A machine without any weights."""
    monkeypatch.setenv('GEOLEARN_WEIGHTS_DIR', str(tmp_path))
    monkeypatch.setattr('geolearn.backbones.weights.hub_cache', lambda: tmp_path / 'hub')


@pytest.mark.usefixtures('no_weights')
def test_weights_are_listed_with_where_they_are(tmp_path, capsys):
    main(['weights', 'list', 'dofa_base'])
    out = capsys.readouterr().out
    assert 'dofa_base  not here: ' in out
    assert '0 of 1 are on this machine' in out
    name = out.split('not here: ')[1].split(' of ')[0]
    (tmp_path / name.rpartition('/')[2]).write_bytes(b'')
    main(['weights', 'list', 'dofa_base'])
    assert '1 of 1 are on this machine' in capsys.readouterr().out
    assert 'is not the published' in fails(capsys, 'weights', 'verify')


@pytest.mark.usefixtures('no_weights')
def test_weights_that_are_not_here_or_do_not_exist_are_told(capsys):
    assert 'the weights of dofa_base are not on this machine' in fails(capsys, 'weights', 'verify', 'dofa_base')
    assert "did you mean 'dofa_base'" in fails(capsys, 'weights', 'verify', 'dofa_bse')
    main(['weights', 'verify'])
    assert capsys.readouterr().out == ''


def test_downloaded_weights_are_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr('geolearn.backbones.weights.download_weights', lambda name: tmp_path / f'{name}.pth')
    main(['weights', 'download', 'dofa_base', 'prithvi'])
    assert capsys.readouterr().out.splitlines() == [
        f'{name}: {tmp_path / name}.pth' for name in ('dofa_base', 'prithvi')
    ]
