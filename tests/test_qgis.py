"""The QGIS plugin: its command lines are geolearn's, runs can be followed and cancelled, and QGIS runs the tools."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio

from geolearn import FCOS, from_arrays
from geolearn.cli import build_parser

PLUGIN = Path(__file__).parents[1] / 'qgis'
sys.path.insert(0, str(PLUGIN))
try:
    from geolearn_provider import command
finally:
    sys.path.remove(str(PLUGIN))

QGIS = shutil.which('qgis_process.bin') or shutil.which('qgis_process')  # Debian's script passes an option too many


def stub(folder, body):
    """A program that stands for geolearn."""
    path = folder / 'stub'
    path.write_text(f'#!{sys.executable}\nimport sys, time, os, signal, json\n{body}')
    path.chmod(0o755)
    return str(path)


def run(program, words=(), *, cancel=lambda: False):
    lines, progress = [], []
    said = command.run_command(program, words, on_line=lines.append, on_progress=progress.append, is_cancelled=cancel)
    assert said == lines
    return lines, progress


WORDS = [
    command.train_words(['chips'], 'a b.dlpk'),
    command.train_words(
        ['chips'], 'm.dlpk', model='MaskRCNN', backbone='resnet18', epochs=3, lr=1e-4, chip_size=64, batch_size=2,
        ignore_classes='0 "bare soil"', block_size=2000.0, pretrained=False, report='r.html', more='--seed 3',
    ),
    command.predict_words('m.dlpk', 'scene.tif', 'map.tif'),
    command.predict_words('m.dlpk', 's.tif', 'm.tif', scale=0.0001, bands='B02 B03', nodata='0', more='--resume'),
    command.detect_words('m.dlpk', 's.tif', 'o.gpkg', threshold=0.0, scale=2.0, bands='r g b', nodata='nan'),
    command.embed_words('s.tif', 'e.tif', backbone='dofa_tiny', sensor='Sentinel-2', pretrained=False, nodata='0'),
    command.export_words('s.tif', 'l.gpkg', 'out', layer='l', field='use', stride=32, sensor='Landsat 8'),
]  # fmt: skip


@pytest.mark.parametrize('words', WORDS, ids=lambda words: words[0])
def test_the_command_lines_parse(words):
    assert build_parser().parse_args(words).run


def test_values_reach_their_options():
    found = build_parser().parse_args(WORDS[1])
    assert found.ignore_classes == [0, 'bare soil']
    assert (found.split, found.block_size, found.lr, found.from_scratch, found.seed) == ('blocks', 2000, 1e-4, True, 3)
    assert build_parser().parse_args(WORDS[4]).threshold == 0  # 0 is a threshold too


def test_texts_become_words():
    assert command.predict_words('m', 's', 'd', more='--aoi "a b.gpkg"')[-2:] == ['--aoi', 'a b.gpkg']
    with pytest.raises(command.CommandError, match='No closing quotation; put names'):
        command.predict_words('m', 's', 'd', bands="B02 B0'3")
    with pytest.MonkeyPatch.context() as windows:
        windows.setattr(os, 'name', 'nt')
        words = command.predict_words('m', 's', 'd', more=r'--aoi "C:\my data\a.gpkg"')
    assert words[-1] == r'C:\my data\a.gpkg'


def test_progress_and_lines_are_told_apart(tmp_path):
    body = """
        print('bands match')
        print('mapping: 30 % (3 of 10 tiles), 0:12 left', file=sys.stderr, flush=True)
        print('mapping: 100 % (10 of 10 tiles), took 0:01')
        print('accuracy: 99 percent')
        print('wrote', sys.argv[1])
    """
    program = stub(tmp_path, textwrap.dedent(body))
    lines, progress = run(program, ['ü b.tif'])
    assert lines == ['bands match', 'accuracy: 99 percent', 'wrote ü b.tif']
    assert progress == [30, 100]


def test_an_error_is_the_line_that_geolearn_says(tmp_path):
    program = stub(tmp_path, "print('geolearn: scene.tif does not exist', file=sys.stderr)\nsys.exit(2)")
    with pytest.raises(command.CommandError, match=r'^scene.tif does not exist$'):
        run(program)
    with pytest.raises(command.CommandError, match='status 3'):
        run(stub(tmp_path, 'sys.exit(3)'))


def test_the_python_of_qgis_is_not_passed_on(tmp_path, monkeypatch):
    monkeypatch.setenv('PYTHONHOME', '')
    monkeypatch.setenv('PYTHONPATH', 'of QGIS')
    lines, _ = run(stub(tmp_path, "print(json.dumps({k: os.environ.get(k) for k in ('PYTHONPATH', 'PYTHONHOME')}))"))
    assert json.loads(lines[0]) == {'PYTHONPATH': None, 'PYTHONHOME': None}


def is_running(pid):
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path('/proc/self/stat').exists(), reason='needs /proc')
@pytest.mark.parametrize('deaf', [False, True], ids=['ends', 'ignores'])
def test_a_cancelled_run_ends_with_its_workers(deaf, tmp_path, monkeypatch):
    monkeypatch.setattr(command, 'PATIENCE', 0.3)
    ignore = 'signal.signal(signal.SIGINT, signal.SIG_IGN)\n' if deaf else ''
    child = "import subprocess\nchild = subprocess.Popen(['sleep', '60'])\nprint(os.getpid(), child.pid, flush=True)\n"
    program = stub(tmp_path, f'{ignore}{child}time.sleep(60)')
    said = []
    started = time.monotonic()
    with pytest.raises(command.CommandError, match='cancelled'):
        command.run_command(
            program, [], on_line=said.append, on_progress=print, is_cancelled=lambda: bool(said)
        )  # fmt: skip
    assert time.monotonic() - started < 20
    for pid in map(int, said[0].split()):
        while is_running(pid):  # until the system has noticed
            assert time.monotonic() - started < 30
            time.sleep(0.02)


def test_a_missing_program_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', str(tmp_path))
    monkeypatch.delenv(command.SETTING, raising=False)
    for named in ('', str(tmp_path / 'none')):
        with pytest.raises(command.CommandError, match='pip install'):
            command.find_program(named)
    program = stub(tmp_path, '')
    assert command.find_program(program) == program
    monkeypatch.setenv(command.SETTING, program)
    assert command.find_program() == program
    (tmp_path / 'stub').write_bytes(b'\0')
    with pytest.raises(command.CommandError, match='cannot run'):
        run(program)


def test_styles_lie_beside_what_they_are_for(tmp_path):
    (tmp_path / 'map.qml').touch()
    assert command.style_of(str(tmp_path / 'map.tif')) == str(tmp_path / 'map.qml')
    assert command.style_of(str(tmp_path / 'other.tif')) is None


@pytest.fixture
def qgis(tmp_path):
    """Run qgis_process with the plugin, and return what it said."""
    program = tmp_path / 'geolearn'
    program.write_text(f'#!/bin/sh\nPYTHONPATH={PLUGIN.parent} exec {sys.executable} -m geolearn "$@"\n')
    program.chmod(0o755)
    environment = os.environ | {
        'HOME': str(tmp_path),
        'QT_QPA_PLATFORM': 'offscreen',
        'QGIS_PLUGINPATH': str(PLUGIN),
        'XDG_RUNTIME_DIR': str(tmp_path),
        'PYTHONPATH': '',
        command.SETTING: str(program),
    }

    def run_qgis(*words):
        done = subprocess.run(
            [QGIS, *words], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=280
        )
        return done.stdout + done.stderr

    run_qgis('plugins', 'enable', 'geolearn_provider')
    return run_qgis


needs_qgis = pytest.mark.skipif(
    QGIS is None, reason='needs qgis_process; on Debian: apt-get install --no-install-recommends qgis'
)


@pytest.mark.slow
@needs_qgis
def test_qgis_trains_and_maps(scene_files, tmp_path, qgis):
    from geolearn import vectorize_map

    vectorize_map(scene_files[1], tmp_path / 'landuse.gpkg')
    said = qgis(
        'run', 'geolearn:exportchips', f'--RASTER={scene_files[0]}', '--LABELS=landuse.gpkg', '--FIELD=Class',
        '--TILE_SIZE=32', '--SENSOR=Sentinel-2', '--OUTPUT=chips',
    )  # fmt: skip
    assert (tmp_path / 'chips' / 'map.txt').exists(), said
    said = qgis(
        'run', 'geolearn:train', '--CHIPS=chips', '--BACKBONE=test_resnet', '--PRETRAINED=false', '--EPOCHS=1',
        '--LR=0.001', '--CHIP_SIZE=32', '--BATCH_SIZE=4', '--OUTPUT=m.dlpk',
    )  # fmt: skip
    assert (tmp_path / 'm.dlpk').exists(), said
    said = qgis('run', 'geolearn:classifypixels', '--MODEL=m.dlpk', f'--RASTER={scene_files[0]}', '--OUTPUT=map.tif')
    with rasterio.open(tmp_path / 'map.tif') as found:
        assert found.colormap(1), said
    said = qgis('run', 'geolearn:detectobjects', '--MODEL=m.dlpk', f'--RASTER={scene_files[0]}', '--OUTPUT=o.gpkg')
    assert 'a UNet maps pixels' in said
    assert not (tmp_path / 'o.gpkg').exists()


@pytest.mark.slow
@needs_qgis
def test_qgis_detects_objects_and_embeds(scene_files, tmp_path, qgis):
    geopandas = pytest.importorskip('geopandas')
    with rasterio.open(scene_files[0]) as src:
        pixels, names = src.read(out_dtype='float32')[:, :64, :64], list(src.descriptions)
    boxes = [([[8.0, 8, 24, 24], [30, 30, 60, 50]], [1, 2])] * 2
    data = from_arrays(
        [pixels] * 2,
        [(np.array(rows, np.float32), np.array(values)) for rows, values in boxes],
        bands=names,
        class_mapping={1: 'car', 2: 'barn'},
        batch_size=2,
        val_split_pct=0.5,
        working_dir=tmp_path,
    )
    FCOS(data, 'test_resnet', pretrained=False).save(tmp_path / 'd.dlpk', compute_metrics=False)
    said = qgis(
        'run', 'geolearn:detectobjects', '--MODEL=d.dlpk', f'--RASTER={scene_files[0]}', '--THRESHOLD=0',
        '--OUTPUT=o.gpkg',
    )  # fmt: skip
    found = geopandas.read_file(tmp_path / 'o.gpkg')
    assert set(found['Class']) <= {'car', 'barn'}, said
    assert len(found), said
    assert '<qgis' in (tmp_path / 'o.qml').read_text(), said
    said = qgis(
        'run', 'geolearn:embed', f'--RASTER={scene_files[0]}', '--BACKBONE=dofa_tiny', '--SENSOR=Sentinel-2',
        '--PRETRAINED=false', '--OUTPUT=e.tif',
    )  # fmt: skip
    with rasterio.open(tmp_path / 'e.tif') as vectors:
        assert vectors.count > 100, said
