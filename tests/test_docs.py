"""The pages in docs/ run: their Python in order, and their commands parse; the tutorial's commands make a map."""

import re
import shlex
import shutil
import textwrap
from pathlib import Path

import geopandas
import numpy as np
import pytest
from affine import Affine

from geolearn.cli import build_parser, build_parsers, main
from geolearn.cli.config import config_words, read_config

pytestmark = [
    pytest.mark.usefixtures('one_thread'),
    pytest.mark.filterwarnings('ignore:Use .@. matmul:PendingDeprecationWarning'),
]

DOCS = Path(__file__).parents[1] / 'docs'
# pages whose Python has a test of its own
COVERED = [f'{page}.md' for page in 'from-arcgis backbones own-parts roads panoptic image-targets'.split()]
COVERED += ['index.md', 'tutorial.md', 'mistakes.md']
ALL = [path for path in sorted(DOCS.rglob('*.md')) if 'site' not in path.parts]


@pytest.fixture
def place(tmp_path, save, monkeypatch):
    """A folder with a scene of four bands in files of their own, its labels, and nothing else."""
    rng = np.random.default_rng(0)
    labels = np.kron(rng.integers(1, 3, (8, 8)), np.ones((64, 64), int))
    grid = {'transform': Affine(10, 0, 500_000, 0, -10, 5_400_000), 'crs': 'EPSG:32633'}
    for index, name in enumerate(['B02', 'B03', 'B04', 'B08']):
        pixels = 300 * (index + 1) + 500 * labels + rng.normal(0, 40, labels.shape)
        save(tmp_path / f'{name}.tif', pixels.clip(1).astype(np.uint16), **grid)
    save(tmp_path / 'labels.tif', labels.astype(np.uint8), **grid)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def blocks(page, language):
    found = re.findall(rf'^( *)```{language}\n(.*?)^ *```', page.read_text(encoding='utf-8'), re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(text) for _, text in found]


def name(page):
    return page.relative_to(DOCS.parent).as_posix()


PAGES = [page for page in ALL if blocks(page, 'python') and (page.name not in COVERED or page.parent != DOCS)]


@pytest.mark.parametrize('page', PAGES, ids=name)
def test_its_python_runs(page, place):
    names = {}
    for block in blocks(page, 'python'):
        exec(block, names)


def test_the_page_on_rasters_makes_a_map(place):
    names = {}
    for block in blocks(DOCS / 'rasters.md', 'python'):
        exec(block, names)
    assert [band.name for band in names['data'].bands] == ['B02', 'B03', 'B04', 'B08']
    assert (place / 'map.tif').exists()


@pytest.mark.parametrize('page', [*ALL, DOCS.parent / 'README.md'], ids=name)
def test_its_commands_parse(page):
    for block in blocks(page, 'sh'):
        for line in block.replace('\\\n', ' ').splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ['geolearn'] and words[1] != '--print-completion':
                file = ''.join(words[2:3]).endswith('.yaml')  # such a file is checked below
                assert file or build_parser().parse_args(words[1:]).run


def test_configuration_files_of_the_docs_parse(tmp_path):
    texts = [text for page in ALL for text in blocks(page, 'yaml') if text.startswith('command:')]
    assert texts
    for text in texts:
        path = tmp_path / 'c.yaml'
        path.write_text(text)
        parser, commands = build_parsers()
        command = str(read_config(path)['command'].value)
        assert parser.parse_args([command, *config_words(commands[command], command, path)]).run


SMALL = {
    'make_scene(768': 'make_scene(128',
    'min_area=20_000': 'min_area=2000',
    '--tile-size 128 --stride 64': '--tile-size 32 --stride 32',
    'tile_size=128, stride=64': 'tile_size=32, stride=32',
    'chip-size 128': 'chip-size 32 --from-scratch',
    'chip_size=128': 'chip_size=32, batch_size=4',
    'epochs 20': 'epochs 1',
    'fit(20': 'fit(1',
    'block-size 2000': 'block-size 320',
    'block_size=2000': 'block_size=320',
}
"""What makes the tutorial quick."""


def small(text):
    for long, short in SMALL.items():
        text = text.replace(long, short)
    return text


def test_the_tutorial_goes_from_a_raster_and_a_shapefile_to_a_published_map(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make, again = blocks(DOCS / 'tutorial.md', 'python')
    exec(small(make), {})
    for block in blocks(DOCS / 'tutorial.md', 'sh'):
        for line in small(block).splitlines():
            main(shlex.split(line)[1:])
    said = capsys.readouterr().out
    assert 'landuse.shp' in said
    for (
        name
    ) in 'chips.png landcover.dlpk landcover.html landcover.yaml map.tif map.qml map_confidence.tif map.png'.split():
        assert (tmp_path / name).stat().st_size > 0, name
    assert 'data:image/png' in (tmp_path / 'map.html').read_text()
    assert len(geopandas.read_file(tmp_path / 'map.gpkg')) > 0
    exec(small(again), {})
    assert (tmp_path / 'map_2.gpkg').exists()


def test_page_one_has_a_picture_an_install_line_six_lines_and_the_demo(scene_chips, scene_files, tmp_path, monkeypatch):
    page = DOCS / 'index.md'
    text = page.read_text(encoding='utf-8')
    (code,) = blocks(page, 'python')
    places = [text.index(part) for part in ('images/map.png', 'pip install', code[:20], 'geolearn demo')]
    assert places == sorted(places)
    assert len([line for line in code.splitlines() if line]) == 6
    shutil.copytree(scene_chips, tmp_path / 'chips')
    shutil.copy(scene_files[0], tmp_path / 'scene.tif')
    monkeypatch.chdir(tmp_path)
    code = code.replace("'dofa_base'", "'test_resnet', pretrained=False").replace('epochs=10', '1, lr=1e-3')
    exec(code.replace("('chips')", "('chips', chip_size=32, batch_size=4, ignore_classes=[0])"), {})
    assert (tmp_path / 'map.tif').exists()
    assert (tmp_path / 'chips' / 'models' / 'landcover' / 'landcover.dlpk').exists()
