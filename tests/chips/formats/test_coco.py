import json
import pickle
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from geolearn.chips.emd import ExportMetadata
from geolearn.chips.formats import coco, open_chips
from geolearn.chips.formats.coco import list_coco, list_coco_file, read_coco
from geolearn.chips.formats.shapes import Polygons, RunLengths, draw_outline
from geolearn.chips.label import Task
from geolearn.errors import ChipFolderError, MissingExtraError

SQUARE = [[2, 1, 6, 1, 6, 5, 2, 5]]
EMPTY = ExportMetadata.empty()


def content(*annotations, names=('a.tif',), categories=((0, 'building'), (9, 'road')), size=(8, 10)):
    return {
        'categories': [{'id': key, 'name': name} for key, name in categories],
        'images': [
            {'id': key, 'file_name': name, 'height': size[0], 'width': size[1]} for key, name in enumerate(names, 1)
        ],
        'annotations': [
            {'id': at, 'image_id': 1, 'category_id': 0, 'iscrowd': 0} | row for at, row in enumerate(annotations)
        ],
    }


def write(folder, found, *, json_name='labels.json', images=('images/a.tif',)):
    path = folder / json_name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(found if isinstance(found, str) else json.dumps(found))
    for image in images:
        (folder / image).parent.mkdir(parents=True, exist_ok=True)
        (folder / image).touch()
    return folder


def label(folder, shape=(8, 10)):
    (chip,) = list_coco(folder, EMPTY).chips
    return pickle.loads(pickle.dumps(chip)).read_label(shape)  # noqa: S301


def run_lengths(mask):
    """Uncompressed run lengths down the columns, as pycocotools counts them."""
    flat = np.concatenate([[0], mask.T.ravel(), [0]]).astype(np.int8)
    edges = np.concatenate([[0], np.flatnonzero(np.diff(flat)), [mask.size]])
    counts = np.diff(edges).tolist()
    return counts if counts[-1] or len(counts) == 1 else counts[:-1]


def test_boxes_become_corners_and_ids_become_values(tmp_path):
    rows = {'bbox': [1, 2, 3.5, 4]}, {'bbox': [0, 0, 10, 8], 'category_id': 9}
    listing = list_coco(write(tmp_path, content(*rows)), EMPTY)
    assert listing.task is Task.OBJECTS
    assert [(info.value, info.name) for info in listing.classes] == [(0, 'building'), (9, 'road')]
    found = label(tmp_path)
    assert found.class_ids.tolist() == [0, 9]
    assert found.boxes.tolist() == [[1, 2, 4.5, 6], [0, 0, 10, 8]]
    assert found.masks is None
    assert listing.chips[0].labels == (tmp_path / 'labels.json',)


def test_an_image_without_annotations_holds_no_object(tmp_path):
    found = label(write(tmp_path, content()))
    assert found.class_ids.shape == (0,)
    assert found.boxes.shape == (0, 4)


@pytest.mark.parametrize(
    'box', [None, [], [1, 2, 3], 'x', ['a', 0, 1, 1], [float('nan'), 0, 1, 1], [1e308, 0, 1e308, 1]]
)
def test_a_box_that_is_none_is_left_out_and_told(tmp_path, box):
    assert label(write(tmp_path, content({'bbox': box}))).skipped == ('box with a coordinate that is no finite number',)


def test_useless_boxes_are_left_out_and_told(tmp_path):
    found = label(
        write(tmp_path, content({'bbox': [50, 0, 5, 5]}, {'bbox': [5, 5, -2, 2]}, {'bbox': [5, 5, 10**250, 1]}))
    )
    assert found.boxes.tolist() == [[5, 5, 10, 6]]
    assert sorted(found.skipped) == ['box of no area or inside out', 'box outside the chip']


def test_what_belongs_nowhere_is_counted(tmp_path):
    rows = [{'image_id': 5}, {'image_id': [1]}, {'category_id': 4}, {'category_id': None}, {'category_id': True}]
    crowd = {'iscrowd': 1, 'bbox': [0, 0, 5, 5]}
    found = write(tmp_path, content(*rows, crowd, names=('a.tif', 'gone.tif')), images=('images/a.tif', 'images/b.tif'))
    assert list_coco(found, EMPTY).notes == (
        '1 annotations mark crowds (iscrowd) and were left out; what is detected in them counts as false positives',
        '2 annotations belong to no image of the file and were left out',
        '3 annotations belong to no category of the file and were left out',
        "1 images of labels.json are not there, the first is 'gone.tif'",
        '1 images are not in labels.json and were left out',
    )


