import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from geolearn.bands import Band
from geolearn.chips.emd import read_metadata
from geolearn.chips.exporting.metadata import ExportDescription, band_statistics
from geolearn.chips.exporting.run import ChipWriter
from geolearn.chips.formats import FORMATS, find_writer
from geolearn.chips.formats.coco import list_coco, list_coco_obb, run_lengths
from geolearn.chips.formats.dota import list_dota
from geolearn.chips.formats.imagenet import list_imagenet
from geolearn.chips.formats.kitti import list_kitti
from geolearn.chips.formats.labeled import list_labeled_tiles, list_multilabeled_tiles
from geolearn.chips.formats.panoptic import list_panoptic
from geolearn.chips.formats.rcnn import list_rcnn_masks
from geolearn.chips.formats.shapes import oriented_label
from geolearn.chips.formats.tiles import list_classified_tiles, list_export_tiles
from geolearn.chips.formats.voc import list_voc
from geolearn.chips.formats.writing import number_objects
from geolearn.chips.formats.yolo import list_yolo, list_yolo_obb
from geolearn.chips.label import Label, Task, mask_boxes
from geolearn.classes import ClassInfo, default_color
from geolearn.errors import ChipFolderError, RasterError, UnknownNameError
from geolearn.oriented.overlap import array_overlaps
from geolearn.raster import GeoBox, read_image
from geolearn.statistics import RunningStatistics

READERS = {
    'Classified_Tiles': list_classified_tiles,
    'PASCAL_VOC_rectangles': list_voc,
    'KITTI_rectangles': list_kitti,
    'RCNN_Masks': list_rcnn_masks,
    'Labeled_Tiles': list_labeled_tiles,
    'MultiLabeled_Tiles': list_multilabeled_tiles,
    'Imagenet': list_imagenet,
    'Export_Tiles': list_export_tiles,
    'Panoptic_Segmentation': list_panoptic,
    'COCO_rectangles': list_coco,
    'YOLO_rectangles': list_yolo,
    'DOTA': list_dota,
    'YOLO_OBB': list_yolo_obb,
    'COCO_OBB': list_coco_obb,
}
SIDE = 8
NAMES = ('Solar Panel', 'Wälder', '森', 'c d e')
PLACE = GeoBox((SIDE, SIDE), Affine(10, 0, 500000, 0, -10, 6000000), 'EPSG:32633')


def facts(metadata_format, classes, bands=1, **options):
    listed = tuple(Band(f'band_{at}') for at in range(1, bands + 1))
    return ExportDescription(metadata_format, listed, tuple(classes), options.pop('tile_size', SIDE), **options)


def make_classes(values, names=NAMES):
    return tuple(ClassInfo(value, name, default_color(at)) for at, (value, name) in enumerate(zip(values, names)))


def canonical(label):
    """What a label says, whatever the order of its objects."""
    count = len(label.class_ids)
    boxes = [()] * count if label.boxes is None else [tuple(box.tolist()) for box in label.boxes]
    masks = [b''] * count if label.masks is None else [mask.tobytes() for mask in label.masks]
    raster = None if label.raster is None else label.raster.astype(int).tolist()
    return raster, sorted(zip(label.class_ids.tolist(), boxes, masks))


@st.composite
def labels(draw, task, values):
    """A label that a format with this task holds."""
    count = draw(st.integers(0, 4))
    chosen = np.array(draw(st.lists(st.sampled_from(values), min_size=count, max_size=count)), np.int64)
    raster = draw(arrays(np.uint16, (SIDE, SIDE), elements=st.sampled_from([0, *values])))
    if task is Task.PIXELS:
        return Label(raster=raster)
    if task is Task.LABEL:
        return Label(class_ids=np.array([draw(st.sampled_from(values))]))
    if task is Task.LABELS:
        return Label(class_ids=np.unique(chosen))
    if task is Task.OBJECTS:
        side = st.floats(0, SIDE, width=32).map(lambda x: round(x, 3) + 0.0)
        pairs = st.tuples(side, side).map(sorted).filter(lambda pair: np.float32(pair[0]) + 0.001 < np.float32(pair[1]))
        boxes = [
            (x[0], y[0], x[1], y[1]) for x, y in draw(st.lists(st.tuples(pairs, pairs), min_size=count, max_size=count))
        ]
        return Label(class_ids=chosen, boxes=np.array(boxes, np.float32).reshape(-1, 4))
    if task is Task.ORIENTED:
        middle, side, angle = st.floats(1, SIDE - 1), st.floats(2, SIDE), st.floats(-4, 4)
        rows = draw(st.lists(st.tuples(middle, middle, side, side, angle), min_size=count, max_size=count))
        return oriented_label(chosen, rows)
    if task is Task.UNLABELLED:
        return Label()
    masks = [draw(arrays(bool, (SIDE, SIDE))) for _ in chosen]
    for at, mask in enumerate(masks):
        mask[at, at] = True
    return Label(raster if task is Task.PANOPTIC else None, chosen, mask_boxes(masks), tuple(masks))


