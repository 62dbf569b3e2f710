"""Pretraining in the loop of fit: weights that every model takes, exact resume, the alarm of a collapse."""

import json
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from geolearn import UNet, create_backbone, describe_backbone, from_arrays, from_rasters, load_model
from geolearn.backbones import catalog
from geolearn.embed.imagery import embed
from geolearn.errors import (
    ArgumentError,
    BackboneError,
    BandError,
    CheckpointError,
    ChipFolderError,
    FileWriteError,
    UnknownNameError,
    WeightsError,
)
from geolearn.pretrain import DinoOptions, MaeOptions, WindowOptions, pretrain
from geolearn.pretrain.run import _refuse_repeated
from geolearn.pretrain.windows import window_data
from geolearn.synthetic import make_radar_chips, make_radar_scene
from geolearn.training import Callback

pytestmark = pytest.mark.usefixtures('one_thread')

SMALL = DinoOptions(prototypes=32, hidden=32, bottleneck=16, local_crops=1)
SMALL_MAE = MaeOptions(decoder_dim=32, decoder_depth=1, decoder_heads=2)
VV_VH = ['VV', 'VH']


@pytest.fixture(scope='module', autouse=True)
def tiny():
    """Let vit_nano be 32 wide and 2 deep."""
    get_record = catalog.get_record

    def get_tiny(name):
        record = get_record(name)
        return replace(record, dim=32, depth=2, heads=2) if name == 'vit_nano' else record

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalog, 'get_record', get_tiny)
        yield


@pytest.fixture(scope='module')
def scene(tmp_path_factory, save):
    """A raster of linear power, VV and VH, with NoData in a corner."""
    made = make_radar_scene(112, seed=1)
    made.image[:, :48, :48] = 0
    path = tmp_path_factory.mktemp('radar') / 'sar.tif'
    return save(path, made.image, transform=made.transform, crs=made.crs, nodata=0)


@pytest.fixture(scope='module')
def arguments(scene, tmp_path_factory):
    return {
        'images': scene,
        'backbone': 'vit_nano',
        'options': SMALL,
        'bands': VV_VH,
        'chip_size': 16,
        'batch_size': 32,
        'lr': 1e-3,
        'epochs': 3,
        'reading': WindowOptions(scale='db'),
        'working_dir': tmp_path_factory.mktemp('pretrained'),
    }


@pytest.fixture(scope='module')
def result(arguments, one_thread):
    return pretrain(**arguments)


@pytest.fixture(scope='module')
def labelled(scene, save, tmp_path_factory):
    """The scene in decibels, with its labels."""
    made = make_radar_scene(64, seed=2)
    folder = tmp_path_factory.mktemp('labelled')
    image = save(folder / 'db.tif', 10 * np.log10(made.image), transform=made.transform, crs=made.crs)
    labels = save(folder / 'labels.tif', made.label, transform=made.transform, crs=made.crs)
    return lambda **options: from_rasters(
        image, labels, chip_size=16, batch_size=4, split='random', **({'bands': VV_VH} | options)
    )


