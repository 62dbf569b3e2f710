"""Objects are found in ArcGIS Pro as in geolearn, each by one block."""

import json

import geopandas
import numpy as np
import pytest
import shapely
import torch
from affine import Affine
from scipy import ndimage

from geolearn.batch import Detections
from geolearn.chips.export import export_training_data
from geolearn.models import FasterRCNN, MaskRCNN
from geolearn.networks.detection.architecture import RCNNOptions
from geolearn.prepare import prepare_data

pytestmark = pytest.mark.usefixtures('one_thread')

FEW = RCNNOptions(
    rpn_pre_nms_top_n_train=40, rpn_pre_nms_top_n_test=40, rpn_post_nms_top_n_test=20, box_score_thresh=0.001
)


class Finder(torch.nn.Module):
    """Finds what is brighter than 100 in the first band, and how it is outlined."""

    def __init__(self, *, masks=False):
        super().__init__()
        self.masks, self.weight = masks, torch.nn.Parameter(torch.zeros(1))

    def forward(self, images):
        return [self._look(image.nan_to_num(0).numpy()[0] > 100) for image in images], {}

    def _look(self, bright):
        numbered, count = ndimage.label(bright)
        places = ndimage.find_objects(numbered)
        boxes = [[cols.start, rows.start, cols.stop, rows.stop] for rows, cols in places]
        masks = np.stack([numbered == n + 1 for n in range(count)]) if count else np.zeros((0, *bright.shape), bool)
        return Detections(
            torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            torch.zeros(count, dtype=torch.int64),
            torch.full((count,), 0.9),
            torch.from_numpy(masks) if self.masks else None,
        )


@pytest.fixture(scope='module')
def chips(save, tmp_path_factory):
    """A raster of bright squares, cut into chips with boxes or outlines."""
    folder, side = tmp_path_factory.mktemp('squares'), 128
    image = np.random.default_rng(3).normal(60, 12, (3, side, side))
    shapes = []
    for top in range(8, side, 32):
        for left in range(8, side, 32):
            image[:, top : top + 14, left : left + 14] = 210
            shapes.append(shapely.box(left, side - top - 14, left + 14, side - top))
    layer = geopandas.GeoDataFrame({'classname': ['roof'] * len(shapes)}, geometry=shapes, crs='EPSG:32633')
    place = {'names': ['Red', 'Green', 'Blue'], 'transform': Affine(1, 0, 0, 0, -1, side)}
    raster = save(folder / 'squares.tif', image.clip(0, 255).astype(np.uint8), **place)
    return {
        kind: export_training_data(raster, layer, folder / kind, kind, tile_size=32)
        for kind in ('PASCAL_VOC_rectangles', 'RCNN_Masks')
    }


@pytest.fixture
def make(chips, tmp_path):
    """Make a detector that has not learned anything."""

    def made(cls):
        kind = 'RCNN_Masks' if cls is MaskRCNN else 'PASCAL_VOC_rectangles'
        data = prepare_data(chips[kind], chip_size=32, batch_size=2, val_split_pct=0.25, working_dir=tmp_path)
        torch.manual_seed(0)
        return cls(data, 'test_resnet', pretrained=False, head=FEW)

    return made


@pytest.fixture
def raster():
    """Squares of 10 pixels everywhere: within blocks and across their edges."""
    pixels = np.full((3, 150, 170), 60, np.uint8)
    boxes = [(left, top, left + 10, top + 10) for top in range(3, 130, 17) for left in range(2, 150, 19)]
    for left, top, right, bottom in boxes:
        pixels[:, top:bottom, left:right] = 210
    return pixels, boxes


def bounds(features):
    return sorted(tuple(int(edge) for edge in shapely.Polygon(row['rings'][0]).bounds) for row in features)


