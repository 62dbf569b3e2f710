"""The examples run, in small: each is a script of less than 60 lines that draws, and a notebook with its figures."""

import json
from pathlib import Path

import pytest

from geolearn.plotting.figure import Figure

pytestmark = [
    pytest.mark.usefixtures('one_thread'),
    pytest.mark.filterwarnings('ignore:Use .@. matmul:PendingDeprecationWarning'),
]

FOLDER = Path(__file__).parents[1] / 'examples'
SMALL = {
    'landcover': {
        'SIZE, EPOCHS = 384, 10': 'SIZE, EPOCHS = 128, 1',
        'tile_size=64': 'tile_size=32',
        'chip_size=64': 'chip_size=32',
        'block_size=1280': 'block_size=320',
        "'resnet18'": "'test_resnet'",
    },
    'objects': {'COUNT, SIDE, EPOCHS = 240, 96, 30': 'COUNT, SIDE, EPOCHS = 8, 64, 1', "'resnet18'": "'test_resnet'"},
    'embeddings': {'SIZE = 256': 'SIZE = 128'},
}
"""What makes them quick."""


@pytest.mark.parametrize('name', SMALL)
def test_it_runs_and_draws(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (FOLDER / f'{name}.py').read_text(encoding='utf-8')
    assert len(text.splitlines()) < 60
    for long, short in SMALL[name].items():
        assert long in text
        text = text.replace(long, short)
    body, _, last = text.rstrip().rpartition('\n')
    names = {}
    exec(f'{body}\nshown = {last}', names)
    assert isinstance(names['shown'], Figure)


@pytest.mark.parametrize('name', SMALL)
def test_the_notebook_has_the_code_of_the_script_and_figures(name):
    notebook = json.loads((FOLDER / f'{name}.ipynb').read_text(encoding='utf-8'))
    script = (FOLDER / f'{name}.py').read_text(encoding='utf-8')
    code = [''.join(cell['source']) for cell in notebook['cells'] if cell['cell_type'] == 'code']
    assert all(part in script for part in code)
    outputs = [output for cell in notebook['cells'] for output in cell.get('outputs', ())]
    assert 'image/png' in {kind for output in outputs for kind in output.get('data', {})}
    assert 'error' not in {output['output_type'] for output in outputs}
