"""Every network becomes one graph by torch.export, which gives the same numbers for batches of any size."""

import io

import numpy as np
import pytest
import torch

from geolearn.bands import get_bands
from geolearn.classes import ClassInfo
from geolearn.models import (
    FCN,
    FPN,
    MUSTER,
    AttentionUNet,
    ChangeDetector,
    DeepLab,
    DeepLabV3,
    FeatureClassifier,
    LinearProbe,
    PixelRegressor,
    PSPNet,
    SegFormer,
    UNet,
    UPerNet,
)
from geolearn.networks.classification import ChipOptions
from geolearn.networks.spec import ModelSpec
from geolearn.normalize import Normalization
from geolearn.statistics import BandStatistics

pytestmark = pytest.mark.usefixtures('one_thread', 'small_dofa')

PIXELS = (DeepLab, DeepLabV3, FCN, FPN, LinearProbe, MUSTER, PSPNet, SegFormer, UNet, UPerNet)
BANDS = get_bands('naip')
# every decoder is exported by itself in tests/decoders; here, what is around it
QUICK = {(DeepLab, 'test_resnet'), (UNet, 'test_resnet'), (DeepLab, 'dofa_tiny'), (LinearProbe, 'dofa_tiny')}
PAIRS = [
    pytest.param(model, backbone, marks=() if (model, backbone) in QUICK else pytest.mark.slow)
    for model in PIXELS
    for backbone in ('test_resnet', 'dofa_tiny', 'regnety_002')
]


def build(model, backbone, *, dates=1, **options):
    torch.manual_seed(0)
    count = len(BANDS)
    spec = ModelSpec(
        model=model.__name__,
        backbone=backbone,
        bands=BANDS,
        class_infos=tuple(ClassInfo(value, str(value), (0, 0, 0)) for value in (1, 2, 3)),
        ignored_values=(),
        chip_size=64,
        statistics=BandStatistics((0,) * count, (255,) * count, (100,) * count, (20,) * count),
        normalization=Normalization((100.0,) * count, (20.0,) * count, 'given'),
        dtype='uint8',
        dates=dates,
        options=options,
    )
    return model.build(spec).eval()


def images(count, *dates):
    """Images of 64 x 96 pixels, of which the first lacks data in some rows."""
    x = 200 * torch.rand(count, *dates, len(BANDS), 64, 96, generator=torch.Generator().manual_seed(count))
    x[0, ..., :5, :] = torch.nan
    return x


@torch.no_grad()
def export(network, x):
    # a batch of one would be taken for a constant
    return torch.export.export(network, (x,), dynamic_shapes=({0: torch.export.Dim('batch', min=1, max=256)},))


@torch.no_grad()
def assert_the_same(network, *dates):
    graph = export(network, images(2, *dates)).module()
    for count in (1, 3):
        x = images(count, *dates)
        assert torch.allclose(graph(x), network(x), atol=1e-4)


@pytest.mark.parametrize(('model', 'backbone'), PAIRS)
def test_every_decoder_on_every_kind_of_backbone_is_exported(model, backbone):
    assert_the_same(build(model, backbone))


@pytest.mark.parametrize('backbone', ['test_resnet', 'dofa_tiny'])
def test_a_classifier_of_chips_is_exported(backbone):
    assert_the_same(build(FeatureClassifier, backbone, **ChipOptions(multi_label=False).to_json()))


def test_other_models_of_pixels_are_exported():
    assert_the_same(build(PixelRegressor, 'test_resnet', target={'mean': 5.0, 'std': 2.0}))
    assert_the_same(build(AttentionUNet, 'dofa_tiny'))


def test_models_of_several_dates_are_exported():
    options = {'fusion': 'attention', 'decoder': 'fpn'}
    assert_the_same(build(ChangeDetector, 'test_resnet', dates=2, **options), 2)
    assert_the_same(build(FCN, 'test_resnet', dates=2), 2)


@pytest.mark.slow
@pytest.mark.parametrize(('model', 'backbone'), [(UNet, 'test_resnet'), (DeepLab, 'dofa_tiny')])
def test_the_graph_runs_as_onnx(model, backbone):
    onnxruntime = pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    network, buffer = build(model, backbone), io.BytesIO()
    torch.onnx.export(export(network, images(2)), (), dynamo=True, verbose=False).save(buffer)
    session = onnxruntime.InferenceSession(buffer.getvalue(), providers=['CPUExecutionProvider'])
    (name,) = (given.name for given in session.get_inputs())
    x = images(3)
    with torch.no_grad():
        assert np.allclose(session.run(None, {name: x.numpy()})[0], network(x), atol=1e-4)
