"""Grids of trainings on a few generated chips: every kind of cell, tables, figures, parts, and what is kept."""

import math
import os
import shutil
from dataclasses import replace
from pathlib import Path

import miniatures
import numpy as np
import pandas as pd
import pytest

from geolearn import prepare_data
from geolearn.backbones import create_backbone, loading
from geolearn.bands import get_bands
from geolearn.chips.splits import divide
from geolearn.cli import main
from geolearn.errors import ArgumentError, ConfigError, TrainingError
from geolearn.models import FCN
from geolearn.studies import Published, estimate_grid, grid, grid_result, read_grid, run_grid
from geolearn.studies.grid_estimate import format_duration
from geolearn.training import distributed

pytestmark = pytest.mark.usefixtures('one_thread')

TEXT = """
data: {{chips: {chips}, chip_size: 32, batch_size: 4, ignore_classes: [0]}}
encoders: [vit_nano, test_resnet]
decoders: [LinearProbe, FCN]
starts: [frozen, random]
shares: [0.5, 1.0]
epochs: 1
lr: 0.001
published:
- {{encoder: vit_nano, decoder: FCN, start: random, miou: 0.8, source: A paper}}
"""


@pytest.fixture
def file(scene_chips, tmp_path):
    path = tmp_path / 'toy.yaml'
    path.write_text(TEXT.format(chips=scene_chips))
    return path


@pytest.fixture
def unwritten(monkeypatch):
    """No tables and figures: drawing takes seconds."""
    monkeypatch.setattr(grid_result.GridResult, 'save', lambda self, folder: [])


@pytest.fixture
def untrained(monkeypatch):
    """Trainings that take no time: a score for each, made from what it is; returns what was trained."""
    done = []

    def train(given, job, plan):
        done.append(job)
        failure = (
            'test_resnet has no published weights' if (job.encoder, job.start) == ('test_resnet', 'frozen') else ''
        )
        score = 0.5 + 0.2 * job.share + 0.05 * (job.encoder == 'vit_nano') + 0.01 * job.seed
        return grid_result.Cell(
            encoder=job.encoder,
            decoder=job.decoder,
            start='baseline' if job.baseline else job.start,
            share=job.share,
            seed=job.seed,
            chips=8,
            metrics={} if failure else {'miou': score, 'accuracy': 0.9},
            class_iou={'water': score, 'snow': math.nan},
            seconds=3.0 + job.seed,
            parameters=100,
            trained=10,
            versions={'geolearn': '0'},
            failure=failure,
        )

    monkeypatch.setattr(grid, '_train', train)
    return done


def test_a_grid_trains_what_models_can_be_and_says_what_not(scene_chips, tmp_path, unwritten):
    """Real trainings of one epoch: a frozen encoder without weights is not possible, the rest has scores."""
    small = grid.Grid(
        data={'chips': str(scene_chips), 'chip_size': 32, 'batch_size': 4, 'ignore_classes': [0]},
        encoders=['test_resnet'],
        decoders=['FCN'],
        starts=['frozen', 'random'],
        epochs=1,
        lr=1e-3,
    )
    result = run_grid(small, tmp_path)
    scores = {(cell.encoder, cell.start): cell for cell in result.cells}
    assert set(scores) == {
        ('band statistics', 'baseline'),
        ('random convolutions', 'baseline'),
        ('test_resnet', 'frozen'),
        ('test_resnet', 'random'),
    }
    assert 'test_resnet' in scores['test_resnet', 'frozen'].failure
    for key, cell in scores.items():
        if key != ('test_resnet', 'frozen'):
            assert 0 <= cell.metrics['miou'] <= 1
            assert 0 < cell.trained <= cell.parameters
    convolutions = scores['random convolutions', 'baseline']
    assert convolutions.trained < convolutions.parameters / 2, 'its encoder is frozen'
    assert scores['test_resnet', 'random'].trained == scores['test_resnet', 'random'].parameters


