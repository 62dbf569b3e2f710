"""Siamese backbones: one encoder for before and after, and a fusion that makes one map of both for each stride."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geolearn.backbones import Backbone, TemporalBackbone
from geolearn.backbones.vit import window_partition, window_unpartition
from geolearn.networks.decoding import decode
from geolearn.networks.segmentation import PixelOptions

Fusion = Literal['difference', 'concat', 'attention']
"""How the maps of two dates become one."""

ATTENTION_STRIDE = 16
"""Finer maps are not attended over: their positions are many, and say little about what a place is."""

REGIONS = (4, 8, 16)
"""Sides of the regions that positions of both dates attend within, in positions of the map."""


class Difference(nn.Module):
    """The absolute difference of the dates (FC-Siam-diff; Daudt et al. 2018, arXiv:1810.08462)."""

    def forward(self, maps: Tensor) -> Tensor:
        """Turn maps (N, 2, C, h, w) into (N, C, h, w)."""
        return (maps[:, 1] - maps[:, 0]).abs()


class Concatenation(nn.Module):
    """The channels of the dates side by side (FC-Siam-conc; Daudt et al. 2018, arXiv:1810.08462)."""

    def forward(self, maps: Tensor) -> Tensor:
        """Turn maps (N, 2, C, h, w) into (N, 2 * C, h, w)."""
        return maps.flatten(1, 2)


class RegionAttention(nn.Module):
    """Every position attends to those of both dates in its square region.

    Args:
        channels: Of one date's map.
        side: Of the regions, in positions; a smaller map is one region.
    """

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.side = side
        width = max(channels // 8, 8)
        self.query, self.key = nn.Linear(channels, width), nn.Linear(channels, width)
        self.value = nn.Linear(channels, channels)

    def forward(self, grid: Tensor) -> Tensor:
        """Turn a grid (N, h, w, 2, C) into one of the same shape."""
        n, h, w, dates, channels = grid.shape
        window = (min(self.side, h), min(self.side, w))
        regions = window_partition(grid.flatten(3), window)
        # len() would write the number of images into an exported graph
        x = regions.reshape(regions.shape[0], -1, channels)
        found = F.scaled_dot_product_attention(self.query(x), self.key(x), self.value(x))
        return window_unpartition(found.reshape(regions.shape), window, (h, w)).reshape(n, h, w, dates, channels)


class AttentionDifference(nn.Module):
    """The difference of the dates after each position has attended to both.

    The pyramid spatial-temporal attention of STANet (Chen & Shi 2020, "A Spatial-Temporal Attention-Based Method and a
    New Dataset for Remote Sensing Image Change Detection", Remote Sensing 12(10), 1662): attention within regions of
    several sizes, joined and added to the map. The regions are of fixed sizes in place of fractions of the image, so
    that memory grows with the image as the map does, and tiles of any size are seen as the training chips were.

    Args:
        channels: Of one date's map.
        sides: Of the regions, in positions.
    """

    def __init__(self, channels: int, sides: Sequence[int] = REGIONS) -> None:
        super().__init__()
        self.regions = nn.ModuleList(RegionAttention(channels, side) for side in sides)
        self.join = nn.Linear(len(sides) * channels, channels)

    def forward(self, maps: Tensor) -> Tensor:
        """Turn maps (N, 2, C, h, w) into (N, C, h, w)."""
        grid = maps.permute(0, 3, 4, 1, 2)
        seen = grid + self.join(torch.cat([regions(grid) for regions in self.regions], dim=-1))
        return (seen[..., 1, :] - seen[..., 0, :]).abs().permute(0, 3, 1, 2)


class SiameseBackbone(TemporalBackbone):
    """A backbone for pairs of images (N, 2, bands, H, W) whose maps show what differs between the two.

    Both dates go through one encoder, one after the other, without seeing each other; weights have the same names as
    for one date.

    Args:
        single: The backbone for one date; it becomes part of this one.
        fusion: ``'difference'``, ``'concat'`` (maps of twice the channels), or ``'attention'``: `AttentionDifference`
            for maps of stride 16 and coarser, the plain difference for finer ones.

    Raises:
        ValueError: If there is no such fusion.
        BackboneError: If the backbone returns tokens.
    """

    def __init__(self, single: Backbone, fusion: Fusion = 'difference') -> None:
        check_fusion(fusion)
        super().__init__(single, 2)
        self.heads = nn.ModuleList(
            _make_head(fusion, channels, stride) for channels, stride in zip(single.channels, single.strides)
        )
        self.channels = tuple(2 * c for c in single.channels) if fusion == 'concat' else single.channels

    def forward(self, x: Tensor) -> list[Tensor]:
        """Compute maps (N, channels[i], ceil(H/s), ceil(W/s)) at the strides s from pairs (N, 2, bands, H, W).

        Raises:
            ValueError: If images are no pairs.
        """
        if x.dim() != 5 or x.shape[1] != 2:
            raise ValueError(f'{self.name} needs pairs of images (N, 2, bands, H, W), got {tuple(x.shape)}')
        maps = self._single(x.flatten(0, 1))
        return [head(found.unflatten(0, (-1, 2))) for head, found in zip(self.heads, maps)]


def check_fusion(fusion: object) -> None:
    """Raise ValueError unless `fusion` is one of `Fusion`."""
    if fusion not in get_args(Fusion):
        raise ValueError(f'fusion must be one of {", ".join(map(repr, get_args(Fusion)))}, got {fusion!r}')


def _make_head(fusion: Fusion, channels: int, stride: int) -> nn.Module:
    if fusion == 'concat':
        return Concatenation()
    return AttentionDifference(channels) if fusion == 'attention' and stride >= ATTENTION_STRIDE else Difference()


@dataclass(frozen=True)
class ChangeOptions:
    """Fusion, decoder and loss of a change detector.

    Args:
        fusion: How the maps of the two dates become one.
        pixels: What it shares with every model of pixels.

    Raises:
        ValueError: If there is no such fusion.
    """

    fusion: Fusion
    pixels: PixelOptions

    def __post_init__(self) -> None:
        check_fusion(self.fusion)

    def to_json(self) -> dict[str, Any]:
        """Return the options as plain JSON."""
        return self.pixels.to_json() | {'fusion': self.fusion}

    @classmethod
    def from_json(cls, row: Mapping[str, Any], *, decoder: str) -> 'ChangeOptions':
        """Read the options that a spec carries.

        Args:
            row: The spec's options.
            decoder: Where the options name none.

        Raises:
            BundleError: If they are not what `to_json` returns.
        """
        fusion: Fusion = decode(Fusion, row.get('fusion', 'difference'), 'fusion')  # type: ignore[arg-type]
        return cls(fusion, PixelOptions.from_json(row, decoder=decoder))
