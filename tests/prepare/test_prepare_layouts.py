"""Layouts of folders that people have, without an .emd."""

import json
import os
import shutil

import numpy as np
import pytest

from geolearn import prepare_data
from geolearn.errors import ChipFolderError

PLAIN = {'chip_size': 8, 'batch_size': 2, 'val_split_pct': 0.25, 'transforms': False}
VOC = '<annotation><object><name>tree</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>6</ymax></bndbox></object></annotation>'  # noqa: E501


@pytest.fixture
def put(tmp_path, save):
    """Write four rasters or texts into a folder: `put('A')`, `put('label', label=True)`, `put('x', text='...')`."""

    def write(name, *, label=False, text=None, suffix='.png', stem='{}'):
        folder = tmp_path / 'set' / name
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(4):
            path = folder / (stem.format(index) + suffix)
            if text is not None:
                path.write_text(text)
            elif label:
                save(path, np.repeat([[0, 255]], 8, axis=0).repeat(4, axis=1).astype(np.uint8)[None])
            else:
                rng = np.random.default_rng(index + sum(name.encode()))
                save(path, rng.integers(1, 255, (3, 8, 8)).astype(np.uint8))
        return tmp_path / 'set'

    return write


@pytest.mark.parametrize(
    ('first', 'second', 'labels'),
    [
        ('A', 'B', 'label'),
        ('A', 'B', 'OUT'),
        ('a', 'b', 'labels'),
        ('pre', 'post', 'masks'),
        ('before', 'after', 'mask'),
        ('T1', 'T2', 'gt'),
        ('im1', 'im2', 'label'),
        ('images', 'images2', 'labels'),
    ],
)
def test_two_dates_are_change_detection(put, first, second, labels):
    put(first), put(second)
    data = prepare_data(put(labels, label=True), **PLAIN)
    assert data.task == 'change'
    assert data.classes == ['NoChange', 'Change']
    assert len(data.train_ds) + len(data.valid_ds) == 4


@pytest.mark.parametrize(
    ('images', 'labels'),
    [('images', 'masks'), ('image', 'mask'), ('imgs', 'labels'), ('JPEGImages', 'SegmentationClass')],
)
def test_images_and_masks_are_classes_of_pixels(put, images, labels):
    put(images)
    data = prepare_data(put(labels, label=True), **PLAIN)
    assert (data.task, data.class_mapping) == ('pixels', {0: 'NoData', 255: '255'})


@pytest.mark.parametrize(
    ('images', 'labels', 'stems'),
    [
        ('images', 'masks', ('{}', '{}_label')),
        ('images', 'labels', ('img_{}', 'mask_{}')),
        ('image', 'gt', ('tile_1{}_sat', 'tile_1{}_gt')),
        ('images', 'labels', ('T33_{}_S2', 'T33_{}_LULC')),
        ('images', 'masks', ('{}', 'm{}')),
        ('', '', ('{}_sat', '{}_mask')),
        ('', '', ('{}', '{}_mask')),
        ('', '', ('img_{}', 'label-{}')),
        ('images', 'images', ('{}', '{}_labels')),
        ('train', 'train', ('{}_sat', '{}_mask')),
    ],
)
def test_names_of_images_and_labels_may_differ_by_a_prefix_or_a_suffix(put, images, labels, stems):
    put(images, stem=stems[0])
    data = prepare_data(put(labels, label=True, stem=stems[1], suffix='.tif'), **PLAIN)
    assert data.task == 'pixels'
    assert len(data.train_ds) + len(data.valid_ds) == 4
    assert dict(data.value_counts) == {0: 128, 255: 128}
    names = [stem.format(0) for stem in stems]
    assert f'names of images and labels differ: {names[0]} is paired with {names[1]}' in str(data.reading_notes)


@pytest.mark.parametrize('folder', ['', 'images', 'train'])
def test_pictures_and_masks_of_one_name_in_one_folder_are_told_apart(put, folder):
    put(folder, suffix='.jpg')
    data = prepare_data(put(folder, label=True, suffix='.png'), **PLAIN)
    assert (data.task, data.class_mapping) == ('pixels', {0: 'NoData', 255: '255'})
    assert dict(data.value_counts) == {0: 128, 255: 128}
    assert next(iter(data.table.names)) == '0'


def test_previews_beside_images_are_refused_until_they_are_away(put):
    put('images', suffix='.png'), put('labels', label=True)
    folder = put('images', suffix='.tif')
    words = (
        r'0\.png and .*0\.tif are one chip twice \(4 of 4 names .*keep one file of each name in images/: move the oth'
    )
    with pytest.raises(ChipFolderError, match=words):
        prepare_data(folder, **PLAIN)
    (folder / 'previews').mkdir()
    for path in sorted((folder / 'images').glob('*.png')):
        path.rename(folder / 'previews' / path.name)
    assert prepare_data(folder, **PLAIN).task == 'pixels'


def test_dates_and_labels_may_have_suffixes(put):
    put('pre', stem='{}_pre'), put('post', stem='{}_post')
    data = prepare_data(put('masks', label=True, stem='{}_mask'), **PLAIN)
    assert data.task == 'change'
    assert len(data.train_ds) + len(data.valid_ds) == 4


def test_labels_that_match_by_chance_are_refused(put):
    put('images', stem='1{}')
    for index, path in enumerate(sorted((put('labels', label=True) / 'labels').glob('*.png'))):
        path.rename(path.with_name('abcd'[index] + '7' * index + '.png'))
    with pytest.raises(ChipFolderError, match='must share their name'):
        prepare_data(put('images', stem='1{}'), **PLAIN)


