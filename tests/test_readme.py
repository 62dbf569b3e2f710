"""The README's Python runs on synthetic data; only backbones and sizes are made small."""

import re
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import shapely

import geolearn
from geolearn.synthetic import CLASSES, make_scene, write_scene

pytestmark = pytest.mark.usefixtures('one_thread')

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / 'README.md').read_text(encoding='utf-8')
BLOCKS = re.findall(r'```python\n(.*?)```', TEXT, re.DOTALL)
PAGES = sorted((ROOT / 'docs').rglob('*.md'))


def small(block):
    """Make a block quick: a tiny backbone from scratch, one epoch, chips of 32 pixels."""
    block = re.sub(r"(backbone=)?'(dofa_base|prithvi_v2_300M)'", r"\1'dofa_tiny', pretrained=False", block)
    block = re.sub(r'fit\(20, |fit\(epochs=10, lr=', 'fit(1, lr=1e-4, ', block).replace('lr=1e-4, 1e-4', 'lr=1e-4')
    block = re.sub(r'(chip_size|tile_size|stride)=\d+', r'\1=32', block).replace('block_size=2000', 'block_size=640')
    block = block.replace("'bf16'", 'None')  # CPUs without special hardware are slow with it
    return block.replace('batch_size=8', 'batch_size=2').replace('batch_size=4', 'batch_size=2')


def run(block, folder, monkeypatch):
    monkeypatch.chdir(folder)
    names = {}
    exec(small(block), names)
    return names


def block_with(word):
    """The block that holds a word; there is one."""
    found = [block for block in BLOCKS if word in block]
    assert len(found) == 1, word
    return found[0]


@pytest.fixture
def place(tmp_path):
    """A folder with scene.tif and its labels, and chips of it."""
    write_scene(make_scene(128, seed=1), tmp_path / 'scene.tif', tmp_path / 'labels.tif')
    options = {'classes': CLASSES, 'tile_size': 32, 'sensor': 'Sentinel-2'}
    for name in ('chips', 'spring', 'autumn', 'summer'):
        geolearn.export_training_data(tmp_path / 'scene.tif', tmp_path / 'labels.tif', tmp_path / name, **options)
    return tmp_path


def test_every_block_is_run_below():
    words = ('load_model', 'data.summary', 'resolve_bands', 'Adaptation')
    assert sorted(BLOCKS) == sorted(map(block_with, words))


@pytest.mark.usefixtures('small_dofa')
def test_ten_lines_make_a_map(place, monkeypatch):
    run(block_with('load_model'), place, monkeypatch)
    with rasterio.open(place / 'landcover.tif') as found:
        assert found.shape == (128, 128)
    assert {'batch.png', 'results.png', 'report.html'} <= {path.name for path in place.iterdir()}


def test_chips_are_prepared(place, monkeypatch):
    found = run(block_with('data.summary'), place, monkeypatch)
    assert len(found['data'].test_ds) == 16


@pytest.mark.usefixtures('small_dofa')
def test_a_model_is_trained_with_all_that_is_named(place, monkeypatch):
    found = run(block_with('Adaptation').replace(', ignore', ', val_split_pct=0.25, ignore'), place, monkeypatch)
    assert len(found['model'].history.epochs) == 1


def test_chips_are_cut_from_polygons(save, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for name, count in (('scene', 4), ('drone', 3)):
        save(tmp_path / f'{name}.tif', rng.integers(1, 200, (count, 300, 300)).astype(np.uint8))
    fields = [shapely.box(20, -300, 320, -20), shapely.box(400, -600, 600, -400)]
    frame = geopandas.GeoDataFrame({'use': [1, 2]}, geometry=fields, crs='EPSG:32633')
    frame.to_file(tmp_path / 'landuse.gpkg')
    frame.to_crs(4326)[['geometry']].to_file(tmp_path / 'buildings.geojson')
    run(block_with('resolve_bands'), tmp_path, monkeypatch)
    assert len(list((tmp_path / 'chips' / 'images').glob('*.tif'))) > 0
    assert len(list((tmp_path / 'houses' / 'images').glob('*.tif'))) > 0


def test_its_commands_are_there():
    from geolearn.cli import build_parser

    lines = re.findall(r'```sh\n(.*?)```', TEXT, re.DOTALL)
    commands = [
        line.split() for block in lines for line in block.replace('\\\n', '').splitlines() if line[:8] == 'geolearn'
    ]
    assert len(commands) == 5
    for words in commands:
        assert build_parser().parse_args(words[1:]).run


@pytest.mark.parametrize('page', [ROOT / 'README.md', *PAGES], ids=lambda page: page.relative_to(ROOT).as_posix())
def test_its_links_lead_somewhere(page):
    links = re.findall(r'\]\(([^)#]+)\)', page.read_text(encoding='utf-8'))
    links = [link for link in links if not link.startswith('reference/')]  # generated with the site, which checks them
    assert [link for link in links if '://' not in link and not (page.parent / link).exists()] == []


def test_every_class_of_models_is_named():
    from geolearn.models import load_all

    assert [name for name in load_all() if f'`{name}`' not in TEXT] == []


def test_every_backbone_named_is_there():
    from geolearn.backbones import describe_backbone, list_backbones

    table = TEXT.partition('| backbone |')[2].partition('\n\n')[0]
    for name in re.findall(r'`(\w+)`', table):
        assert list_backbones(name) or describe_backbone(name)
