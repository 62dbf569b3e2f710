"""Blocks, windows and position grids of plain vision transformers."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.vision_transformer import Block as TimmBlock

from geolearn.backbones.vit import (
    Attention,
    Block,
    DropPath,
    choose_window,
    global_blocks,
    resize_position_grid,
    sincos_position_grid,
    window_partition,
    window_unpartition,
    windowed_states,
)
from geolearn.errors import WeightsError

sizes = st.integers(1, 9)


@given(st.integers(1, 3), sizes, sizes, sizes, sizes)
@settings(max_examples=60, deadline=None)
def test_unpartition_undoes_partition(batch, h, w, wh, ww):
    x = torch.arange(batch * h * w * 2.0).reshape(batch, h, w, 2)
    windows = window_partition(x, (wh, ww))
    assert windows.shape[1:] == (wh, ww, 2)
    assert torch.equal(window_unpartition(windows, (wh, ww), (h, w)), x)


def test_padding_lies_right_and_below():
    windows = window_partition(torch.ones(1, 3, 3, 1), (2, 2))[..., 0]
    assert windows.tolist() == [[[1, 1], [1, 1]], [[1, 0], [1, 0]], [[1, 1], [0, 0]], [[1, 0], [0, 0]]]


@pytest.mark.parametrize('settings_', [{}, {'layer_scale': 0.3, 'qkv_bias': False, 'eps': 1e-5}])
def test_block_equals_timms_with_the_same_state_dict(settings_):
    block = Block(48, 3, **settings_)
    peer = TimmBlock(
        48,
        3,
        qkv_bias=settings_.get('qkv_bias', True),
        init_values=settings_.get('layer_scale'),
        norm_layer=partial(torch.nn.LayerNorm, eps=settings_.get('eps', 1e-6)),
    )
    peer.load_state_dict(block.state_dict(), strict=True)
    x = torch.randn(2, 10, 48)
    torch.testing.assert_close(block(x), peer(x), atol=1e-5, rtol=0)


def test_block_over_a_grid_equals_block_over_its_tokens():
    block, x = Block(24, 2), torch.randn(2, 4, 6, 24)
    torch.testing.assert_close(block(x).flatten(1, 2), block(x.flatten(1, 2)))


def test_a_window_of_the_grids_size_is_global_attention():
    block, x = Block(24, 2), torch.randn(2, 4, 6, 24)
    assert torch.equal(block(x, (4, 6)), block(x))


def test_a_window_beyond_the_grid_attends_to_padding_as_in_detectron2():
    block, x = Block(24, 2), torch.randn(1, 4, 4, 24)
    torch.nn.init.normal_(block.attn.qkv.bias)
    assert (block(x, (6, 6)) - block(x)).abs().max() > 1e-3


def test_windowed_block_equals_block_on_each_crop():
    block, x = Block(24, 2), torch.randn(1, 6, 8, 24)
    crop = block(x[:, 3:6, 4:8])
    torch.testing.assert_close(block(x, (3, 4))[:, 3:6, 4:8], crop)


def test_editing_one_window_leaves_the_others_bit_equal():
    block, x = Block(24, 2), torch.randn(1, 8, 8, 24)
    edited = x.clone()
    edited[:, 4:, :4] += 1
    changed = (block(x, (4, 4)) != block(edited, (4, 4))).any(-1)[0]
    assert changed[4:, :4].all()
    assert changed.sum() == 16


def test_zero_relative_positions_equal_none():
    plain, relative = Attention(24, 2), Attention(24, 2, rel_pos=(4, 6))
    relative.load_state_dict(plain.state_dict(), strict=False)
    x = torch.randn(2, 4, 6, 24)
    torch.testing.assert_close(relative(x), plain(x))


@pytest.mark.parametrize('size', [(4, 6), (3, 5)])
def test_relative_positions_match_their_formula(size):
    attention = Attention(8, 2, rel_pos=(4, 6))
    for table in (attention.rel_pos_h, attention.rel_pos_w):
        torch.nn.init.normal_(table)
    h, w = size
    x = torch.randn(1, h, w, 8)
    q, k, v = attention.qkv(x).reshape(h * w, 3, 2, 4).permute(1, 2, 0, 3)
    rows = F.interpolate(attention.rel_pos_h.T[None], size=2 * h - 1, mode='linear')[0].T
    columns = F.interpolate(attention.rel_pos_w.T[None], size=2 * w - 1, mode='linear')[0].T
    logits = q @ k.transpose(1, 2) / 2
    for a in range(h * w):
        for b in range(h * w):
            offset = rows[a // w - b // w + h - 1] + columns[a % w - b % w + w - 1]
            logits[:, a, b] += q[:, a] @ offset
    expected = attention.proj((logits.softmax(-1) @ v).transpose(0, 1).reshape(1, h, w, 8))
    torch.testing.assert_close(attention(x), expected, atol=1e-5, rtol=1e-4)


def test_relative_positions_need_a_grid():
    with pytest.raises(ValueError, match=r'need a grid of tokens \(B, h, w, D\), got shape \(1, 6, 8\)'):
        Attention(8, 2, rel_pos=(2, 3))(torch.randn(1, 6, 8))


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    drop, x = DropPath(0.25), torch.ones(4000, 3)
    y = drop(x)
    assert y.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (y.min(1).values == y.max(1).values).all()
    assert y.mean() == pytest.approx(1, abs=0.05)
    assert drop.eval()(x) is x


@pytest.mark.parametrize(
    ('grid', 'window'),
    [(4, 4), (14, 14), (16, 16), (18, 18), (28, 14), (32, 16), (64, 16), (96, 16), (37, 14), (48, 16)],
)
def test_windows_divide_the_grid_where_they_can(grid, window):
    assert choose_window(grid) == window


@pytest.mark.parametrize(
    ('depth', 'blocks'),
    [
        (12, (2, 5, 8, 11)),
        (24, (5, 11, 17, 23)),
        (32, (7, 15, 23, 31)),
        (4, (0, 1, 2, 3)),
        (2, (0, 1)),
        (6, (1, 2, 4, 5)),
    ],
)
def test_every_fourth_part_of_the_depth_ends_in_a_global_block(depth, blocks):
    assert global_blocks(depth) == blocks


def test_sincos_positions_are_those_of_mae():
    h, w, dim = 3, 5, 16
    omega = 1 / 10000 ** (np.arange(dim // 4) / (dim / 4))
    x, y = np.meshgrid(np.arange(w), np.arange(h))
    halves = [np.concatenate([np.sin(v.reshape(-1, 1) * omega), np.cos(v.reshape(-1, 1) * omega)], 1) for v in (x, y)]
    positions = sincos_position_grid(dim, (h, w))
    assert positions.dtype == torch.float32
    assert (positions[0, 0] == 0).all()
    np.testing.assert_allclose(positions[0, 1:], np.concatenate(halves, 1), atol=1e-6)


def test_resized_positions_match_the_oracle(shared):
    oracle = torch.load(shared / 'oracles' / 'dofa.pt', weights_only=True)
    resized = resize_position_grid(oracle['official']['pos_embed'], (20, 20))
    torch.testing.assert_close(resized, oracle['pos_embed_resized']['bicubic_20'], atol=1e-5, rtol=0)


def test_positions_keep_their_own_grid_and_refuse_other_shapes():
    positions = sincos_position_grid(16, (4, 4))
    assert resize_position_grid(positions, (4, 4)) is positions
    assert resize_position_grid(positions, (3, 7)).shape == (1, 22, 16)
    with pytest.raises(WeightsError, match='no square grid'):
        resize_position_grid(positions, (4, 4), prefix=0)


@pytest.mark.parametrize(('grid', 'window'), [((8, 12), (4, 6)), ((8, 12), (8, 12)), ((8, 12), (3, 5)), ((7, 5), None)])
@pytest.mark.parametrize('rel_pos', [None, (8, 12)])
def test_the_order_in_which_tokens_are_kept_changes_nothing(grid, window, rel_pos):
    torch.manual_seed(0)
    blocks = [Block(24, 3, rel_pos=rel_pos) for _ in range(4)]
    for parameter in (p for block in blocks for p in block.parameters()):
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, *grid, 24)
    expected = x
    for i, block in enumerate(blocks):
        expected = block(expected, None if i in (1, 3) else window)
    (found,) = windowed_states(blocks, x, window=window, global_at=(1, 3), layers=[3])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_stochastic_depth_drops_whole_images_whatever_the_order_of_tokens():
    block = Block(24, 3, drop_path=0.5).train()
    x = torch.randn(64, 4, 4, 24)
    run = partial(windowed_states, [block], x, window=(2, 2), global_at=(), layers=[0])
    changed = (run()[0] != x).flatten(1).any(1).float().mean()
    kept = (run()[0] == x).flatten(1).all(1)
    assert 0 < changed <= 1
    assert kept.any()
