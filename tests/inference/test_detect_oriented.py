"""Oriented objects from raster to layer: whole across the edges of tiles, once each, measured on the ground."""

import math

import geopandas
import numpy as np
import pytest
import torch
from affine import Affine
from scipy import ndimage
from square_detector import SquareDetector

from geolearn.batch import Detections
from geolearn.inference import merging, overlapping, vectors
from geolearn.models.object_detector import MaskRCNN, RotatedFCOS
from geolearn.networks.detection.architecture import RotatedOptions
from geolearn.oriented import geometry
from geolearn.oriented.overlap import overlap_matrix
from geolearn.prepare import prepare_data
from geolearn.raster import GeoBox
from geolearn.synthetic_objects import OBJECT_CLASSES

pytestmark = pytest.mark.usefixtures('one_thread')

PLACE = Affine(10, 0, 500_000, 0, -10, 5_000_000)
OPTIONS = {
    'scale': 1,
    'resolution': 10,
    'bands': ['Red', 'Green', 'Blue'],
    'tile_size': 64,
    'overlap': 32,
    'batch_size': 2,
}


class ShipDetector(SquareDetector):
    """Detects what is brighter than 0.5 by its rectangle of least area."""

    def _look(self, bright):
        numbered, count = ndimage.label(bright, np.ones((3, 3)))
        boxes = [geometry.mask_rectangle(numbered == n + 1) for n in range(count)]
        turned = torch.tensor(np.array(boxes).reshape(-1, 5), dtype=torch.float32)
        limits = torch.tensor([bright.shape[1], bright.shape[0]] * 2)
        around = torch.minimum(geometry.hulls(turned).clamp(min=0), limits)
        return Detections(around, torch.zeros(count).long(), torch.full((count,), 0.9), turned=turned)


def berth(angle=0.7, ships=9):
    """A row of slanted ships, four pixels apart, that tiles of 64 pixels cut anywhere."""
    across = np.arange(ships) * 11.0 - 44
    x, y = 100 - across * math.sin(angle), 100 + across * math.cos(angle)
    return np.stack([x, y, np.full(ships, 26.0), np.full(ships, 7.0), np.full(ships, angle)], 1)


def drawn(boxes):
    """The rectangle of the pixels of each box by itself: what the detector gives of a box that it sees whole.

    Pixels count where their middle is in the box, and then whole, so these rectangles are larger: a pixel reaches
    (cos + sin) / 2 of its side beyond its middle along a slanted side, 0.7 at 40 degrees. Of a ship of 26 by 7 pixels,
    182, that makes up to 27.4 by 8.4, 230, and an overlap near 0.79, or less where no middle lies close to a side.
    """
    return np.stack([geometry.mask_rectangle(draw(box[None])[0] > 0.5) for box in boxes])


def draw(boxes, shape=(200, 200)):
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    image = np.zeros((3, *shape), np.float32)
    for box in boxes:
        u = (x - box[0]) * math.cos(box[4]) + (y - box[1]) * math.sin(box[4])
        v = (y - box[1]) * math.cos(box[4]) - (x - box[0]) * math.sin(box[4])
        image[:, (abs(u) < box[2] / 2) & (abs(v) < box[3] / 2)] = 1
    return image


@pytest.fixture(scope='module')
def data(square_chips, tmp_path_factory):
    return prepare_data(
        square_chips('RCNN_Masks', side=256), chip_size=64, batch_size=4, working_dir=tmp_path_factory.mktemp('models')
    )


@pytest.fixture(scope='module')
def model(data):
    made = RotatedFCOS(data, 'test_resnet', head=RotatedOptions(width=32, depth=1), pretrained=False)
    made.network = ShipDetector()
    return made


@pytest.fixture
def scene(save, tmp_path):
    return save(tmp_path / 'scene.tif', draw(berth()), transform=PLACE, crs='EPSG:32633')


def pixels_of(layer):
    """Oriented boxes (n, 5) in pixels of the polygons of a layer."""
    rings = np.stack([np.array(shape.exterior.coords)[:4] for shape in layer.geometry])
    return geometry.rectangles_of_quadrilaterals((rings - [PLACE.c, PLACE.f]) / [PLACE.a, PLACE.e])


def test_ships_side_by_side_come_once_each_and_whole(model, scene, tmp_path):
    layer = geopandas.read_file(model.detect_objects(scene, tmp_path / 'a.gpkg', **OPTIONS))
    assert list(layer.columns) == ['Class', 'value', 'Confidence', 'area', 'length', 'width', 'angle', 'geometry']
    assert set(layer.geom_type) == {'Polygon'}
    assert len(layer) == 9
    overlaps = overlap_matrix(pixels_of(layer), drawn(berth()))
    assert sorted(overlaps.argmax(1).tolist()) == list(range(9))
    assert overlaps.max(1).min() > 0.999
    assert overlap_matrix(drawn(berth()), berth()).max(1).min() > 0.7
    np.testing.assert_allclose(layer['length'], 260, atol=35)
    np.testing.assert_allclose(layer['width'], 70, atol=25)
    # the angle turns from east towards south, the azimuth from north towards east
    np.testing.assert_allclose(layer['angle'], 90 + math.degrees(0.7), atol=5)


