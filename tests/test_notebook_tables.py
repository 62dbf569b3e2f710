"""What notebooks show of values: one table, in which names of files, classes and bands are texts and nothing else."""

import subprocess
import sys

import numpy as np
import pytest

from geolearn import FCN, describe_backbone, embed, from_arrays
from geolearn.bundle import read_bundle
from geolearn.notebook import Swatch, rows_as_html, table_as_html

pytestmark = pytest.mark.usefixtures('one_thread')

IMAGES = np.random.default_rng(0).integers(0, 255, (4, 3, 32, 32)).astype(np.uint8)
HOSTILE = '<img src=x onerror=alert(1)>'


@pytest.fixture(scope='module')
def model():
    images = np.random.default_rng(0).integers(0, 255, (8, 3, 32, 32)).astype(np.uint8)
    options = {'bands': ['red', 'green', 'blue'], 'batch_size': 4, 'val_split_pct': 0.25}
    data = from_arrays(images, (images[:, 0] > 90).astype(np.uint8), class_mapping={0: HOSTILE, 1: 'b&b'}, **options)
    return FCN(data, 'test_resnet', pretrained=False)


def test_names_are_texts_everywhere(model, tmp_path):
    bundle = read_bundle(model.save(tmp_path / 'm'))
    shown = {
        'data': model.data,
        'model': model,
        'bundle': bundle,
        'embeddings': embed(IMAGES, 'vit_nano', bands=['red', 'green', 'blue'], pretrained=False),
        'backbone': describe_backbone('dofa_base'),
    }
    for name, value in shown.items():
        page = value._repr_html_()
        assert page.startswith('<table>'), name
        assert '<img' not in page, name
    for name in ('data', 'model', 'bundle'):
        assert '&lt;img src=x onerror=alert(1)&gt;' in shown[name]._repr_html_(), name
        assert 'b&amp;b' in shown[name]._repr_html_(), name
    assert repr(bundle).startswith('Bundle of a FCN\n  backbone test_resnet')
    assert 'red, green, blue' in bundle._repr_html_()


def test_the_table():
    page = table_as_html('<t>', [('a', 'x  y'), ('empty', ''), ('classes', [Swatch('{{ 1 }}<', (1, 2, 3))])])
    assert page.count('<tr>') == 2
    assert '&lt;t&gt;' in page
    assert 'background:rgb(1, 2, 3)' in page
    assert '{{ 1 }}&lt;' in page
    with pytest.raises(ValueError, match='invalid literal'):
        table_as_html('t', [('classes', [Swatch('a', ('1);url(x', 0, 0))])])
    assert rows_as_html('head\n  bands    red,  nir').count('red,  nir') == 1


def test_tqdm_is_imported_where_its_warning_is_silenced():
    code = 'import sys, geolearn.backbones.weights; print(list(sys.modules))'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.index("'geolearn.progress'") < done.stdout.index("'huggingface_hub.utils.tqdm'")
