"""Whatever a label file holds, the outcome is a sound label or a ChipFolderError that names the file."""

import json
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geolearn.chips.emd import ExportMetadata
from geolearn.chips.formats.coco import list_coco
from geolearn.chips.formats.kitti import list_kitti, read_kitti
from geolearn.chips.formats.labeled import (
    list_labeled_tiles,
    list_multilabeled_tiles,
    read_labeled_tile,
    read_multilabeled_tile,
)
from geolearn.chips.formats.voc import list_voc, read_voc
from geolearn.chips.formats.yolo import list_yolo, read_yolo_boxes, read_yolo_outlines
from geolearn.chips.label import Task
from geolearn.errors import ChipFolderError

SHAPE = (12, 20)
NAMES = {'1': 1, 'Palm': 1, 'a b, c': 2, '7': 7}
INDICES = {0: 1, 1: 2}
VOC = (
    '<?xml version="1.0" encoding="UTF-8"?><annotation><filename>1.jpg</filename><size><width>20</width><height>12'
    '</height><depth>3</depth></size><object><name>Palm</name><bndbox><xmin>1.5</xmin><ymin>2</ymin><xmax>9</xmax>'
    '<ymax>11.25</ymax></bndbox></object><object><name>1,7</name><bndbox><xmin>0</xmin><ymin>0</ymin><xmax>20</xmax>'
    '<ymax>12</ymax></bndbox></object></annotation>'
)
KITTI = (
    '1 0.00 0 0 1.50 2.00 9.00 11.25 0 0 0 0 0 0 0\na b, c 0 0 0 0 0 20 12 0 0 0 0 0 0 0 0.5\n\nDontCare -1 -1'
    + ' 1' * 13
)
YOLO = '0 0.5 0.5 0.2 0.3\n1 0.1 0.1 0.9 0.1 0.5 0.9\n0 0.5 0.5 1 1 0.99\n'
READERS = [
    pytest.param(read_voc, NAMES, VOC, id='voc'),
    pytest.param(read_kitti, NAMES, KITTI, id='kitti'),
    pytest.param(read_labeled_tile, NAMES, VOC, id='labeled'),
    pytest.param(read_multilabeled_tile, NAMES, VOC, id='multilabeled'),
    pytest.param(read_yolo_boxes, INDICES, YOLO, id='yolo'),
    pytest.param(read_yolo_outlines, INDICES, YOLO, id='yolo outlines'),
]
LISTERS = [
    pytest.param(list_voc, '.xml', VOC, id='voc'),
    pytest.param(list_kitti, '.txt', KITTI, id='kitti'),
    pytest.param(list_labeled_tiles, '.xml', VOC, id='labeled'),
    pytest.param(list_multilabeled_tiles, '.xml', VOC, id='multilabeled'),
    pytest.param(list_yolo, '.txt', YOLO, id='yolo'),
]
COCO = {
    'categories': [{'id': 0, 'name': 'a'}, {'id': 5, 'name': 'b'}],
    'images': [{'id': 1, 'file_name': 'a.tif', 'height': 12, 'width': 20}, {'id': 2, 'file_name': 'b.tif'}],
    'annotations': [
        {
            'id': 1,
            'image_id': 1,
            'category_id': 5,
            'bbox': [1, 2, 3, 4],
            'segmentation': [[1, 1, 9, 1, 9, 9]],
            'iscrowd': 0,
        },
        {
            'id': 2,
            'image_id': 2,
            'category_id': 0,
            'bbox': [0, 0, 20, 12],
            'segmentation': {'size': [12, 20], 'counts': [9, 231]},
        },
        {
            'id': 3,
            'image_id': 1,
            'category_id': 0,
            'bbox': [0, 0, 5, 5],
            'segmentation': {'size': [12, 20], 'counts': 'T1k5'},
        },
    ],
}

markup = '< > </object> <object> <!DOCTYPE \\ &x; &#0; <![CDATA[ ]]> { } [ ] " , ,,'.split()
numbers = 'nan -inf 1e999 -1 99999999999999999999 \u0661 Palm'.split()
nasty = st.sampled_from([*markup, *numbers, '', '\0', ' ', '\n', '\r', '\u2028', '\ufeff', '0.5 ' * 20])
edits = st.lists(
    st.tuples(st.integers(0, 10**6), st.integers(0, 12), nasty | st.text(max_size=4)), min_size=1, max_size=6
)
leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, 1, 2, 5, 2**62, 2**63, 2**64, 10**310, -1, 1e308, 1.0, float('nan'), float('inf')])
    | st.floats()
    | st.sampled_from(['', 'a.tif', '../a.tif', 'T1k5', 'ooo', '\ud800', 'x' * 300])
    | st.text(max_size=5)
)
keys = st.sampled_from(['id', 'name', 'size', 'counts', 'bbox', 'file_name', 'image_id'])
anything = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(keys, inner, max_size=4), max_leaves=8
)


def edited(text, changes):
    """Text in which at each place some signs are replaced."""
    for place, removed, added in changes:
        at = place % (len(text) + 1)
        text = text[:at] + added + text[at + removed :]
    return text


