"""Attention maps as input channels: where they point, their scale, and that nothing of the transformer learns."""

import pytest
import torch

from geolearn.backbones import create_backbone
from geolearn.bands import Band
from geolearn.decoders import create_decoder
from geolearn.errors import BackboneError
from geolearn.networks.segmentation import AttentionInput

BANDS = (Band('red', 0.665, 'red'), Band('nir', 0.842, 'nir'))


@pytest.fixture(scope='module')
def tokens():
    torch.manual_seed(0)
    return create_backbone('dofa_tiny', BANDS, pretrained=False, form='tokens')


@pytest.fixture
def look(tokens, monkeypatch):
    """Let the transformer's attention be this matrix (n, n) in every head."""

    def use(attention):
        heads = AttentionInput(tokens).heads
        monkeypatch.setattr(tokens.trunk, 'attention_maps', lambda x: attention.expand(len(x), heads, -1, -1))

    return use


@pytest.mark.parametrize('size', [(32, 48), (33, 50)])
def test_every_head_is_a_channel(tokens, size):
    x = torch.randn(2, 2, *size)
    extra, only = AttentionInput(tokens), AttentionInput(tokens, 'only')
    assert extra(x).shape == (2, extra.channels(2), *size)
    assert only(x).shape == (2, only.channels(2), *size) == (2, extra.heads, *size)
    assert extra(x)[:, :2].equal(x)
    assert extra(x)[:, 2:].equal(only(x))


def test_equal_attention_is_zero_at_any_size(tokens, look):
    for side in (2, 4):
        look(torch.full((1 + side**2, 1 + side**2), 1 / (1 + side**2)))
        assert AttentionInput(tokens, 'only')(torch.randn(1, 2, 16 * side, 16 * side)).abs().max() < 1e-6


def test_the_class_tokens_gaze_lands_where_it_looks(tokens, look):
    attention = torch.full((13, 13), 1 / 13)
    attention[0] = 0.0
    attention[0, 0], attention[0, 1 + 1 * 4 + 2] = 0.4, 0.6  # itself, and row 1, column 2 of 3 x 4 places
    look(attention)
    maps = AttentionInput(tokens, 'only')(torch.randn(1, 2, 48, 64))
    brightest = (maps[0, 0] == maps[0, 0].max()).nonzero().tolist()
    assert brightest == [[23, 39], [23, 40], [24, 39], [24, 40]]  # the middle of that place
    assert 10 < maps.max() < 11  # twelve equal shares, less the one, half a pixel off the middle
    assert maps[0, :, :8].allclose(torch.tensor(-1.0))


def test_without_a_class_token_all_places_ask(tokens, look, monkeypatch):
    monkeypatch.setattr(type(tokens.trunk), 'prefix', 0)
    look(torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.1, 0.7, 0.1, 0.1], [0.7, 0.1, 0.1, 0.1], [0.7, 0.1, 0.1, 0.1]]))
    maps = AttentionInput(tokens, 'only')(torch.randn(1, 2, 32, 32))
    assert maps[0, 0, 0, 0].item() == pytest.approx(4 * 0.55 - 1)
    assert maps[0, 0, -1, -1].item() == pytest.approx(4 * 0.1 - 1)


def test_a_unet_learns_from_it_and_the_transformer_does_not(tokens):
    attention = AttentionInput(tokens)
    names = (f'attention_{head}' for head in range(attention.heads))
    bands = (*BANDS, *(Band(name, None, name) for name in names))
    encoder = create_backbone('plain_unet', bands, pretrained=False, strides=None)
    assert len(bands) == attention.channels(2)
    decoder = create_decoder('unet', encoder.channels, encoder.strides, 2)
    network = torch.nn.Sequential(attention, encoder, decoder).train()
    assert not any(module.training for module in tokens.modules())
    before = {name: value.clone() for name, value in tokens.state_dict().items()}
    network(torch.randn(2, 2, 32, 32)).square().mean().backward()
    assert all(p.grad is None and not p.requires_grad for p in tokens.parameters())
    assert all(p.grad is not None for part in (encoder, decoder) for p in part.parameters())
    assert all(value.equal(before[name]) for name, value in tokens.state_dict().items())


@pytest.mark.parametrize(('name', 'form'), [('resnet18', 'pyramid'), ('dofa_tiny', 'pyramid')])
def test_a_backbone_without_attention_maps_is_refused(name, form):
    body = create_backbone(name, BANDS, pretrained=False, form=form)
    with pytest.raises(BackboneError, match=f'{name} offers no attention maps here; pass a plain transformer'):
        AttentionInput(body)


def test_the_mode_is_one_of_two(tokens):
    with pytest.raises(ValueError, match="mode must be 'extra' or 'only', got 'none'"):
        AttentionInput(tokens, 'none')


def test_tokens_that_belong_to_no_place_are_refused(tokens, look):
    look(torch.full((7, 7), 1 / 7))
    with pytest.raises(BackboneError, match='has 6 tokens for 2 x 2 places'):
        AttentionInput(tokens)(torch.randn(1, 2, 32, 32))
