"""Oriented boxes in files: DOTA, YOLO-OBB and COCO, good and bad, read and written."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import shapely
from affine import Affine

from geolearn.chips.export import export_training_data
from geolearn.chips.formats import open_chips
from geolearn.chips.label import Task
from geolearn.chips.packing.store import open_store
from geolearn.errors import ChipFolderError, RasterError, UnknownNameError
from geolearn.inference.reading import choose_geobox
from geolearn.models import RotatedFCOS
from geolearn.oriented import geometry
from geolearn.oriented.overlap import array_overlaps
from geolearn.prepare import prepare_data
from geolearn.raster import GeoBox

SHIP = np.array([20.0, 12.0, 16.0, 6.0, 0.4])
HOUSE = np.array([10.0, 20.0, 8.0, 7.5, -0.7])
SHAPE = (32, 48)
NOISE = np.random.default_rng(0).integers(50, 200, (3, *SHAPE)).astype(np.uint8)


def numbers(box, size=(1, 1)):
    return ' '.join(f'{value:.6f}' for value in (geometry.corners(box[None])[0] / size).ravel())


@pytest.fixture
def folder(tmp_path, save):
    """Images 1 and 2 of 48 x 32 pixels."""
    (tmp_path / 'chips' / 'images').mkdir(parents=True)
    for name in '12':
        save(tmp_path / 'chips' / 'images' / f'{name}.png', NOISE)
    return tmp_path / 'chips'


def write(folder, name, text):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)


def read(folder, name='1', **options):
    opened = open_chips(folder, **options)
    chip = next(chip for chip in opened.listing.chips if chip.name == name)
    return opened, chip.read_label(SHAPE)


def assert_boxes(label, *boxes):
    assert (label.turned[:, 2] >= label.turned[:, 3]).all()
    np.testing.assert_allclose(array_overlaps(label.turned, np.array(boxes)), 1, atol=1e-4)


@pytest.mark.parametrize('labels', ['labelTxt', 'labelTxt-v1.0', 'labels', '../labelTxt'])
def test_dota_is_read_whatever_its_folder_is_called(folder, labels):
    header = 'imagesource:GoogleEarth\ngsd:0.15\n'
    write(folder, f'{labels}/1.txt', f'{header}{numbers(SHIP)} large-vehicle 1\n{numbers(HOUSE)} house 0\n')
    write(folder, f'{labels}/2.txt', '')
    opened, label = read(folder)
    assert opened.dataset_type == 'DOTA'
    assert opened.listing.task is Task.ORIENTED
    assert [info.name for info in opened.listing.classes] == ['house', 'large-vehicle']
    assert label.class_ids.tolist() == [2, 1]
    assert label.ignored.tolist() == [True, False]
    assert_boxes(label, SHIP, HOUSE)
    assert label.boxes.shape == (2, 4)
    assert not len(read(folder, '2')[1].class_ids)


def test_the_pixel_size_of_dota_is_that_of_the_model(folder):
    for place in (folder / 'images').glob('*.aux.xml'):
        place.unlink()
    for name, header in (('1', 'imagesource:GoogleEarth\ngsd: 0.5\n'), ('2', 'gsd:null\n')):
        write(folder, f'labelTxt/{name}.txt', f'{header}{numbers(SHIP)} ship 0\n')
    data = prepare_data(folder, chip_size=32, batch_size=1, val_split_pct=0.5)
    assert data.cell_size == {'x': 0.5, 'y': 0.5, 'unit': 'meters'}
    # pixels of 1 m in a CRS in meters, and of about 0.5 m in degrees
    spec = replace(RotatedFCOS(data, 'test_resnet', pretrained=False).spec, chip_size=32)
    meters = GeoBox((64, 64), Affine(1, 0, 4e5, 0, -1, 5e6), 'EPSG:32633')
    degrees = GeoBox((64, 64), Affine(6.37e-6, 0, 15, 0, -4.5e-6, 45), 'EPSG:4326')
    assert choose_geobox(degrees, spec, None, shown='it') is None
    with pytest.raises(RasterError, match='measure 1 m, those of the training chips 0.5 m: 2 times larger'):
        choose_geobox(meters, spec, None, shown='it')
    assert choose_geobox(meters, spec, 'training', shown='it').resolution == (0.5, 0.5)
    write(folder, 'labelTxt/2.txt', f'gsd:2\n{numbers(SHIP)} ship 0\n')
    notes = open_chips(folder).listing.notes
    assert any('pixels measure 0.5 to 2 m (gsd: of 2 images); their median, 1.25 m' in note for note in notes)


@pytest.mark.parametrize('size', ['-0.5', '0', 'inf', '0.5m', '1e9'])
def test_a_pixel_size_that_is_none_is_refused(folder, size):
    write(folder, 'labelTxt/1.txt', f'imagesource:a\ngsd:{size}\n{numbers(SHIP)} ship 0\n')
    with pytest.raises(ChipFolderError, match=r'1\.txt, line 2: gsd: is the side of a pixel in meters.*gsd:null'):
        open_chips(folder)


def test_labels_and_images_may_not_contradict_each_other_about_pixels(folder, save):
    place = {'transform': Affine(10, 0, 4e5, 0, -10, 5e6), 'crs': 'EPSG:32633'}
    for name in '12':
        (folder / 'images' / f'{name}.png').unlink()
        save(folder / 'images' / f'{name}.tif', NOISE, **place)
        write(folder, f'labelTxt/{name}.txt', f'gsd:0.5\n{numbers(SHIP)} ship 0\n')
    with pytest.raises(ChipFolderError, match='the labels say that pixels measure 0.5 m.*the images .* 10 m'):
        prepare_data(folder, chip_size=32, batch_size=1, val_split_pct=0.5)


def test_quadrilaterals_that_are_no_rectangles_or_no_objects(folder):
    crossing = geometry.corners(SHIP[None])[0][[0, 2, 1, 3]].ravel()
    lines = [
        ' '.join(map(str, crossing)),  # sides that cross: the rectangle around the points
        '4 4 20 6 22 14 3 12',  # no rectangle
        '5 5 5 5 5 5 9 9',  # two points
        '5 5 5.5 5 5.5 5.5 5 5.5',  # a quarter of a pixel
        '5 5 nan 5 9 9 5 9',
        '60 5 70 5 70 9 60 9',  # outside
        '40 5 70 5 70 9 40 9',  # a quarter inside: whole, the crop decides
    ]
    write(folder, 'labelTxt/1.txt', ''.join(f'{line} ship 0\n' for line in lines))
    write(folder, 'labelTxt/2.txt', '')
    _, label = read(folder)
    assert len(label.turned) == 3
    assert_boxes(label, SHIP, label.turned[1], [55, 7, 30, 4, 0])
    assert label.boxes[:, 2].max() <= 48
    assert shapely.covers(
        shapely.buffer(shapely.polygons(geometry.corners(label.turned[1:2].astype(float)))[0], 1e-3),
        shapely.multipoints([[4, 4], [20, 6], [22, 14], [3, 12]]),
    )
    assert len(label.skipped) == 4
    assert sum('fewer than three' in text for text in label.skipped) == 2
    write(folder, 'labelTxt/1.txt', '1 2 3 4 5 6 7 ship 0\n')
    with pytest.raises(ChipFolderError, match=r'1\.txt, line 1: x and y of four corners'):
        read(folder)
    (folder / 'labelTxt-v1.5').mkdir()
    with pytest.raises(ChipFolderError, match=r'2 folders of labels: labelTxt, labelTxt-v1\.5'):
        open_chips(folder)


def test_yolo_is_oriented_where_the_user_or_its_yaml_says_so(folder):
    """Fractions are of width and height: turning before the image is brought to pixels would skew the box."""
    write(folder, 'labels/1.txt', f'0 {numbers(SHIP, SHAPE[::-1])}\n')
    write(folder, 'labels/2.txt', '')
    opened, label = read(folder)
    assert opened.listing.task is Task.INSTANCES  # corners may be an outline
    assert_boxes(label, SHIP)
    opened, label = read(folder, dataset_type='YOLO_OBB')
    assert opened.listing.task is Task.ORIENTED
    assert_boxes(label, SHIP)
    write(folder, 'data.yaml', 'task: obb\nnames: [ship]\n')
    opened, _ = read(folder)
    assert opened.dataset_type == 'YOLO_OBB'
    assert [info.name for info in opened.listing.classes] == ['ship']


def test_yolo_corners_beyond_the_image_are_no_dota(folder):
    beyond = np.array([46.0, 12.0, 16.0, 6.0, 0.4])
    text = numbers(beyond, SHAPE[::-1])
    assert max(map(float, text.split())) > 1
    for name in '12':
        write(folder, f'labels/{name}.txt', f'0 {text}\n')
    assert open_chips(folder).listing.task is Task.INSTANCES
    write(folder, 'data.yaml', 'task: obb\nnames: [ship]\n')
    opened, label = read(folder)
    assert opened.dataset_type == 'YOLO_OBB'
    assert_boxes(label, beyond)
    write(folder, 'labels/1.txt', f'0 {numbers(SHIP)}\n')
    opened, label = read(folder)
    assert opened.dataset_type == 'YOLO_OBB', 'though the corners are in pixels'
    assert not len(label.turned)


def test_yolo_boxes_with_an_angle_are_refused(folder):
    for name in '12':
        write(folder, f'labels/{name}.txt', '0 0.5 0.5 0.3 0.2 0.4\n')
    with pytest.raises(ChipFolderError, match='class x1 y1 x2 y2 x3 y3 x4 y4'):
        open_chips(folder, dataset_type='YOLO_OBB')
    assert not len(open_chips(folder, dataset_type='YOLO_rectangles').notes), 'a confidence'
    write(folder, 'data.yaml', 'task: obb\nnames: [ship]\n')
    with pytest.raises(ChipFolderError, match='may be an angle'):
        open_chips(folder)
    (folder / 'data.yaml').unlink()
    for name in '12':
        write(folder, f'labels/{name}.txt', '0 0.5 0.5 0.3 0.2 -1.2\n')
    with pytest.raises(ChipFolderError, match='may be an angle'):
        open_chips(folder, dataset_type='YOLO_rectangles')


def coco(*annotations):
    rows = [{'id': i, 'image_id': 1, 'category_id': 1, **row} for i, row in enumerate(annotations, 1)]
    image = {'id': 1, 'file_name': '1.png', 'height': SHAPE[0], 'width': SHAPE[1]}
    return json.dumps({'categories': [{'id': 1, 'name': 'ship'}], 'images': [image], 'annotations': rows})


def test_angles_of_coco_are_told_and_never_guessed(folder):
    degrees = math.degrees(SHIP[4])
    spelled = {'deg_cw': degrees, 'detectron2': -degrees, 'rad_cw': SHIP[4], 'rad_ccw': -SHIP[4], 'opencv': degrees}
    for name, angle in spelled.items():
        write(folder, 'labels.json', coco({'bbox': [*SHIP[:4], angle]}))
        opened, label = read(folder, dataset_type='COCO_OBB', box_angles=name)
        assert opened.listing.task is Task.ORIENTED
        assert_boxes(label, SHIP)
    with pytest.raises(ChipFolderError, match='degrees or radians, clockwise or not; pass box_angles='):
        read(folder, dataset_type='COCO_OBB')
    with pytest.raises(ChipFolderError, match="dataset_type='COCO_OBB'"):
        read(folder)
    with pytest.raises(UnknownNameError, match='box_angles'):
        read(folder, dataset_type='COCO_OBB', box_angles='degrees')
    write(folder, 'labels.json', coco({'segmentation': [geometry.corners(SHIP[None])[0].ravel().tolist()]}))
    assert_boxes(read(folder, dataset_type='COCO_OBB')[1], SHIP)
    assert_boxes(read(folder)[1], SHIP)  # as an outline
    write(folder, 'labels.json', coco({'bbox': [1, 2, 3, 4]}))
    with pytest.raises(ChipFolderError, match='neither a polygon'):
        read(folder, dataset_type='COCO_OBB')


def test_packed_boxes_follow_the_convention_of_angles(folder):
    write(folder, 'labels.json', coco({'bbox': [*SHIP[:4], math.degrees(SHIP[4])]}))
    for name, box in (('deg_cw', SHIP), ('deg_ccw', [*SHIP[:4], -SHIP[4]]), ('deg_cw', SHIP)):
        opened = open_chips(folder, dataset_type='COCO_OBB', box_angles=name)
        store, _ = open_store(folder, opened.dataset_type, opened.listing)
        assert_boxes(store.chip(0).label, box)


def test_coco_with_level_and_oriented_boxes_is_read_as_the_user_says(folder):
    both = {'bbox': [12, 8, 16, 9], 'rotated_bbox': [*SHIP[:4], math.degrees(SHIP[4])]}
    write(folder, 'labels.json', coco(both))
    with pytest.raises(ChipFolderError, match="'COCO_OBB' .*, or dataset_type='COCO_rectangles'"):
        read(folder)
    opened, label = read(folder, dataset_type='COCO_rectangles')
    assert opened.listing.task is Task.OBJECTS
    assert label.boxes.tolist() == [[12, 8, 28, 17]]
    assert_boxes(read(folder, dataset_type='COCO_OBB', box_angles='deg_cw')[1], SHIP)


def test_coco_that_mixes_level_and_oriented_boxes_is_refused_with_advice_that_works(folder):
    oriented = {'bbox': [*SHIP[:4], math.degrees(SHIP[4])]}
    write(folder, 'labels.json', coco(oriented, {'bbox': [12, 8, 16, 8]}))
    for kind in (None, 'COCO_rectangles', 'COCO_OBB'):
        with pytest.raises(ChipFolderError, match='1 objects are boxes of five numbers.* and 1 are not.*the angle 0'):
            read(folder, dataset_type=kind)
    write(folder, 'labels.json', coco(oriented, {'bbox': [20, 12, 16, 8, 0]}))
    label = read(folder, dataset_type='COCO_OBB', box_angles='deg_cw')[1]
    assert_boxes(label, SHIP, [20, 12, 16, 8, 0])


def test_a_folder_beside_decides_nothing_for_chips_with_labels_of_their_own(folder):
    for name in ('labelTxt-v1.0', 'labelTxt-v1.5'):
        write(folder.parent, f'{name}/1.txt', f'{numbers(HOUSE)} house 0\n')
    with pytest.raises(ChipFolderError, match=r'2 folders of labels: labelTxt-v1.0, labelTxt-v1.5'):
        read(folder)
    assert read(folder, dataset_type='Export_Tiles')[0].listing.task is Task.UNLABELLED
    write(folder, 'labels.json', coco({'bbox': [1, 2, 3, 4]}))
    assert read(folder)[0].dataset_type == 'COCO_rectangles'
    (folder / 'labels.json').unlink()
    write(folder, 'labels/1.txt', '0 0.5 0.5 0.2 0.2\n')
    assert read(folder)[0].dataset_type == 'YOLO_rectangles'
    write(folder, 'labels/1.txt', f'{numbers(SHIP)} ship 0\n')
    opened, label = read(folder)
    assert opened.dataset_type == 'DOTA'
    assert_boxes(label, SHIP)


def test_a_layer_of_polygons_is_written_and_read_in_every_format(tmp_path, save):
    import geopandas

    place = Affine(2, 0, 1000, 0, -2, 5000)
    pixels = np.random.default_rng(0).integers(0, 255, (3, 64, 128)).astype(np.uint8)
    raster = save(tmp_path / 'image.tif', pixels, transform=place, crs='EPSG:32633')
    boxes = np.array([[20, 20, 18, 6, 0.5], [64, 40, 20, 5, -1.2], [100, 30, 9, 8, 0.2]])  # the second lies on an edge
    drawn = shapely.polygons(geometry.corners(boxes))
    ground = shapely.transform(drawn, lambda xy: np.stack([1000 + 2 * xy[:, 0], 5000 - 2 * xy[:, 1]], 1))
    layer = geopandas.GeoDataFrame({'name': ['ship', 'ship', 'small house']}, geometry=ground, crs='EPSG:32633')
    for kind in ('DOTA', 'YOLO_OBB', 'COCO_OBB'):
        out = export_training_data(raster, layer, tmp_path / kind, kind, tile_size=64, class_value_field='name')
        data = prepare_data(out, chip_size=64, batch_size=2, val_split_pct=0.5, transforms=False, working_dir=tmp_path)
        assert data.task is Task.ORIENTED
        # the whole rectangle on both sides of the edge
        assert sorted(len(data.table.oriented_boxes(position)[0]) for position in range(2)) == [2, 2]
        for position in range(2):
            turned, _ = data.table.oriented_boxes(position)
            left = 64 * (data.table.geobox(position).transform.c > 1050)
            for box in boxes[abs(boxes[:, 0] - left - 32) <= 33]:
                found = array_overlaps(np.repeat([box], len(turned), 0), geometry.moved(turned, left, 0))
                assert found.max() == pytest.approx(1, abs=1e-3)
    text = (tmp_path / 'DOTA' / 'labelTxt' / '000000000000.txt').read_text()
    assert 'gsd:2\n' in text
    assert ' small-house 0\n' in (tmp_path / 'DOTA' / 'labelTxt' / '000000000001.txt').read_text()


@pytest.mark.real_data
def test_real_chips_of_two_sensors_share_their_labels(shared):
    for sensor in ('optical', 'sar'):
        opened = open_chips(shared / 'data' / 'm4sar' / sensor)
        assert opened.dataset_type == 'DOTA'
        assert len(opened.listing.chips) == 4
        labels = [chip.read_label((512, 512)) for chip in opened.listing.chips]
        assert sum(len(label.turned) for label in labels) == 20
    as_yolo = open_chips(shared / 'data' / 'm4sar' / 'optical', 'YOLO_OBB')
    for one, other in zip(labels, as_yolo.listing.chips):
        assert_boxes(one, *other.read_label((512, 512)).turned)
    with pytest.raises(ChipFolderError, match=r'2 exports \(optical, sar\)'):
        open_chips(shared / 'data' / 'm4sar')


@pytest.mark.parametrize('kind', ['YOLO_OBB', 'COCO_OBB'])
def test_other_formats_take_and_skip_the_same_quadrilaterals(folder, kind):
    """Of crossing sides and slanted corners the rectangle around them; what has no area is skipped and said."""
    crossing = geometry.corners(SHIP[None])[0][[0, 2, 1, 3]].ravel().tolist()
    rows = [crossing, [4, 4, 20, 6, 22, 14, 3, 12], [5, 5, 5, 5, 5, 5, 9, 9], [60, 5, 70, 5, 70, 9, 60, 9]]
    if kind == 'COCO_OBB':
        write(folder, 'labels.json', coco(*({'segmentation': [row]} for row in rows)))
    else:
        size = np.tile(SHAPE[::-1], 4)
        write(folder, 'labels/1.txt', ''.join(f'0 {" ".join(map(str, row / size))}\n' for row in np.array(rows)))
        write(folder, 'labels/2.txt', '')
    _, label = read(folder, dataset_type=kind)
    assert len(label.turned) == 2
    assert_boxes(label, SHIP, label.turned[1])
    corners = shapely.buffer(shapely.polygons(geometry.corners(label.turned[1:].astype(float)))[0], 1e-2)
    assert shapely.covers(corners, shapely.multipoints(np.array(rows[1]).reshape(-1, 2)))
    assert len(label.skipped) == 2