def test_tables_figures_and_notes(file, tmp_path, untrained, capsys):
    main(['benchmark', str(file), '--no-estimate'])
    shown = capsys.readouterr().out
    out = tmp_path / 'toy'
    assert len(untrained) == 2 * (2 + 8)
    assert '| vit_nano | FCN | random | 0.650 | 0.750 | 0.800 |' in shown
    assert '| band statistics | linear | baseline | 0.600 | 0.700 | - |' in shown
    assert '| test_resnet | FCN | frozen | - | - | - |' in shown
    assert 'Not possible: test_resnet FCN frozen: test_resnet has no published weights' in shown
    assert 'Published, not computed here: A paper.' in shown
    assert (out / 'grid.md').read_text() in shown
    table = pd.read_csv(out / 'grid.csv')
    assert len(table) == 20
    assert {*'encoder decoder start share seed miou seconds'.split(), 'iou water', 'geolearn version'} <= set(table)
    assert pd.read_parquet(out / 'grid.parquet').shape == table.shape
    assert {path.name for path in out.glob('*.png')} == {'scores.png', 'shares.png', 'costs.png'}


def test_a_second_run_trains_only_what_is_missing(file, tmp_path, untrained, unwritten):
    small = read_grid(file)
    first = run_grid(small, tmp_path / 'out')
    count = len(untrained)
    assert run_grid(small, tmp_path / 'out').to_markdown() == first.to_markdown()
    again = {(job.encoder, job.start) for job in untrained[count:]}
    assert again == {('test_resnet', 'frozen')}, 'what was not possible is tried again'
    count = len(untrained)
    more = grid.Grid(**{**vars(small), 'seeds': (0, 1)})
    result = run_grid(more, tmp_path / 'out')
    assert {job.seed for job in untrained[count:] if job.encoder != 'test_resnet'} == {1}
    assert result.table().loc[('vit_nano', 'FCN', 'random'), '100 %, std'] == pytest.approx(0.01 / math.sqrt(2))


def test_cells_of_other_chips_or_corrected_labels_are_not_used(scene_chips, tmp_path, untrained, unwritten):
    chips = shutil.copytree(scene_chips, tmp_path / 'chips')
    small = grid.Grid(
        data={'chips': str(chips), 'chip_size': 32, 'batch_size': 4, 'ignore_classes': [0]},
        encoders=['vit_nano'],
        decoders=['FCN'],
        starts=['random'],
    )
    run_grid(small, tmp_path / 'out')
    run_grid(replace(small, data={**small.data, 'chips': str(chips.rename(tmp_path / 'moved'))}), tmp_path / 'out')
    assert len(untrained) == 1, 'the same files in another place'
    label = next((tmp_path / 'moved' / 'labels').glob('*.tif'))
    os.utime(label, (1, 1))
    run_grid(replace(small, data={**small.data, 'chips': str(tmp_path / 'moved')}), tmp_path / 'out')
    assert len(untrained) == 2


def test_published_parts_are_used_and_shares_are_taken_where_they_say_nothing(scene_chips, tmp_path):
    cases = [
        (miniatures.sen1floods11(tmp_path / 'floods'), {}, (3, 1, 1)),
        (miniatures.burn_scars(tmp_path / 'scars', train=10), {}, (8, 3, 2)),
        (miniatures.burn_scars(tmp_path / 'others'), {'split': 'random'}, (5, 2, 2)),
        (scene_chips, {}, (10, 3, 3)),
    ]
    for chips, given, counts in cases:
        data = {'chips': str(chips), 'chip_size': 16, 'batch_size': 2, **given}
        plan = grid.plan_grid(grid.Grid(data=data, encoders=['vit_nano'], decoders=['FCN']), tmp_path / 'out')
        split = plan.data.split
        assert (len(split.train), len(split.valid), len(split.test)) == counts
        assert {part: len(names) for part, names in plan.reading['split'].items()} == dict(zip(divide.PARTS, counts))
    data = {'chips': str(scene_chips), 'valid_path': str(scene_chips)}
    untested = grid.Grid(data=data, encoders=['vit_nano'], decoders=['FCN'])
    with pytest.raises(ArgumentError, match='add test_path'):
        grid.plan_grid(untested, tmp_path / 'out')


def test_a_training_that_fails_is_a_cell_and_the_others_go_on(scene_chips, tmp_path, unwritten, monkeypatch):
    def fail(*args, **kwargs):
        raise TrainingError('the loss is NaN')

    small = grid.Grid(
        data={'chips': str(scene_chips), 'chip_size': 32, 'batch_size': 4, 'ignore_classes': [0]},
        encoders=['test_resnet'],
        decoders=['FCN'],
        starts=['random'],
    )
    monkeypatch.setattr(FCN, 'fit', fail)
    (cell,) = run_grid(small, tmp_path).cells
    assert cell.failure == 'the loss is NaN'