def test_the_file_describes_itself(result):
    with safe_open(result.weights, framework='pt') as file:
        facts = json.loads(file.metadata()['geolearn_pretrained'])
    assert facts['backbone'] == 'vit_nano'
    assert facts['method'] == 'dino'
    assert facts['units'] == 'dB'
    assert [band['name'] for band in facts['bands']] == VV_VH
    assert -20 < facts['mean'][0] < -5
    assert facts['std'][0] > 1
    assert facts['steps'] == 3 * -(-facts['data']['images'] // 32)
    assert facts['class_token'] is True
    assert facts['measures'].keys() >= {'feature_spread', 'effective_rank', 'information'}
    info = describe_backbone(str(result.weights))
    assert info.bands == ('VV', 'VH')
    assert 'dino' in str(info)
    assert 'mean' in str(info)


def test_rows_hold_the_measures_and_a_figure_shows_them(result):
    assert len(result.history.epochs) == 3
    assert result.collapse == ()
    assert all(row['effective_rank'] > 1.5 for row in result.history.epochs)
    figure = result.plot()
    assert [ax.get_title() for ax in figure.axes[1:]] == [
        'spread of the features',
        'effective rank of the features',
        "information of the teacher's output (nats)",
    ]
    assert 'pretrained by dino on VV, VH' in str(result)


def test_the_weights_are_a_backbone(result):
    net = create_backbone(str(result.weights), VV_VH, form='tokens')
    state = load_file(result.weights)
    assert net.name == 'vit_nano'
    assert net.trunk.class_token_is_trained
    assert all(torch.equal(value, state[name]) for name, value in net.trunk.state_dict().items())
    also = create_backbone('vit_nano', VV_VH, weights=result.weights)
    assert len(also.load_report.matched) == len(state)


def test_other_bands_are_carried_over_or_refused(result):
    kernel = load_file(result.weights)['patch_embed.proj.weight']
    turned = create_backbone(result.weights.as_posix(), VV_VH[::-1]).trunk.patch_embed.proj.weight
    assert torch.equal(turned, kernel.flip(1))
    one = create_backbone(str(result.weights), ['VH'])
    torch.testing.assert_close(one.trunk.patch_embed.proj.weight, kernel[:, 1:] * 2)
    assert 'VH <- VH' in str(one.load_report)
    with pytest.raises(BandError, match=r"trained on radar bands only; found optical: 'red'"):
        create_backbone(str(result.weights), ['VV', 'red'])


def test_a_model_starts_from_the_file_and_its_bundle_needs_it_no_more(result, labelled, tmp_path):
    data = labelled(normalize='pretraining')
    model = UNet(data, backbone=str(result.weights))
    assert model.spec.backbone == 'vit_nano'
    assert model.spec.pretrained
    assert model.spec.normalization.mean == pytest.approx(result.facts.mean)
    state = load_file(result.weights)
    assert torch.equal(model.network.backbone.trunk.blocks[0].attn.qkv.weight, state['blocks.0.attn.qkv.weight'])
    again = load_model(model.save(tmp_path / 'm.dlpk', compute_metrics=False))
    assert again.spec.backbone == 'vit_nano'
    # the bundle of a model is a backbone too
    assert create_backbone(str(tmp_path / 'm.dlpk'), VV_VH).name == 'vit_nano'


def test_images_are_embedded_by_the_file_with_its_statistics(result):
    images, _ = make_radar_chips(1, 16, seed=3)
    decibels = 10 * np.log10(images)
    found = embed(decibels, str(result.weights), bands=VV_VH, pooling='cls')
    net = create_backbone(str(result.weights), VV_VH, form='tokens').eval()
    mean, std = (torch.tensor(row).view(1, -1, 1, 1) for row in (result.facts.mean, result.facts.std))
    with torch.no_grad():
        expected = net((torch.from_numpy(decibels).float() - mean) / std)[:, 0]
    np.testing.assert_allclose(np.asarray(found), expected, atol=1e-4)
    with pytest.raises(BackboneError, match='pretrained on pixels in dB, and these are in linear'):
        embed(images, str(result.weights), bands=VV_VH)


@pytest.mark.parametrize(
    ('options', 'message'),
    [({'pretrained': False}, "pass backbone='vit_nano'"), ({'weights': 'other.safetensors'}, 'leave weights out')],
)
def test_a_file_as_backbone_goes_with_no_other_weights(result, labelled, options, message):
    with pytest.raises(BackboneError, match=message):
        UNet(labelled(), backbone=str(result.weights), **options)


def test_statistics_in_other_units_are_refused(result, scene, labelled, save, tmp_path):
    made = make_radar_scene(64, seed=2)
    save(tmp_path / 'p.tif', made.image, transform=made.transform, crs=made.crs)
    save(tmp_path / 'l.tif', made.label, transform=made.transform, crs=made.crs)
    data = from_rasters(
        tmp_path / 'p.tif', tmp_path / 'l.tif', chip_size=16, bands=VV_VH, split='random', normalize='pretraining'
    )
    with pytest.raises(BackboneError, match='pretrained on pixels in dB, and these are in linear'):
        UNet(data, backbone=str(result.weights))


def test_files_that_do_not_say_whose_they_are_are_refused(tmp_path):
    save_file({'a': torch.zeros(1)}, tmp_path / 'plain.safetensors')
    with pytest.raises(WeightsError, match='does not say which backbone'):
        create_backbone(str(tmp_path / 'plain.safetensors'), VV_VH)
    with pytest.raises(WeightsError, match='there is no file at'):
        create_backbone(str(tmp_path / 'none.safetensors'), VV_VH)
    save_file({'a': torch.zeros(1)}, tmp_path / 'broken.safetensors', metadata={'geolearn_pretrained': '{"format": 1}'})
    with pytest.raises(WeightsError, match='the description in .* is broken'):
        create_backbone(str(tmp_path / 'broken.safetensors'), VV_VH)


class Interrupt(Callback):
    """Stop in the second epoch, as a user does."""

    def after_batch(self):
        if self.epoch == 1:
            raise KeyboardInterrupt


def test_a_run_that_was_stopped_is_resumed_exactly(result, arguments, tmp_path):
    scene = Path(shutil.copy(arguments['images'], tmp_path))
    given = arguments | {'working_dir': tmp_path, 'images': scene}
    with pytest.raises(KeyboardInterrupt):
        pretrain(**given, callbacks=[Interrupt()])
    resumed = pretrain(**given, resume=True)
    ours, theirs = load_file(resumed.weights), load_file(result.weights)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert [row['valid_loss'] for row in resumed.history.epochs] == [r['valid_loss'] for r in result.history.epochs]
    with pytest.raises(CheckpointError, match='what differs: '):
        pretrain(**given | {'options': DinoOptions()}, resume=True)
    with pytest.raises(CheckpointError, match=r'statistics .*normalization .*reading .*"offset": 0.0.*"offset": 3.0'):
        pretrain(**given | {'reading': WindowOptions(scale='db', offset=3.0)}, resume=True)
    with pytest.raises(CheckpointError, match='what differs: normalization'):
        pretrain(**given | {'normalize': 'minmax'}, resume=True)
    os.utime(scene, (0, 0))  # as of another raster of that name
    with pytest.raises(CheckpointError, match='what differs: files'):
        pretrain(**given, resume=True)


def test_weights_of_another_pretraining_are_not_replaced_unasked(result, arguments, labelled, tmp_path):
    before = result.weights.read_bytes()
    with pytest.raises(FileWriteError, match='vit_nano-dino.safetensors exists, from another pretraining.*overwrite'):
        pretrain(**arguments)
    assert result.weights.read_bytes() == before
    given = {'backbone': 'vit_nano', 'method': 'mae', 'epochs': 1, 'working_dir': tmp_path, 'checkpoint': False}
    for overwrite in (False, True):
        pretrain(labelled(), options=SMALL_MAE, overwrite=overwrite, **given)


def test_a_seed_fixes_everything(arguments, tmp_path):
    given = arguments | {'epochs': 1, 'working_dir': tmp_path, 'checkpoint': False}
    first, second, other = (
        load_file(pretrain(**given, seed=seed, name=f'{n}').weights) for n, seed in enumerate((1, 1, 2))
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first['cls_token'], other['cls_token'])


def test_the_alarm_sounds_on_a_run_made_to_collapse(scene, tmp_path, caplog):
    images, labels = make_radar_chips(8, 16, seed=0)
    data = from_arrays(10 * np.log10(images), labels, bands=VV_VH, val_split_pct=0.3, working_dir=tmp_path)
    broken = DinoOptions(
        prototypes=32, hidden=32, bottleneck=16, local_crops=1, centering=False, teacher_temperature=1.0
    )
    common = {'backbone': 'vit_nano', 'batch_size': 32, 'epochs': 6, 'lr': 2e-3, 'checkpoint': False}
    with caplog.at_level(logging.WARNING, 'geolearn'):
        sound = pretrain(data, options=SMALL, name='sound', **common)
    assert sound.collapse == ()
    assert sound.warning == ''
    assert 'collapsed' not in caplog.text
    assert {'knn_accuracy'} <= sound.measures.keys()
    with caplog.at_level(logging.WARNING, 'geolearn'):
        fallen = pretrain(data, options=broken, name='fallen', **common)
    assert fallen.collapse
    assert caplog.text.count('the representations have collapsed') == 1
    assert 'Keep centering on' in fallen.warning
    assert fallen.plot().get_suptitle()


def test_mae_continues_dofa_from_given_weights(arguments, small_dofa, tmp_path):
    first = pretrain(
        **arguments | {'method': 'mae', 'backbone': 'dofa_base', 'options': SMALL_MAE, 'epochs': 1},
        name='one',
    )
    assert first.facts.class_token is False
    assert not first.facts.start
    before = load_file(first.weights)
    again = pretrain(
        **arguments | {'method': 'mae', 'backbone': str(first.weights), 'options': SMALL_MAE, 'epochs': 1, 'lr': 1e-5},
        name='two',
    )
    assert 'one.safetensors' in again.facts.start
    after = load_file(again.weights)
    generator = 'patch_embed.weight_generator.fc_weight.weight'
    assert not torch.equal(before[generator], after[generator])  # the wavelengths' kernels learn
    torch.testing.assert_close(before[generator], after[generator], atol=1e-3, rtol=0)
    # made kernels take bands of any wavelength
    net = create_backbone(str(again.weights), ['VV', 'VH', 'red'])
    assert net.load_report.resized == ()


def test_mae_pretrains_prithvi_on_optical_arrays(use_record, tmp_path):
    use_record(replace(catalog.read_catalog()['prithvi_v2_300M'], dim=48, depth=2, heads=3))
    images = np.random.default_rng(0).integers(0, 3000, (12, 3, 32, 32)).astype(np.uint16)
    data = from_arrays(images, bands=['blue', 'green', 'red'], val_split_pct=0.25, working_dir=tmp_path)
    made = pretrain(data, method='mae', backbone='prithvi_v2_300M', options=SMALL_MAE, epochs=1, batch_size=8)
    assert made.facts.backbone == 'prithvi_v2_300M'
    assert np.isfinite(made.measures['valid_loss'])


def test_a_timm_transformer_leaves_patches_out(result):
    net = create_backbone('timm:test_vit', ['red', 'green', 'blue'], pretrained=False, form='tokens').eval()
    images = torch.randn(2, 3, 32, 32)
    everything = torch.arange(4).expand(2, -1)
    torch.testing.assert_close(net.trunk.visible_tokens(images, everything), net(images))
    assert net.trunk.visible_tokens(images, everything[:, :1]).shape == (2, net.prefix + 1, net.trunk.dim)


@pytest.mark.parametrize(
    ('changes', 'error', 'message'),
    [
        ({'backbone': 'resnet18'}, BackboneError, 'resnet18 is no plain transformer'),
        ({'method': 'mae', 'backbone': 'galileo_nano', 'options': None}, BackboneError, 'cannot leave out patches'),
        ({'bands': ['red', 'green']}, ValueError, "pass bands='sentinel1'"),
        ({'images': []}, ArgumentError, 'empty list'),
        ({'images': np.zeros((8, 2, 16, 16))}, ArgumentError, 'pass from_arrays'),
        ({'chip_size': 300}, ChipFolderError, 'too few|needed are 2'),
    ],
)
def test_what_cannot_be_pretrained_is_refused(arguments, changes, error, message):
    with pytest.raises(error, match=message):
        pretrain(**arguments | changes)


def test_windows_avoid_nodata_and_move_from_epoch_to_epoch(scene, caplog):
    data = window_data(
        [scene], WindowOptions(scale='db'), chip_size=16, bands=VV_VH, extract_bands=None, normalize='dataset',
        val_split_pct=0.1, batch_size=64, seed=0, working_dir=None,
    )  # fmt: skip
    first, second = (torch.cat([images for (images,) in data.train_dl]) for _ in range(2))
    assert 'share ground' not in caplog.text
    assert first.shape == second.shape
    assert not torch.equal(first, second)
    for images in (first, second):
        share = images.isnan().any(1).flatten(1).float().mean(1)
        assert share.mean() < 0.05
        assert share.max() <= 0.5
    assert -40 < float(first.nanmean()) < 0


WINDOWS = {
    'chip_size': 16, 'bands': None, 'extract_bands': None, 'normalize': 'dataset', 'val_split_pct': 0.1,
    'batch_size': 64, 'seed': 0, 'working_dir': None,
}  # fmt: skip


@pytest.mark.parametrize('bands', [None, VV_VH])
def test_bands_in_another_order_are_taken_by_name(save, tmp_path, bands):
    pixels = np.stack([np.full((64, 64), value, np.float32) for value in (1, 100)])
    pixels += np.random.default_rng(0).random(pixels.shape, np.float32)
    first = save(tmp_path / 'a.tif', pixels, names=VV_VH)
    second = save(tmp_path / 'b.tif', pixels[::-1], names=VV_VH[::-1])
    data = window_data([first, second], WindowOptions(), **WINDOWS | {'bands': bands})
    assert [band.name for band in data.bands] == VV_VH
    for (images,) in data.train_dl:
        assert images[:, 0].max() < 3
        assert images[:, 1].min() > 99


def test_rasters_of_other_bands_are_refused(save, tmp_path):
    pixels = np.random.default_rng(0).random((2, 64, 64), np.float32)
    first = save(tmp_path / 'a.tif', pixels, names=VV_VH)
    second = save(tmp_path / 'b.tif', pixels, names=['VV', 'HH'])
    with pytest.raises(
        ChipFolderError, match='b.tif holds the bands VV, HH, but .*a.tif VV, VH; .* bands= with a name'
    ):
        window_data([first, second], WindowOptions(), **WINDOWS)
    window_data([first, second], WindowOptions(), **WINDOWS | {'bands': VV_VH})  # as the message says


def test_bands_choose_the_preset_and_its_size(save, tmp_path):
    pixels = np.random.default_rng(0).random((3, 1000, 500), np.float32)
    raster = save(tmp_path / 'rgb.tif', pixels, names=['red', 'green', 'blue'])
    given = {'method': 'mae', 'backbone': 'vit_nano', 'epochs': 1, 'batch_size': 4, 'checkpoint': False}
    small = {'decoder_dim': 32, 'decoder_depth': 1, 'decoder_heads': 2, 'mask': 0.9}
    made = pretrain(raster, options=small, reading=WindowOptions(windows=3), **given)
    assert made.facts.chip_size == 224
    assert made.facts.options == made.facts.options | small | {'normalize_patches': True, 'gain': 0.0}
    with pytest.raises(UnknownNameError, match='option of mae'):
        pretrain(raster, options={'masks': 0.5}, **given)


def test_the_number_of_windows_is_bounded(scene):
    data = window_data(
        [scene, scene], WindowOptions(windows=20), chip_size=16, bands=None, extract_bands=None, normalize='dataset',
        val_split_pct=0.1, batch_size=64, seed=0, working_dir=None,
    )  # fmt: skip
    assert len(data.train_ds) + len(data.valid_ds) == 20


def test_images_named_twice_are_refused(scene, tmp_path, monkeypatch):
    monkeypatch.chdir(scene.parent)
    for images in ([scene, scene], [scene, scene.name], [[str(scene)], [scene]], [[scene], scene]):
        with pytest.raises(ArgumentError, match=r'images name .*sar\.tif twice, which would count twice; leave one'):
            pretrain(images, backbone='vit_nano', bands=VV_VH, chip_size=32, working_dir=tmp_path)
    asset = {'href': str(scene), 'eo:bands': [{'name': 'VV'}, {'name': 'VH'}]}
    one, other = ({'type': 'Feature', 'id': name, 'properties': {}, 'assets': {'data': asset}} for name in 'ab')
    _refuse_repeated([one, other])
    with pytest.raises(ArgumentError, match='images name a twice'):
        pretrain([one, other, dict(one)], backbone='vit_nano', bands=VV_VH, chip_size=32, working_dir=tmp_path)
    assert not any(tmp_path.iterdir())
