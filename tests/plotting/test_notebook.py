"""Figures in a notebook: executed in a fresh kernel, each shows a picture and nothing else."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

CELLS = (
    'import torch\nfrom geolearn import plotting\nfrom geolearn.bands import Band',
    'from geolearn.classes import ClassInfo',
    "plotting.show_losses([3.0, 2.0, 1.0], [{'epoch': 1, 'valid_loss': 1.5, 'miou': 0.4}])",
    "plotting.show_confusion_matrix(torch.eye(2), ['a', 'b'])",
    'plotting.show_reliability([])',
    """bands = tuple(Band(name, wave) for name, wave in zip(('red', 'green', 'blue'), (0.665, 0.56, 0.49)))
classes = (ClassInfo(0, 'land', (200, 180, 120)), ClassInfo(1, 'water', (30, 90, 200)))
images, masks = torch.rand(2, 3, 16, 16), torch.randint(0, 2, (2, 16, 16))
plotting.show_predictions(images, masks, masks, bands, classes)""",
    'plotting.show_chips(images, masks, bands, classes, columns=2, alpha=0.5)',
)


def pictures(cell):
    return [output['data'].get('image/png') for output in cell.outputs if 'data' in output]


def test_every_figure_is_shown_in_a_fresh_kernel_and_nothing_else_is():
    nbformat = pytest.importorskip('nbformat', reason='needs nbclient and ipykernel')
    nbclient = pytest.importorskip('nbclient', reason='needs nbclient and ipykernel')
    pytest.importorskip('ipykernel', reason='needs nbclient and ipykernel')
    cells = [nbformat.v4.new_code_cell(text) for text in CELLS]
    notebook = nbformat.v4.new_notebook(cells=cells)
    nbclient.NotebookClient(notebook, timeout=120, kernel_name='python3').execute()
    first, second, *drawn = notebook.cells
    assert first.outputs == second.outputs == []
    for cell in drawn:
        (png,) = pictures(cell)
        assert len(cell.outputs) == 1
        picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(png))))
        assert min(picture.shape[:2]) > 100
        assert picture.std() > 0