def test_polygons_are_drawn(tmp_path):
    folder = write(tmp_path, content({'segmentation': SQUARE, 'category_id': 9}))
    assert list_coco(folder, EMPTY).task is Task.INSTANCES
    found = label(folder)
    expected = np.zeros((8, 10), bool)
    expected[1:5, 2:6] = True
    assert found.class_ids.tolist() == [9]
    assert np.array_equal(found.masks, expected[None])
    assert found.masks[0].dtype == bool
    assert found.boxes.tolist() == [[2, 1, 6, 5]]


def test_an_object_in_parts_is_one_mask_and_a_flat_polygon_is_one(tmp_path):
    parts = [*SQUARE, [8, 6, 10, 6, 10, 8, 8, 8]]
    found = label(write(tmp_path, content({'segmentation': parts}, {'segmentation': SQUARE[0]})))
    assert [int(mask.sum()) for mask in found.masks] == [20, 16]
    assert found.boxes.tolist() == [[2, 1, 10, 8], [2, 1, 6, 5]]


@given(arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 40))))
@settings(max_examples=60)
def test_run_lengths_mean_what_they_mean_to_pycocotools(mask):
    from pycocotools import mask as oracle

    encoded = oracle.encode(np.asfortranarray(mask.astype(np.uint8)))
    for counts in (encoded['counts'], tuple(run_lengths(mask))):
        outline = RunLengths(mask.shape, counts)
        if mask.any():
            assert np.array_equal(draw_outline(outline, mask.shape), mask)
        else:
            with pytest.raises(ValueError, match='covers no pixel'):
                draw_outline(outline, mask.shape)


def test_run_lengths_are_read_from_the_file(tmp_path):
    from pycocotools import mask as oracle

    mask = np.zeros((8, 10), bool)
    mask[3:6, 1:9] = mask[0, 0] = True
    packed = oracle.encode(np.asfortranarray(mask.astype(np.uint8)))['counts'].decode()
    rows = [{'segmentation': {'size': [8, 10], 'counts': counts}} for counts in (packed, run_lengths(mask))]
    found = label(write(tmp_path, content(*rows)))
    assert np.array_equal(found.masks, [mask, mask])


@pytest.mark.parametrize(
    ('outline', 'reason'),
    [
        ([[1, 1, 5, 1]], 'outline that is broken'),
        ([[1, 1, 5, 1, 5, 5, 1]], 'outline that is broken'),
        ([[1, 1, 5, 1, None, 5]], 'outline that is broken'),
        ([[1, 1, 5, 1, float('nan'), 5]], 'outline that is broken'),
        ([[1, 1, 1e12, 1, 5, 5]], 'outline that runs far beyond the chip'),
        ([[1, 1, 2e6, 1, 5, 5]], 'outline that runs far beyond the chip'),
        ([[50, 50, 60, 50, 60, 60]], 'outline that covers no pixel of the chip'),
        ({'size': [8, 8], 'counts': [64]}, 'outline made for an image of another size'),
        ({'size': [8, 10], 'counts': [79]}, 'outline that is broken'),
        ({'size': [8, 10], 'counts': [100, -20]}, 'outline that is broken'),
        ({'size': [8, 10], 'counts': [40, 10**30]}, 'outline that is broken'),
        ({'size': [8, 10], 'counts': ['a', 80]}, 'outline that is broken'),
        ({'size': [8, 10], 'counts': []}, 'outline that is broken'),
        ({'size': [8, 10], 'counts': 'oooooooooooooooooooooo'}, 'outline that is broken'),
        ({'size': [8, 10], 'counts': 'o'}, 'outline that is broken'),
        ({'size': [8, 10], 'counts': '\ud800é'}, 'outline that is broken'),
        ({'size': [8, 10], 'counts': [80]}, 'outline that covers no pixel of the chip'),
    ],
)
def test_outlines_that_cannot_be_drawn_are_left_out_and_told(tmp_path, outline, reason):
    found = label(write(tmp_path, content({'segmentation': outline}, {'segmentation': SQUARE})))
    assert len(found.masks) == 1
    assert found.skipped == (reason,)


