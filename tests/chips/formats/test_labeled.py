import pickle
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geolearn.chips.emd import ExportMetadata
from geolearn.chips.formats.labeled import (
    list_labeled_tiles,
    list_multilabeled_tiles,
    read_labeled_tile,
    read_multilabeled_tile,
)
from geolearn.chips.label import Task
from geolearn.errors import ChipFolderError

VALUES = {'1': 1, 'Water': 1, '2': 2, 'Trees, dense': 2, '3': 3, 'Trees': 3, '255': 255, 'Öde': 255}


def tile(*names):
    objects = ''.join(f'<object><name>{name}</name></object>' for name in names)
    return f'<annotation><filename>1.jpg</filename>{objects}</annotation>'


@pytest.fixture
def write(write_pairs):
    return partial(write_pairs, suffix='.xml')


@pytest.fixture
def saved(tmp_path):
    def saved(text):
        path = tmp_path / 'chip.xml'
        path.write_text(text, encoding='utf-8')
        return path

    return saved


@pytest.mark.parametrize(
    ('names', 'value'), [(['255'], 255), (['Öde'], 255), (['Trees, dense'], 2), (['Water', 'Trees'], 1)]
)
def test_the_first_object_labels_the_chip(saved, names, value):
    label = read_labeled_tile(saved(tile(*names)), VALUES, (8, 8))
    assert label.class_ids.tolist() == [value]
    assert label.class_ids.dtype == np.int64
    assert label.boxes is None


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        (tile(), 'chip.xml has no <object>'),
        (tile('Lava'), "chip.xml names the class 'Lava', which is no class"),
        (tile(''), "chip.xml names the class ''"),
        ('<annotation>', 'chip.xml is not valid XML'),
    ],
)
def test_a_chip_without_a_known_class_cannot_be_used(saved, text, message):
    with pytest.raises(ChipFolderError, match=message):
        read_labeled_tile(saved(text), VALUES, (8, 8))


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('Water', [1]),
        ('Öde,Water', [1, 255]),
        ('255, 1', [1, 255]),
        (' Trees ,Water, Trees', [1, 3]),
        ('Trees, dense', [2]),
        ('Trees,dense,Trees', [2, 3]),
        ('Water,,', [1]),
        ('', []),
    ],
)
def test_a_list_of_names_or_values_gives_each_class_once(saved, text, expected):
    label = read_multilabeled_tile(saved(tile(text)), VALUES, (8, 8))
    assert label.class_ids.tolist() == expected
    assert label.skipped == ()


def test_a_chip_may_have_no_class_at_all(saved):
    assert read_multilabeled_tile(saved(tile()), VALUES, (8, 8)).class_ids.shape == (0,)


def test_classes_of_several_objects_add_up(saved):
    assert read_multilabeled_tile(saved(tile('Water', 'Öde,3')), VALUES, (8, 8)).class_ids.tolist() == [1, 3, 255]


def test_unknown_names_in_a_list_are_left_out_and_told(saved):
    label = read_multilabeled_tile(saved(tile('Lava,Water')), VALUES, (8, 8))
    assert label.class_ids.tolist() == [1]
    assert label.skipped == ("class 'Lava', which is no class of the .emd",)


def test_a_list_of_many_commas_is_no_burden(saved):
    assert read_multilabeled_tile(saved(tile('Water' + ',' * 100_000)), VALUES, (8, 8)).class_ids.tolist() == [1]


def test_folders_without_an_emd_take_the_classes_from_the_labels(tmp_path, write):
    one = list_labeled_tiles(write(tmp_path / 'one', {'a': tile('b, c', 'x'), 'd': tile('a')}), ExportMetadata.empty())
    assert one.task is Task.LABEL
    assert [(info.value, info.name) for info in one.classes] == [(1, 'a'), (2, 'b, c')]
    assert [chip.read_label((8, 8)).class_ids.tolist() for chip in one.chips] == [[2], [1]]
    labels = {'a': tile('b, c'), 'd': tile('a,c')}
    many = list_multilabeled_tiles(write(tmp_path / 'many', labels), ExportMetadata.empty())
    assert many.task is Task.LABELS
    assert [(info.value, info.name) for info in many.classes] == [(1, 'a'), (2, 'b'), (3, 'c')]
    again = pickle.loads(pickle.dumps(many.chips))  # noqa: S301
    assert [chip.read_label((8, 8)).class_ids.tolist() for chip in again] == [[2, 3], [1, 3]]


@given(st.lists(st.sampled_from(sorted(VALUES)), max_size=6), st.sampled_from([',', ', ', ' , ']))
@settings(max_examples=40)
def test_what_is_written_is_read(tmp_path_factory, names, comma):
    path = tmp_path_factory.getbasetemp() / 'round.xml'
    path.write_text(tile(comma.join(names)), encoding='utf-8')
    label = read_multilabeled_tile(path, VALUES, (8, 8))
    assert label.class_ids.tolist() == sorted({VALUES[name] for name in names})
    assert label.skipped == ()