def test_tables_are_of_what_is_finished_when_a_grid_ends(file, tmp_path, untrained, monkeypatch):
    small = replace(read_grid(file), shares=[1.0], baselines=False)
    train, saved = grid._train, []

    def interrupt(given, job, plan):
        if len(untrained) == 3:
            raise KeyboardInterrupt
        return train(given, job, plan)

    def save(self, folder):
        saved.append(len(self.cells))
        if len(saved) == 1:  # another part finishes meanwhile
            monkeypatch.setattr(grid, '_train', train)
            run_grid(small, tmp_path / 'out', part=(8, 8))
        return []

    monkeypatch.setattr(grid, '_train', interrupt)
    monkeypatch.setattr(grid_result.GridResult, 'save', save)
    with pytest.raises(KeyboardInterrupt):
        run_grid(small, tmp_path / 'out')
    assert saved == [3, 4, 4]


def test_seeds_change_the_labels_and_not_the_parts(scene_chips, tmp_path):
    reading = {'chip_size': 32, 'batch_size': 4, 'val_split_pct': 0.2, 'test_split_pct': 0.2}
    whole = prepare_data(scene_chips, **reading)
    kept = [prepare_data(scene_chips, **grid.keep_parts(whole, reading), seed=s, label_fraction=0.5) for s in (1, 2)]
    for data in kept:
        assert (data.split.valid, data.split.test) == (whole.split.valid, whole.split.test)
        assert set(data.split.train) < set(whole.split.train)
    assert kept[0].split.train != kept[1].split.train


def test_parts_make_the_whole(file, tmp_path, untrained, unwritten):
    small = read_grid(file)
    part = run_grid(small, tmp_path / 'parts', part=(2, 3))
    assert (len(part.cells), part.wanted) == (7, 20)
    assert '13 of 20 trainings are not finished' in part.to_markdown()
    for number in (1, 3):
        whole = run_grid(small, tmp_path / 'parts', part=(number, 3))
    assert len({job.slug for job in untrained}) == 20
    assert whole.to_markdown() == run_grid(small, tmp_path / 'one').to_markdown()


