"""Calls with wrong names and types are answered in words, names of arcgis.learn with what docs/from-arcgis.md says."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import geolearn
from geolearn import DeepLab, FasterRCNN, FeatureClassifier, UNet, load_model, prepare_data
from geolearn import arguments as arcgis_names
from geolearn.adaptation import Adaptation
from geolearn.arguments import check_call, encode, find_imports, format_value, record_arguments
from geolearn.errors import ArcGISNameError, ArgumentError
from geolearn.models import load_all

DOCS = Path(__file__).parents[1] / 'docs' / 'from-arcgis.md'
ROWS = re.findall(r'^\| `([^`]+)` \|([^|]*)\| ((?:differs|not there)[^|]*) \|$', DOCS.read_text(), re.MULTILINE)


def missing_names():
    """Rows of the page about names that geolearn has not, with what it says of them."""
    for name, ours, text in ROWS:
        bare = name.removeprefix('arcgis.learn.').removeprefix('model.').removeprefix('data.')
        if bare.isidentifier() and name.rpartition('.')[0] in ('', 'arcgis.learn') and not hasattr_quietly(bare):
            yield bare, ours, text


def hasattr_quietly(name):
    return name in geolearn.__all__


def model():
    """Something on which methods can be called without a network."""
    return UNet.__new__(UNet)


@pytest.mark.parametrize(('name', 'ours', 'text'), list(missing_names()))
def test_classes_of_arcgis_are_answered_as_the_page_does(name, ours, text):
    if name in ('PSETAE', 'CycleGAN') or name in load_all():
        return  # formats of chips
    with pytest.raises(ArcGISNameError) as kept:
        getattr(geolearn, name)
    said = text.partition(': ')[2].partition(';')[0]
    assert said in str(kept.value) or not said
    assert name in arcgis_names.PUBLIC


def test_a_name_of_arcgis_that_is_imported_is_answered():
    with pytest.raises(ImportError, match='low-rank updates work on every transformer'):
        from geolearn import SamLoRA  # noqa: F401


@pytest.mark.parametrize('name', ['resize_to', 'rgb_bands', 'norm_pct', 'stratify', 'imagery_type', 'do_normalize'])
def test_arguments_of_prepare_data_are_answered_as_the_page_does(name):
    (text,) = [text for row, _, text in ROWS if row == f'prepare_data({name})']
    with pytest.raises(ArgumentError) as kept:
        prepare_data('chips', **{name: 3})
    assert text.partition(': ')[2] in str(kept.value)


@pytest.mark.parametrize(
    ('call', 'match'),
    [
        (lambda: UNet('chips'), r"data must be a ChipData, got 'chips' \(str\); make the data by prepare_data"),
        (lambda: FasterRCNN(None, 'resnet18'), 'data must be a ChipData, got None'),
        (lambda: FeatureClassifier(3), 'data must be a ChipData, got 3'),
        (lambda: load_model(3), r'path must be a path, got 3 \(int\)'),
        (lambda: load_model('m.dlpk', 'chips'), 'data must be a ChipData or None'),
        (lambda: model().fit('3'), "epochs must be a whole number, got '3'"),
        (lambda: model().fit(3.0), 'epochs must be a whole number, got 3.0'),
        (lambda: model().fit(True), 'epochs must be a whole number, got True'),
        (lambda: model().fit(3, deterministic='yes'), 'deterministic must be True or False'),
        (lambda: model().save(None), 'name_or_path must be a path, got None'),
        (lambda: model().show_results('all'), 'rows must be a whole number'),
        (
            lambda: model().predict_raster(np.zeros((3, 8, 8)), 'm.tif'),
            r'got an array of shape \(3, 8, 8\); pass the file',
        ),
        (lambda: model().predict_raster('a.tif', 'm.tif', bands='B02'), 'bands must be a list of which each is a text'),
        (lambda: model().predict_raster('a.tif', 'm.tif', tile_size='512'), 'tile_size must be a whole number or None'),
        (lambda: DeepLab(None, pointrend=True), "DeepLab has no argument 'pointrend'"),
        (lambda: DeepLab(None, bakbone='resnet18'), "did you mean 'backbone'"),
        (lambda: DeepLab(None, rpn_nms_thresh=0.5), r'head=RCNNOptions\(rpn_nms_thresh=...\)'),
        (lambda: model().fit(3, wd=0.1), 'weight_decay='),
        (lambda: model().save('m', publish=True), 'upload the .dlpk yourself'),
    ],
)
def test_a_wrong_call_is_answered_in_words(call, match):
    with pytest.raises(ArgumentError, match=match) as kept:
        call()
    assert isinstance(kept.value, TypeError)
    assert isinstance(kept.value, ValueError)


@pytest.mark.parametrize('name', ['learn', 'predict', 'predict_video', 'classify_features'])
def test_attributes_of_arcgis_are_answered(name):
    with pytest.raises(AttributeError, match='instead of that of arcgis.learn'):
        getattr(model(), name)
    with pytest.raises(AttributeError, match=r"UNet has no attribute 'nothing'$"):
        model().nothing  # noqa: B018


@pytest.mark.parametrize(
    'value',
    [None, True, 3, 1.5, 'a', [1, 'b'], {'a': 1}, {1: 'water'}, {'class': 2}, Adaptation(lora_rank=4), math.inf, 'a\nb',
     10**20, slice(1e-5, 1e-3)],
)  # fmt: skip
def test_arguments_are_printed_so_that_python_reads_them_back(value):
    names: dict = {}
    for line in find_imports(encode(value)):
        exec(line, names)
    exec(f'again = {format_value(encode(value))}', names)
    assert names['again'] == value


def test_lists_of_anything_are_taken():
    @check_call
    def call(callbacks: Sequence[Any], *, names: Sequence[str] | None = None, rows: int = 3):
        return len(callbacks)

    assert call([object()], names=('a',), rows=np.int64(3)) == 1
    assert call(callbacks=(), names=np.array(['a'])) == 0
    with pytest.raises(ArgumentError, match='rows must be a whole number, got True'):
        call([], rows=True)
    with pytest.raises(TypeError, match='positional'):
        call([], 1, 2)


def test_folders_of_the_machine_are_not_recorded(tmp_path):
    assert encode({'weights': tmp_path / 'w.pt', 'path': [str(tmp_path / 'a'), 'chips/b']}) == {
        'weights': 'w.pt',
        'path': ['a', 'chips/b'],
    }


def test_only_what_differs_from_its_default_is_recorded():
    def call(path, size=3, *, names=(), kind='a'):
        return record_arguments(call, locals())

    assert call('p') == {}
    assert call('p', 4, names=['x'], kind='a') == {'size': 4, 'names': ['x']}
    assert format_value(encode(lambda: 0)) == '...', 'what cannot be printed'