def test_shares_of_a_run_and_flips_give_the_same_layer(model, scene, tmp_path):
    whole = geopandas.read_file(model.detect_objects(scene, tmp_path / 'a.gpkg', **OPTIONS))
    for number in (1, 2):
        model.detect_objects(scene, tmp_path / 'b.gpkg', part=(number, 2), **OPTIONS)
    parts = geopandas.read_file(model.detect_objects(scene, tmp_path / 'b.gpkg', merge_parts=True, **OPTIONS))
    assert parts.drop(columns='geometry').equals(whole.drop(columns='geometry'))
    for options in ({'augment': True}, {'merge': 'weighted'}, {'merge': 'soft_nms'}):
        path = model.detect_objects(scene, tmp_path / 'c.gpkg', overwrite=True, **OPTIONS, **options)
        assert overlap_matrix(pixels_of(geopandas.read_file(path)), drawn(berth())).max(0).min() > 0.8


def test_an_empty_layer_has_the_columns_and_a_large_object_is_put_together(model, save, tmp_path):
    empty = save(tmp_path / 'empty.tif', draw([]), transform=PLACE, crs='EPSG:32633')
    layer = geopandas.read_file(model.detect_objects(empty, tmp_path / 'a.gpkg', **OPTIONS))
    assert list(layer.columns) == ['Class', 'value', 'Confidence', 'area', 'length', 'width', 'angle', 'geometry']
    pier = np.array([[100, 100, 150, 12, -0.5]])
    scene = save(tmp_path / 'pier.tif', draw(pier), transform=PLACE, crs='EPSG:32633')
    layer = geopandas.read_file(model.detect_objects(scene, tmp_path / 'b.gpkg', **OPTIONS))
    assert len(layer) == 1
    assert overlap_matrix(pixels_of(layer), drawn(pier))[0, 0] > 0.9


def test_masks_become_rectangles(data, scene, tmp_path):
    model = MaskRCNN(data, 'test_resnet', pretrained=False)
    model.network = SquareDetector(masks=True)
    layer = geopandas.read_file(model.detect_objects(scene, tmp_path / 'a.gpkg', outline='rectangle', **OPTIONS))
    assert {'length', 'width', 'angle'} <= set(layer.columns)
    assert len(layer) == 9
    assert overlap_matrix(pixels_of(layer), drawn(berth())).max(1).min() > 0.999


def test_predict_gives_boxes_in_the_one_form(model):
    found = model.predict(draw(berth()), threshold=0.5, scale=1)
    assert found.turned.shape == (9, 5)
    np.testing.assert_allclose(found.turned[:, 4], 0.7, atol=0.1)
    assert (found.turned[:, 2] > found.turned[:, 3]).all()


def test_boxes_are_measured_on_the_ground():
    ship = np.array([[50.0, 50, 20, 4, math.pi / 6]])  # azimuth 90 + 30 degrees where north is up

    def measure(transform, crs):
        box = GeoBox((100, 100), transform, crs)
        objects = merging.TileDetections(
            geometry.hulls(ship), np.zeros(1, int), np.ones(1), np.zeros(1, int), turned=ship
        )
        frame = vectors.objects_to_features(objects, box, OBJECT_CLASSES, outlined=False, oriented=True)
        return frame.iloc[0][['length', 'width', 'angle']].astype(float).tolist()

    assert measure(Affine(10, 0, 5e5, 0, -10, 5e6), 'EPSG:32633') == pytest.approx([200, 40, 120])
    turned = Affine(10, 0, 5e5, 0, -10, 5e6) @ Affine.rotation(15)
    assert measure(turned, 'EPSG:32633') == pytest.approx([200, 40, 135], abs=0.01)
    degrees = measure(Affine(1e-4, 0, 14, 0, -1e-4, 60), 'EPSG:4326')  # a degree east is half as long as one north
    east, north = 20 * math.cos(math.pi / 6) * 1e-4 * 55_800, 20 * 0.5 * 1e-4 * 111_400
    assert degrees[0] == pytest.approx(math.hypot(east, north), rel=0.01)
    assert degrees[2] == pytest.approx(90 + math.degrees(math.atan2(north, east)), abs=0.5)
    assert measure(Affine(1, 0, 0, 0, -1, 0), None)[:2] == pytest.approx([20, 4])
    squeezed = measure(Affine(1, 0, 5e5, 0, -10, 5e6), 'EPSG:32633')  # upright pixels: what is long lies north to south
    assert squeezed[0] > squeezed[1]
    assert 90 < squeezed[2] < 180


def test_parts_of_different_directions_are_not_one_object():
    first, second = np.array([[30.0, 30, 40, 6, 0.0]]), np.array([[30.0, 30, 40, 6, 1.0]])
    assert overlapping.mean_oriented(np.concatenate([first, first]), np.ones(2), np.zeros(2, int))[0] == pytest.approx(
        first[0]
    )
    near = np.array([[0, 0, 20, 5, math.radians(88)], [0, 0, 20, 5, math.radians(-88)]])
    mean = overlapping.mean_oriented(near, np.ones(2), np.zeros(2, int))[0]
    assert abs(math.degrees(mean[4])) == pytest.approx(90)  # and not 0
    kept, _ = overlapping.nms(
        geometry.hulls(np.concatenate([first, second])), np.zeros(2), np.ones(2), overlap=0.3,
        turned=np.concatenate([first, second]),
    )  # fmt: skip
    assert len(kept) == 2