def test_each_process_of_torchrun_does_a_part_alone(file, tmp_path, untrained, unwritten, monkeypatch, capsys):
    known = {'WORLD_SIZE': '2', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': '1'}  # nobody listens: joining would fail
    for name, value in known.items():
        monkeypatch.setenv(name, value)
    for rank in range(2):
        assert not capsys.readouterr().out, 'the table is printed once'
        monkeypatch.setenv('RANK', str(rank))
        main(['benchmark', str(file), '--no-estimate', '--out', str(tmp_path / 'out')])
        assert len(untrained) == 10 * (rank + 1)
    assert 'vit_nano' in capsys.readouterr().out
    assert os.environ['WORLD_SIZE'] == '2'
    with distributed.training_alone():
        distributed.join_processes()
        assert distributed.process_count() == 1


def test_workers_of_dask_train_what_is_missing(scene_chips, tmp_path, unwritten):
    dask = pytest.importorskip('distributed', reason='needs dask: pip install geolearn[dask]')
    small = grid.Grid(
        data={'chips': str(scene_chips), 'chip_size': 32, 'batch_size': 4, 'ignore_classes': [0]},
        encoders=['test_resnet'],
        decoders=['FCN', 'LinearProbe'],
        starts=['random'],
        epochs=1,
        lr=1e-3,
    )
    with dask.Client(processes=False, n_workers=1, threads_per_worker=2, dashboard_address=None) as client:
        result = run_grid(small, tmp_path / 'dask', client=client)
    alone = run_grid(small, tmp_path / 'alone')
    assert [cell.metrics for cell in result.cells] == [cell.metrics for cell in alone.cells]
    assert len(result.cells) == 2


def test_time_and_memory_are_said_before_anything_is_trained(file, tmp_path, untrained, unwritten, capsys):
    file.write_text(file.read_text().replace('LinearProbe, ', ''))
    main(['benchmark', str(file), '--estimate'])
    shown = capsys.readouterr().out
    assert shown.startswith('12 trainings: about ')
    assert 'for the largest' in shown
    assert untrained == []
    small = read_grid(file)
    found = estimate_grid(small, tmp_path / 'toy').table().set_index(['encoder', 'decoder', 'start'])
    assert set(found.trainings) == {2}
    assert found.loc[('band statistics', 'linear', 'baseline'), 'seconds'] == 0
    frozen, trained = found.loc[('vit_nano', 'FCN', 'frozen')], found.loc[('vit_nano', 'FCN', 'random')]
    assert 0 < frozen.memory_bytes < trained.memory_bytes
    assert 0 < frozen.test_seconds < frozen.step_seconds
    longer = estimate_grid(replace(small, epochs=10, baselines=False, encoders=['vit_nano']), tmp_path / 'toy').table()
    assert (longer.seconds > 5 * longer.step_seconds * 2).all(), '10 epochs of two shares with two and three steps'
    run_grid(small, tmp_path / 'toy')
    assert estimate_grid(small, tmp_path / 'toy').describe() == 'all trainings are finished'


@pytest.mark.parametrize(
    ('seconds', 'said'), [(0.2, '1 s'), (61, '1 min 1 s'), (7500, '2 h 5 min'), (86400, '1 d'), (90061, '1 d 1 h')]
)
def test_durations_have_two_units(seconds, said):
    assert format_duration(seconds) == said


@pytest.mark.parametrize(
    ('old', 'new', 'said'),
    [
        ('epochs:', 'epoch:', "unknown key 'epoch'; did you mean 'epochs'"),
        ('decoders: [LinearProbe', 'decoders: [LinearProb', "did you mean 'LinearProbe'"),
        ('starts: [frozen', 'starts: [frosen', "did you mean 'frozen'"),
        ('shares: [0.5', 'shares: [50', 'shares must be numbers over 0 and up to 1'),
        ('chip_size:', 'chipsize:', "unknown argument of data 'chipsize'; did you mean 'chip_size'"),
        ('shares: [0.5, 1.0]', 'shares: [1, 1.0]', 'shares names 1.0 twice'),
        ('epochs: 1', 'epochs: 1\nseeds: [a]', "seeds must be whole numbers from 0, got 'a'"),
        ('epochs: 1', 'epochs: 1\nweights: {vit_nano: none.pth}', "there is none at 'none.pth'"),
        ('encoders: [vit_nano', 'encoders: [vit_nan', "unknown backbone 'vit_nan'"),
        ('encoders: [vit_nano', 'encoders: [none.safetensors', 'none.safetensors, which does not exist'),
        ('encoders: [vit_nano', 'encoders: [5', 'names of backbones or files, got 5'),
        ('miou: 0.8', 'miou: 80', 'mean IoU in 0..1'),
        ('miou: 0.8', 'iou: 0.8', 'iou'),
        ('encoders: [vit_nano', 'encoders: [test_resnet', "encoders names 'test_resnet' twice"),
        ('epochs: 1', 'epochs: none', 'epochs must be a whole number'),
        ('data:', 'data: 3\n#', 'lacks|not YAML|data must name the chips'),
    ],
)
def test_mistakes_are_named_before_anything_is_trained(file, old, new, said):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    with pytest.raises(ConfigError, match=said):
        read_grid(file)


GRIDS = sorted((Path(__file__).parents[2] / 'recipes' / 'grids').glob('*.yaml'))


@pytest.mark.parametrize('path', GRIDS, ids=lambda path: path.stem)
def test_the_grids_that_ship_are_read(path):
    assert {'frozen', 'random'} <= set(read_grid(path).starts)


def test_rates_without_a_dot_are_numbers(file):
    file.write_text(file.read_text().replace('lr: 0.001', 'lr: 1e-3'))
    assert read_grid(file).lr == 0.001


@pytest.mark.parametrize('path', GRIDS, ids=lambda path: path.stem)
def test_the_encoders_of_grids_that_ship_have_maps_for_every_decoder(path):
    sensor = ('sentinel1', 'VV VH') if path.stem.startswith('sar') else ('hls_s30', 'B02 B03 B04 B8A B11 B12')
    bands = get_bands(sensor[0], sensor[1].split())
    for name in read_grid(path).encoders:
        with loading.without_values():
            net = create_backbone(name, bands, pretrained=False, strides=(4, 8, 16, 32))
        assert net.strides == (4, 8, 16, 32), name


def test_bars_stand_side_by_side_without_room_for_what_was_not_possible():
    scores = {
        ('a', 'UNet'): 0.5,
        ('b', 'UNet'): None,
        ('c', 'UNet'): 0.7,
        ('a', 'MUSTER'): None,
        ('b', 'MUSTER'): None,
        ('a', 'UPerNet'): None,
        ('c', 'UPerNet'): 0.6,
    }
    cells = tuple(
        grid_result.Cell(
            encoder=encoder,
            decoder=decoder,
            start='frozen',
            share=1.0,
            seed=0,
            chips=4,
            metrics={} if score is None else {'miou': score},
            class_iou={},
            seconds=1.0,
            parameters=1,
            trained=1,
            versions={},
            failure='' if score else 'too coarse',
        )
        for (encoder, decoder), score in scores.items()
    )
    published = (Published(encoder='a', decoder='UPerNet', start='frozen', miou=0.4, source='a paper'),)
    figure = grid_result.GridResult(cells, len(cells), ('x', 'y'), (4, 1, 1), 1, published).plot_scores()
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ['UNet, frozen', 'UPerNet, frozen']
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ['a', 'c', 'published']
    first, second, third = (bar.get_x() + bar.get_width() / 2 for bar in axes.patches)
    width = second - first
    assert (first + second) / 2 == pytest.approx(axes.get_xticks()[0])
    assert axes.patches[0].get_width() < width < 1.2 * axes.patches[0].get_width()
    # what a paper states has room beside the bar, although it was not possible here
    (line,) = (each for each in axes.collections if each.get_linestyle()[0][1] is not None)
    (ends,) = (path.vertices for path in line.get_paths())
    assert ends.tolist() == [pytest.approx([third - 1.5 * width, 0.4]), pytest.approx([third - 0.5 * width, 0.4])]


def test_published_scores_are_shares():
    with pytest.raises(ValueError, match='0..1'):
        Published(encoder='a', decoder='b', start='frozen', miou=80.6, source='c')


# --- what is left out, damaged or in vain


def test_published_scores_of_others_have_rows_of_their_own(file, tmp_path, untrained, unwritten):
    others = (
        Published(encoder='theirs', decoder='UPerNet', start='frozen', miou=0.42, source='B paper'),
        Published(encoder='vit_nano', decoder='FCN', start='random', miou=0.7, source='B paper', share=0.33),
    )
    given = replace(read_grid(file), published=others)
    result = run_grid(given, tmp_path / 'out')
    table = result.table()
    assert table.loc[('theirs', 'UPerNet', 'frozen'), '100 %, published'] == 0.42
    assert np.isnan(table.loc[('theirs', 'UPerNet', 'frozen'), '100 %'])
    assert table.loc[('vit_nano', 'FCN', 'random'), '33 %, published'] == 0.7
    lines = result.to_markdown().splitlines()
    heads, last = (line.strip('| ').split(' | ') for line in (lines[0], lines[len(table) + 1]))
    assert 'mIoU, 33 %' not in heads
    assert dict(zip(heads, last))['100 %, published'] == '0.420'
    assert dict(zip(heads, last))['mIoU, 100 %'] == '-'
    (row,) = [line.strip('| ').split(' | ') for line in lines if line.startswith('| vit_nano | FCN | random |')]
    assert dict(zip(heads, row))['33 %, published'] == '0.700'


@pytest.mark.parametrize('content', ['', '{"encoder": 1', '[]', '{}', '{"class_iou": {}, "metrics": 3}', 'null'])
def test_a_damaged_training_is_named_and_done_again(file, tmp_path, untrained, unwritten, caplog, content):
    given = read_grid(file)
    first = run_grid(given, tmp_path / 'out')
    done = len(untrained)
    path = sorted((tmp_path / 'out').glob('cells_*/vit_nano*.json'))[0]
    path.write_text(content)
    again = run_grid(given, tmp_path / 'out')
    named = [message for message in caplog.messages if str(path) in message]
    assert len(named) == 1
    assert 'holds no finished training' in named[0]
    failed = sum(bool(cell.failure) for cell in first.cells)  # these are tried every time
    assert len(untrained) == done + failed + 1
    assert repr(again.cells) == repr(first.cells)


def test_a_grid_without_any_score_ends_in_an_error(file, untrained, unwritten, monkeypatch, capsys):
    text = file.read_text()
    train = grid._train
    monkeypatch.setattr(
        grid,
        '_train',
        lambda *args: replace(train(*args), metrics={}, failure='there is no memory'),
    )
    with pytest.raises(SystemExit) as ended:
        main(['benchmark', str(file), '--no-estimate'])
    assert ended.value.code == 2
    shown = capsys.readouterr()
    assert 'there is no memory' in shown.out
    assert 'none of the 20 trainings came to a score' in shown.err
    assert text == file.read_text()
