"""What ChangeDetector promises, on backbones of both kinds."""

import dataclasses

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine

from geolearn import Adaptation
from geolearn.bundle import read_bundle
from geolearn.errors import BackboneError, BundleError, ChipFolderError, RasterError, UnknownNameError
from geolearn.models import load_model
from geolearn.models.change_detector import ChangeDetector
from geolearn.models.evaluation.pixels import evaluate_pixels
from geolearn.models.registry import MODELS

pytestmark = pytest.mark.usefixtures('one_thread', 'small_dofa')

BACKBONES = ['dofa_tiny', 'resnet18']
FUSIONS = ['difference', 'concat', 'attention']
PLACE = Affine(10, 0, 500_000, 0, -10, 5_400_000)
NARROW = {'widths': [16, 16, 16, 16, 16]}


def make(data, backbone='test_resnet', *, seed=0, **options):
    torch.manual_seed(seed)
    return ChangeDetector(data, backbone, pretrained=False, **({'decoder_options': NARROW} | options))


# -- training, saving, loading


@pytest.mark.parametrize(
    ('backbone', 'epochs'), [pytest.param('dofa_tiny', 20, marks=pytest.mark.slow), ('test_resnet', 8)]
)
def test_it_learns_a_toy_and_is_the_same_after_saving_and_loading(pairs_folder, prepare, backbone, epochs, tmp_path):
    data = prepare(pairs_folder)
    model = make(data, backbone).fit(epochs, lr=1e-2)
    assert evaluate_pixels(model.network, data.train_dl, data.classes).metrics['miou'] > 0.75
    again = load_model(model.save(tmp_path / 'm.dlpk'))
    assert isinstance(again, ChangeDetector)
    images = next(iter(data.valid_dl))[0]
    with torch.inference_mode():
        assert torch.allclose(model.network.eval()(images), again.network.eval()(images), atol=1e-4)
    assert again.evaluation.metrics['miou'] == pytest.approx(model.mIOU(mean=True))


@pytest.mark.parametrize('backbone', BACKBONES)
@pytest.mark.parametrize('fusion', FUSIONS)
def test_every_parameter_that_should_learn_gets_a_gradient(pairs_folder, prepare, backbone, fusion):
    data = prepare(pairs_folder)
    model = make(data, backbone, fusion=fusion, auxiliary_head=True)
    model.network.train()
    images, masks = next(iter(data.train_dl))
    model.make_loss()(model.network(images), masks).backward()
    without = {name for name, p in model.network.named_parameters() if p.requires_grad and p.grad is None}
    assert not without


