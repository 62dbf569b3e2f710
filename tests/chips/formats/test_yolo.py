import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geolearn.chips.emd import ExportMetadata
from geolearn.chips.formats.yolo import list_yolo, read_yolo_boxes
from geolearn.chips.label import Task
from geolearn.classes import ClassInfo
from geolearn.errors import ChipFolderError

EMPTY = ExportMetadata.empty()


def metadata(*classes):
    names = EMPTY.__dataclass_fields__
    return ExportMetadata(**{name: getattr(EMPTY, name) for name in names} | {'classes': classes})


def write(folder, labels, **files):
    for name, text in labels.items():
        for path in (folder / 'images' / f'{name}.jpg', folder / 'labels' / f'{name}.txt'):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    for name, text in files.items():
        path = folder / name.replace('__', '/').replace('_', '.')
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding='utf-8')
    return folder


def named(listing):
    return [(info.value, info.name) for info in listing.classes]


@pytest.fixture
def read(tmp_path):
    def read(text, shape=(100, 200)):
        path = tmp_path / 'chip.txt'
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_yolo_boxes(path, {0: 1, 2: 3}, shape)

    return read


def test_fractions_become_pixels_and_classes_values(read):
    label = read('0 0.5 0.5 0.5 1\n2 0.25 0.25 0.1 0.2 0.87\n')
    assert label.class_ids.tolist() == [1, 3]
    assert np.allclose(label.boxes, [[50, 0, 150, 100], [40, 15, 60, 35]])
    assert label.boxes.dtype == np.float32
    assert label.masks is None


def test_an_empty_file_is_a_chip_without_objects(read):
    for text in ('', '\n \r\n', b'\xef\xbb\xbf'):
        assert read(text).boxes.shape == (0, 4)


def test_a_polygon_among_boxes_counts_with_its_box(read):
    assert np.allclose(read('0 0.5 0.1 0.9 0.5 0.1 0.5').boxes, [[20, 10, 180, 50]])


@pytest.mark.parametrize(
    ('text', 'reason'),
    [
        ('1 0.5 0.5 0.5 0.5', 'object of class number 1, which has no name'),
        ('0 50 50 20 20', 'object in pixels, where YOLO gives fractions of the image'),
        ('0 0.5 0.5 -0.5 0.5', 'box of no area or inside out'),
        ('0 0.5 0.5 0 0.5', 'box of no area or inside out'),
        ('0 1.5 0.5 0.5 0.5', 'box outside the chip'),
    ],
)
def test_what_cannot_be_used_is_left_out_and_told(read, text, reason):
    label = read(f'{text}\n0 0.5 0.5 1 1')
    assert label.boxes.tolist() == [[0, 0, 200, 100]]
    assert label.skipped == (reason,)


@pytest.mark.parametrize(
    'broken',
    ['0 1 2 3', '0', '0 0 0 0 0 0 0 0', 'tree 0 0 1 1', '-1 0 0 1 1', '0.5 0 0 1 1', '0 nan 0 1 1', '9e9 0 0 1 1'],
)
def test_a_broken_line_is_named_with_its_file(read, broken):
    with pytest.raises(ChipFolderError, match=r'chip.txt, line 2: a class number and 4 fractions'):
        read(f'0 0.5 0.5 1 1\n{broken}')


def test_subfolders_pair_by_their_names(tmp_path):
    listing = list_yolo(write(tmp_path, {'train/a': '0 .5 .5 1 1', 'val/a': ''}, labels__classes_txt='tree\n'), EMPTY)
    assert listing.task is Task.OBJECTS
    assert [chip.name for chip in listing.chips] == ['train/a', 'val/a']
    assert listing.notes == ()
    assert pickle.loads(pickle.dumps(listing.chips[0])).read_label((8, 8)).class_ids.tolist() == [1]  # noqa: S301


@pytest.mark.parametrize(
    'files',
    [
        {'classes_txt': 'tree\nÖl palm\n\n'},
        {'obj_names': '\ufefftree\r\nÖl palm'},
        {'data_yaml': 'nc: 2\nnames: [tree, Öl palm]'},
        {'data_yaml': 'names:\n  1: Öl palm\n  0: tree\n'},
        {'data_yaml': 'names: [tree, Öl palm]', 'classes_txt': 'tree\nÖl palm'},
        {'data_yaml': 'path: elsewhere', 'classes_txt': 'tree\nÖl palm'},
    ],
)
def test_names_come_from_the_files_that_programs_write(tmp_path, files):
    assert named(list_yolo(write(tmp_path, {'a': '1 .5 .5 1 1'}, **files), metadata(ClassInfo(4, 'x', (0, 0, 0))))) == [
        (1, 'tree'),
        (2, 'Öl palm'),
    ]


def test_a_class_called_no_stays_one(tmp_path):
    folder = write(tmp_path, {'a': '1 .5 .5 1 1'}, data_yaml='names: [no, 007]')
    assert [name for _, name in named(list_yolo(folder, EMPTY))] == ['no', '007']


