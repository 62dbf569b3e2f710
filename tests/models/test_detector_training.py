"""Detectors learn, with fastai's loop as every model, and find objects in a raster afterwards."""

import geopandas
import numpy as np
import pytest
import torch
from affine import Affine

from geolearn.errors import FileWriteError, RasterError
from geolearn.models import load_model
from geolearn.models.object_detector import FasterRCNN, RetinaNet
from geolearn.networks.detection.architecture import RCNNOptions, SingleStageOptions
from geolearn.prepare import prepare_data

FEW = RCNNOptions(
    rpn_pre_nms_top_n_train=80,
    rpn_pre_nms_top_n_test=60,
    rpn_post_nms_top_n_train=30,
    rpn_post_nms_top_n_test=20,
    rpn_batch_size_per_image=64,
    box_batch_size_per_image=16,
    box_detections_per_img=20,
)
FEW_PLACES = SingleStageOptions(detections_per_img=20)

pytestmark = pytest.mark.usefixtures('one_thread', 'small_dofa')


@pytest.fixture(scope='module')
def trained(square_chips, tmp_path_factory):
    """A Faster R-CNN that has learned squares on noise."""
    torch.manual_seed(0)
    options = {'chip_size': 64, 'batch_size': 4, 'val_split_pct': 0.2, 'transforms': False}
    data = prepare_data(square_chips(side=384), working_dir=tmp_path_factory.mktemp('models'), **options)
    model = FasterRCNN(data, 'resnet18', head=FEW, pretrained=False)
    return model, model.fit(4, lr=6e-4, checkpoint=False).history.epochs


@pytest.fixture(scope='module')
def bundle(trained, tmp_path_factory):
    """The bundle of that model."""
    return trained[0].save(tmp_path_factory.mktemp('bundle') / 'squares.dlpk')


def test_bright_squares_are_learned_in_seconds(trained):
    model, rows = trained
    assert model.average_precision_score(mean=True) > 0.8
    assert rows[-1]['ap50'] == pytest.approx(model.average_precision_score(mean=True))
    assert rows[-1]['train_loss'] < rows[0]['train_loss']
    assert rows[-1]['valid_loss'] < rows[0]['valid_loss']
    assert {'objectness', 'proposals', 'classes', 'boxes'} <= rows[-1].keys()


def test_squares_of_a_raster_come_out_as_features(trained, bundle, save, tmp_path):
    model, _ = trained
    rng = np.random.default_rng(1)
    image = rng.normal(60, 12, (3, 200, 230))
    boxes = [(40, 30, 60, 48), (100, 100, 118, 120), (180, 20, 200, 38), (56, 130, 72, 150)]
    for left, top, right, bottom in boxes:
        image[:, top:bottom, left:right] = 200
    place = Affine(2, 0, 300_000, 0, -2, 5_000_000)
    names = ['Red', 'Green', 'Blue']
    path = save(tmp_path / 'image.tif', np.clip(image, 0, 255).astype(np.uint8), names=names, transform=place)
    frame = geopandas.read_file(model.detect_objects(path, tmp_path / 'found.gpkg', tile_size=96, resolution=2))
    found = [((b[0] - 300_000) / 2, (5_000_000 - b[3]) / 2) for b in frame.geometry.bounds.to_numpy()]
    assert len(found) == len(boxes)
    assert np.allclose(sorted(found), sorted(box[:2] for box in boxes), atol=3)
    assert set(frame['Class']) == {'white'}
    assert (frame['Confidence'] >= 50).all()
    again = load_model(bundle)
    other = geopandas.read_file(again.detect_objects(path, tmp_path / 'again.gpkg', tile_size=96, resolution=2))
    assert other.geometry.equals(frame.geometry)
    found = model.predict(path, augment=True, resolution=2)
    assert len(found) == len(boxes)
    assert found.names == ('white',) * 4


def test_a_saved_detector_carries_its_scores(trained, bundle):
    model, _ = trained
    loaded = load_model(bundle)
    assert loaded.evaluation.metrics['ap50'] == pytest.approx(model.average_precision_score(mean=True))
    assert {name.rpartition('/')[2] for name in loaded.evaluation.figures} >= {'show_results.png'}


def test_batch_norms_of_a_pretrained_backbone_keep_its_statistics(trained, bundle):
    model, _ = trained
    tuned = FasterRCNN(model.data, 'resnet18', head=FEW, weights=bundle)
    before = {name: value.clone() for name, value in tuned.network.named_buffers()}
    network = tuned.network.train()
    images, objects = next(iter(model.data.train_dl))
    tuned.make_loss()(network(images, objects)).backward()
    norms = [module for module in network.backbone.trunk.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert network.training
    assert norms
    assert all(norm.weight.grad.any() and not norm.training for norm in norms)
    assert all(torch.equal(value, before[name]) for name, value in network.named_buffers())
    # from random weights there is nothing to keep
    assert all(module.training for module in model.network.train().modules())
    model.network.eval()


def test_targets_that_cannot_be_written_are_refused_first(trained, save, tmp_path):
    model, _ = trained
    pixels = np.full((3, 64, 64), 60, np.uint8)
    path = save(tmp_path / 'image.tif', pixels, names=['Red', 'Green', 'Blue'])
    with pytest.raises(FileWriteError, match='no suffix that says how to write it'):
        model.detect_objects(path, tmp_path / 'found.tif')
    with pytest.raises(ValueError, match="outline='orthogonal' is for models that draw masks"):
        model.detect_objects(path, tmp_path / 'found.gpkg', outline='orthogonal')
    with pytest.raises(ValueError, match=r'overlap must be in 0\.\.48 pixels'):
        model.detect_objects(path, tmp_path / 'found.gpkg', tile_size=96, overlap=90, resolution=10)
    nowhere = save(tmp_path / 'nowhere.tif', pixels, names=['Red', 'Green', 'Blue'], crs=None)
    with pytest.raises(RasterError, match=r'GeoJSON is in WGS84, but .*nowhere\.tif names no CRS'):
        model.detect_objects(nowhere, tmp_path / 'found.geojson')
    assert not list(tmp_path.glob('found*'))


def test_a_transformer_learns_in_half_precision_and_a_frozen_one_keeps_its_weights(square_chips, tmp_path):
    torch.manual_seed(0)
    options = {'chip_size': 64, 'batch_size': 4, 'transforms': False, 'label_fraction': 0.6}
    data = prepare_data(square_chips(side=384), working_dir=tmp_path, **options)
    model = RetinaNet(data, 'dofa_tiny', head=FEW_PLACES, pretrained=False)
    model.freeze()
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    rows = model.fit(2, lr=1e-3, mixed_precision='bf16').history.epochs
    after = model.network.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert {name.split('.')[0] for name in changed} >= {'head'}
    assert not any(name.startswith('backbone.trunk') for name in changed)
    assert rows[-1]['train_loss'] < rows[0]['train_loss']