@pytest.mark.parametrize('nothing', [None, [], [[]], 'x', 5, {}, {'size': [8, 10]}, {'size': 8, 'counts': []}])
def test_where_some_have_no_outline_all_are_boxes(tmp_path, nothing):
    rows = {'segmentation': nothing, 'bbox': [0, 0, 5, 5]}, {'segmentation': SQUARE, 'bbox': [2, 1, 4, 4]}
    listing = list_coco(write(tmp_path, content(*rows)), EMPTY)
    assert listing.task is Task.OBJECTS
    assert listing.notes == ('1 of 2 annotations have no outline, so only boxes are used',)
    assert len(label(tmp_path).boxes) == 2


def test_without_pycocotools_polygons_come_with_an_install_line(tmp_path, monkeypatch):
    folder = write(tmp_path, content({'segmentation': SQUARE}))
    monkeypatch.setitem(sys.modules, 'pycocotools', None)
    monkeypatch.delitem(sys.modules, 'pycocotools.mask', raising=False)
    with pytest.raises(MissingExtraError, match=r"pip install 'pycocotools>=2.0.7'"):
        list_coco(folder, EMPTY)


@pytest.mark.parametrize(
    ('json_name', 'file_name', 'image'),
    [
        ('labels.json', 'a.tif', 'images/a.tif'),
        ('labels.json', 'a.tif', 'a.tif'),
        ('labels.json', 'images/a.tif', 'images/a.tif'),
        ('labels.json', 'images\\a.tif', 'images/a.tif'),
        ('annotations.json', './sub/a.tif', 'images/sub/a.tif'),
        ('labels/labels.json', 'a.tif', 'labels/a.tif'),
        ('annotations/instances_train2017.json', 'a.tif', 'images/train2017/a.tif'),
        ('_annotations.coco.json', 'Ä b.TIF', 'Ä b.TIF'),
    ],
)
def test_files_are_found_where_programs_put_them(tmp_path, json_name, file_name, image):
    (chip,) = list_coco(write(tmp_path, content(names=[file_name]), json_name=json_name, images=[image]), EMPTY).chips
    assert chip.image == tmp_path / image
    assert chip.name == image.removeprefix('images/').rsplit('.', 1)[0]


@pytest.mark.parametrize(
    'name', ['../a.tif', 'images/../../a.tif', '/a.tif', 'C:/a.tif', 'C:a.tif', '\\\\host\\x\\a.tif']
)
def test_no_image_is_taken_from_outside_the_folder(tmp_path, name):
    with pytest.raises(ChipFolderError, match=r'labels.json: the image .* may lie outside the folder'):
        list_coco(write(tmp_path, content(names=[name])), EMPTY)


def test_an_image_that_may_be_two_is_refused(tmp_path):
    folder = write(tmp_path, content(), images=['images/x/a.tif', 'images/y/a.tif'])
    with pytest.raises(ChipFolderError, match=r"'a.tif' may be images/x/a.tif or images/y/a.tif"):
        list_coco(folder, EMPTY)


def test_hidden_images_are_passed_over(tmp_path):
    listing = list_coco(write(tmp_path, content(), images=['images/a.tif', '.cache/a.tif', 'images/.b.tif']), EMPTY)
    assert len(listing.chips) == 1
    assert listing.notes == ()


def test_two_files_of_one_chip_are_refused(tmp_path):
    folder = write(tmp_path, content(names=['a.tif', 'a.png']), images=['images/a.tif', 'images/a.png'])
    with pytest.raises(ChipFolderError, match='one chip twice'):
        list_coco(folder, EMPTY)


def test_boxes_made_for_an_image_of_another_size_are_refused(tmp_path):
    with pytest.raises(ChipFolderError, match=r"labels.json states 10x8 pixels for 'a.tif', but the image is 20x16"):
        label(write(tmp_path, content({'bbox': [0, 0, 5, 5]})), shape=(16, 20))


def test_a_size_that_is_not_stated_is_not_checked(tmp_path):
    assert label(write(tmp_path, content(size=(0, None))), shape=(16, 20)).skipped == ()


def test_several_files_or_none_are_refused_by_name(tmp_path):
    with pytest.raises(ChipFolderError, match=r'has no COCO file; labels.json'):
        list_coco(tmp_path, EMPTY)
    for name in ('instances_train.json', 'instances_val.json'):
        write(tmp_path, content(), json_name=f'annotations/{name}')
    with pytest.raises(
        ChipFolderError, match=r'2 COCO files: annotations/instances_train.json, annotations/instances_val'
    ):
        list_coco(tmp_path, EMPTY)


