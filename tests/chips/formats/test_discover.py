"""Finding a folder of chips, telling its format, and map.txt."""

import json
import os
import shutil
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from geolearn.chips.emd import EMD_NAME, STATS_NAME
from geolearn.chips.formats import FORMATS, open_chips
from geolearn.chips.formats.files import MAX_LINE_BYTES, read_map, split_map_line
from geolearn.chips.label import Task
from geolearn.errors import ChipFolderError, UnknownNameError

IMAGES = [np.full((3, 2, 2), value, np.uint8) for value in (10, 20, 30)]
LABELS = [np.array([[0, 1], [2, 2]], np.uint8)] * 3
VOC = '<annotation><object><name>{}</name><bndbox><xmin>0</xmin><ymin>0</ymin><xmax>1</xmax><ymax>1</ymax></bndbox></object></annotation>'  # noqa: E501
KITTI = '1 0.00 0 0   19.02    4.71   32.00   32.00 0 0 0 0 0 0 0\n'


@pytest.fixture
def export(tmp_path, write_export):
    return write_export(tmp_path / 'export', IMAGES, LABELS)


def touch(folder, *names):
    """Make empty files, with the folders that they lie in."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def strip_metadata(folder):
    for name in (EMD_NAME, STATS_NAME, 'map.txt'):
        (folder / name).unlink()
    return folder


def write_emd(folder, **keys):
    (folder / EMD_NAME).write_text(json.dumps(keys))
    (folder / STATS_NAME).unlink(missing_ok=True)
    return folder


# --- where the export is


def test_the_folder_of_the_emd_is_the_export(export):
    for path in (export, str(export)):
        found = open_chips(path)
        assert (found.folder, found.dataset_type, found.notes) == (export, 'Classified_Tiles', ())
    assert found.metadata.band_count == 3
    assert len(found.listing.chips) == 3


def test_an_export_one_level_down_is_found_and_told(export, tmp_path):
    (tmp_path / 'notes').mkdir()
    found = open_chips(tmp_path)
    assert found.folder == export
    assert found.notes == (f'{tmp_path} itself is no export; reading {export}',)


@pytest.mark.parametrize('name', ['images', 'labels'])
@pytest.mark.parametrize('bare', [False, True])
def test_the_images_or_labels_of_an_export_stand_for_it(export, name, bare):
    if bare:
        strip_metadata(export)
    assert open_chips(export / name).folder == export


def test_a_folder_without_emd_is_found_one_level_down_too(export, tmp_path):
    found = open_chips(strip_metadata(export).parent)
    assert found.folder == export
    assert found.notes == (
        f'{tmp_path} itself is no export; reading {export}',
        f'{export} does not name its format; its content shows Classified_Tiles',
    )


def test_a_tilde_is_the_home_folder(export, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    assert open_chips('~/export').folder == export


@pytest.mark.parametrize('bare', [False, True])
def test_several_exports_are_named_rather_than_chosen_from(export, tmp_path, bare):
    if bare:
        strip_metadata(export)
    shutil.copytree(export, tmp_path / 'second')
    with pytest.raises(ChipFolderError, match=r'holds 2 exports \(export, second\); pass one of them'):
        open_chips(tmp_path)


def test_a_folder_that_is_no_export_is_told_with_what_it_holds(tmp_path):
    touch(tmp_path, 'pictures/a.gif', 'readme.txt')
    with pytest.raises(
        ChipFolderError, match=rf'no {EMD_NAME} in it .*holds pictures/, readme\.txt, which is .*\| YOLO_'
    ):
        open_chips(tmp_path)


def test_an_empty_folder_is_no_export(tmp_path):
    with pytest.raises(ChipFolderError, match='it holds nothing'):
        open_chips(tmp_path)


def test_a_file_is_no_folder(export):
    with pytest.raises(ChipFolderError, match=rf'{EMD_NAME} is no folder; pass the folder that holds {EMD_NAME}'):
        open_chips(export / EMD_NAME)


@pytest.mark.skipif(os.geteuid() == 0, reason='root may read and write everything')
def test_a_folder_that_may_not_be_listed_is_told(tmp_path):
    (tmp_path / 'x').mkdir(mode=0)
    with pytest.raises(ChipFolderError, match='cannot list .*x: Permission denied'):
        open_chips(tmp_path / 'x')


def test_a_read_only_export_is_read(export):
    def listing():
        return sorted((path, path.stat().st_mtime_ns) for path in [export, *export.rglob('*')])

    before = listing()
    folders = [export, export / 'images', export / 'labels']
    for folder in folders:
        folder.chmod(0o555)
    try:
        assert len(open_chips(export).listing.chips) == 3
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert listing() == before


# --- what the .emd says


def test_old_metadata_of_eg_strings_is_enough(tmp_path, write_export):
    found = open_chips(write_export(tmp_path / 'e', IMAGES, LABELS, layout='old'))
    assert found.dataset_type == 'Classified_Tiles'
    assert [info.name for info in found.listing.classes] == ['one', 'two']


def test_an_emd_that_names_no_format_leaves_it_to_the_content(export):
    found = open_chips(write_emd(export, MetaDataMode='e.g. Classified_Tiles'))
    assert found.dataset_type == 'Classified_Tiles'
    assert found.notes == (f'{export} does not name its format; its content shows Classified_Tiles',)


def test_neither_emd_nor_content_is_an_error(export):
    shutil.rmtree(export / 'labels')
    (export / 'labels').mkdir()
    with pytest.raises(ChipFolderError, match=f'{EMD_NAME} does not say which format this is, and neither does'):
        open_chips(write_emd(export, Classes=[]))


def test_a_second_date_makes_it_change_detection(export):
    (export / 'images2').mkdir()
    assert open_chips(export).dataset_type == 'Classified_Tiles'
    shutil.copytree(export / 'images', export / 'images2', dirs_exist_ok=True)
    found = open_chips(export)
    assert (found.dataset_type, found.listing.task, found.notes) == ('ChangeDetection', Task.CHANGE, ())
    found = open_chips(export, 'Classified_Tiles')
    assert found.listing.task is Task.PIXELS
    assert found.notes == (f'{export / "images2"} is not read, as dataset_type=Classified_Tiles was asked for',)


def test_a_dataset_type_wins_over_the_emd_and_is_told(export):
    found = open_chips(export, 'Export_Tiles')
    assert (found.dataset_type, found.listing.task) == ('Export_Tiles', Task.UNLABELLED)
    assert found.notes == (
        f'{export / EMD_NAME} says Classified_Tiles, but it is read as Export_Tiles, as was asked for',
    )


def test_an_unknown_dataset_type_is_refused_with_the_nearest(export):
    with pytest.raises(
        UnknownNameError, match="unknown dataset_type 'Classified_Tile'; did you mean 'Classified_Tiles'"
    ):
        open_chips(export, 'Classified_Tile')


@pytest.mark.parametrize(('alias', 'name'), [('Panoptic', 'Panoptic_Segmentation'), ('BigEarthNet-19', 'BigEarthNet')])
def test_other_names_of_a_dataset_type_are_known(export, alias, name):
    with pytest.raises(ChipFolderError, match='labels2' if name == 'Panoptic_Segmentation' else 'no patch of BigEarth'):
        open_chips(export, alias)


def test_a_format_that_is_not_read_is_refused_plainly(export):
    with pytest.raises(
        ChipFolderError, match='says that this is CycleGAN, which is not read; geolearn reads Classified'
    ):
        open_chips(write_emd(export, MetaDataMode='CycleGAN'))


def test_time_series_and_captions_are_refused_plainly(export):
    with pytest.raises(ChipFolderError, match='its chips are time series, which are not read; export single dates'):
        open_chips(write_emd(export, MetaDataMode='RCNN_Masks', IsMultidimensional=True))
    write_emd(export, MetaDataMode='MultiLabeled_Tiles', SingleLabelFieldFound='Caption', IsMultidimensional='e.g. no')
    with pytest.raises(ChipFolderError, match="labels are captions, which are not read; pass dataset_type='Export_Til"):
        open_chips(export)
    assert open_chips(export, 'Export_Tiles').listing.task is Task.UNLABELLED


def test_statistics_without_emd_are_told(export):
    (export / EMD_NAME).unlink()
    assert open_chips(export).notes[0] == f'{export} has {STATS_NAME} but no {EMD_NAME}; neither is read'


def test_a_million_classes_are_refused_at_once(tmp_path):
    touch(tmp_path, 'images/1.tif', 'labels/No. 999999/1.tif')
    rows = ', '.join(f'{{"Value": {value}, "Name": "{value}"}}' for value in range(1, 10**6))
    (tmp_path / EMD_NAME).write_text(f'{{"MetaDataMode": "RCNN_Masks", "Classes": [{rows}]}}')
    start = time.process_time()
    with pytest.raises(ChipFolderError, match=EMD_NAME):
        open_chips(tmp_path)
    assert time.process_time() - start < 20


# --- what the content shows


def test_folders_of_masks_are_rcnn_masks(export):
    masks = export / 'labels' / 'Solar Panel'
    masks.mkdir()
    for path in list((export / 'labels').glob('*.tif')):
        path.rename(masks / path.name)
    assert open_chips(strip_metadata(export)).dataset_type == 'RCNN_Masks'


def test_the_same_folders_in_images_and_labels_are_class_rasters(export):
    for part in ('images', 'labels'):
        (export / part).rename(export / 'x')
        (export / 'x').rename(touch(export, f'{part}/y').joinpath(part, 'north'))
    assert open_chips(strip_metadata(export)).dataset_type == 'Classified_Tiles'


def test_a_third_folder_makes_it_panoptic(export):
    (export / 'labels2').mkdir()
    assert open_chips(strip_metadata(export)).dataset_type == 'Panoptic_Segmentation'


def test_dates_are_recognized_in_both_layouts(export):
    strip_metadata(export)
    shutil.copytree(export / 'images', export / 'images2')
    assert open_chips(export).dataset_type == 'ChangeDetection'
    (export / 'images').rename(export / 'images_before')
    (export / 'images2').rename(export / 'images_after')
    assert open_chips(export).dataset_type == 'ChangeDetection'


@pytest.mark.parametrize(
    ('suffix', 'text', 'kind'),
    [
        ('.xml', VOC.format('tree'), 'PASCAL_VOC_rectangles'),
        ('.txt', KITTI, 'KITTI_rectangles'),
        ('.txt', 'Solar Panel' + KITTI[1:], 'KITTI_rectangles'),
        ('.txt', '0 0.5 0.5 0.25 1\n', 'YOLO_rectangles'),
        ('.txt', '0 0 0 1 0 1 1\n', 'YOLO_rectangles'),
        ('.txt', '0' + ' 0.125' * 14 + '\n', 'YOLO_rectangles'),
    ],
)
def test_boxes_are_told_apart(export, suffix, text, kind):
    for path in list((export / 'labels').iterdir()):
        path.with_suffix(suffix).write_text(text)
        path.unlink()
    touch(export, 'labels/classes.txt').joinpath('labels/classes.txt').write_text('tree\n')
    if suffix == '.xml':
        touch(export, 'labels/000000000000.tif.xml', 'labels/000000000000.tif.aux.xml')
    assert open_chips(strip_metadata(export)).dataset_type == kind


@pytest.mark.parametrize('text', ['', 'a b c\n', '0 0.5 0.5 0.5\n', '0 0.5 0.5 7 1\n', '\0' * 40])
def test_other_text_is_not_taken_for_boxes(export, text):
    for path in list((export / 'labels').iterdir()):
        path.with_suffix('.txt').write_text(text)
        path.unlink()
    with pytest.raises(ChipFolderError, match=r'labels/ holds 000000000000\.txt, 000000000001\.txt'):
        open_chips(strip_metadata(export))


@pytest.mark.parametrize('name', ['labels.json', 'annotations/instances_train.json'])
def test_coco_is_known_by_its_keys(export, name):
    shutil.rmtree(export / 'labels')
    image = {'id': 1, 'file_name': '000000000000.tif', 'width': 2, 'height': 2}
    box = {'id': 1, 'image_id': 1, 'category_id': 1, 'bbox': [0, 0, 1, 1]}
    content = {'images': [image], 'annotations': [box], 'categories': [{'id': 1, 'name': 'tree'}]}
    touch(export, name).joinpath(name).write_text(json.dumps(content))
    assert open_chips(strip_metadata(export)).dataset_type == 'COCO_rectangles'


def test_labels_of_two_kinds_are_ambiguous(export):
    touch(export, 'labels/000000000000.xml')
    with pytest.raises(ChipFolderError, match=r'could be several things.*dataset_type=Classified_Tiles \| ChangeDet'):
        open_chips(strip_metadata(export))
    assert open_chips(export, 'Classified_Tiles').listing.task is Task.PIXELS


def test_an_empty_labels_folder_was_meant_to_hold_something(export):
    for path in list((export / 'labels').iterdir()):
        path.unlink()
    with pytest.raises(ChipFolderError, match=r'labels/ holds nothing'):
        open_chips(strip_metadata(export))
    found = open_chips(export, 'Export_Tiles')
    assert found.listing.task is Task.UNLABELLED
    assert found.notes == ()


@pytest.mark.parametrize('top', ['images/', ''])
def test_folders_of_images_are_classes(tmp_path, top):
    touch(tmp_path, f'{top}Sea Lake/1.tif', f'{top}Höfe/1.tif')
    found = open_chips(tmp_path)
    assert found.dataset_type == 'Imagenet'
    assert [info.name for info in found.listing.classes] == ['Höfe', 'Sea Lake']


@pytest.mark.parametrize('names', [('train', 'val'), ('Images', 'forest'), ('forest',)])
def test_folders_that_are_no_classes_are_not_taken_for_some(tmp_path, names):
    touch(tmp_path, *(f'{name}/1.tif' for name in names))
    with pytest.raises(ChipFolderError, match='which is nothing known or could be several things'):
        open_chips(tmp_path)
    assert open_chips(tmp_path, 'Imagenet').listing.task is Task.LABEL


def test_images_alone_are_tiles(tmp_path):
    assert open_chips(touch(tmp_path, 'images/1.tif')).dataset_type == 'Export_Tiles'
    touch(tmp_path, 'images/forest/1.tif', 'images/water/1.tif')
    with pytest.raises(ChipFolderError, match='could be several things'):
        open_chips(tmp_path)


def test_patches_of_bigearthnet_are_recognized(tmp_path):
    name = 'S1A_IW_GRDH_1SDV_20170613T165043_33UUP_70_48'
    found = open_chips(touch(tmp_path, *(f'tile/{name}/{name}_{band}.tif' for band in ('VV', 'VH'))))
    assert (found.dataset_type, found.folder) == ('BigEarthNet', tmp_path)
    assert open_chips(tmp_path, 'BigEarthNet-43').notes == ()


@pytest.mark.parametrize('kind', FORMATS)
def test_every_format_refuses_an_empty_folder(tmp_path, kind):
    with pytest.raises(ChipFolderError, match=f'{tmp_path}'):
        open_chips(tmp_path, kind)


# --- map.txt


@pytest.mark.parametrize('text', [b'', b'\n\n', b'\xff\xfe\0\1', b'images\\gone'])
def test_a_map_that_says_nothing_of_use_does_not_matter(export, text):
    (export / 'map.txt').write_bytes(text)
    assert len(open_chips(export).listing.chips) == 3


def test_images_that_only_the_map_remembers_are_counted(export):
    for part in ('images', 'labels'):
        (export / part / '000000000001.tif').unlink()
    found = open_chips(export)
    assert found.notes == ('map.txt names 1 images that are not there any more, the first is images/000000000001.tif',)


def test_a_map_that_cannot_be_one_is_told(export):
    (export / 'map.txt').write_bytes(b'x' * MAX_LINE_BYTES)
    (note,) = open_chips(export).notes
    assert note.endswith(
        f'map.txt has a line of more than {MAX_LINE_BYTES} bytes; it lists no files; it was passed over'
    )


@pytest.mark.parametrize(
    ('line', 'columns'),
    [
        ('images\\000003381.tif  labels\\000003381.tif ', ['images/000003381.tif', 'labels/000003381.tif']),
        ('images\\1.tif images2\\1.tif  labels\\1.tif', ['images/1.tif', 'images2/1.tif', 'labels/1.tif']),
        (
            'images\\1.tif labels\\Solar Panel\\1.tif labels\\Häuser alt\\1.tif',
            ['images/1.tif', 'labels/Solar Panel/1.tif', 'labels/Häuser alt/1.tif'],
        ),
        ('images/a b/1.tif', ['images/a b/1.tif']),
        (' \t\n', []),
    ],
)
def test_columns_begin_at_the_folders_of_an_export(line, columns):
    assert split_map_line(line) == columns


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(max_size=200), st.text(' \\/imagesl2bel.\n\t\0é', max_size=200).map(str.encode)))
@example(b' ' * 500_000)
@example(b' images' * 50_000)
@example(b'images/' + b'x' * 5000)
@example(b'images/\0 images/..\\..\\')
def test_any_bytes_are_a_map_or_an_error_that_names_it(export, content):
    (export / 'map.txt').write_bytes(content)
    start = time.perf_counter()
    assert all(columns and all(columns) for columns in read_map(export / 'map.txt'))
    assert len(open_chips(export).listing.chips) == 3
    assert time.perf_counter() - start < 20


# --- real exports, of which only the metadata are at hand


@pytest.mark.real_data
@pytest.mark.parametrize(
    ('name', 'missing'),
    [
        ('classified_tiles_drone_buildings', r'images holds no image \(.*\), but \.tfw'),
        ('kitti_phragmites', 'kitti_phragmites has no images/ folder'),
        ('export_tiles_drawinggui', 'export_tiles_drawinggui has no images/ folder'),
        ('.', r'holds 3 exports \(classified_tiles_drone_buildings, export_tiles_drawinggui, kitti_phragmites\)'),
        ('sample_emd', 'is no export of training data'),
    ],
)
def test_real_exports_without_their_chips_say_what_is_missing(shared, name, missing):
    with pytest.raises(ChipFolderError, match=missing):
        open_chips(shared / 'data' / 'esri_exports' / name)


@pytest.mark.real_data
def test_real_folders_without_emd_are_recognized(shared):
    found = open_chips(shared / 'data' / 'eurosat_ms')
    assert (found.dataset_type, [info.name for info in found.listing.classes]) == (
        'Imagenet',
        ['AnnualCrop', 'Pasture', 'SeaLake'],
    )
    assert open_chips(shared / 'data' / 'bigearthnet' / 'v2' / 'BigEarthNet-S1').listing.sensor == 'Sentinel-1'
    with pytest.raises(ChipFolderError, match=r'holds 2 exports \(src, v2\)'):
        open_chips(shared / 'data' / 'bigearthnet')


# --- labels that are none


def yolo_folder(folder, lines):
    for number, line in enumerate(lines):
        touch(folder, f'images/{number}.tif')
        path = folder / f'labels/{number}.txt'
        path.parent.mkdir(exist_ok=True)
        path.write_text(line)
    return folder


GOOD, JUNK = '0 0.5 0.5 0.1 0.1\n', 'hello world\n'


@pytest.mark.parametrize('name', ['labels.json', 'annotations.json', 'annotations/instances_train.json'])
@pytest.mark.parametrize('content', ['', '{}', 'junk', '{"images": [], "annotations": []}'])
def test_a_coco_file_that_is_none_is_named_and_not_passed_over(tmp_path, name, content):
    folder = touch(tmp_path / 'folder', 'images/1.tif', 'images/2.tif', name)
    (folder / name).write_text(content)
    with pytest.raises(ChipFolderError, match=f'{name} is no COCO file, which needs "images", "annotations" and "cat'):
        open_chips(folder)
    with pytest.raises(ChipFolderError, match=f'{name} is no COCO file'):
        open_chips(tmp_path)
    assert open_chips(folder, 'Export_Tiles').listing.task == Task.UNLABELLED


def test_annotations_beside_images_are_voc(tmp_path):
    touch(tmp_path, 'images/1.tif', 'annotations/1.xml')
    (tmp_path / 'annotations/1.xml').write_text(VOC.format('tree'))
    assert open_chips(tmp_path).dataset_type == 'PASCAL_VOC_rectangles'
    (tmp_path / 'annotations/1.xml').rename(tmp_path / 'annotations/1.csv')
    with pytest.raises(ChipFolderError, match='which is nothing known'):
        open_chips(tmp_path)


def test_one_broken_file_among_labels_is_one_broken_chip(tmp_path):
    opened = open_chips(yolo_folder(tmp_path, [GOOD, JUNK, GOOD, '']))
    assert (opened.dataset_type, len(opened.listing.chips)) == ('YOLO_rectangles', 4)
    with pytest.raises(ChipFolderError, match=r'1\.txt, line 1'):
        opened.listing.chips[1].read_label((8, 8))


@pytest.mark.parametrize('lines', [[JUNK], [JUNK, JUNK, GOOD], [JUNK, '']])
def test_label_files_that_are_mostly_none_are_refused_by_name(tmp_path, lines):
    with pytest.raises(ChipFolderError, match=r"labels/0\.txt begins with 'hello world', which is a line of neither"):
        open_chips(yolo_folder(tmp_path, lines))


@pytest.mark.parametrize('path', ['a' * 300, 'a/' * 3000, '~nobody_is_called_so/chips', 'a\0b'])
def test_a_path_that_cannot_be_is_an_error(path):
    with pytest.raises(ChipFolderError):
        open_chips(path)