@pytest.mark.parametrize(('cls', 'file'), [(FasterRCNN, 'DetectObjects'), (MaskRCNN, 'DetectInstances')])
def test_each_square_is_found_once_wherever_blocks_meet(make, raster, open_in_pro, tmp_path, cls, file):
    pro = open_in_pro(make(cls).save(tmp_path / 'm.dlpk'), tile_size=64, padding=12)
    assert pro.emd['InferenceFunction'] == f'Geolearn{file}.py'
    pro.function._model.network = Finder(masks=cls is MaskRCNN)
    pixels, boxes = raster
    features = pro.detect(pixels)
    assert bounds(features) == sorted(boxes)
    assert {(row['Class'], row['Confidence']) for row in features} == {('roof', 90.0)}
    # clockwise on the image, whose rows count downwards
    assert all(shapely.LinearRing(row['rings'][0]).is_ccw for row in features)


@pytest.mark.parametrize('cls', [FasterRCNN, MaskRCNN])
def test_one_block_is_what_predict_gives(make, raster, open_in_pro, tmp_path, cls):
    model, pixels = make(cls), raster[0][:, :64, :64]
    pro = open_in_pro(model.save(tmp_path / 'm.dlpk'), tile_size=64, padding=0, threshold=0.01, nms_overlap=0.2)
    features, expected = pro.detect(pixels), model.predict(pixels, 0.01, 0.2, device='cpu')
    assert len(features) == len(expected) > 0
    scores = sorted(row['Confidence'] for row in features)
    assert scores == pytest.approx(sorted((100 * expected.scores).tolist()), abs=0.02)
    if cls is FasterRCNN:
        found = sorted(shapely.Polygon(row['rings'][0]).bounds for row in features)
        assert np.allclose(found, sorted(map(tuple, expected.boxes.tolist())), atol=1e-3)


def test_an_outline_has_its_holes(make, open_in_pro, tmp_path):
    pixels = np.full((3, 64, 64), 60, np.uint8)
    pixels[:, 10:40, 10:40] = 210
    pixels[:, 20:30, 20:30] = 60
    pro = open_in_pro(make(MaskRCNN).save(tmp_path / 'm.dlpk'), tile_size=64, padding=0)
    pro.function._model.network = Finder(masks=True)
    (feature,) = pro.detect(pixels)
    outer, hole = (shapely.LinearRing(ring) for ring in feature['rings'])
    assert (outer.bounds, hole.bounds) == ((10, 10, 40, 40), (20, 20, 30, 30))
    assert outer.is_ccw
    assert not hole.is_ccw


def test_a_block_without_data_or_objects_gives_an_empty_layer_with_its_fields(make, open_in_pro, tmp_path):
    function = open_in_pro(make(FasterRCNN).save(tmp_path / 'm.dlpk'), threshold=0.999).function
    pixels = np.full((3, 64, 64), 60, np.uint8)
    for mask in (np.ones_like(pixels), np.zeros_like(pixels)):
        told = json.loads(function.vectorize(raster_pixels=pixels, raster_mask=mask)['output_vectors'])
        assert told['features'] == []
        assert told['geometryType'] == 'esriGeometryPolygon'
        assert told['fields'] == json.loads(function.getFields())['fields']
    assert [field['name'] for field in told['fields']] == ['OID', 'Class', 'Confidence', 'Shape']
    assert function.getGeometryType() == 4


def test_blocks_look_as_far_into_each_other_as_objects_are_wide(make, open_in_pro, tmp_path):
    model = make(FasterRCNN)
    pro = open_in_pro(model.save(tmp_path / 'm.dlpk'))
    assert pro.configuration['padding'] >= 7 + 4
    assert (pro.configuration['threshold'], pro.configuration['nms_overlap']) == (0.5, 0.3)
    assert pro.parameters['test_time_augmentation']['domain'] == ('True', 'False')
    with pytest.raises(ValueError, match=r'threshold must be in 0..1, got 5.0'):
        pro.function.getConfiguration(threshold='5')


def test_looking_four_times_finds_the_same(make, raster, open_in_pro, tmp_path):
    pro = open_in_pro(
        make(FasterRCNN).save(tmp_path / 'm.dlpk'), tile_size=64, padding=12, test_time_augmentation='True'
    )
    pro.function._model.network = Finder()
    assert bounds(pro.detect(raster[0])) == sorted(raster[1])
