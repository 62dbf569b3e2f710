"""Whatever a folder holds: data, or an error that names the file; never another one, never silence."""

import json
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from geolearn.chips.emd import EMD_NAME, MAX_CLASS_ROWS, STATS_NAME
from geolearn.errors import BandError, ChipFolderError, UnknownNameError
from geolearn.prepare import prepare_data

KINDS = [
    'Classified_Tiles',
    'ChangeDetection',
    'PASCAL_VOC_rectangles',
    'KITTI_rectangles',
    'RCNN_Masks',
    'Labeled_Tiles',
    'MultiLabeled_Tiles',
    'Imagenet',
    'Export_Tiles',
    'Panoptic_Segmentation',
    'COCO_rectangles',
    'YOLO_rectangles',
    'BigEarthNet',
]
XML = ['PASCAL_VOC_rectangles', 'Labeled_Tiles', 'MultiLabeled_Tiles']
RASTERS = ['Classified_Tiles', 'ChangeDetection', 'Panoptic_Segmentation']
PLAIN = {'chip_size': 32, 'batch_size': 2, 'val_split_pct': 0.34, 'transforms': False}
BOMB = (
    '<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY a "lol">'
    + ''.join(f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip('abcdefgh', 'bcdefghi'))
    + ']><annotation>&i;</annotation>'
)


def image_files(folder):
    """Images of the chips, in order; for BigEarthNet one band of each."""
    return sorted(
        p for p in folder.rglob('*.tif') if p.parts[-2] == 'images' or 'images' in p.parts or '_B04' in p.name
    )


def label_files(folder):
    return sorted(p for p in folder.rglob('*') if p.is_file() and any(part.startswith('labels') for part in p.parts))


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('kept', [0, 300])
def test_a_broken_image_is_left_out_by_name(write_folder, tmp_path, kind, kept):
    folder = write_folder(tmp_path / 'e', kind)
    total = len(prepare_data(folder, **PLAIN).table)
    broken = image_files(folder)[3]
    broken.write_bytes(broken.read_bytes()[:kept])
    data = prepare_data(folder, **PLAIN)
    assert len(data.table) == total - 1
    (note,) = [n for n in data.notes if n.startswith('1 chips cannot be read and were left out')]
    assert broken.name in note
    for path in image_files(folder):
        path.write_bytes(b'')
    with pytest.raises(ChipFolderError, match=r'none of \d+ chips can be read; the first: .*\.tif'):
        prepare_data(folder, **PLAIN)


@pytest.mark.parametrize(
    'kind', [k for k in KINDS if k not in ('Imagenet', 'Export_Tiles', 'BigEarthNet', 'COCO_rectangles')]
)
def test_broken_labels_are_told_or_refused_by_name(write_folder, tmp_path, kind):
    folder = write_folder(tmp_path / 'e', kind)
    files = label_files(folder)
    files[0].write_bytes(b'\x00\xff<<{')
    notes = ' '.join(prepare_data(folder, dataset_type=kind, **PLAIN).notes)
    assert files[0].name in notes
    for path in files:
        path.write_bytes(b'\x00\xff<<{')
    with pytest.raises(ChipFolderError, match=str(tmp_path / 'e')):
        prepare_data(folder, dataset_type=kind, **PLAIN)


@pytest.mark.parametrize('kind', RASTERS)
def test_labels_of_another_size_are_left_out_by_name(write_folder, save, tmp_path, kind):
    folder = write_folder(tmp_path / 'e', kind)
    save(folder / 'labels' / '000000002.tif', np.zeros((32, 31), np.uint8))
    notes = ' '.join(prepare_data(folder, **PLAIN).notes)
    assert '000000002.tif is 31x32 pixels but its image is 32x32' in notes


@pytest.mark.parametrize('kind', XML)
@pytest.mark.parametrize(
    'text',
    [BOMB, '', '<annotation>', '<a/>', '<annotation><object><name>nobody</name></object></annotation>', '\0' * 9],
)
def test_xml_that_is_none_or_a_bomb_is_left_out_by_name(write_folder, tmp_path, kind, text):
    folder = write_folder(tmp_path / 'e', kind)
    (folder / 'labels' / '000000002.xml').write_text(text)
    start = time.monotonic()
    data = prepare_data(folder, **PLAIN)
    assert time.monotonic() - start < 5
    told = ' '.join(data.notes)
    assert '000000002.xml' in told or 'left out of labels' in told


