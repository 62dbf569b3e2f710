"""Backbones of several dates: one encoder for all of them, and a head that makes one map of the dates' maps."""

import logging
import math
from collections.abc import Sequence
from datetime import date
from functools import cache
from typing import get_args

import torch
from torch import Tensor, nn

from geolearn.adaptation import Temporal, is_whole
from geolearn.backbones import backbone, trunk
from geolearn.backbones.calendar import review_days
from geolearn.errors import BackboneError

log = logging.getLogger('geolearn')

MAX_HEADS = 16
KEY_DIM = 8
PERIOD = 1000
"""Heads, width of their keys and longest wave of the positions in days, all as published for L-TAE."""


class MeanOfDates(nn.Module):
    """The mean over the dates, whatever their order."""

    def forward(self, maps: Tensor) -> Tensor:
        """Turn maps (N, T, C, h, w) into (N, C, h, w)."""
        return maps.mean(dim=1)


class ConcatDates(nn.Module):
    """A projection of the dates' channels, side by side, to as many as one date has; it starts as the mean.

    Args:
        channels: Of one date's map.
        dates: Number of dates T.
    """

    def __init__(self, channels: int, dates: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(dates * channels, channels, 1)
        with torch.no_grad():
            self.proj.weight.copy_(torch.eye(channels).repeat(1, dates)[:, :, None, None] / dates)
            assert self.proj.bias is not None  # asked for
            self.proj.bias.zero_()

    def forward(self, maps: Tensor) -> Tensor:
        """Turn maps (N, T, C, h, w) into (N, C, h, w)."""
        return self.proj(maps.flatten(1, 2))


class LightTemporalAttention(nn.Module):
    """L-TAE: at each pixel, every head weighs the dates and takes its own group of channels from them.

    Garnot & Landrieu 2020, "Lightweight Temporal Self-Attention for Classifying Satellite Image Time Series",
    arXiv:2007.00586. Queries are learned and the same for all pixels, keys come from one projection shared by the
    heads, and values are the channels as they are. Layer norms stand where the authors have batch norms, which need
    larger batches than maps allow.

    Args:
        channels: Of one date's map; there are as many heads, up to 16, as divide them.
        days: Position of each date, (T) float32.
    """

    positions: Tensor

    def __init__(self, channels: int, days: Tensor) -> None:
        super().__init__()
        self.heads = math.gcd(channels, MAX_HEADS)
        self.register_buffer(
            'positions', embed_days(days, channels // self.heads).repeat(1, self.heads), persistent=False
        )
        self.norm = nn.LayerNorm(channels)
        self.queries = nn.Parameter(torch.randn(self.heads, KEY_DIM) * math.sqrt(2 / KEY_DIM))
        self.keys = nn.Linear(channels, self.heads * KEY_DIM)
        self.mlp = nn.Sequential(nn.Linear(channels, channels), nn.LayerNorm(channels), nn.ReLU())
        self.out = nn.LayerNorm(channels)

    def set_days(self, days: Tensor) -> None:
        """Move the dates to other days, (T) float32."""
        width = self.positions.shape[1] // self.heads
        self.positions = embed_days(days.to(self.positions.device), width).repeat(1, self.heads)

    def forward(self, maps: Tensor) -> Tensor:
        """Turn maps (N, T, C, h, w) into (N, C, h, w)."""
        x = self.norm(maps.permute(0, 3, 4, 1, 2)) + self.positions.to(maps.dtype)
        values = x.unflatten(-1, (self.heads, -1))
        pooled = torch.einsum('nhwtk,nhwtkc->nhwkc', self._weigh(x), values).flatten(-2)
        return self.out(self.mlp(pooled)).permute(0, 3, 1, 2)

    def attention(self, maps: Tensor) -> Tensor:
        """Return the attention of each head to each date: (N, h, w, T, heads), summing to 1 over the dates."""
        return self._weigh(self.norm(maps.permute(0, 3, 4, 1, 2)) + self.positions.to(maps.dtype))

    def _weigh(self, x: Tensor) -> Tensor:
        keys = self.keys(x).unflatten(-1, (self.heads, KEY_DIM))
        return ((keys * self.queries).sum(dim=-1) / math.sqrt(KEY_DIM)).softmax(dim=-2)


def embed_days(days: Tensor, dim: int, period: int = PERIOD) -> Tensor:
    """Embed days (T) as (T, dim) float32: sines at even places, cosines at odd ones; waves grow to `period`."""
    place = torch.arange(dim, device=days.device)
    angle = days.float()[:, None] / period ** (2 * (place // 2) / dim)
    return torch.where(place % 2 == 0, angle.sin(), angle.cos())


class TemporalBackbone(backbone.Backbone):
    """A backbone for images of several dates (N, T, bands, H, W) whose maps are like those of one date.

    Prithvi and OlmoEarth see the dates together, as the frames they were trained on, and with their days if the weights
    know those; AnySat joins them itself; any other encoder sees one date after the other. The dates' maps then become
    one, by a head for each stride.
    Weights have the same names as for one date.

    Args:
        single: The backbone for one date; it becomes part of this one.
        dates: Number of dates T, or when each was taken.
        temporal: The heads: ``'mean'``, ``'concat'`` (`ConcatDates`) or ``'ltae'`` (`LightTemporalAttention`).

    Raises:
        ValueError: If there is no date, or no such head.
        BackboneError: If the backbone returns tokens.
    """

    def __init__(self, single: backbone.Backbone, dates: int | Sequence[date], temporal: Temporal = 'mean') -> None:
        count = count_dates(dates)
        if temporal not in get_args(Temporal):
            raise ValueError(f'temporal must be one of {", ".join(map(repr, get_args(Temporal)))}, got {temporal!r}')
        if isinstance(single, backbone.TokenBackbone):
            raise BackboneError(f"{single.name} of several dates makes maps; pass form='pyramid' or form='layers'")
        joined = isinstance(single.trunk, trunk.Trunk) and single.trunk.joins_dates
        if joined and temporal != 'mean':
            raise BackboneError(f'{single.name} joins the dates itself; leave temporal out, got {temporal!r}')
        super().__init__(
            single.name,
            single.trunk,
            channels=single.channels,
            strides=single.strides,
            load_report=single.load_report,
        )
        for name, part in single.named_children():
            self.add_module(name, part)
        # its parts are registered above under the names that they have for one date; as a part itself it would give
        # every weight a second name
        object.__setattr__(self, '_single', single)
        self.has_position_grid = single.has_position_grid
        self.dates, self.temporal = count, temporal
        self.acquired = None if isinstance(dates, int) else tuple(dates)
        self._review_dates()
        self._mapped = 1 if joined else count
        days = torch.arange(count) if self.acquired is None else days_of(self.acquired)
        self.heads = nn.ModuleList(_make_head(temporal, channels, days) for channels in single.channels)

    _single: backbone.Backbone

    @property
    def reads_dates(self) -> bool:
        """Whether what it computes depends on when images were taken."""
        trunk_reads = isinstance(self.trunk, trunk.Trunk) and self.trunk.reads_dates
        return self.acquired is not None and (trunk_reads or self.temporal == 'ltae')

    def set_dates(self, dates: Sequence[date]) -> None:
        """Say when images were taken, instead of what it was built with.

        Raises:
            ValueError: If there is another number of dates.
        """
        if count_dates(dates) != self.dates:
            raise ValueError(f'{self.name} takes {self.dates} dates, got {len(dates)}')
        self.acquired = tuple(dates)
        self._review_dates()
        days = days_of(self.acquired)
        for head in self.heads:
            if isinstance(head, LightTemporalAttention):
                head.set_days(days)

    def _review_dates(self) -> None:
        days = self.acquired or ()
        known = self.trunk if isinstance(self.trunk, trunk.Trunk) else None
        for note in review_days(days, ordered=False) if known is None else known.review_dates(days):
            _warn_of_dates(self.name, note)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Compute maps (N, channels[i], ceil(H/s), ceil(W/s)) at the strides s from images (N, T, bands, H, W).

        Raises:
            ValueError: If images have another number of dates.
        """
        if x.dim() != 5 or x.shape[1] != self.dates:
            raise ValueError(f'{self.name} needs images (N, {self.dates}, bands, H, W), got {tuple(x.shape)}')
        takes_dates = isinstance(self.trunk, trunk.Trunk) and self.trunk.takes_dates
        maps = self._encode_dates(x) if takes_dates else self._single(x.flatten(0, 1))
        return [head(found.unflatten(0, (-1, self._mapped))) for head, found in zip(self.heads, maps)]

    def _encode_dates(self, x: Tensor) -> list[Tensor]:
        """Return maps (N * T, channels[i], h, w), every date having seen the others; T is 1 where they are joined."""
        single = self._single
        assert isinstance(single, backbone.MapBackbone)  # the forms of a transformer's maps
        dated = single.trunk.date_maps(x, single.layers, single.window, self.acquired)
        return single.finish([found.flatten(0, 1) for found in dated], x)


@cache
def _warn_of_dates(name: str, note: str) -> None:
    log.warning('%s of several dates: %s', name, note)


def count_dates(dates: object) -> int:
    """Return how many dates a number or a list of dates stands for.

    Raises:
        ValueError: If it is neither, or stands for none.
    """
    if is_whole(dates) and isinstance(dates, int) and dates >= 1:
        return dates
    if isinstance(dates, Sequence) and dates and all(isinstance(day, date) for day in dates):
        return len(dates)
    raise ValueError(f'dates must be a number of at least 1, or a list of as many dates, got {dates!r}')


def days_of(acquired: Sequence[date]) -> Tensor:
    """Return the day of the year of each date, (T) float32, counted on from the year of the earliest."""
    start = date(min(acquired).year, 1, 1).toordinal() - 1
    return torch.tensor([day.toordinal() - start for day in acquired], dtype=torch.float32)


def _make_head(temporal: Temporal, channels: int, days: Tensor) -> nn.Module:
    if temporal == 'mean':
        return MeanOfDates()
    return ConcatDates(channels, len(days)) if temporal == 'concat' else LightTemporalAttention(channels, days)
