import pickle
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geolearn.chips.emd import ExportMetadata
from geolearn.chips.formats.text_labels import read_xml
from geolearn.chips.formats.voc import list_voc, read_voc, voc_names
from geolearn.chips.label import Task
from geolearn.classes import ClassInfo
from geolearn.errors import ChipFolderError

PALM, HOUSE = ClassInfo(1, 'Palm', (0, 200, 0)), ClassInfo(7, 'Solar Panel', (9, 9, 9))
VALUES = {'1': 1, 'Palm': 1, '7': 7, 'Solar Panel': 7}


def metadata(*classes):
    empty = ExportMetadata.empty()
    return ExportMetadata(**{name: getattr(empty, name) for name in empty.__dataclass_fields__} | {'classes': classes})


def voc(*objects, size=None):
    """XML as ArcGIS Pro writes it; an object is a name and four corners."""
    stated = '' if size is None else f'<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>'
    rows = ''.join(
        f'<object><name>{name}</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax></bndbox>'
        '</object>'
        for name, a, b, c, d in objects
    )
    return f'<annotation><filename>0.jpg</filename>{stated}{rows}</annotation>'


@pytest.fixture
def write(write_pairs):
    return partial(write_pairs, suffix='.xml')


@pytest.fixture
def read(text_reader):
    return text_reader(read_voc, VALUES, '.xml')


def test_a_name_is_a_class_value_or_a_class_name(read):
    label = read(voc(('7', 1.5, 2, 30.25, 40), ('Palm', 0, 0, 200, 100), (' Solar\n Panel ', 3, 3, 4, 4)))
    assert label.class_ids.tolist() == [7, 1, 7]
    assert label.class_ids.dtype == np.int64
    assert label.boxes.tolist() == [[1.5, 2, 30.25, 40], [0, 0, 200, 100], [3, 3, 4, 4]]
    assert label.boxes.dtype == np.float32
    assert label.masks is None
    assert label.raster is None
    assert label.skipped == ()


def test_a_value_goes_before_a_name_that_looks_like_one(tmp_path, write):
    folder = write(tmp_path, {'a': voc(('2', 0, 0, 5, 5))})
    (chip,) = list_voc(folder, metadata(ClassInfo(1, '2', (0, 0, 0)), ClassInfo(2, '1', (0, 0, 0)))).chips
    assert chip.read_label((9, 9)).class_ids.tolist() == [2]


def test_a_file_without_objects_is_a_chip_without_objects(read):
    label = read(voc())
    assert label.class_ids.shape == (0,)
    assert label.boxes.shape == (0, 4)
    assert label.skipped == ()


def test_boxes_are_clipped_to_the_chip(read):
    assert read(voc((1, -5, -3.5, 1e300, 50))).boxes.tolist() == [[0, 0, 200, 50]]


@pytest.mark.parametrize(
    ('item', 'reason'),
    [
        (('palm tree', 0, 0, 5, 5), "object of class 'palm tree', which is no class of the .emd"),
        (('', 0, 0, 5, 5), 'object without a class'),
        (('1', 200, 0, 210, 5), 'box outside the chip'),
        (('1', 0, -9, 5, 0), 'box outside the chip'),
        (('1', 9, 0, 5, 5), 'box of no area or inside out'),
        (('1', 5, 5, 5, 50), 'box of no area or inside out'),
        (('1', '199.9999999999', 0, 210, 5), 'box of no area or inside out'),
        (('1', 'nan', 0, 5, 5), 'box with a coordinate that is no finite number'),
        (('1', 0, 0, 'inf', 5), 'box with a coordinate that is no finite number'),
        (('1', 'left', 0, 5, 5), 'box with a coordinate that is no finite number'),
        (('1', '', 0, 5, 5), 'box with a coordinate that is no finite number'),
    ],
)
def test_what_cannot_be_used_is_left_out_and_told(read, item, reason):
    label = read(voc(item, ('Palm', 1, 1, 2, 2)))
    assert label.boxes.tolist() == [[1, 1, 2, 2]]
    assert label.skipped == (reason,)


def test_an_object_without_a_box_is_left_out_and_told(read):
    label = read('<annotation><object><name>1</name></object></annotation>')
    assert label.skipped == ('object without a box',)


