"""The notebook in examples/: run in a fresh kernel, and as it is kept."""

import os
from pathlib import Path

import pytest

nbformat = pytest.importorskip('nbformat', reason='needs nbclient and ipykernel')
nbclient = pytest.importorskip('nbclient')
pytest.importorskip('ipykernel')

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / 'examples' / 'quickstart.ipynb'
SMALLER = {'make_scene(512': 'make_scene(128', 'make_scene(256': 'make_scene(64', 'tile_size=64': 'tile_size=32'}
SMALLER |= {'chip_size=64': 'chip_size=32', 'fit(4': 'fit(1', "split='blocks'": 'val_split_pct=0.25'}
SMALLER |= {'batch_size=8': 'batch_size=4', "'resnet18'": "'test_resnet'"}


def check(cells):
    """Figures and tables are there, nothing is red, nothing failed."""
    cells = [cell for cell in cells if cell.cell_type == 'code']
    for cell in cells:
        kinds = [output.output_type for output in cell.outputs]
        assert 'error' not in kinds
        assert [output.text for output in cell.outputs if output.get('name') == 'stderr'] == []
        values = [set(output.data) for output in cell.outputs if output.output_type == 'execute_result']
        last = cell.source.splitlines()[-1]
        if '.show_' in last:
            assert [value >= {'image/png'} for value in values] == [True], last
        if last in ('data', 'model.per_class_metrics()'):
            assert [value >= {'text/html'} for value in values] == [True], last
        texts = [output.data['text/plain'] for output in cell.outputs if output.output_type == 'display_data']
        assert len(set(texts)) == len(texts)
    return cells


def test_it_runs_in_a_fresh_kernel(tmp_path, monkeypatch):
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')])))
    monkeypatch.setenv('TMPDIR', str(tmp_path))
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    monkeypatch.delenv('TQDM_DISABLE', raising=False)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        for large, small in SMALLER.items():
            cell.source = cell.source.replace(large, small)
        cell.outputs = []
    resources = {'metadata': {'path': str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=240, kernel_name='python3', resources=resources).execute()
    cells = check(notebook.cells)
    assert "'map.tif'" in str(cells[-2].outputs)


def test_its_kept_outputs_are_those_of_a_run():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cells = check(notebook.cells)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