@pytest.mark.parametrize(
    ('found', 'message'),
    [
        ('', 'not valid JSON'),
        ('{', 'not valid JSON'),
        ('[' * 100_000, 'not valid JSON'),
        ('9' * 5000, 'not valid JSON'),
        ('[]', 'holds a list; a JSON object is needed'),
        ('{}', "needs a list named 'categories', found None"),
        (content(categories=()), 'has no categories'),
        (content(categories=[(-1, 'x')]), 'category 0 has no whole, non-negative id'),
        (content(categories=[(10**30, 'x')]), 'category 0 has no whole, non-negative id'),
        (content(categories=[(1, 'x'), (1.0, 'y')]), 'two categories have the id 1'),
        (content() | {'images': {}}, "needs a list named 'images'"),
        (content() | {'images': [5]}, "entry 0 of 'images' must be an object"),
        (content() | {'images': [{'id': 1}]}, 'image 0 needs an id and a file_name'),
        (content() | {'images': content()['images'] * 2}, 'two images have the id 1'),
        (content() | {'annotations': None}, "needs a list named 'annotations'"),
        (content() | {'annotations': [[]]}, "entry 0 of 'annotations' must be an object"),
        (content(names=['gone.tif']), 'none of 1 images in .* is below'),
        (content(names=['\x00\ud800' + 'x' * 5000]), 'none of 1 images in .* is below'),
    ],
)
def test_broken_files_are_named(tmp_path, found, message):
    with pytest.raises(ChipFolderError, match=message) as caught:
        list_coco(write(tmp_path, found), EMPTY)
    assert 'labels.json' in str(caught.value)


def test_a_file_beyond_the_limit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(coco, 'MAX_JSON_BYTES', 50)
    with pytest.raises(ChipFolderError, match=r'labels.json is larger than 50 bytes'):
        list_coco(write(tmp_path, content()), EMPTY)


def test_a_chip_carries_its_own_annotations_only(tmp_path):
    names = [f'{at}.tif' for at in range(50)]
    rows = [{'image_id': at % 50 + 1, 'bbox': [0, 0, 5, 5]} for at in range(5000)]
    listing = list_coco(
        write(tmp_path, content(*rows, names=names), images=[f'images/{name}' for name in names]), EMPTY
    )
    assert all(len(pickle.dumps(chip.read_label)) < 10_000 for chip in listing.chips)
    assert all(len(chip.read_label((8, 10)).class_ids) == 100 for chip in listing.chips)


def test_images_may_be_known_by_texts(tmp_path):
    found = content({'image_id': 'one', 'bbox': [0, 0, 5, 5]})
    found['images'][0]['id'] = 'one'
    assert len(label(write(tmp_path, found)).class_ids) == 1


def test_a_file_of_any_name_beside_a_folder_of_any_name(tmp_path):
    """As data sets are published: photos in a folder named after their source, and a JSON file named after the task."""
    write(tmp_path, content({'image_id': 1, 'bbox': [0, 0, 5, 5]}), json_name='detection.json', images=['oam/a.tif'])
    (tmp_path / 'labels.geojson').write_text('{}')
    (tmp_path / 'stac-item.json').write_text('{"type": "Feature"}')
    assert len(label(tmp_path).class_ids) == 1
    assert open_chips(tmp_path).dataset_type == 'COCO_rectangles'


def test_an_endless_zigzag_is_not_drawn():
    ring = np.tile([0.0, 0.0, 2e5, 2e5], 100)
    with pytest.raises(ValueError, match='far beyond'):
        draw_outline(Polygons((ring.tobytes(),)), (8, 8))


@pytest.mark.real_data
def test_the_buildings_of_banepa(shared):
    folder = shared / 'data' / 'banepa_buildings' / 'train'
    path = folder / 'detection_labels.json'
    listing = list_coco_file(path, folder)
    assert listing.task is Task.OBJECTS
    assert [(info.value, info.name) for info in listing.classes] == [(0, 'building')]
    assert len(listing.chips) == 48
    labels = [chip.read_label((512, 512)) for chip in listing.chips]
    assert sum(len(found.class_ids) + len(found.skipped) for found in labels) == 1847
    assert sum(len(items) for items in read_coco(path).annotations.values()) == 1847
    assert listing.notes == ()