def places(value, path=()):
    """All paths into nested lists and objects."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def replaced(value, path, new):
    if not path:
        return new
    inner = replaced(value[path[0]], path[1:], new)
    if isinstance(value, dict):
        return value | {path[0]: inner}
    return [*value[: path[0]], inner, *value[path[0] + 1 :]]


def check_label(label):
    height, width = SHAPE
    assert label.class_ids.dtype == np.int64
    assert all(isinstance(text, str) and 0 < len(text) < 200 for text in label.skipped)
    if label.boxes is not None:
        assert label.boxes.shape == (len(label.class_ids), 4)
        assert label.boxes.dtype == np.float32
        left, top, right, bottom = label.boxes.T
        assert np.isfinite(label.boxes).all()
        assert ((left >= 0) & (left < right) & (right <= width)).all()
        assert ((top >= 0) & (top < bottom) & (bottom <= height)).all()
    if label.masks is not None:
        assert len(label.masks) == len(label.class_ids)
        assert all(mask.shape == SHAPE and mask.dtype == bool and mask.any() for mask in label.masks)


@contextmanager
def refused_by_name(*names):
    """Let ChipFolderError pass as an outcome, if it names one of these."""
    try:
        yield
    except ChipFolderError as error:
        if not any(name in str(error) for name in names):
            raise AssertionError(f'names none of {names}') from error


def read_outcome(call, name):
    """'data' that makes sense, or 'refused' by an error that names the file."""
    with refused_by_name(name):
        check_label(call())
        return 'data'
    return 'refused'


def list_outcome(lister, folder, name):
    with refused_by_name(name, folder.name):
        check_listing(lister(folder, ExportMetadata.empty()), name)
        return 'data'
    return 'refused'


def check_listing(listing, name):
    known = {info.value for info in listing.classes}
    assert len(known) == len(listing.classes) > 0
    assert listing.chips
    for chip in listing.chips:
        with refused_by_name(name):
            label = chip.read_label(SHAPE)
            check_label(label)
            assert set(label.class_ids.tolist()) <= known
            assert (label.masks is not None) == (listing.task is Task.INSTANCES)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A chip folder whose label, of whatever kind, each example writes anew."""
    folder = tmp_path_factory.mktemp('fuzzed')
    for place in ('images', 'labels'):
        (folder / place).mkdir()
    for name in ('a', 'b'):
        (folder / 'images' / f'{name}.tif').touch()
    return folder


@pytest.mark.parametrize(('read', 'values', 'valid'), READERS)
@given(content=st.binary(max_size=200))
@settings(max_examples=40)
def test_any_bytes(folder, read, values, valid, content):
    path = folder / 'any.bytes'
    path.write_bytes(content)
    assert read_outcome(lambda: read(path, values, SHAPE), 'any.bytes')


@pytest.mark.parametrize(('read', 'values', 'valid'), READERS)
@given(changes=edits)
@settings(max_examples=60)
def test_texts_that_were_valid_once(folder, read, values, valid, changes):
    path = folder / 'edited.text'
    path.write_text(edited(valid, changes), encoding='utf-8', newline='')
    assert read_outcome(lambda: read(path, values, SHAPE), 'edited.text')


@pytest.mark.parametrize(('read', 'values', 'valid'), READERS)
def test_the_texts_are_valid_before_they_are_edited(folder, read, values, valid):
    path = folder / 'valid.text'
    path.write_text(valid, encoding='utf-8')
    assert len(read(path, values, SHAPE).class_ids) >= 1


@pytest.mark.parametrize(('lister', 'suffix', 'valid'), LISTERS)
@given(changes=edits)
@settings(max_examples=40)
def test_folders_without_an_emd(folder, lister, suffix, valid, changes):
    path = folder / 'labels' / f'a{suffix}'
    path.write_text(edited(valid, changes), encoding='utf-8', newline='')
    assert list_outcome(lister, folder, path.name)


@given(
    content=st.binary(max_size=200)
    | edits.map(lambda changes: edited(json.dumps(COCO), changes).encode('utf-8', 'replace'))
)
@settings(max_examples=80)
def test_coco_of_any_bytes_and_edited_text(folder, content):
    (folder / 'labels.json').write_bytes(content)
    assert list_outcome(list_coco, folder, 'labels.json')


@given(data=st.data())
@settings(max_examples=200)
def test_coco_with_any_json_anywhere(folder, data):
    content = COCO
    for _ in range(data.draw(st.integers(1, 3))):
        content = replaced(content, data.draw(st.sampled_from(list(places(content)))), data.draw(anything))
    (folder / 'labels.json').write_text(json.dumps(content))
    assert list_outcome(list_coco, folder, 'labels.json')


@given(content=st.binary(max_size=100) | edits.map(lambda changes: edited('nc: 2\nnames: [a, b]\n', changes).encode()))
@settings(max_examples=60)
def test_yolo_names_of_any_yaml(folder, content):
    (folder / 'labels' / 'a.txt').write_text('0 0.5 0.5 1 1')
    path = folder / 'data.yaml'
    path.write_bytes(content)
    assert list_outcome(list_yolo, folder, 'data.yaml')
    path.unlink()
