"""MUSTER: transformer blocks in windows, in which the encoder's maps ask and the decoder's answer."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geolearn.backbones.vit import Mlp, init_linear, window_partition, window_unpartition
from geolearn.decoders.decoder import Decoder, check_whole, register_decoder

_HEAD = 32
"""Channels of an attention head, as in Swin transformers."""


@register_decoder('muster')
class MusterDecoder(Decoder):
    """Multi-scale transformer decoder (Xu et al. 2022, arXiv:2211.13928).

    A stage for each map, the coarsest first, has twice the width of the next. Its blocks attend within windows,
    every second one within shifted windows: queries come from the encoder's map, keys and values from the decoder's.
    Between stages both are joined, mixed and enlarged by pixel shuffle.

    Args:
        channels: Channels of the four maps.
        strides: 4, 8, 16, 32.
        output_count: Outputs per pixel.
        width: Channels at stride 4, a multiple of 32. The paper has 96 or 128, those of its Swin encoders; 192, for
            a ViT of 768, makes over a hundred million parameters.
        depth: Blocks per stage.
        window: Side of the windows, in pixels of the map. Maps of any size are padded to whole windows, and nothing
            attends to the padding.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        output_count: int,
        *,
        width: int = 64,
        depth: int = 2,
        window: int = 12,
    ) -> None:
        super().__init__(channels, strides, output_count)
        width = check_whole('width', width, _HEAD, 1024, step=_HEAD)
        depth, window = check_whole('depth', depth, 1, 24), check_whole('window', window, 2, 64)
        widths = [width * 2**level for level in range(len(channels))]
        self.laterals = nn.ModuleList(nn.Conv2d(c, dim, 1) for c, dim in zip(channels, widths))
        self.stages = nn.ModuleList(_Stage(dim, depth, window) for dim in widths)
        self.fuse = nn.ModuleList(nn.Linear(2 * dim, 2 * dim) for dim in widths)
        self.norm = nn.LayerNorm(2 * width)
        self.classifier = nn.Conv2d(2 * width, output_count, 1)
        self.stages.apply(init_linear)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Compute outputs (N, output_count, H/4, W/4)."""
        skips = [lateral(x).permute(0, 2, 3, 1) for lateral, x in zip(self.laterals, maps)]
        x = skips[-1]
        for level in range(len(skips) - 1, -1, -1):
            x = self.stages[level](x, skips[level])
            x = self.fuse[level](torch.cat([x, skips[level]], dim=-1))
            if level:
                x = F.pixel_shuffle(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
        return self.classifier(F.gelu(self.norm(x)).permute(0, 3, 1, 2))


class _Stage(nn.Module):
    """Blocks of one width; every second has its windows shifted by half."""

    def __init__(self, dim: int, depth: int, window: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_SkipBlock(dim, window, shift=window // 2 * (i % 2)) for i in range(depth))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Transform the decoder's grid (N, h, w, D) beside the encoder's, of the same shape."""
        for block in self.blocks:
            x = block(x, skip)
        return x


class _SkipBlock(nn.Module):
    """A pre-norm block of skip attention and a perceptron."""

    def __init__(self, dim: int, window: int, *, shift: int) -> None:
        super().__init__()
        self.norm_skip, self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = _SkipAttention(dim, window, shift=shift)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Transform the grid `x` (N, h, w, D); the shape is kept."""
        x = x + self.attn(self.norm1(x), self.norm_skip(skip))
        return x + self.mlp(self.norm2(x))


class _SkipAttention(nn.Module):
    """Attention within windows, queries from one grid, keys and values from another, with relative positions."""

    def __init__(self, dim: int, window: int, *, shift: int) -> None:
        super().__init__()
        self.heads, self.window, self.shift = dim // _HEAD, window, shift
        self.query = nn.Linear(dim, dim)
        # a bias of the keys would add the same to every logit of a query, which softmax ignores
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)
        self.positions = nn.Parameter(torch.empty(self.heads, (2 * window - 1) ** 2))
        nn.init.trunc_normal_(self.positions, std=0.02)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Attend from `skip` to `x`, both (N, h, w, D); the shape is kept."""
        h, w = x.shape[1:3]
        # a map that one window covers is one window, no larger than it
        side = min(self.window, max(h, w))
        # windows are shifted by padding in front, not by rolling: what lies far apart then never meets
        front = self.shift if max(h, w) > self.window else 0
        q, k, v = (
            self._split(layer(grid), side, front)
            for layer, grid in ((self.query, skip), (self.key, x), (self.value, x))
        )
        mask = self._position_bias(side)
        if front or h % side or w % side:
            mask = mask + _padding_bias((h, w), side, front, x)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.to(q.dtype))
        windows = y.transpose(2, 3).reshape(-1, side, side, x.shape[-1])
        return self.proj(window_unpartition(windows, (side, side), (h + front, w + front))[:, front:, front:])

    def _split(self, x: Tensor, side: int, front: int) -> Tensor:
        """Cut a grid (N, h, w, D) into windows and heads (N, windows, heads, side * side, D / heads)."""
        windows = window_partition(F.pad(x, (0, 0, front, 0, front, 0)), (side, side))
        return windows.reshape(x.shape[0], -1, side * side, self.heads, _HEAD).transpose(2, 3)

    def _position_bias(self, side: int) -> Tensor:
        """Look up the bias (heads, side * side, side * side) for each pair of places in a window."""
        places = torch.arange(side, device=self.positions.device)
        offset = places[:, None] - places[None, :] + self.window - 1
        rows, columns = offset[:, None, :, None], offset[None, :, None, :]
        index = (rows * (2 * self.window - 1) + columns).reshape(side * side, side * side)
        return self.positions[:, index]


def _padding_bias(grid: tuple[int, int], side: int, front: int, like: Tensor) -> Tensor:
    """Make the bias (windows, 1, 1, side * side) that keeps queries from attending to padding."""
    inside = F.pad(like.new_ones(1, *grid, 1), (0, 0, front, 0, front, 0))
    inside = window_partition(inside, (side, side)).reshape(-1, 1, 1, side * side)
    return torch.zeros_like(inside).masked_fill(inside == 0, float('-inf'))