# --- there and back


@pytest.mark.parametrize('metadata_format', sorted(name for name, row in FORMATS.items() if row.writer))
@settings(max_examples=15)
@given(data=st.data())
def test_what_is_written_is_read(metadata_format, data):
    values = data.draw(st.lists(st.integers(1, 65535), min_size=2, max_size=4, unique=True))
    task = find_writer(metadata_format).task
    # a chip with objects first: readers refuse folders that hold none at all
    truths = [data.draw(labels(task, values)) for _ in range(2)]
    dtype = data.draw(st.sampled_from(['uint8', 'int16', 'uint16', 'float32']))
    bands = data.draw(st.integers(1, 6))
    numbers = {'allow_nan': False, 'allow_infinity': False} if dtype == 'float32' else {}
    images = data.draw(arrays(dtype, (2, bands, SIDE, SIDE), elements=numbers or None))
    with TemporaryDirectory() as folder:
        out = Path(folder) / 'out'
        with ChipWriter(out, facts(metadata_format, make_classes(values), bands), start_index=7) as writer:
            for image, truth in zip(images, truths):
                writer.add(image, truth, PLACE)
        if metadata_format == 'RCNN_Masks' and not any(len(truth.class_ids) for truth in truths):
            return
        listing = READERS[metadata_format](out, read_metadata(out))
        found = {source.image.stem: source for source in listing.chips}
        assert sorted(found) == ['000000000007', '000000000008']
        for stem, image, truth in zip(sorted(found), images, truths):
            pixels, _, place = read_image(found[stem].image)
            assert (pixels == image).all()
            assert pixels.dtype == dtype
            assert place.transform == PLACE.transform
            read = found[stem].read_label((SIDE, SIDE))
            assert not read.skipped
            if task is Task.ORIENTED:
                assert read.class_ids.tolist() == truth.class_ids.tolist()
                assert (array_overlaps(read.turned, truth.turned) > 0.999).all()
            elif task is Task.INSTANCES or task is Task.PANOPTIC or read.boxes is not None:
                assert canonical(read) == canonical(truth)
            else:
                assert canonical(read)[0] == canonical(truth)[0]
                assert read.class_ids.tolist() == truth.class_ids.tolist()


def test_yolo_keeps_class_values_with_gaps(tmp_path):
    label = Label(class_ids=np.array([9, 4]), boxes=np.array([[0, 0, 2, 2], [1, 1, 3, 5]], np.float32))
    with ChipWriter(tmp_path / 'out', facts('YOLO_rectangles', make_classes([9, 4]))) as writer:
        writer.add(np.ones((1, SIDE, SIDE), np.uint8), label, PLACE)
    assert (tmp_path / 'out' / 'classes.txt').read_text(encoding='utf-8') == 'Wälder\nSolar Panel\n'
    assert (tmp_path / 'out/labels/000000000000.txt').read_text().split()[0] == '1'


@given(arrays(bool, st.tuples(st.integers(1, 6), st.integers(1, 6))))
def test_run_lengths_start_outside_and_cover_the_chip(mask):
    counts = run_lengths(mask)
    assert sum(counts) == mask.size
    inside = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    assert (mask == inside.reshape(mask.shape[::-1]).T).all()


def test_objects_that_overlap_take_more_bands():
    masks = [np.zeros((4, 4), bool) for _ in range(3)]
    masks[0][:2], masks[1][1:], masks[2][3, 3] = True, True, True
    numbered = number_objects(masks, (4, 4))
    assert numbered.shape == (2, 4, 4)
    assert [(numbered == number).any(axis=0).tolist() for number in (1, 2, 3)] == [mask.tolist() for mask in masks]


