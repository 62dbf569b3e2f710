"""Skip attention within windows: who sees whom, and that padding is not seen."""

import pytest
import torch

from geolearn.decoders import create_decoder
from geolearn.decoders.muster import _SkipAttention


@pytest.fixture
def attend():
    """Skip attention of 64 channels in windows of 4, shifted or not."""

    def make(shift):
        torch.manual_seed(0)
        return _SkipAttention(64, 4, shift=shift)

    return make


def reached(attention, at, size):
    """Places whose output changes when the decoder's grid changes at one place."""
    x, skip = torch.randn(2, 1, *size, 64)
    changed = x.clone()
    changed[:, at[0], at[1]] += 1
    with torch.no_grad():
        rows, columns = (attention(x, skip) - attention(changed, skip)).abs().amax((0, 3)).gt(1e-6).nonzero().T
    return (rows.min().item(), rows.max().item()), (columns.min().item(), columns.max().item()), len(rows)


@pytest.mark.parametrize(
    ('shift', 'at', 'rows', 'columns'),
    [
        (0, (0, 0), (0, 3), (0, 3)),
        (0, (5, 9), (4, 7), (8, 9)),
        (2, (0, 0), (0, 1), (0, 1)),
        (2, (5, 9), (2, 5), (6, 9)),
        (2, (6, 9), (6, 8), (6, 9)),
    ],
)
def test_a_place_is_seen_from_its_window_alone(attend, shift, at, rows, columns):
    count = (rows[1] - rows[0] + 1) * (columns[1] - columns[0] + 1)
    assert reached(attend(shift), at, (9, 10)) == (rows, columns, count)


@pytest.mark.parametrize('shift', [0, 2])
@pytest.mark.parametrize('size', [(1, 1), (2, 3), (4, 4), (5, 3), (7, 9), (8, 8)])
def test_padding_is_not_seen(attend, shift, size):
    # where every place has the same value, any mean of them is that value
    x, skip = torch.randn(1, 1, 1, 64).expand(1, *size, 64), torch.randn(1, *size, 64)
    with torch.no_grad():
        outputs = attend(shift)(x, skip)
    torch.testing.assert_close(outputs, outputs[:, :1, :1].expand_as(outputs))


def test_a_small_map_is_one_window_with_the_same_relative_positions(attend):
    # the last window of a grid of 7 has 3 x 3 places and padding; a grid of 3 is that window by itself
    attention = attend(0)
    x, skip = torch.randn(2, 1, 7, 7, 64)
    with torch.no_grad():
        alone, among = attention(x[:, 4:, 4:], skip[:, 4:, 4:]), attention(x, skip)[:, 4:, 4:]
    torch.testing.assert_close(alone, among)


def test_queries_come_from_the_skip(attend):
    attention = attend(0)
    x, skip = torch.randn(2, 1, 4, 4, 64, requires_grad=True)
    attention(x, skip.detach()).sum().backward()
    assert attention.query.weight.grad.any()
    with torch.no_grad():
        assert not attention(x, skip).allclose(attention(x, skip + 1))


def test_width_sets_the_size():
    counts = {}
    with torch.device('meta'):
        for width in (64, 96, 192):
            decoder = create_decoder('muster', [768] * 4, (4, 8, 16, 32), 2, options={'width': width})
            counts[width] = sum(p.numel() for p in decoder.parameters())
    assert counts[64] < 12e6
    assert counts[96] < 25e6
    assert 80e6 < counts[192] < 120e6