def test_boxes_drawn_on_an_image_of_another_size_are_refused(read):
    with pytest.raises(ChipFolderError, match=r'chip.xml was made for an image of 448 x 300 pixels.* has 200 x 100'):
        read(voc((1, 0, 0, 5, 5), size=(448, 300)))
    assert len(read(voc((1, 0, 0, 5, 5), size=(200, 100))).class_ids) == 1
    assert len(read(voc((1, 0, 0, 5, 5), size=(0, 0))).class_ids) == 1, 'some programs do not know the size'


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'', 'is empty'),
        (b'\xef\xbb\xbf \n', 'is empty'),
        (b'<annotation>', 'not valid XML'),
        (b'<annotation/><annotation/>', 'not valid XML'),
        (b'no XML at all', 'not valid XML'),
        (b'<annotation>\x00</annotation>', 'not valid XML'),
        (b'<html></html>', '<html>; <annotation> is needed'),
        (b'<annotation>\xff\xfe</annotation>', 'not UTF-8 text'),
        (b'<annotation>' + b'<a>' * 500_000, 'more than 32 levels deep'),
        (b'<annotation>' + b' ' * 2**23 + b'</annotation>', 'larger than 8388608 bytes'),
    ],
)
def test_broken_files_are_named(read, content, message):
    with pytest.raises(ChipFolderError, match=message) as caught:
        read(content)
    assert 'chip.xml' in str(caught.value)


def test_a_byte_order_mark_does_no_harm(read):
    assert read(b'\xef\xbb\xbf' + voc((1, 0, 0, 5, 5)).encode()).class_ids.tolist() == [1]


def test_xml_bombs_are_refused_before_they_go_off(read):
    lines = ['<!ENTITY a0 "ha">', *(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 30))]
    with pytest.raises(ChipFolderError, match=r'chip.xml declares a document type.*bomb'):
        read(f'<?xml version="1.0"?><!DOCTYPE annotation [{"".join(lines)}]><annotation>&a29;</annotation>')


def test_foreign_files_are_never_read(tmp_path):
    (tmp_path / 'secret').write_text('1')
    path = tmp_path / 'chip.xml'
    path.write_text(f'<!DOCTYPE x [<!ENTITY s SYSTEM "{tmp_path / "secret"}">]><annotation>&s;</annotation>')
    with pytest.raises(ChipFolderError, match='document type'):
        read_xml(path, 'annotation')


def test_a_label_that_is_a_folder_or_missing_is_named(tmp_path):
    (tmp_path / 'folder.xml').mkdir()
    for name in ('folder.xml', 'missing.xml'):
        with pytest.raises(ChipFolderError, match=name):
            read_voc(tmp_path / name, VALUES, (5, 5))


def test_a_folder_lists_its_pairs_and_counts_the_rest(tmp_path, write):
    folder = write(tmp_path, {'b': voc((1, 0, 0, 5, 5)), 'a': voc(), 'lonely': voc()}, images=['a', 'b', 'c', 'd'])
    (folder / 'labels' / 'a.tif.aux.xml').write_text('<PAMDataset/>')
    listing = list_voc(folder, metadata(PALM, HOUSE))
    assert listing.task is Task.OBJECTS
    assert [chip.name for chip in listing.chips] == ['a', 'b']
    assert listing.chips[1].dates == ((folder / 'images' / 'b.tif',),)
    assert listing.chips[1].labels == (folder / 'labels' / 'b.xml',)
    assert listing.classes == (PALM, HOUSE)
    assert [note[:8] for note in listing.notes] == ['2 images', '1 labels']


def test_the_reader_of_a_chip_travels_to_other_processes(tmp_path, write):
    (chip,) = list_voc(write(tmp_path, {'a': voc((7, 0, 0, 5, 5))}), metadata(PALM, HOUSE)).chips
    assert pickle.loads(pickle.dumps(chip)).read_label((9, 9)).class_ids.tolist() == [7]  # noqa: S301


def test_without_an_emd_names_become_classes(tmp_path, write):
    folder = write(tmp_path, {'a': voc(('Öl palm', 0, 0, 5, 5), ('3', 0, 0, 5, 5)), 'b': voc(('Dead', 0, 0, 5, 5))})
    listing = list_voc(folder, ExportMetadata.empty())
    assert [(info.value, info.name) for info in listing.classes] == [(1, '3'), (2, 'Dead'), (3, 'Öl palm')]
    assert [chip.read_label((9, 9)).class_ids.tolist() for chip in listing.chips] == [[3, 1], [2]]
    assert listing.notes == ('no .emd lists classes; they were taken from the labels',)


def test_without_an_emd_numbers_are_the_values(tmp_path, write):
    folder = write(tmp_path, {'a': voc(('255', 0, 0, 5, 5), ('07', 0, 0, 5, 5), ('7', 0, 0, 5, 5))})
    listing = list_voc(folder, ExportMetadata.empty())
    assert [(info.value, info.name) for info in listing.classes] == [(7, '7'), (255, '255')]
    assert listing.chips[0].read_label((9, 9)).class_ids.tolist() == [255, 7, 7]


def test_one_broken_label_does_not_hide_the_classes_of_the_others(tmp_path, write):
    listing = list_voc(write(tmp_path, {'a': '', 'b': voc(('tree', 0, 0, 5, 5))}), ExportMetadata.empty())
    assert [info.name for info in listing.classes] == ['tree']
    with pytest.raises(ChipFolderError, match='a.xml is empty'):
        listing.chips[0].read_label((9, 9))