def test_names_lie_one_level_up_from_a_subset(tmp_path):
    folder = write(tmp_path / 'train', {'a': '0 .5 .5 1 1'})
    (tmp_path / 'data.yaml').write_text('names: [tree]')
    assert named(list_yolo(folder, EMPTY)) == [(1, 'tree')]


def test_without_names_the_emd_counts_then_the_numbers(tmp_path):
    folder = write(tmp_path, {'a': '1 .5 .5 1 1', 'b': '5 .5 .5 1 1'})
    classes = ClassInfo(20, 'x', (0, 0, 0)), ClassInfo(10, 'y', (0, 0, 0))
    listing = list_yolo(folder, metadata(*classes))
    assert listing.classes == classes
    assert listing.chips[0].read_label((8, 8)).class_ids.tolist() == [10]
    assert listing.chips[1].read_label((8, 8)).skipped == ('object of class number 5, which has no name',)
    assert named(list_yolo(folder, EMPTY)) == [(2, '1'), (6, '5')]


@pytest.mark.parametrize(
    ('files', 'message'),
    [
        (
            {'classes_txt': 'tree', 'data_yaml': 'names: [bush]'},
            r'classes.txt and .*data.yaml give different class names',
        ),
        ({'classes_txt': 'tree\n\nbush'}, r'classes.txt, line 2 is empty'),
        ({'data_yaml': 'names: ['}, r'data.yaml is not valid YAML'),
        ({'data_yaml': '- ' * 5000}, r'data.yaml is not valid YAML'),
        ({'data_yaml': 'names: tree'}, r'data.yaml: names must be a list of texts'),
        ({'data_yaml': 'names: [[a], b]'}, r'data.yaml: names must be a list of texts'),
        ({'data_yaml': 'names: {x: a}'}, r'data.yaml: names must be a list of texts'),
        ({'data_yaml': 'names: 5 # ' + 'x' * 300_000}, r'data.yaml is larger than 262144 bytes'),
    ],
)
def test_names_that_make_no_sense_are_refused(tmp_path, files, message):
    with pytest.raises(ChipFolderError, match=message):
        list_yolo(write(tmp_path, {'a': '0 .5 .5 1 1'}, **files), EMPTY)


def test_polygons_alone_are_instances(tmp_path):
    folder = write(tmp_path, {'a': '0 .25 .25 .75 .25 .75 .75 .25 .75\n0 2 2 1.9 2 1.9 1.9', 'b': ''})
    listing = list_yolo(folder, EMPTY)
    assert listing.task is Task.INSTANCES
    label = listing.chips[0].read_label((8, 16))
    expected = np.zeros((8, 16), bool)
    expected[2:6, 4:12] = True
    assert np.array_equal(label.masks, expected[None])
    assert label.boxes.tolist() == [[4, 2, 12, 6]]
    assert label.skipped == ('outline that covers no pixel of the chip',)
    assert listing.chips[1].read_label((8, 16)).masks == ()


def test_polygons_beside_boxes_are_boxes(tmp_path):
    folder = write(tmp_path, {'a': '0 .25 .25 .75 .25 .75 .75', 'b': '0 .5 .5 1 1'})
    listing = list_yolo(folder, EMPTY)
    assert listing.task is Task.OBJECTS
    assert listing.notes == ('1 of 2 objects have no outline, so only boxes are used',)


def test_broken_labels_and_folders_are_told(tmp_path):
    folder = write(tmp_path / 'some', {'a': '0', 'b': '0 .5 .5 1 1'})
    with pytest.raises(ChipFolderError, match=r'a.txt, line 1'):
        list_yolo(folder, EMPTY).chips[0].read_label((8, 8))
    with pytest.raises(ChipFolderError, match=r'a.txt, line 1'):
        list_yolo(write(tmp_path / 'all', {'a': '0'}), EMPTY)
    with pytest.raises(ChipFolderError, match=r'no label below .* has an object and no classes.txt'):
        list_yolo(write(tmp_path / 'none', {'a': ''}), EMPTY)


side = st.integers(1, 64).map(lambda n: n / 64)


@given(st.lists(st.tuples(st.sampled_from([0, 2]), side, side, side, side), max_size=5))
@settings(max_examples=40)
def test_what_is_written_is_read(tmp_path_factory, objects):
    corners = [(key, *sorted((a, b)), *sorted((c, d))) for key, a, b, c, d in objects if a != b and c != d]
    path = tmp_path_factory.getbasetemp() / 'round.txt'
    rows = [f'{key} {(a + b) / 2} {(c + d) / 2} {b - a} {d - c}\n' for key, a, b, c, d in corners]
    path.write_text(''.join(rows))
    label = read_yolo_boxes(path, {0: 1, 2: 3}, (64, 128))
    assert label.class_ids.tolist() == [key + 1 for key, *_ in corners]
    expected = [(a * 128, c * 64, b * 128, d * 64) for _, a, b, c, d in corners]
    assert np.array_equal(label.boxes, np.array(expected, np.float32).reshape(-1, 4))
