"""Presto: a transformer over the months of one pixel, of any of radar, optical bands, weather, terrain and land cover.

Tseng et al. 2023, "Lightweight, Pre-trained Transformers for Remote Sensing Timeseries", arXiv:2304.14065. Every group
of bands (`GROUPS`) has a token at each date; tokens of which a value is missing are not seen, as in pretraining. One
more token says where the pixel lies. The vector of a pixel is the mean of its tokens, normed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geolearn.backbones import backbone, building, catalog, pixel_series, vit
from geolearn.backbones.calendar import MONTHS, Calendar
from geolearn.bands import Band, get_bands, match_bands
from geolearn.errors import BackboneError, BandError, WeightsError

MOST_DATES = 24
MONTH_DIM, CHANNEL_DIM = 32, 32
"""Of a token's width; the position takes the rest."""

GROUPS: dict[str, tuple[Band, ...]] = {
    'S1': get_bands('sentinel1', ['VV', 'VH']),
    'S2_RGB': get_bands('sentinel2_l2a', ['B2', 'B3', 'B4']),
    'S2_Red_Edge': get_bands('sentinel2_l2a', ['B5', 'B6', 'B7']),
    'S2_NIR_10m': get_bands('sentinel2_l2a', ['B8']),
    'S2_NIR_20m': get_bands('sentinel2_l2a', ['B8A']),
    'S2_SWIR': get_bands('sentinel2_l2a', ['B11', 'B12']),
    'ERA5': (Band('temperature_2m'), Band('total_precipitation')),
    'SRTM': (Band('elevation'), Band('slope')),
    'NDVI': (Band('NDVI'),),
    'dynamic_world': (Band('dynamic_world'),),
}
"""Groups of bands that share a token, in the order of the weights' table of channels."""

STATIC, CLASSES = 'SRTM', 'dynamic_world'
"""Has no date: that of the first is taken. Holds classes 0 to 8, which are looked up."""

LAND_COVERS = 9


def assign_groups(bands: Sequence[Band]) -> dict[str, tuple[int, ...]]:
    """Find the positions of the bands of every group in an image.

    Returns:
        For each group that is there, the positions of its bands in their order. NDVI stands for itself, and for
        ``(near infrared, red)`` where these are there and it is not.

    Raises:
        BandError: If a band is of no group, or one of its group is not there.
    """
    own = [(name, band) for name, group in GROUPS.items() for band in group]
    found: dict[str, int] = {}
    for position, band in enumerate(bands):
        try:
            name = own[match_bands([b for _, b in own], [band])[0]][1].name
        except BandError as error:
            raise BandError(
                f'Presto knows no band {band.name!r}; leave it out (it knows {", ".join(b.name for _, b in own)})'
            ) from error
        if name in found:
            raise BandError(f'{band.name!r} and {bands[found[name]].name!r} are both {name} of Presto; leave one out')
        found[name] = position
    groups = {}
    for name, group in GROUPS.items():
        there = [band.name for band in group if band.name in found]
        if there and len(there) < len(group):
            lacking = ', '.join(band.name for band in group if band.name not in found)
            raise BandError(
                f'Presto reads {", ".join(b.name for b in group)} together; add {lacking}, or leave out '
                f'{", ".join(bands[found[n]].name for n in there)}'
            )
        if there:
            groups[name] = tuple(found[band.name] for band in group)
    if 'NDVI' not in groups and {'B8', 'B4'} <= found.keys():
        groups['NDVI'] = (found['B8'], found['B4'])
    return {name: groups[name] for name in GROUPS if name in groups}


