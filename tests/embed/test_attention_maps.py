import numpy as np
import pytest
import rasterio
import torch
from affine import Affine

from geolearn.backbones import create_backbone
from geolearn.bands import get_bands
from geolearn.embed import attention_maps
from geolearn.errors import BackboneError, UnknownNameError
from geolearn.networks.segmentation import AttentionInput

FIXED = ((1500,) * 4, (700,) * 4)
GIVEN = {'backbone': 'dofa_tiny', 'pretrained': False, 'sensor': 'sentinel2_l2a', 'normalize': FIXED}
S2 = {**GIVEN, 'bands': ['B02', 'B03', 'B04', 'B08']}


@pytest.fixture(scope='module')
def transformer():
    """The one that is built from these arguments."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return create_backbone(
            'dofa_tiny', get_bands('sentinel2_l2a', S2['bands']), pretrained=False, form='tokens'
        ).eval()


@torch.inference_mode()
def test_maps_are_the_native_attention_of_the_class_token(scene_pixels, transformer):
    found = attention_maps(scene_pixels, **S2)
    image = torch.from_numpy(((scene_pixels - 1500.0) / 700).astype(np.float32))[None]
    share = transformer.attention_maps(image)[0, :, 0, 1:]
    assert found.values.shape == (len(share), 7, 9)
    expected = (share / share.mean(1, keepdim=True) - 1).unflatten(1, (7, 9))
    assert np.allclose(found, expected, atol=1e-5)
    # the same as models take, before they smooth it
    taken = AttentionInput(transformer, 'only').attention(image)[0]
    assert np.allclose(taken.unflatten(1, (7, 16)).unflatten(3, (9, 16)).mean((2, 4)), found, atol=0.2)


@torch.inference_mode()
def test_rollout_is_the_product_of_the_blocks(scene_pixels, transformer):
    found = attention_maps(scene_pixels, kind='rollout', **S2)
    image = torch.from_numpy(((scene_pixels - 1500.0) / 700).astype(np.float32))[None]
    tokens, rollout = transformer.trunk.first_tokens(image), torch.eye(64)
    for block in transformer.trunk.stages:
        rollout = (block.attn.weights(block.norm1(tokens))[0].mean(0) + torch.eye(64)) / 2 @ rollout
        tokens = block(tokens)
    assert torch.allclose(rollout.sum(1), torch.ones(64), atol=1e-4)
    expected = rollout[0, 1:] / rollout[0, 1:].mean() - 1
    assert np.allclose(found.values.ravel(), expected, atol=1e-4)
    first = attention_maps(scene_pixels, kind='rollout', layer=0, **S2)
    assert not np.allclose(first, found)


def test_maps_of_a_raster_have_its_place(scene, tmp_path, caplog):
    found = attention_maps(scene, context=64, **GIVEN)
    assert 'parts of 64 px' in caplog.text
    assert 'pass context=144' in caplog.text
    caplog.clear()
    attention_maps(scene, context=144, **GIVEN)
    assert not caplog.text
    with rasterio.open(found.to_raster(tmp_path / 'attention.tif')) as src:
        assert src.transform == Affine(160, 0, 500_000, 0, -160, 5_200_000)
        assert src.descriptions[0] == 'attention of head 1'
        assert np.array_equal(src.read(), found)
    assert found.enlarged((112, 140)).shape == (found.values.shape[0], 112, 140)
    assert 'AttentionMaps: heads' in repr(found)


def test_maps_are_drawn_beside_their_image(scene_pixels):
    figure = attention_maps(np.stack([scene_pixels] * 2), names=['a', 'b'], **S2).show(1, image=scene_pixels)
    titles = [ax.get_title() for ax in figure.axes]
    assert titles[:3] == ['image', 'head 1', 'head 2']


def test_what_offers_no_attention_is_refused(scene_pixels):
    with pytest.raises(BackboneError, match='resnet18 offers no attention maps; take a plain transformer'):
        attention_maps(scene_pixels, **{**S2, 'backbone': 'resnet18'})
    with pytest.raises(UnknownNameError, match="unknown kind of attention 'head'; did you mean 'heads'"):
        attention_maps(scene_pixels, kind='head', **S2)
    with pytest.raises(BackboneError, match='layer must be a number'):
        attention_maps(scene_pixels, layer=50, **S2)
