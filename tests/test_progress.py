"""Progress: a bar on a terminal, a line per tenth in a pipe, one output in a notebook, and one place for all of it."""

import ast
import fcntl
import functools
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
import tty
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from geolearn import export_training_data, prepare_data
from geolearn.progress import ProgressBar, progress_is_silenced, track

PACKAGE = Path(__file__).parents[1] / 'geolearn'

WORK = """
import time
from geolearn import progress
progress.LINE_INTERVAL = 0
with progress.ProgressBar(40, 'mapping', 'tile') as bar:
    for _ in range(40):
        time.sleep(0.002)
        bar.update(detail='loss=0.5')
for _ in progress.track(range(20), 'reading', 'file'):
    progress.print_line('a line') if _ == 10 else None
"""


def environment(**more):
    kept = {k: v for k, v in os.environ.items() if k not in ('TQDM_DISABLE', 'GEOLEARN_PROGRESS')}
    return kept | {'PYTHONPATH': os.pathsep.join(sys.path)} | more


def run_in_pipe(code, **more):
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, timeout=60, env=environment(**more), check=True
    )
    return done.stdout, done.stderr


def run_in_terminal(code, size=(24, 80), **more):
    """Return what a terminal gets, stdout and stderr together."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack('HHHH', *size, 0, 0))
    process = subprocess.Popen([sys.executable, '-c', code], stdout=theirs, stderr=theirs, env=environment(**more))
    os.close(theirs)
    shown = b''
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # how Linux says that the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(ours)
    assert process.wait(60) == 0, shown
    return shown.decode()


def test_a_pipe_gets_a_line_for_each_tenth():
    out, err = run_in_pipe(WORK)
    assert out == 'a line\n'
    assert '\r' not in err
    lines = err.splitlines()
    mapping = [line for line in lines if line.startswith('mapping: ')]
    assert [line.split()[1] for line in mapping] == [str(10 * tenth) for tenth in range(1, 11)]
    assert mapping[4].startswith('mapping: 50 % (20 of 40 tiles), 00:0')
    assert mapping[4].endswith(' left')
    assert mapping[-1].startswith('mapping: 100 % (40 of 40 tiles), took 00:0')
    assert lines[-1].startswith('reading: 100 % (20 of 20 files)')


def test_quick_work_is_one_line_in_a_pipe():
    _, err = run_in_pipe(WORK.replace('LINE_INTERVAL = 0', 'LINE_INTERVAL = 9'))
    assert len(err.splitlines()) == 2


@pytest.mark.parametrize('size', [(24, 80), (0, 0)], ids=['sized', 'unsized'])
def test_a_terminal_gets_a_bar_with_the_time_left_that_vanishes(size):
    shown = run_in_terminal(WORK.replace('0.002', '0.01'), size)
    assert '\rmapping:' in shown
    assert '40' in shown
    assert '<00:' in shown
    assert 'tile/s' in shown
    assert 'a line\r\n' in shown
    assert shown.endswith('\r')


@pytest.mark.parametrize('setting', [{'TQDM_DISABLE': '1'}, {'GEOLEARN_PROGRESS': 'off'}], ids=str)
def test_the_environment_silences_it(setting):
    assert run_in_pipe(WORK, **setting) == ('a line\n', '')
    assert run_in_terminal(WORK, **setting) == 'a line\r\n'


@pytest.mark.parametrize(
    ('setting', 'silent'),
    [({}, False), ({'TQDM_DISABLE': '0'}, False), ({'GEOLEARN_PROGRESS': 'on'}, False), ({'TQDM_DISABLE': '1'}, True)],
    ids=str,
)
def test_what_silences(setting, silent, monkeypatch):
    for name in ('TQDM_DISABLE', 'GEOLEARN_PROGRESS'):
        monkeypatch.delenv(name, raising=False)
    for name, value in setting.items():
        monkeypatch.setenv(name, value)
    assert progress_is_silenced() is silent


def test_a_notebook_holds_one_output_and_nothing_red():
    nbformat = pytest.importorskip('nbformat')
    client = pytest.importorskip('nbclient')
    pytest.importorskip('ipykernel')
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(WORK)])
    before = os.environ.copy()
    os.environ.update(environment())
    for name in ('TQDM_DISABLE', 'GEOLEARN_PROGRESS'):
        os.environ.pop(name, None)
    try:
        client.NotebookClient(notebook, timeout=60, kernel_name='python3').execute()
    finally:
        os.environ.clear()
        os.environ.update(before)
    outputs = notebook.cells[0].outputs
    assert not [output for output in outputs if output.get('name') == 'stderr']
    shown = [output['data']['text/plain'] for output in outputs if output.output_type == 'display_data']
    assert [text.split(' in ')[0] for text in shown] == ['mapping: 40 tiles', 'reading: 20 files']
    assert [output['text'] for output in outputs if output.output_type == 'stream'] == ['a line\n']


def terminal(monkeypatch):
    """Make stderr a terminal; returns a function that gives what was shown."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack('HHHH', 24, 100, 0, 0))
    tty.setraw(theirs)
    monkeypatch.setattr(sys, 'stderr', os.fdopen(theirs, 'w'))
    shown: list[bytes] = []

    def drain():
        with suppress(OSError):  # how Linux says that the other end is closed
            while part := os.read(ours, 4096):
                shown.append(part)

    reader = threading.Thread(target=drain, daemon=True)
    reader.start()

    def read():
        sys.stderr.close()
        reader.join()
        os.close(ours)
        return b''.join(shown).decode()

    return read