class Presto(pixel_series.PixelTrunk):
    """Presto's encoder for some of its groups of bands.

    Args:
        groups: For each group in use, the positions of its bands; two for NDVI say from which bands to compute it.
        dim: Width D.
        depth: Number of blocks.
        heads: Attention heads.
        dates: Most dates, in months, that positions are stored for.
    """

    needs_location = True
    pos_embed: Tensor

    def __init__(
        self, groups: Mapping[str, Sequence[int]], dim: int, depth: int, heads: int, *, dates: int = MOST_DATES
    ) -> None:
        super().__init__()
        self.groups = {name: tuple(at) for name, at in groups.items()}
        self.width = dim
        layers = {name: nn.Linear(len(GROUPS[name]), dim) for name in self.groups if name != CLASSES}
        self.eo_patch_embed = nn.ModuleDict(layers)
        self.dw_embed = nn.Embedding(LAND_COVERS + 1, dim) if CLASSES in self.groups else None
        self.latlon_embed = nn.Linear(3, dim)
        self.register_buffer('pos_embed', _positions(dates, dim - MONTH_DIM - CHANNEL_DIM)[None])
        self.month_embed = nn.Embedding.from_pretrained(_months(MONTH_DIM), freeze=True)
        self.channel_embed = nn.Embedding(len(GROUPS), CHANNEL_DIM)
        self.blocks = nn.ModuleList(vit.Block(dim, heads, eps=1e-5) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-5)
        self.apply(vit.init_linear)

    @property
    def dim(self) -> int:
        """Width D."""
        return self.width

    @property
    def stages(self) -> nn.ModuleList:
        """The blocks in order."""
        return self.blocks

    def like(self, state: Mapping[str, Tensor]) -> 'Presto':
        """Return a network that stores positions for as many months as weights do."""
        dates = state['pos_embed'].shape[1]
        return Presto(self.groups, self.width, len(self.blocks), self.heads, dates=dates)

    def check_calendar(self, calendar: Calendar) -> None:
        """Refuse two dates in a month, and more months than positions are stored for.

        Raises:
            BackboneError: With what it takes.
        """
        steps, most = calendar.steps, self.pos_embed.shape[1]
        if len(set(steps)) < len(steps):
            month = next(calendar.months[i] for i, step in enumerate(steps) if step in steps[:i])
            raise BackboneError(f'Presto takes one date a month, found several in month {month}; take their mean')
        if steps[-1] >= most:
            raise BackboneError(f'Presto takes up to {most} months, these dates span {steps[-1] + 1}; take fewer')

    def encode(self, series: Tensor, calendar: Calendar, location: Tensor | None) -> Tensor:
        """Encode pixels (n, T, bands) as (n, D); see `PixelTrunk.encode`."""
        if location is None:
            raise BackboneError('Presto has to know where pixels lie; pass latitude and longitude in degrees')
        self.check_calendar(calendar)
        tokens, seen = self._tokens(series, calendar, location)
        for block in self.blocks[:-1]:
            tokens = block(tokens, None, seen)
        return self.norm(self._mean_of_last(tokens, seen))

    def _mean_of_last(self, x: Tensor, seen: Tensor | None) -> Tensor:
        """Return the mean (n, D) over the tokens that the last block puts out.

        Its last layer is linear, so that it follows the mean: one product for each pixel instead of each token.
        """
        last: Any = self.blocks[-1]
        x = x + last.attn(last.norm1(x), seen)
        hidden = F.gelu(last.mlp.fc1(last.norm2(x)))
        if seen is None:
            return x.mean(dim=1) + last.mlp.fc2(hidden.mean(dim=1))
        share = (seen / seen.sum(dim=1, keepdim=True)).to(x.dtype)[:, None]
        return ((share @ x) + last.mlp.fc2(share @ hidden))[:, 0]

    def _tokens(self, series: Tensor, calendar: Calendar, location: Tensor) -> tuple[Tensor, Tensor | None]:
        """Make the tokens (n, N, D) of pixels, and which of them have values (n, N); None where all have."""
        n, device = series.shape[0], series.device
        months = self.month_embed.weight[torch.tensor(calendar.months, device=device) - 1]
        positions = self.pos_embed[0, torch.tensor(calendar.steps, device=device)]
        complete = torch.isfinite(series)
        fixed = torch.compiler.is_exporting() or torch.jit.is_tracing()
        some_missing = fixed or not bool(complete.all())
        values = torch.where(complete, series, 0) if some_missing else series
        tokens, seen = [], []
        for number, name in enumerate(GROUPS):
            if name not in self.groups:
                continue
            at = list(self.groups[name])
            part, there = values[:, :, at], complete[:, :, at].all(dim=2)
            if name == STATIC:  # one token: of the first date that holds it
                first = there.int().argmax(dim=1)
                part = part[torch.arange(n, device=device), first][:, None]
                there = there.any(dim=1, keepdim=True)
            if name == CLASSES:  # other codes, such as 9, mean no class
                there = there & (part[..., 0] >= 0) & (part[..., 0] < LAND_COVERS)
                some_missing = True
            token = self._embed(name, part)
            channel = self.channel_embed.weight[number].expand(token.shape[1], -1)
            if name == STATIC:
                encoding = F.pad(channel, (MONTH_DIM, self.width - MONTH_DIM - CHANNEL_DIM))
            else:
                encoding = torch.cat([months, channel, positions], dim=1)
            tokens.append(token + encoding)
            seen.append(there)
        place = self.latlon_embed(_on_the_sphere(location)).to(series.dtype)[:, None]
        tokens.insert(0, place.expand(n, -1, -1))
        if not some_missing:
            return torch.cat(tokens, dim=1), None
        return torch.cat(tokens, dim=1), torch.cat([seen[0].new_ones(n, 1), *seen], dim=1)

    def _embed(self, name: str, part: Tensor) -> Tensor:
        """Embed the values (n, T, bands) of a group as (n, T, D)."""
        if name == CLASSES:
            assert self.dw_embed is not None  # made for this group
            return self.dw_embed(part[..., 0].long().clamp(0, LAND_COVERS))
        if name == 'NDVI' and part.shape[2] == 2:
            total = part[..., :1] + part[..., 1:]
            part = torch.where(total > 0, (part[..., :1] - part[..., 1:]) / total.clamp_min(1e-9), 0)
        return self.eo_patch_embed[name](part)


