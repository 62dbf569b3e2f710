"""Every family of backbones and every temporal head is trained with a running mean, updates, resuming and saving."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from geolearn.adaptation import Adaptation
from geolearn.backbones import catalog
from geolearn.backbones.catalog import WeightsSource
from geolearn.models import LinearProbe, UNet, load_model
from geolearn.prepare import prepare_data
from geolearn.training import Callback

pytestmark = pytest.mark.usefixtures('one_thread')

BANDS = ['Red', 'Green', 'Blue', 'NIR']
SMALL = {'dim': 48, 'depth': 4, 'heads': 3}
TRANSFORMERS = {
    'dofa_base': SMALL,
    'prithvi_v1_100M': SMALL,
    'prithvi_v2_600M_TL': SMALL,
    'clay_large': SMALL,
    'croma_base': SMALL | {'heads': 4},
    'galileo_nano': {'depth': 4},
    'panopticon': SMALL,
    'scalemae_large': SMALL,
    'spectralgpt': SMALL,
    'ssl4eo_dino': SMALL,
    'terramind_tiny': SMALL,
    'vit_tiny': {'sources': (WeightsSource('timm/test_vit', 'main', ''),)},
}
NETWORKS = {
    'plain_unet': {},
    'satlas_tiny': {'dim': 24, 'depth': 8, 'heads': 3},
    'swin_tiny': {'sources': (WeightsSource('timm/test_convnext', 'main', ''),)},
    'test_resnet': None,
}


@pytest.fixture
def shrink(monkeypatch):
    """Let a backbone of the catalog be small, for building and for loading: `shrink(name)`."""
    get_record = catalog.get_record

    def use(name):
        changes = (TRANSFORMERS | NETWORKS)[name]
        if changes is not None:
            record = replace(get_record(name), **changes)
            monkeypatch.setattr(catalog, 'get_record', lambda asked: record if asked == name else get_record(asked))

    return use


def chips(folder, write_export, save, *, dates=1):
    """Four chips of 32 pixels, at one date or two."""
    rng = np.random.default_rng(0)
    images = [rng.integers(1, 3000, (4, 32, 32)).astype(np.uint16) for _ in range(4)]
    labels = [rng.integers(1, 3, (32, 32)).astype(np.uint8) for _ in range(4)]
    dated = {'geolearn': {'dates': ['2021-05-01', '2021-07-15']}} if dates > 1 else {}
    found = write_export(folder, images, labels, band_names=BANDS, emd=dated)
    if dates > 1:
        (found / 'images2').mkdir()
        for path, image in zip(sorted((found / 'images').iterdir()), images):
            save(found / 'images2' / path.name, image[:, ::-1])
    options = {'chip_size': 32, 'batch_size': 2, 'val_split_pct': 0.5, 'transforms': False}
    return lambda: prepare_data(found, **options, working_dir=folder / 'work')


class Stopped(Exception):
    """The run was interrupted."""


class Stop(Callback):
    """Interrupts the second epoch."""

    def before_batch(self):
        if self.epoch == 1 and self.training:
            raise Stopped('in the second epoch')


def check(make, prepare, path):
    """Train with a running mean, save and load; then interrupt a training and resume it."""
    model = make(prepare()).fit(1, lr=1e-3, ema=True, seed=1, checkpoint=False)
    loaded = load_model(model.save(path, compute_metrics=False))
    images, _ = next(iter(model.data.valid_dl))
    with torch.inference_mode():
        expected = model.network.eval()(images)
        assert expected.isfinite().all()
        torch.testing.assert_close(loaded.network.eval()(images), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(Stopped):
        make(prepare()).fit(2, lr=1e-3, ema=True, seed=1, callbacks=[Stop()])
    resumed = make(prepare()).fit(2, lr=1e-3, ema=True, seed=1, resume=True)
    assert len(resumed.history.epochs) == 2


@pytest.mark.parametrize('name', [*TRANSFORMERS, *NETWORKS])
def test_every_family_is_trained_with_all_that_fit_offers(name, shrink, tmp_path, write_export, save):
    shrink(name)
    plain = name in NETWORKS
    adapt = Adaptation() if plain else Adaptation(lora_rank=2)

    def make(data):
        torch.manual_seed(0)
        cls = UNet if plain else LinearProbe
        return cls(data, name, pretrained=False, adapt=adapt)

    check(make, chips(tmp_path / 'chips', write_export, save), tmp_path / 'm.dlpk')


@pytest.mark.parametrize('temporal', ['mean', 'concat', 'ltae'])
@pytest.mark.parametrize('name', ['dofa_base', 'prithvi_v1_100M', 'test_resnet'])
def test_every_temporal_head_is_trained_with_all_that_fit_offers(name, temporal, shrink, tmp_path, write_export, save):
    shrink(name)

    def make(data):
        torch.manual_seed(0)
        cls, adapt = (UNet, Adaptation()) if name in NETWORKS else (LinearProbe, Adaptation(lora_rank=2))
        return cls(data, name, pretrained=False, temporal=temporal, adapt=adapt)

    check(make, chips(tmp_path / 'chips', write_export, save, dates=2), tmp_path / 'm.dlpk')
