"""The simple feature pyramid, against detectron2's numbers."""

import pytest
import torch
from torch import nn

from geolearn.backbones.backbone import LayerNorm2d, SimpleFeaturePyramid
from geolearn.backbones.trunk import ViT, ViTConfig
from geolearn.backbones.vit import windowed_states

NAMES = {
    'simfp_2': ['up1', 'up_norm', 'act', 'up2', 'lateral', 'output'],
    'simfp_3': ['up1', 'lateral', 'output'],
    'simfp_4': ['lateral', 'output'],
    'simfp_5': ['pool', 'lateral', 'output'],
}


def from_detectron2(state):
    """Rename simfp_2.4.norm.weight to levels.0.lateral_norm.weight, and so on."""
    renamed = {}
    for key, value in state.items():
        level, index, *rest = key.split('.')
        name = NAMES[level][int(index)]
        if rest[0] == 'norm':
            name, rest = f'{name}_norm', rest[1:]
        renamed[f'levels.{int(level[-1]) - 2}.{name}.{rest[0]}'] = value
    return renamed


class PatchConv(nn.Module):
    """A plain patch embedding, as in the oracle."""

    def __init__(self):
        super().__init__()
        self.proj = nn.Conv2d(6, 96, 16, stride=16)

    def forward(self, x):
        return self.proj(x)


@pytest.mark.parametrize('name', ['global_256', 'win7_256', 'win8_256x320'])
def test_trunk_and_pyramid_match_detectron2(shared, name):
    case = torch.load(shared / 'oracles' / 'vitdet.pt', weights_only=True)['cases'][name]
    net = {k.removeprefix('net.'): v for k, v in case['state_dict'].items() if k.startswith('net.')}
    simfp = {k: v for k, v in case['state_dict'].items() if not k.startswith('net.')}
    vit = ViT(ViTConfig(96, 4, 3, final_norm=False), PatchConv(), 16)
    vit.load_state_dict({'cls_token': torch.zeros(1, 1, 96), **net})
    pyramid = SimpleFeaturePyramid(96, 64, top=True)
    pyramid.load_state_dict(from_detectron2(simfp))
    window = (case['window'], case['window']) if case['window'] else None
    global_at = [i for i in range(4) if i not in case['window_blocks']]
    with torch.no_grad():
        grid = vit.place(vit.embed(case['x']))
        (last,) = windowed_states(vit.blocks, grid, window=window, global_at=global_at, layers=[3])
        last = last.permute(0, 3, 1, 2)
        maps = pyramid(last)
    torch.testing.assert_close(last, case['last_feat'], atol=1e-4, rtol=0)
    for i, found in enumerate(maps):
        torch.testing.assert_close(found, case[f'p{i + 2}'], atol=1e-4, rtol=0)


def test_p6_is_every_second_pixel_of_p5():
    maps = SimpleFeaturePyramid(16, 8, top=True)(torch.randn(1, 16, 8, 8))
    assert torch.equal(maps[4], maps[3][..., ::2, ::2])


@pytest.mark.parametrize('patch', [8, 16])
def test_strides_are_4_to_32_for_patches_of_8_and_16(patch):
    pyramid = SimpleFeaturePyramid(16, 8, patch)
    maps = pyramid(torch.randn(2, 16, 96 // patch, 160 // patch))
    assert pyramid.strides == (4, 8, 16, 32)
    assert [tuple(m.shape) for m in maps] == [(2, 8, 96 // s, 160 // s) for s in pyramid.strides]


def test_halves_of_odd_grids_round_up():
    assert SimpleFeaturePyramid(16, 8)(torch.randn(1, 16, 5, 7))[3].shape == (1, 8, 3, 4)


def test_patch_14_is_refused():
    with pytest.raises(ValueError, match='resample the patch kernel to 16'):
        SimpleFeaturePyramid(16, patch=14)


def test_layer_norm_works_on_the_channels_of_each_pixel():
    x = torch.randn(2, 8, 3, 5)
    y = LayerNorm2d(8)(x)
    expected = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, unbiased=False) + 1e-6).sqrt()
    torch.testing.assert_close(y, expected)