@pytest.mark.parametrize('backbone', BACKBONES)
def test_what_is_frozen_stays_as_it_is(pairs_folder, prepare, backbone):
    model = make(prepare(pairs_folder), backbone, adapt=Adaptation(freeze='all'))
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    model.fit(1, lr=1e-2)
    changed = {name for name, tensor in model.network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    assert not {name for name in changed if '.trunk.' in name}


@pytest.mark.parametrize('decoder', ['deeplab', 'fpn', 'upernet', 'segformer', 'linear'])
def test_any_decoder_stands_on_the_fused_maps(pairs_folder, prepare, decoder):
    data = prepare(pairs_folder)
    for fusion in ('concat', 'attention'):
        network = make(data, decoder=decoder, decoder_options={}, fusion=fusion).network.eval()
        with torch.inference_mode():
            assert network(1000 * torch.rand(1, 2, 3, 50, 70)).shape == (1, 2, 50, 70)


def test_a_fusion_is_kept_in_the_bundle(pairs_folder, prepare, tmp_path):
    model = make(prepare(pairs_folder), fusion='attention', decoder='fpn', decoder_options={})
    path = model.save(tmp_path / 'm.dlpk')
    again = load_model(path)
    x = 1000 * torch.rand(1, 2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.allclose(model.network.eval()(x), again.network.eval()(x), atol=1e-5)
    emd = read_bundle(path).emd
    assert emd['ModelType'] == 'ImageClassification'
    assert emd['ExtractBands'] == [0, 1, 2, 3, 4, 5]
    assert emd['attention_type'] == 'PAM'


def test_scores_are_of_the_changes_and_figures_show_both_dates(pairs_folder, prepare):
    model = make(prepare(pairs_folder))
    scores = model.precision_recall_score()
    assert scores.index.tolist() == ['new pond']
    assert scores.columns.tolist() == ['precision', 'recall', 'f1']
    titles = [ax.get_title() for ax in model.show_results(2).axes]
    assert titles[:4] == ['before', 'after', 'truth', 'prediction']


# -- bad input


def test_other_chips_are_refused(scene_data, pairs_folder, prepare):
    with pytest.raises(ChipFolderError, match='ChangeDetector needs pairs of images with what changed between them'):
        make(scene_data)
    with pytest.raises(ValueError, match='batch_size must be at least 2'):
        make(prepare(pairs_folder, batch_size=1)).fit(1, lr=1e-3)


def test_nothing_changed_in_validation_and_pixels_without_data(write_pairs, prepare, tmp_path):
    folder = write_pairs(tmp_path / 'c', 6, nodata_at=[0, 3], changed=lambda index: index < 4)
    data = prepare(folder, split={'valid': ['000000004', '000000005']})
    assert any(torch.isnan(images).any() for images, _ in data.train_dl)
    model = make(data).fit(1, lr=1e-3)
    assert np.isfinite(model.history.epochs[-1]['train_loss'])
    assert np.isnan(model.precision_recall_score().loc['new pond', 'recall'])


@pytest.mark.parametrize(
    ('options', 'error', 'match'),
    [
        ({'fusion': 'sum'}, ValueError, 'fusion must be one of'),
        ({'decoder': 'unett'}, UnknownNameError, "did you mean 'unet'"),
        ({'decoder_options': {'depht': 3}}, UnknownNameError, "option of decoder 'unet'"),
        ({'adapt': Adaptation(lora_rank=2)}, BackboneError, 'no linear layers'),
    ],
)
def test_options_that_make_no_sense_are_refused(pairs_folder, prepare, options, error, match):
    with pytest.raises(error, match=match):
        make(prepare(pairs_folder), **options)


@pytest.mark.parametrize(
    ('changes', 'match'),
    [
        ({'options': {'fusion': ['concat']}}, 'fusion: Expected `str`, got `array`'),
        ({'options': {'fusion': 'concat', 'loss': {'loss': 'rm'}}}, 'the manifest is broken'),
        ({'dates': 3}, 'needs 2 classes or more and 2 dates'),
        ({'class_infos': ()}, 'needs 2 classes or more and 2 dates'),
    ],
)
def test_hostile_manifests_are_refused(pairs_folder, prepare, changes, match):
    model = make(prepare(pairs_folder))
    spec = dataclasses.replace(model.spec, **changes)
    with pytest.raises(BundleError, match=match):
        MODELS['ChangeDetector'].from_spec(spec, model.network.state_dict())


# -- using


@pytest.fixture
def model(pairs_folder, prepare):
    """A detector that calls a pixel changed where its red fell by more than half."""

    class Fell(torch.nn.Module):
        def __init__(self, backbone):
            super().__init__()
            self.context, self.finer = None, 1
            self.backbone, self.weight = backbone, torch.nn.Parameter(torch.zeros(()))

        def forward(self, x):
            change = (x[:, 0, 2] - x[:, 1, 2]) / 500 - 1
            return torch.stack([-change, change], 1).nan_to_num()

    found = make(prepare(pairs_folder))
    found.network = Fell(found.network.backbone)
    return found


def write_dates(save, folder, make_pair, *, after_place=PLACE, crs='EPSG:32633'):
    before, after, change = make_pair(3, 100)
    before[:, :, :20] = 0
    after[:, 90:] = 0
    names = {'names': ['Blue', 'Green', 'Red'], 'nodata': 0}
    first = save(folder / 'before.tif', before, transform=PLACE, crs='EPSG:32633', **names)
    second = save(folder / 'after.tif', after, transform=after_place, crs=crs, **names)
    change[:, :20] = change[90:] = 255
    return first, second, change


def test_a_map_of_two_rasters_is_what_prediction_says_of_them(model, save, make_pair, tmp_path):
    before, after, change = write_dates(save, tmp_path, make_pair)
    found = model.predict(before, after)
    missing = change == 255
    assert (found[~missing] == change[~missing]).all()
    assert (found[missing] != 2).all()
    out = model.predict_raster(before, after, tmp_path / 'map.tif', tile_size=64, halo=8)
    with rasterio.open(out) as src:
        pixels = src.read(1)
        assert src.crs.to_epsg() == 32633
        assert src.transform == PLACE
        nodata = src.nodata
    assert (pixels == found).all()
    assert (pixels[missing] == nodata).all()
    assert (pixels[~missing] == change[~missing]).all()


def test_arrays_are_compared_as_they_are(model, make_pair):
    before, after, change = make_pair(4)
    assert ((model.predict(before, after) == 2) == (change == 2)).all()
    with pytest.raises(RasterError, match='images of all dates must be of one size, got 32x32 and 30x32 pixels'):
        model.predict(before, after[:, :, :30])
    with pytest.raises(ValueError, match='an image must be an array of 3 bands'):
        model.predict(before[:2], after)


@pytest.mark.parametrize(
    ('place', 'crs', 'match'),
    [
        (Affine(10, 0, 500_005, 0, -10, 5_400_000), 'EPSG:32633', r'0\.50 pixels'),
        (PLACE, 'EPSG:32634', 'different CRSs'),
    ],
)
def test_rasters_that_do_not_lie_on_each_other_are_refused(model, save, make_pair, tmp_path, place, crs, match):
    before, after, _ = write_dates(save, tmp_path, make_pair, after_place=place, crs=crs)
    for use in (model.predict, lambda *dates: model.predict_raster(*dates, tmp_path / 'map.tif')):
        with pytest.raises(RasterError, match=match):
            use(before, after)
    assert not (tmp_path / 'map.tif').exists()


def test_a_shift_of_less_than_a_tenth_of_a_pixel_is_none(model, save, make_pair, tmp_path):
    place = Affine(10, 0, 500_000.5, 0, -10, 5_400_000)
    before, after, _ = write_dates(save, tmp_path, make_pair, after_place=place)
    assert model.predict(before, after).shape == (100, 100)