@pytest.mark.usefixtures('one_thread')
@pytest.mark.parametrize('place', ['terminal', 'pipe'])
def test_every_long_step_from_chips_to_a_map_shows_its_progress(scene_files, tmp_path, monkeypatch, capsys, place):
    from geolearn import FCN, training

    for name in ('TQDM_DISABLE', 'GEOLEARN_PROGRESS'):
        monkeypatch.delenv(name, raising=False)
    for module in ('exporting.run', 'packing.store'):
        monkeypatch.setattr(f'geolearn.chips.{module}.FEW_CHIPS', 1)
    monkeypatch.setattr('geolearn.progress.LINE_INTERVAL', 60)
    short = functools.partial(training.find_learning_rate, iterations=15)
    monkeypatch.setattr(training, 'find_learning_rate', short)
    monkeypatch.setenv('GEOLEARN_CACHE', str(tmp_path / 'cache'))
    read = terminal(monkeypatch) if place == 'terminal' else lambda: capsys.readouterr().err
    chips = export_training_data(*scene_files, tmp_path / 'chips', tile_size=64)
    model = FCN(prepare_data(chips, chip_size=32, batch_size=2, val_split_pct=0.25), 'test_resnet', pretrained=False)
    model.fit(1)
    model.predict_raster(scene_files[0], tmp_path / 'map.tif')
    shown = read()
    for step in ('cutting chips', 'packing chips', 'searching a learning rate', 'mapping'):
        assert f'{step}: ' in shown, step
    if place == 'pipe':
        assert re.findall('^.*?: ([0-9]+ %)', shown, re.MULTILINE) == ['100 %'] * 4
    else:
        assert '\n' not in shown
        assert 'epoch 1 of 1: ' in shown
        assert '<00:' in shown, 'the time left'


def test_exports_and_packing_are_told_by_tenths(save, tmp_path, monkeypatch, capsys):
    for name in ('TQDM_DISABLE', 'GEOLEARN_PROGRESS'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr('geolearn.progress.LINE_INTERVAL', 0)
    for module in ('exporting.run', 'packing.store'):
        monkeypatch.setattr(f'geolearn.chips.{module}.FEW_CHIPS', 20)
    monkeypatch.setenv('GEOLEARN_CACHE', str(tmp_path / 'cache'))
    pixels = np.random.default_rng(0).integers(1, 99, (1, 40, 40)).astype(np.uint8)
    image, labels = save(tmp_path / 'image.tif', pixels), save(tmp_path / 'labels.tif', pixels % 2 + 1)
    prepare_data(export_training_data(image, labels, tmp_path / 'chips', tile_size=8), chip_size=8)
    lines = capsys.readouterr().err.splitlines()
    cutting = [line for line in lines if line.startswith('cutting chips: ')]
    assert len(cutting) <= 10
    assert cutting[-1].startswith('cutting chips: 100 % (25 of 25 chips), took')
    packing = [line for line in lines if line.startswith('packing chips: ')]
    assert len(packing) == 10
    assert re.fullmatch(r'packing chips: 50 % \(13 of 25 chips\), .* left', packing[4])
    assert packing[-1].startswith('packing chips: 100 % (25 of 25 chips), took')


def test_interrupted_work_does_not_say_that_it_is_done(capsys):
    def work():
        with ProgressBar(4, 'mapping', 'tile') as bar:
            bar.update()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert '100 %' not in capsys.readouterr().err


def test_resumed_work_begins_where_it_was_and_few_steps_need_no_bar(capsys):
    with ProgressBar(10, 'detecting', 'tile', initial=6) as bar:
        assert (bar.count, bar.share, bar.seconds_left) == (6, 0.6, None)
        bar.update(4)
        assert bar.is_complete
    assert capsys.readouterr().err.startswith('detecting: 100 % (10 of 10 tiles)')
    assert list(track(iter('abc'), 'reading', 'file')) == ['a', 'b', 'c']
    assert capsys.readouterr().err.startswith('reading: 100 % (3 files), took')
    assert list(track('abc', 'reading', 'file', at_least=4)) == ['a', 'b', 'c']
    assert capsys.readouterr().err == ''


def test_there_is_one_place_for_progress():
    def imports(path):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield node.module or ''

    named = [path for path in PACKAGE.rglob('*.py') if 'tqdm' in path.read_text()]
    users = {path.name for path in named if any(name.split('.')[0] == 'tqdm' for name in imports(path))}
    assert users == {'progress.py'}