@settings(max_examples=30)
@given(st.data())
def test_band_statistics_are_those_of_the_valid_pixels(data):
    pixels = data.draw(arrays('int16', (2, 3, 4)))
    mask = data.draw(st.none() | arrays(bool, (3, 4)))
    found, wanted = band_statistics(pixels, mask), RunningStatistics()
    wanted.add(pixels, mask)
    for name in ('count', 'mean', 'm2', 'minimum', 'maximum'):
        assert getattr(found, name) == pytest.approx(getattr(wanted, name), rel=1e-9, abs=1e-9)


# --- the files


def test_boxes_are_written_as_arcgis_does(tmp_path):
    label = Label(class_ids=np.array([3]), boxes=np.array([[0.5, 1, 7.25, 8]], np.float32))
    for metadata_format, suffix in (('PASCAL_VOC_rectangles', 'xml'), ('KITTI_rectangles', 'txt')):
        with ChipWriter(tmp_path / suffix, facts(metadata_format, make_classes([3]))) as writer:
            writer.add(np.ones((1, SIDE, SIDE), np.uint8), label, PLACE)
    xml = (tmp_path / 'xml/labels/000000000000.xml').read_text()
    for tag, text in (
        ('name', '3'),
        ('xmin', '0.5'),
        ('ymin', '1.0'),
        ('xmax', '7.25'),
        ('ymax', '8.0'),
        ('depth', '1'),
    ):
        assert f'<{tag}>{text}</{tag}>' in xml
    line = (tmp_path / 'txt/labels/000000000000.txt').read_text()
    assert line == '3 0.00 0 0 0.5 1.0 7.25 8.0 0 0 0 0 0 0 0\n'
    stats = json.loads((tmp_path / 'xml/esri_accumulated_stats.json').read_text())
    assert stats['FeatureStats']['FeatureAreaPerClass'][0]['Sum'] == 6.75 * 7 * 100


def test_each_class_folder_has_a_column_in_the_map(tmp_path):
    masks = tuple(np.eye(SIDE, k=k, dtype=bool) for k in (0, 1))
    label = Label(class_ids=np.array([2, 1]), boxes=mask_boxes(masks), masks=masks)
    with ChipWriter(tmp_path / 'out', facts('RCNN_Masks', make_classes([1, 2]))) as writer:
        writer.add(np.ones((1, SIDE, SIDE), np.uint8), label, PLACE)
    assert (tmp_path / 'out/map.txt').read_text(encoding='utf-8') == (
        'images\\000000000000.tif  labels\\Solar Panel\\000000000000.tif  labels\\Wälder\\000000000000.tif \n'
    )


@pytest.mark.parametrize('image_format', ['TIFF', 'PNG', 'MRF', 'JPEG'])
def test_image_formats(tmp_path, image_format):
    image = np.full((3, SIDE, SIDE), 100, np.uint8)
    with ChipWriter(tmp_path / 'out', facts('Export_Tiles', (), 3), image_format=image_format) as writer:
        writer.add(image, Label(), PLACE)
    source = list_export_tiles(tmp_path / 'out', read_metadata(tmp_path / 'out')).chips[0]
    pixels, _, place = read_image(source.image)
    assert np.abs(pixels.astype(int) - image).max() <= (2 if image_format == 'JPEG' else 0)
    assert place.transform == PLACE.transform


def test_pixel_space_chips_have_no_place(tmp_path):
    with ChipWriter(tmp_path / 'out', facts('Export_Tiles', (), map_space=False)) as writer:
        writer.add(np.ones((1, SIDE, SIDE), np.uint8), Label(), PLACE)
    assert read_metadata(tmp_path / 'out').image_space == 'PIXEL_SPACE'
    assert read_image(tmp_path / 'out/images/000000000000.tif')[2].transform.is_identity


# --- what is refused

BAD_NAMES = ['a/b', '..', '', 'CON', 'aux.x', 'dot.', ' blank', 'a\\b', 'a:b', 'line\nend', '.hidden', 'x' * 201]


@pytest.mark.parametrize('name', BAD_NAMES)
@pytest.mark.parametrize('metadata_format', ['RCNN_Masks', 'Imagenet', 'Panoptic_Segmentation'])
def test_class_names_that_are_no_folder_names_are_refused(tmp_path, name, metadata_format):
    with pytest.raises(ChipFolderError, match='class 1 is called .* rename it in the labels'):
        ChipWriter(tmp_path / 'out', facts(metadata_format, make_classes([1], [name])))


