"""Which data a model of pixels takes, and what weights of classes do to its loss."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from geolearn.errors import BundleError, ChipFolderError
from geolearn.models import DeepLab, load_model
from geolearn.networks import network
from geolearn.prepare import prepare_data

pytestmark = pytest.mark.usefixtures('one_thread')
PLAIN = {'chip_size': 32, 'batch_size': 4, 'val_split_pct': 0.34}


@pytest.fixture
def prepare(write_folder, tmp_path):
    def make(kind, **options):
        return prepare_data(write_folder(tmp_path / kind, kind), **(PLAIN | options))

    return make


def make(data, **options):
    torch.manual_seed(0)
    return DeepLab(data, 'test_resnet', pretrained=False, **options)


@pytest.mark.parametrize(
    ('kind', 'held'),
    [
        ('ChangeDetection', 'pairs of images with what changed between them'),
        ('PASCAL_VOC_rectangles', 'boxes'),
        ('RCNN_Masks', 'outlined objects'),
        ('Labeled_Tiles', 'one class per chip'),
        ('MultiLabeled_Tiles', 'any number of classes per chip'),
        ('Export_Tiles', 'images without labels'),
        ('Panoptic_Segmentation', 'pixels and outlined objects'),
    ],
)
def test_data_of_another_task_is_refused_before_a_network_is_built(prepare, monkeypatch, tmp_path, kind, held):
    monkeypatch.setattr(network, 'create_backbone', None)
    words = rf'DeepLab needs one class per pixel, but .*{kind} \({kind}\) holds {held}; export Classified_Tiles'
    data = prepare(kind)
    for ignored in ((), [3]):
        with pytest.raises(ChipFolderError, match=words):
            DeepLab(data, ignore_classes=ignored)


def test_a_loaded_model_takes_no_data_of_another_task(prepare, tmp_path):
    path = make(prepare('Classified_Tiles')).save(tmp_path / 'm.dlpk')
    with pytest.raises(BundleError, match='needs one class per pixel, but .*holds pixels and outlined objects'):
        load_model(path, prepare('Panoptic_Segmentation'))


def test_class_balancing_weighs_the_loss_by_rarity(prepare, tmp_path):
    data = prepare('Classified_Tiles', transforms=False)
    plain, balanced = make(data), make(data, class_balancing=True)
    images, masks = next(iter(data.valid_dl))
    with torch.inference_mode():
        logits = plain.network.eval()(images)
    weights = torch.tensor(data.class_weights, dtype=torch.float32)
    assert weights[1:].min() > 5 * weights[0], 'fields are common, houses and ponds are rare'
    for model, used in ((plain, None), (balanced, weights)):
        expected = functional.cross_entropy(logits, masks, used)
        assert float(model.learner.loss_func(logits, masks)) == pytest.approx(float(expected), rel=1e-4)
    balanced.fit(1, lr=1e-3)
    loaded = load_model(balanced.save(tmp_path / 'm.dlpk', compute_metrics=False), data)
    assert loaded.spec.class_balancing
    assert loaded.make_loss().base.class_weights.tolist() == pytest.approx(data.class_weights.tolist())


def test_ignored_classes_have_no_weight(prepare):
    data = prepare('Classified_Tiles', ignore_classes=[0])
    model = make(data, class_balancing=True)
    assert model.make_loss().base.class_weights.shape == (2,)
    assert np.isfinite(data.class_weights).all()


def test_a_class_that_training_chips_lack_breaks_no_loss(prepare):
    ponds = ['000000001', '000000002', '000000004', '000000005']
    data = prepare('Classified_Tiles', split={'valid': ponds}, transforms=False)
    assert data.summary().loc['pond', 'train pixels'] == 0
    model = make(data, class_balancing=True).fit(1, lr=1e-3)
    assert np.isfinite(model.history.epochs[0]['train_loss'])
    assert np.isfinite(model.history.epochs[0]['valid_loss'])


@pytest.mark.parametrize('normalize', ['minmax', 'robust'])
def test_training_works_on_holes_and_dropped_bands(write_export, tmp_path, normalize):
    rng = np.random.default_rng(0)
    images = rng.normal(0.2, 0.05, (6, 3, 32, 32)).astype(np.float32)
    images[:, 1] = 1
    images[:, 0, :5] = np.nan
    labels = [rng.integers(1, 3, (32, 32)).astype(np.uint8) for _ in images]
    bare = {'emd': {'AllTilesStats': None}, 'stats': {'BandStatsState': None}}
    folder = write_export(tmp_path / 'e', list(images), labels, band_names=['Red', 'Green', 'Blue'], **bare)
    model = make(prepare_data(folder, **PLAIN, normalize=normalize)).fit(1, lr=1e-3)
    assert np.isfinite(model.history.epochs[0]['train_loss'])
    assert model.spec.band_indexes == (0, 2)