def test_masks_of_three_equal_bands_are_masks_and_colors_are_refused(put, save):
    put('images')
    folder = put('masks', label=True)
    for path in sorted((folder / 'masks').glob('*.png')):
        save(path, np.repeat(np.repeat([[0, 255]], 8, axis=0).repeat(4, axis=1).astype(np.uint8)[None], 3, axis=0))
    assert dict(prepare_data(folder, **PLAIN).value_counts) == {0: 128, 255: 128}
    for path in sorted((folder / 'masks').glob('*.png')):
        save(path, np.random.default_rng(0).integers(0, 255, (3, 8, 8)).astype(np.uint8))
    with pytest.raises(ChipFolderError, match='write a number for each color into one band first'):
        prepare_data(folder, **PLAIN)


def test_data_sets_of_change_in_parts(put, tmp_path):
    for part in ('train', 'val', 'test'):
        put(f'{part}/A'), put(f'{part}/B'), put(f'{part}/label', label=True)
    with pytest.raises(ChipFolderError, match='published validation part of 4 chips; leave it out'):
        prepare_data(tmp_path / 'set', **PLAIN)
    data = prepare_data(tmp_path / 'set', **{name: value for name, value in PLAIN.items() if name != 'val_split_pct'})
    assert data.task == 'change'
    assert [len(part) for part in (data.train_ds, data.valid_ds, data.test_ds)] == [4, 4, 4]


@pytest.mark.parametrize(
    ('images', 'labels'), [('JPEGImages', 'Annotations'), ('images', 'annotations'), ('.', '.'), ('images', 'images')]
)
def test_boxes_in_xml_are_found_wherever_they_lie(put, images, labels):
    put(images)
    data = prepare_data(put(labels, text=VOC, suffix='.xml'), **PLAIN)
    assert (data.task, data.classes, dict(data.value_counts)) == ('objects', ['tree'], {1: 4})


def test_boxes_of_yolo_may_lie_beside_the_images(put):
    put('.')
    path = put('.', text='0 0.5 0.5 0.25 0.5\n', suffix='.txt')
    (path / 'classes.txt').write_text('tree\n')
    assert prepare_data(path, **PLAIN).classes == ['tree']


def test_parts_of_one_data_set_are_answered_with_the_call_that_works(put, tmp_path):
    for part in ('train', 'val', 'test'):
        put(f'{part}/images'), put(f'{part}/masks', label=True)
    with pytest.raises(ChipFolderError, match='parts of one data set: prepare_data') as caught:
        prepare_data(tmp_path / 'set', **PLAIN)
    call = str(caught.value).partition('data set: ')[2]
    options = {name: value for name, value in PLAIN.items() if name != 'val_split_pct'}
    data = eval(call, {'prepare_data': lambda *a, **k: prepare_data(*a, **k, **options)})  # noqa: S307 - advice to follow
    assert [len(part) for part in (data.split.train, data.split.valid, data.split.test)] == [4, 4, 4]


def test_what_is_not_recognized_is_answered_with_the_layouts_that_are(tmp_path):
    (tmp_path / 'set' / 'photos').mkdir(parents=True)
    with pytest.raises(ChipFolderError) as caught:
        prepare_data(tmp_path / 'set')
    for words in ('A/, B/ and label/', 'JPEGImages/ and Annotations/', 'masks/', 'labels.json', '<class name>/'):
        assert words in str(caught.value)


def test_coco_ids_may_be_texts(put):
    path = put('images')
    images = [{'id': str(index), 'file_name': f'{index}.png', 'width': 8, 'height': 8} for index in range(4)]
    boxes = [{'id': f'b{i}', 'image_id': str(i), 'category_id': '7', 'bbox': [1, 1, 4, 4]} for i in range(4)]
    content = {'images': images, 'annotations': boxes, 'categories': [{'id': '7', 'name': 'tree'}]}
    (path / 'labels.json').write_text(json.dumps(content))
    assert dict(prepare_data(path, **PLAIN).value_counts) == {7: 4}
    for image in images:  # some programs write the one as text and the other as number
        image['id'] = int(image['id'])
    (path / 'labels.json').write_text(json.dumps(content))
    assert dict(prepare_data(path, **PLAIN).value_counts) == {7: 4}


@pytest.mark.skipif(os.name == 'nt', reason='file names are Unicode there')
def test_file_names_that_are_not_utf8_stop_nothing(put):
    put('images', suffix='.tif')
    path = put('labels', label=True, suffix='.tif')
    for part in ('images', 'labels'):
        source = path / part / '0.tif'
        shutil.move(source, os.fsdecode(os.fsencode(source.parent) + b'/h\xf6he.tif'))
    for pack in (True, False):
        data = prepare_data(path, pack=pack, **PLAIN)
        assert len(data.train_ds) + len(data.valid_ds) in (3, 4), 'GDAL may not open such a file; then a note says so'
        assert repr(data).encode()
        assert len(data.table) == 4 or any('1 chips cannot be read' in note for note in data.notes)


def test_a_broken_sidecar_stops_nothing(put):
    put('images', suffix='.tif')
    path = put('labels', label=True, suffix='.tif')
    (path / 'images/0.tif.aux.xml').write_bytes(b'\xff\x00<PAMDataset>')
    (path / 'labels/0.tif.aux.xml').write_bytes(b'<PAMDataset><broken')
    data = prepare_data(path, **PLAIN)
    assert len(data.train_ds) + len(data.valid_ds) >= 3