@pytest.mark.parametrize('names', [('a', 'A'), ('2', 'b'), ('a', 'a')])
def test_names_that_do_not_tell_classes_apart_are_refused(tmp_path, names):
    with pytest.raises(ChipFolderError, match='cannot be distinguished by their names'):
        ChipWriter(tmp_path / 'out', facts('MultiLabeled_Tiles', make_classes([1, 2], names)))


def test_names_with_commas_are_refused_where_commas_separate(tmp_path):
    with pytest.raises(ChipFolderError, match="MultiLabeled_Tiles needs printable names .* without ','"):
        ChipWriter(tmp_path / 'out', facts('MultiLabeled_Tiles', make_classes([1], ['a, b'])))


@pytest.mark.parametrize('value', [-1, 65536])
def test_a_class_value_that_no_label_can_hold_is_refused(tmp_path, value):
    with pytest.raises(ChipFolderError, match=f'class value {value} is outside 0..65535'):
        ChipWriter(tmp_path / 'out', facts('Classified_Tiles', make_classes([value])))


def test_two_classes_of_one_value_are_refused(tmp_path):
    with pytest.raises(ChipFolderError, match='two classes have the value 4'):
        ChipWriter(tmp_path / 'out', facts('Classified_Tiles', make_classes([4, 4])))


def test_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(UnknownNameError, match="unknown metadata format 'RCNN_Mask'"):
        ChipWriter(tmp_path / 'out', facts('RCNN_Mask', ()))


@pytest.mark.parametrize(('bands', 'side'), [(2, SIDE), (1, 3)])
def test_a_chip_that_does_not_fit_is_refused(tmp_path, bands, side):
    writer = ChipWriter(tmp_path / 'out', facts('Classified_Tiles', make_classes([1])))
    words = rf'chip of \({bands}, {side}, {side}\) pixels with label \(8, 8\)'
    with pytest.raises(ChipFolderError, match=words), writer:
        writer.add(np.ones((bands, side, side), np.uint8), Label(np.ones((SIDE, SIDE), np.uint8)), PLACE)


@pytest.mark.parametrize(
    ('metadata_format', 'label', 'words'),
    [
        ('Classified_Tiles', Label(), 'has no raster'),
        ('PASCAL_VOC_rectangles', Label(class_ids=np.array([1])), 'has no boxes'),
        ('RCNN_Masks', Label(class_ids=np.array([1])), 'has no masks'),
        ('Imagenet', Label(), 'names 0 classes; exactly one'),
    ],
)
def test_a_label_of_another_kind_is_refused(tmp_path, metadata_format, label, words):
    writer = ChipWriter(tmp_path / 'out', facts(metadata_format, make_classes([1])))
    with pytest.raises(ChipFolderError, match=words), writer:
        writer.add(np.ones((1, SIDE, SIDE), np.uint8), label, PLACE)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('exists', [True, False])
@pytest.mark.parametrize('stop', [KeyboardInterrupt, RuntimeError])
def test_an_export_that_breaks_off_leaves_nothing(tmp_path, stop, exists):
    if exists:
        (tmp_path / 'out').mkdir()

    def begin():
        with ChipWriter(tmp_path / 'out', facts('Classified_Tiles', make_classes([1]))) as writer:
            writer.add(np.ones((1, SIDE, SIDE), np.uint8), Label(np.ones((SIDE, SIDE), np.uint8)), PLACE)
            assert len(list(tmp_path.rglob('*.tif'))) == 2
            raise stop

    with pytest.raises(stop):
        begin()
    assert list(tmp_path.rglob('*')) == [tmp_path / 'out'] * exists


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(ChipFolderError, match='cannot write .*out: cannot make'):
        ChipWriter(tmp_path / 'file' / 'out', facts('Export_Tiles', ())).__enter__()


def test_a_chip_that_cannot_be_written_is_named(tmp_path):
    writer = ChipWriter(tmp_path / 'out', facts('Export_Tiles', ()), image_format='PNG')
    with pytest.raises(RasterError, match='cannot write .*000000000000.png'), writer:
        writer.add(np.ones((1, SIDE, SIDE), np.float32), Label(), PLACE)