def test_folders_without_classes_pairs_or_labels_are_refused(tmp_path, write):
    for name in ('none', 'broken', 'apart', 'bare'):
        (tmp_path / name).mkdir()
    with pytest.raises(ChipFolderError, match='no label below .*none names a class'):
        list_voc(write(tmp_path / 'none', {'a': voc()}), ExportMetadata.empty())
    with pytest.raises(ChipFolderError, match='a.xml is not valid XML'):
        list_voc(write(tmp_path / 'broken', {'a': '<'}), ExportMetadata.empty())
    with pytest.raises(ChipFolderError, match='must share their name'):
        list_voc(write(tmp_path / 'apart', {'a': voc()}, images=['b']), metadata(PALM))
    with pytest.raises(ChipFolderError, match='bare has no images/ folder'):
        list_voc(tmp_path / 'bare', metadata(PALM))


def test_the_folder_names_of_pascal_voc_are_known(tmp_path):
    (tmp_path / 'JPEGImages').mkdir()
    (tmp_path / 'JPEGImages' / '1.jpg').touch()
    (tmp_path / 'Annotations').mkdir()
    (tmp_path / 'Annotations' / '1.xml').write_text(voc((1, 0, 0, 5, 5)))
    assert [chip.name for chip in list_voc(tmp_path, metadata(PALM)).chips] == ['1']


corner = st.floats(0, 100, width=32)


def test_of_two_images_of_one_name_the_one_that_the_label_states(tmp_path):
    """A photo and the raster made from it may lie side by side."""
    folder = tmp_path / 'both'
    folder.mkdir()
    text = voc(('tree', 1, 1, 5, 5))
    for stem, stated in (('a', 'a.tif'), ('b', 'C:\\photos\\b.png')):
        for suffix in ('.png', '.tif'):
            (folder / f'{stem}{suffix}').touch()
        (folder / f'{stem}.xml').write_text(text.replace('0.jpg', stated))
    assert [chip.image.name for chip in list_voc(folder, metadata()).chips] == ['a.tif', 'b.png']
    (folder / 'a.xml').write_text(text)
    with pytest.raises(ChipFolderError, match='are one chip twice'):
        list_voc(folder, metadata())


boxes = st.tuples(st.sampled_from([1, 7]), corner, corner, corner, corner)


@given(st.lists(boxes, max_size=5))
@settings(max_examples=40)
def test_what_is_written_is_read(tmp_path_factory, drawn):
    objects = [(name, min(a, c), min(b, d), max(a, c), max(b, d)) for name, a, b, c, d in drawn if a != c and b != d]
    path = tmp_path_factory.getbasetemp() / 'round.xml'
    path.write_text(voc(*objects))
    label = read_voc(path, VALUES, (100, 100))
    assert label.class_ids.tolist() == [item[0] for item in objects]
    assert np.array_equal(label.boxes, np.array([item[1:] for item in objects], np.float32).reshape(-1, 4))
    assert label.skipped == ()


@pytest.mark.real_data
@pytest.mark.parametrize(
    ('name', 'shape', 'count'),
    [
        ('OSBS_029', (400, 400), 61),
        ('SOAP_061', (400, 400), 37),
        ('2019_YELL_2_541000_4977000_image_crop', (1035, 1249), 279),
    ],
)
def test_tree_crowns_of_another_program(shared, name, shape, count):
    path = shared / 'data' / 'neon_trees' / f'{name}.xml'
    values = {text: 1 for text in voc_names(path)}
    label = read_voc(path, values, shape)
    assert len(label.class_ids) == count
    assert label.skipped == ()


@pytest.mark.parametrize(
    ('encoding', 'declared'),
    [
        ('iso-8859-1', 'ISO-8859-1'),
        ('windows-1252', 'windows-1252'),
        ('utf-16', 'UTF-16'),
        ('utf-16-le', 'UTF-16'),
        ('utf-8', 'utf-8'),
        ('utf-8-sig', 'UTF-8'),
        ('gbk', 'GBK'),
    ],
)
def test_xml_is_read_in_the_encoding_that_it_declares(text_reader, encoding, declared):
    name = '水' if encoding == 'gbk' else 'Höhe'
    body = voc((1, 0, 0, 5, 5)).replace('>1<', f'>{name}<', 1)
    read = text_reader(read_voc, {name: 7}, '.xml')
    label = read(f'<?xml version="1.0" encoding="{declared}"?>\n{body}'.encode(encoding))
    assert label.class_ids.tolist() == [7]


@pytest.mark.parametrize('encoding', ['utf-16', 'iso-8859-1'])
def test_no_encoding_hides_a_document_type(read, encoding):
    text = f'<?xml version="1.0" encoding="{encoding}"?><!DOCTYPE a [<!ENTITY b "c">]>{voc((1, 0, 0, 5, 5))}'
    with pytest.raises(ChipFolderError, match='declares a document type'):
        read(text.encode(encoding))
