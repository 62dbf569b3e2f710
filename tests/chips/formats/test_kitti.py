import pickle
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geolearn.chips.emd import ExportMetadata, read_metadata
from geolearn.chips.formats.kitti import list_kitti, read_kitti
from geolearn.chips.label import Task, class_lookup
from geolearn.errors import ChipFolderError

VALUES = {'1': 1, 'Palm': 1, '7': 7, 'Solar Panel': 7, 'Zone 4': 9}


def line(name, *box, score=''):
    """A line as ArcGIS Pro writes it: padded columns, zeros for what a flat image cannot tell."""
    corners = ' '.join(f'{corner:7.2f}' for corner in box)
    return f'  {name} 0.00 0 0 {corners} 0 0 0 0 0 0 0 {score}\n'


@pytest.fixture
def write(write_pairs):
    return partial(write_pairs, suffix='.txt')


@pytest.fixture
def read(text_reader):
    return text_reader(read_kitti, VALUES, '.txt')


def test_a_class_is_a_value_or_a_name_of_any_number_of_words(read):
    label = read(line(7, 1.5, 2, 30.25, 40) + line('Solar Panel', 0, 0, 9, 9) + line('Zone 4', 0, 0, 5, 5))
    assert label.class_ids.tolist() == [7, 7, 9]
    assert label.boxes.tolist() == [[1.5, 2, 30.25, 40], [0, 0, 9, 9], [0, 0, 5, 5]]
    assert label.skipped == ()


def test_a_score_at_the_end_of_a_line_is_passed_over(read):
    label = read(
        line(7, 1, 2, 3, 4, score='0.93')
        + line('Solar Panel', 5, 6, 7, 8, score=1)
        + line('Zone 4', 1, 1, 2, 2, score=1)
    )
    assert label.class_ids.tolist() == [7, 7, 9]
    assert label.boxes.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8], [1, 1, 2, 2]]


def test_an_empty_file_is_a_chip_without_objects(read):
    for text in ('', '\n\r\n  \n', b'\xef\xbb\xbf'):
        label = read(text)
        assert label.boxes.shape == (0, 4)
        assert label.skipped == ()


def test_what_cannot_be_used_is_left_out_and_told(read):
    text = line('DontCare', 0, 0, 5, 5) + line('Oak', 0, 0, 5, 5) + line(1, 300, 0, 310, 5) + line(1, 5, 5, 1, 1)
    nan = '1 0 0 0 nan 0 5 5 0 0 0 0 0 0 0'
    label = read(text + nan)
    assert label.class_ids.shape == (0,)
    assert label.boxes.shape == (0, 4)
    assert set(label.skipped) == {
        'region marked DontCare',
        "object of class 'Oak', which is no class of the .emd",
        'box outside the chip',
        'box of no area or inside out',
        'box with a coordinate that is no finite number',
    }


@pytest.mark.parametrize('ending', ['\n', '\r\n', '\r'])
def test_every_line_ending_counts(read, ending):
    assert len(read(line(1, 0, 0, 5, 5).replace('\n', ending) * 3).class_ids) == 3


@pytest.mark.parametrize(
    'broken', ['Palm 1 2 3', '0 0 0 0 0 5 5 0 0 0 0 0 0 0', line('Palm', 0, 0, 5, 5)[:-6] + ' x 0 0']
)
def test_a_broken_line_is_named_with_its_file(read, broken):
    with pytest.raises(ChipFolderError, match=r'chip.txt, line 3: a class and 14 numbers are needed'):
        read(line(1, 0, 0, 5, 5) + '\n' + broken)


def test_bytes_that_are_no_text_are_named(read):
    with pytest.raises(ChipFolderError, match=r'chip.txt is not UTF-8 text: .* at byte 0'):
        read(b'\xff1 0')


def test_a_folder_lists_its_pairs(tmp_path, write):
    folder = write(tmp_path, {'a': line(255, 0, 0, 5, 5), 'b': ''})
    (folder / 'images' / 'c.tif').touch()
    listing = list_kitti(folder, ExportMetadata.empty())
    assert listing.task is Task.OBJECTS
    assert [chip.name for chip in listing.chips] == ['a', 'b']
    assert [(info.value, info.name) for info in listing.classes] == [(255, '255')]
    assert [note.split(',')[0] for note in listing.notes] == [
        '1 images have no label and were left out',
        'no .emd lists classes; they were taken from the labels',
    ]
    again = pickle.loads(pickle.dumps(listing.chips[0]))  # noqa: S301
    assert again.read_label((9, 9)).class_ids.tolist() == [255]


def test_without_an_emd_a_score_cannot_be_told_from_a_class(tmp_path, write):
    folder = write(tmp_path / 'scores', {'a': line('car', 0, 0, 5, 5, score=0.5)})
    with pytest.raises(ChipFolderError, match=r"a.txt, line 1: either the class is 'car 0.00' or the last column"):
        list_kitti(folder, ExportMetadata.empty())
    folder = write(tmp_path / 'plain', {'a': line('big car', 0, 0, 5, 5) + line('DontCare', 0, 0, 5, 5, score=1)})
    assert [info.name for info in list_kitti(folder, ExportMetadata.empty()).classes] == ['big car']


corner = st.integers(0, 10_000).map(lambda cents: cents / 100)
names = st.sampled_from(sorted(VALUES))


@given(st.lists(st.tuples(names, corner, corner, corner, corner), max_size=5), st.sampled_from(['', '0.5']))
@settings(max_examples=40)
def test_what_is_written_is_read(tmp_path_factory, objects, score):
    proper = [(name, min(a, c), min(b, d), max(a, c), max(b, d)) for name, a, b, c, d in objects if a != c and b != d]
    path = tmp_path_factory.getbasetemp() / 'round.txt'
    path.write_text(''.join(line(*item, score=score) for item in proper))
    label = read_kitti(path, VALUES, (100, 100))
    assert label.class_ids.tolist() == [VALUES[item[0]] for item in proper]
    assert np.array_equal(label.boxes, np.array([item[1:] for item in proper], np.float32).reshape(-1, 4))


@pytest.mark.real_data
def test_an_export_of_arcgis_pro(shared):
    folder = shared / 'data' / 'esri_exports' / 'kitti_phragmites'
    values = class_lookup(read_metadata(folder).classes)
    labels = [read_kitti(path, values, (32, 32)) for path in sorted((folder / 'labels').glob('*.txt'))]
    assert len(labels) == 4
    assert all(len(label.class_ids) >= 1 and not label.skipped for label in labels)
    assert np.allclose(labels[0].boxes[0], [19.02, 4.71, 32, 32])