@pytest.mark.parametrize(
    'box',
    [
        (-40, -40, -8, -8),
        (40, 40, 50, 50),
        (20, 20, 10, 10),
        (5, 5, 5, 9),
        ('nan', 0, 5, 5),
        (0, 0, 'inf', 9),
        (1e300, 0, 2, 2),
    ],
)
def test_boxes_outside_or_inside_out_are_left_out_and_counted(write_folder, tmp_path, box):
    folder = write_folder(tmp_path / 'e', 'PASCAL_VOC_rectangles')
    edges = ''.join(f'<{edge}>{n}</{edge}>' for edge, n in zip(('xmin', 'ymin', 'xmax', 'ymax'), box))
    text = f'<annotation><object><name>3</name><bndbox>{edges}</bndbox></object></annotation>'
    (folder / 'labels' / '000000000.xml').write_text(text)
    data = prepare_data(folder, **PLAIN)
    told = ' '.join(data.notes)
    assert '000000000.xml' in told or 'left out of labels, 1 times' in told
    for loader in (data.train_dl, data.valid_dl):
        for _, objects in loader:
            for found in objects:
                assert ((found.boxes >= 0) & (found.boxes <= 32)).all()
                assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()


@pytest.mark.parametrize('kind', [k for k in KINDS if k not in ('Imagenet', 'BigEarthNet')])
def test_chips_of_different_bands_or_types_are_refused_by_name(write_folder, save, tmp_path, kind):
    folder = write_folder(tmp_path / 'e', kind)
    parts = [part for part in ('images', 'images2') if (folder / part).is_dir()]
    for pixels, words in ((np.ones((3, 32, 32), np.uint16), 'bands'), (np.ones((4, 32, 32), np.float32), 'pixels')):
        for part in parts:
            save(folder / part / '000000002.tif', pixels)
        with pytest.raises(ChipFolderError, match=rf'000000000\.tif holds .* {words} but .*000000002\.tif'):
            prepare_data(folder, **PLAIN)


NAMES = ['with spaces', 'Übung (1)', '日本', 'a[0-9]*?', "quo'te", '%20', '{x}', '#1']


@pytest.mark.parametrize(
    ('name', 'kind'), [(n, k) for i, n in enumerate(NAMES) for j, k in enumerate(KINDS) if (i + j) % 3 == 0 or j == 0]
)
def test_folders_may_be_called_anything(write_folder, tmp_path, kind, name):
    folder = write_folder(tmp_path / name / name, kind, 3)
    assert len(prepare_data(folder, **PLAIN).table) == (6 if kind == 'Imagenet' else 3)


@pytest.mark.parametrize('kind', KINDS)
def test_one_level_up_or_down_is_the_same(write_folder, tmp_path, kind):
    folder = write_folder(tmp_path / 'above' / 'e', kind, 3)
    names = prepare_data(folder, **PLAIN).table.names
    assert prepare_data(folder.parent, **PLAIN).table.names == names
    for part in ('images', 'labels'):
        if (folder / part).is_dir():
            data = prepare_data(folder / part, **PLAIN)
            assert data.table.names == names
            assert f'{folder / part} itself is no export; reading {folder}' in data.notes


@pytest.mark.parametrize('content', ['', '\n\n', 'images\\gone.tif  labels\\gone.tif\n', '\0\0\0'])
def test_map_txt_is_not_relied_on(write_folder, tmp_path, content):
    folder = write_folder(tmp_path / 'e', 'Classified_Tiles')
    (folder / 'map.txt').write_text(content)
    assert len(prepare_data(folder, **PLAIN).table) == 6


@pytest.mark.parametrize('kind', ['RCNN_Masks', 'Imagenet', 'Panoptic_Segmentation'])
def test_folders_that_are_no_class_are_told_or_refused(write_folder, tmp_path, kind):
    folder = write_folder(tmp_path / 'e', kind)
    base = {'RCNN_Masks': 'labels', 'Imagenet': 'images', 'Panoptic_Segmentation': 'labels2'}[kind]
    (folder / base / 'Häuser am See').rename(folder / base / 'what')
    try:
        told = ' '.join(prepare_data(folder, **PLAIN).notes)
    except ChipFolderError as error:
        told = str(error)
    assert 'what' in told


# --- the .emd


@pytest.mark.parametrize(
    'content', [b'', b'{', b'[]', b'null', b'\xff\xfe', b'{"Classes": ' + b'[' * 99999, b'\0' * 50]
)
def test_an_emd_that_is_no_json_is_refused_by_name(write_folder, tmp_path, content):
    folder = write_folder(tmp_path / 'e', 'Classified_Tiles')
    (folder / EMD_NAME).write_bytes(content)
    with pytest.raises(ChipFolderError, match=f'{EMD_NAME} (is not valid JSON|holds a )'):
        prepare_data(folder)


