"""A U-Net on attention maps: frozen where it should be, the same after saving, over rasters too."""

import pytest
import torch

from geolearn.errors import BackboneError
from geolearn.models import AttentionUNet, load_model


def make(data, **options):
    torch.manual_seed(0)
    return AttentionUNet(data, 'dofa_tiny', pretrained=False, **options)


@pytest.mark.parametrize(('attention', 'inputs'), [('extra', 13), ('only', 3)])
def test_it_learns_around_a_frozen_transformer(scene_data, scene_files, tmp_path, one_thread, attention, inputs):
    model = make(scene_data, attention=attention)
    first = next(m for m in model.network.backbone.encoder.modules() if isinstance(m, torch.nn.Conv2d))
    assert first.in_channels == inputs
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    model.fit(1, lr=1e-3, checkpoint=False)
    changed = {name for name, tensor in model.network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert not {name for name in changed if '.inputs.' in name}
    parameters = {name for name, p in model.network.named_parameters() if p.requires_grad}
    assert parameters <= changed
    again = load_model(model.save(tmp_path / 'm.dlpk', compute_metrics=False))
    images = next(iter(scene_data.valid_dl))[0]
    with torch.inference_mode():
        assert torch.allclose(again.network(images), model.network.eval()(images), atol=1e-4)
    assert again.predict_raster(scene_files[0], tmp_path / 'map.tif', tile_size=64).exists()


def test_the_transformer_is_trained_through_its_attention_where_it_is_not_frozen(scene_data, tmp_path, one_thread):
    model = make(scene_data, freeze=False)
    query = model.network.backbone.trunk.blocks[-1].attn.qkv.weight
    before = query.detach().clone()
    model.fit(1, lr=1e-2, checkpoint=False)
    assert not torch.equal(query, before)
    again = load_model(model.save(tmp_path / 'm.dlpk', compute_metrics=False))
    assert not again.network.backbone.inputs.frozen
    images = next(iter(scene_data.valid_dl))[0]
    with torch.inference_mode():
        assert torch.allclose(again.network.eval()(images), model.network.eval()(images), atol=1e-4)


def test_transformers_of_timm_offer_theirs(scene_data, one_thread):
    """Such as the one that the radar study takes by itself."""
    model = AttentionUNet(scene_data, 'vit_small', pretrained=False)
    assert model.network.backbone.inputs.heads == 6
    images = next(iter(scene_data.valid_dl))[0]
    with torch.inference_mode():
        assert model.network.eval()(images).isfinite().all()


def test_what_offers_no_attention_is_refused(scene_data):
    with pytest.raises(BackboneError, match='resnet18'):
        AttentionUNet(scene_data, 'resnet18', pretrained=False)
    with pytest.raises(ValueError, match="attention must be 'extra' or 'only', got 'some'"):
        make(scene_data, attention='some')