def _on_the_sphere(location: Tensor) -> Tensor:
    """Turn latitudes and longitudes (n, 2) in degrees into points (n, 3) on the unit sphere."""
    lat, lon = torch.deg2rad(location.float()).unbind(1)
    return torch.stack([lat.cos() * lon.cos(), lat.cos() * lon.sin(), lat.sin()], dim=1)


def _positions(count: int, dim: int) -> Tensor:
    """Embed 0 .. count - 1 as (count, dim): sines at even places, cosines at odd ones, of base 1000."""
    place = np.arange(dim)
    angle = np.arange(count)[:, None] / 1000 ** (2 * (place // 2) / dim)
    return torch.from_numpy(np.where(place % 2 == 0, np.sin(angle), np.cos(angle)).astype(np.float32))


def _months(dim: int) -> Tensor:
    angle = np.repeat(np.arange(MONTHS)[:, None] * (2 * math.pi / MONTHS), dim // 2, axis=1)
    return torch.from_numpy(np.concatenate([np.sin(angle), np.cos(angle)], axis=1).astype(np.float32))


@building.register_family('presto', tokens=False)
def build_presto(name: str, bands: tuple[Band, ...], options: backbone.BackboneOptions) -> backbone.Backbone:
    """Build Presto for the groups that the bands are of."""
    if options.drop_path:
        raise BackboneError(f'{name} drops no paths; pass drop_path=0')
    record, groups = catalog.get_record(name), assign_groups(bands)
    checkpoint = building.read_checkpoint(record, bands, options)
    dates = MOST_DATES
    if checkpoint is not None:
        checkpoint = _choose_groups(checkpoint, groups)
        dates = checkpoint.state['pos_embed'].shape[1]
    trunk = Presto(groups, record.dim, record.depth, record.heads, dates=dates)
    report = None if checkpoint is None else building.load_checkpoint(trunk, checkpoint, options)
    return pixel_series.finish_pixel_backbone(name, trunk, options, load_report=report)


def _choose_groups(checkpoint: building.Checkpoint, groups: Mapping[str, Sequence[int]]) -> building.Checkpoint:
    """Drop the embeddings of groups that no band is of."""
    if 'pos_embed' not in checkpoint.state:
        raise WeightsError(f'weights {checkpoint.source} hold no pos_embed, so they are not those of Presto')
    kept = {f'eo_patch_embed.{name}' if name != CLASSES else 'dw_embed' for name in groups}
    unused = [
        name
        for name in checkpoint.state
        if name.startswith(('eo_patch_embed.', 'dw_embed.')) and name.rpartition('.')[0] not in kept
    ]
    state = {name: value for name, value in checkpoint.state.items() if name not in unused}
    return replace(checkpoint, state=state, dropped=(*checkpoint.dropped, *unused))