@pytest.mark.parametrize('count', [10**6, MAX_CLASS_ROWS + 1])
def test_a_million_classes_are_refused_at_once(write_folder, tmp_path, count):
    folder = write_folder(tmp_path / 'e', 'Classified_Tiles')
    rows = ','.join(f'{{"Value": {i}, "Name": "c{i}", "Color": [1, 2, 3]}}' for i in range(count))
    (folder / EMD_NAME).write_text(f'{{"MetaDataMode": "Classified_Tiles", "Classes": [{rows}]}}')
    start = time.process_time()
    with pytest.raises(ChipFolderError, match=f'{EMD_NAME} (is .* bytes|lists 65537 classes; at most 65536 are read)'):
        prepare_data(folder)
    assert time.process_time() - start < 20  # under one on an idle machine


@pytest.mark.parametrize(
    ('kind', 'words'),
    [
        ('Classified_Tiles', 'found 40001 classes, but at most 255 can be trained'),
        ('Labeled_Tiles', 'found 40000 classes, but at most 32767 can be trained'),
    ],
)
def test_more_classes_than_can_be_trained_are_refused(write_folder, tmp_path, kind, words):
    folder = write_folder(tmp_path / 'e', kind)
    emd = json.loads((folder / EMD_NAME).read_text())
    emd['Classes'] = [{'Value': value, 'Name': f'c{value}'} for value in range(1, 40001)]
    (folder / EMD_NAME).write_text(json.dumps(emd))
    with pytest.raises(ChipFolderError, match=words):
        prepare_data(folder)


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.sampled_from([10**6, 10**400, -(10**30), 1e308, 1.5]),
    st.floats(),
    st.sampled_from(
        ['', 'e.g. x', 'Red', 'pond', 'a/b', '..', '\0', 'x' * 300, '3', 'Sentinel-2', 'PIXEL_SPACE', 'Imagenet']
    ),
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(['Value', 'Name', 'Color', 'Min', 'Max', 'Mean', 'BandNames']), inner, max_size=4
        )
    ),
    max_leaves=6,
)
CLASSES = st.lists(
    st.fixed_dictionaries(
        {'Value': st.sampled_from([0, 3, 7, 9, 255]) | SCALARS},
        optional={'Name': SCALARS, 'Color': st.lists(SCALARS, max_size=4)},
    ),
    max_size=4,
)
PROPERTIES = st.fixed_dictionaries(
    {}, optional={'BandNames': st.lists(SCALARS, min_size=4, max_size=4) | ANYTHING, 'SensorName': SCALARS}
)
ROWS = st.lists(
    st.fixed_dictionaries({}, optional={key: SCALARS for key in ('BandName', 'Min', 'Max', 'Mean', 'StdDev')}),
    min_size=4,
    max_size=4,
)
KEYS = {
    'MetaDataMode': ANYTHING,
    'ImageSpaceUsed': ANYTHING,
    'Classes': CLASSES | ANYTHING,
    'InputRastersProps': PROPERTIES | ANYTHING,
    'AllTilesStats': ROWS | ANYTHING,
    'geolearn': st.fixed_dictionaries({'wavelengths_um': st.lists(SCALARS, min_size=4, max_size=4) | ANYTHING})
    | ANYTHING,
    'MinCellSize': ANYTHING,
    'IsMultidimensional': ANYTHING,
    'SingleLabelFieldFound': ANYTHING,
    'Panoptic_Segmentation_Instance_Classes': CLASSES | ANYTHING,
}
STATS = {'NumBands': ANYTHING, 'MetaDataMode': ANYTHING, 'Classes': CLASSES, 'BandStatsState': ROWS | ANYTHING}


@pytest.mark.parametrize(
    'kind', ['Classified_Tiles', 'RCNN_Masks', 'Labeled_Tiles', 'Imagenet', 'Panoptic_Segmentation']
)
def test_whatever_json_the_emd_holds_is_data_or_an_error_of_ours(write_folder, tmp_path_factory, kind):
    folder = write_folder(tmp_path_factory.mktemp('fuzz') / 'export', kind, 3)
    emd = json.loads((folder / EMD_NAME).read_text())

    @settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.fixed_dictionaries({}, optional=KEYS), st.none() | st.fixed_dictionaries({}, optional=STATS))
    def check(changes, stats):
        (folder / EMD_NAME).write_text(json.dumps(emd | changes))
        (folder / STATS_NAME).unlink(missing_ok=True)
        if stats is not None:
            (folder / STATS_NAME).write_text(json.dumps(stats))
        try:
            data = prepare_data(folder, pack=False, **PLAIN)
        except (ChipFolderError, BandError, UnknownNameError):
            return
        next(iter(data.train_dl))
        assert repr(data)
        assert len(data.summary()) == data.c

    check()
