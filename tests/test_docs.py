"""The pages in docs/ run: their Python in order, and their commands parse."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from affine import Affine

from geolearn.cli import build_parser, build_parsers
from geolearn.cli.config import config_words, read_config

pytestmark = pytest.mark.usefixtures('one_thread')

DOCS = Path(__file__).parents[1] / 'docs'
# pages whose Python has a test of its own
COVERED = ('from-arcgis.md', 'backbones.md', 'own-parts.md', 'roads.md', 'panoptic.md', 'image-targets.md')


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
    return re.findall(rf'```{language}\n(.*?)```', page.read_text(encoding='utf-8'), re.DOTALL)


PAGES = [page for page in sorted(DOCS.glob('*.md')) if blocks(page, 'python') and page.name not in COVERED]


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
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


@pytest.mark.parametrize('page', [*sorted(DOCS.glob('*.md')), DOCS.parent / 'README.md'], ids=lambda page: page.name)
def test_its_commands_parse(page):
    for block in blocks(page, 'sh'):
        for line in block.replace('\\\n', ' ').splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ['geolearn'] and words[1] != '--print-completion':
                file = words[2].endswith('.yaml')  # such a file is checked below
                assert file or build_parser().parse_args(words[1:]).run


def test_configuration_files_of_the_docs_parse(tmp_path):
    texts = [text for page in sorted(DOCS.glob('*.md')) for text in blocks(page, 'yaml') if text.startswith('command:')]
    assert texts
    for text in texts:
        path = tmp_path / 'c.yaml'
        path.write_text(text)
        parser, commands = build_parsers()
        command = str(read_config(path)['command'].value)
        assert parser.parse_args([command, *config_words(commands[command], command, path)]).run
