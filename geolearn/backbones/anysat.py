"""AnySat: a transformer over patches, each the summary of its pixels, each pixel the summary of its dates.

Astruc et al. 2024, "AnySat: One Earth Observation Model for Many Resolutions, Scales, and Modalities",
arXiv:2412.14123. L-TAE joins the dates of each pixel and sensor; a first transformer joins the pixels of a patch, a
second one the patches of all sensors, and its last block reads one token for each place from those of all sensors.
Pixels are 10 m wide. Of the published sensors Sentinel-2, Sentinel-1 and Landsat 8 are here; those of 0.2 and 1 m have
cells of 50 and 10 pixels, which maps at strides 4 to 32 cannot have.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geolearn.backbones import backbone, building, catalog, vit
from geolearn.backbones.calendar import review_days
from geolearn.backbones.temporal import embed_days
from geolearn.backbones.trunk import BlockTrunk, ViTConfig, make_blocks
from geolearn.bands import Band
from geolearn.errors import BackboneError, WeightsError

PIXEL_M = 10
"""Side of a pixel on the ground, in meters, as positions within a patch count it."""

HEADS, KEY_DIM = 16, 8
"""Attention heads over the dates, and width of their keys."""

RATIO = 1.9
"""How fast the distances of relative positions grow coarser; one to three places have a row of their own."""

OWN, CLASS, ROWS = 3, 7, 8
"""Rows of the table of relative positions: of the place itself, of the class token, and how many there are."""

DEFAULT_DAY = date(2020, 6, 1)
"""Images of one date need not say when they are from; this day is taken then."""

CHUNK = 4096
"""Pixels that are summarized at once where no gradient is needed."""

QUERIES = 1024
"""Places whose tokens are read at once by the last block."""

PATCHES = (1, 8)
"""Smallest and largest side of the patches, in pixels."""


@dataclass(frozen=True, slots=True)
class Sensor:
    """How the pixels of a sensor are read.

    Args:
        name: In the published weights.
        period: Longest wave of the dates' positions, in days.
        normed: Whether features are normed over the dates before their positions are added.
        dropout: Rate of the layers on pixels.
    """

    name: str
    period: int
    normed: bool
    dropout: float


SENTINEL2 = Sensor('s2', 367, True, 0.0)
SENTINEL1 = Sensor('s1-asc', 367, False, 0.2)
LANDSAT8 = Sensor('l8', 366, False, 0.2)


class PixelSeries(nn.Module):
    """Summarize the dates of pixels: a network on each date, then L-TAE (Garnot & Landrieu 2020, arXiv:2007.00586).

    Args:
        sensor: How.
        bands: Number of bands.
        dim: Width D, a multiple of 32.
    """

    def __init__(self, sensor: Sensor, bands: int, dim: int) -> None:
        super().__init__()
        self.sensor = sensor
        widths = (bands, dim // 8, dim // 2, dim, 2 * dim, dim)
        layers: list[nn.Module] = []
        for wide, narrow in pairwise(widths):
            layers += [nn.Linear(wide, narrow), nn.GroupNorm(4, narrow), nn.ReLU(), nn.Dropout(sensor.dropout)]
        self.inconv = nn.Sequential(*layers)
        self.in_norm = nn.GroupNorm(HEADS, dim) if sensor.normed else nn.Identity()
        self.queries = nn.Parameter(torch.randn(HEADS, KEY_DIM) * math.sqrt(2 / KEY_DIM))
        self.keys = nn.Linear(dim, HEADS * KEY_DIM)
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.GroupNorm(4, dim), nn.ReLU(), nn.Dropout(sensor.dropout))
        self.out_norm = nn.GroupNorm(HEADS, dim)

    def forward(self, series: Tensor, days: Tensor) -> Tensor:
        """Summarize pixels (n, T, bands) of some days of the year (T), counted from 0, as (n, D)."""
        x = self.inconv(series.flatten(0, 1)).unflatten(0, series.shape[:2])
        x = self.in_norm(x.transpose(1, 2)).transpose(1, 2)
        x = x + embed_days(days, x.shape[2] // HEADS, self.sensor.period).repeat(1, HEADS).to(x.dtype)
        logits = (self.keys(x).unflatten(2, (HEADS, KEY_DIM)) * self.queries).sum(dim=3) / math.sqrt(KEY_DIM)
        pooled = torch.einsum('nth,nthc->nhc', logits.softmax(dim=1), x.unflatten(2, (HEADS, -1))).flatten(1)
        return self.out_norm(self.mlp(pooled))


# -- relative positions


def find_rows(queries: Tensor, keys: Tensor) -> Tensor:
    """Return which row of the table of relative positions each pair of places takes.

    Args:
        queries: Row and column of the places that look, (Q, 2); those of the class token are negative.
        keys: Of the places that are looked at, (K, 2).

    Returns:
        (Q, K) int64: `OWN` and up by the distance, `CLASS` where one of both is the class token.
    """
    distance = (queries[:, None] - keys[None]).float().square().sum(dim=2).sqrt().round()
    # published as a piecewise index: rounded up to `RATIO`, then by the logarithm; the last row takes all that is far
    far = (RATIO + torch.log(distance.clamp_min(RATIO) / RATIO) / math.log(8) * RATIO).round().clamp(max=2 * RATIO)
    rows = OWN + torch.where(distance <= RATIO, distance, far).long()
    no_place = (queries < 0).any(dim=1)[:, None] | (keys < 0).any(dim=1)[None]
    return torch.where(no_place, CLASS, rows)


class DistanceTable(nn.Module):
    """What attention adds for the distance of two places: a row of a table times the query.

    As in the published code, the query of the first head serves all heads.

    Args:
        width: Of a head.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lookup_table_weight = nn.Parameter(torch.zeros(1, width, ROWS))
        nn.init.trunc_normal_(self.lookup_table_weight, std=0.02)

    def forward(self, q: Tensor, rows: Tensor) -> Tensor:
        """Compute what is added to the logits of queries (B, heads, Q, d), (B, 1, Q, K) for rows (Q, K)."""
        found = q[:, :1] @ self.lookup_table_weight[0]
        return found.gather(3, rows.expand(len(q), 1, -1, -1))


class DistanceAttention(vit.Attention):
    """Attention within a patch, with what the distance of its pixels adds.

    Args:
        dim: Width D.
        heads: Number of heads.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads)
        self.rpe_k = DistanceTable(dim // heads)

    def attend(self, x: Tensor, rows: Tensor) -> Tensor:
        """Attend over tokens (B, N, D), whose pairs take rows (N, N) of the table."""
        q, k, v = self._split(x)
        bias = self.rpe_k(q * q.shape[3] ** -0.5, rows)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        return self.proj(y.transpose(1, 2).reshape(x.shape))


class PixelBlock(vit.Stage):
    """A block of the transformer over the pixels of a patch.

    Args:
        dim: Width D.
        heads: Number of heads.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = DistanceAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = vit.Mlp(dim, 4 * dim)

    def run(self, x: Tensor, rows: Tensor) -> Tensor:
        """Transform tokens (B, N, D)."""
        x = x + self.attn.attend(self.norm1(x), rows)
        return x + self.mlp(self.norm2(x))


class PatchSummary(nn.Module):
    """Summarize the pixels of a patch in its own class token.

    Args:
        dim: Width D.
        depth: Number of blocks.
        heads: Attention heads.
    """

    def __init__(self, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.predictor_blocks = nn.ModuleList(PixelBlock(dim, heads) for _ in range(depth))
        self.predictor_norm = nn.LayerNorm(dim)

    def forward(self, pixels: Tensor) -> Tensor:
        """Summarize square patches of pixels (n, p * p, D) as (n, D)."""
        n, count, d = pixels.shape
        side = math.isqrt(count)
        places = list_places((side, side), pixels.device)
        x = pixels + embed_places(places * PIXEL_M, d).to(pixels.dtype)
        x = torch.cat([self.cls_token.to(x.dtype).expand(n, -1, -1), x], dim=1)
        places = torch.cat([places.new_full((1, 2), -1), places])
        rows = find_rows(places, places)
        for block in self.predictor_blocks:
            x = block(x, rows)
        return self.predictor_norm(x[:, 0])


class ReadingAttention(nn.Module):
    """Attention of one learned query at each place to the tokens of all sensors.

    Args:
        dim: Width D.
        heads: Number of heads.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.wk, self.wv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.rpe_k = DistanceTable(dim // heads)
        # at first every place reads above all its own tokens, or all maps would be flat
        query = torch.randn(dim // heads)
        self.q_learned = nn.Parameter(query.repeat(heads)[None, None])
        with torch.no_grad():
            self.rpe_k.lookup_table_weight[0, :, OWN] = 2 * KEY_DIM * query / query.square().sum()

    def forward(self, x: Tensor, positions: Tensor, places: Tensor, at: Tensor) -> Tensor:
        """Read tokens.

        Args:
            x: Tokens (B, K, D).
            positions: What is added to the queries, (Q, D).
            places: Row and column of the queries, (Q, 2), as for `find_rows`.
            at: Of the tokens, (K, 2).

        Returns:
            (B, Q, D).
        """
        k, v = (layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.wk, self.wv))
        found = []
        for start in range(0, len(places), QUERIES):
            part = slice(start, start + QUERIES)
            q = (self.q_learned[0] + positions[part]).to(k.dtype).unflatten(1, (self.heads, -1)).transpose(0, 1)[None]
            bias = self.rpe_k(q, find_rows(places[part], at)).to(k.dtype)
            found.append(F.scaled_dot_product_attention(q.expand(len(x), -1, -1, -1), k, v, attn_mask=bias))
        return self.proj(torch.cat(found, dim=2).transpose(1, 2).flatten(2))


class ReadingBlock(vit.Stage):
    """The last block, which reads one token for each place and starts from nothing.

    Args:
        config: Shape of the transformer.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.dim, eps=config.eps)
        self.attn = ReadingAttention(config.dim, config.heads)
        self.norm2 = nn.LayerNorm(config.dim, eps=config.eps)
        self.mlp = vit.Mlp(config.dim, 4 * config.dim)

    def run(self, x: Tensor, positions: Tensor, places: Tensor, at: Tensor) -> Tensor:
        """Read tokens (B, K, D) as (B, Q, D); see `ReadingAttention`."""
        y = self.attn(self.norm1(x), positions, places, at)
        return y + self.mlp(self.norm2(y))


# -- positions


def list_places(grid: vit.Size, device: torch.device) -> Tensor:
    """Return row and column of every place of a grid, row by row, (h * w, 2)."""
    return torch.cartesian_prod(*(torch.arange(n, device=device) for n in grid))


def embed_places(places: Tensor, dim: int) -> Tensor:
    """Embed rows and columns (n, 2) as (n, D) float32: the column, then the row."""
    return vit.embed_numbers(places.float().flip(1), dim // 2).flatten(1)


class AnySat(BlockTrunk):
    """AnySat's encoder for images of any size, of one date (B, bands, H, W) or several (B, T, bands, H, W).

    Dates become one before the first block, so that there is one map, whatever their number. The native form returns
    the class token and the tokens of places, averaged over sensors in all blocks but the last, which joins them itself.

    Args:
        config: Shape of the transformer; its depth counts the last block, and the patches' has one block less.
        sensors: Positions of the bands of each sensor in the image.
        patch: Side of the patches, in pixels of 10 m.
    """

    knows_dates = True
    takes_dates = True
    joins_dates = True
    assumes_june = True
    class_token_is_trained = True

    def __init__(self, config: ViTConfig, sensors: Mapping[Sensor, Sequence[int]], *, patch: int) -> None:
        super().__init__(config, patch, class_token=True)
        assert self.cls_token is not None  # just asked for
        self.sensors = {sensor.name: list(places) for sensor, places in sensors.items()}
        d = config.dim
        self.projectors = nn.ModuleDict({s.name: PixelSeries(s, len(places), d) for s, places in sensors.items()})
        self.spatial_encoder = PatchSummary(d, config.depth - 1, config.heads)
        self.blocks = nn.ModuleList([*make_blocks(replace(config, depth=config.depth - 1)), ReadingBlock(config)])
        self.norm = nn.Identity()
        nn.init.trunc_normal_(self.cls_token, std=0.02)

    def review_dates(self, days: Sequence[date]) -> list[str]:
        """Say what of the dates pretraining never had; their order does not matter, only the days of the year."""
        return review_days(days, ordered=False)

    # -- forms

    def first_tokens(self, x: Tensor) -> Tensor:
        """Return what the first block takes in the native form: tokens (B, 1 + h*w*sensors, D), place by place."""
        return self.add_class_token(self.embed(x).flatten(1, 3))

    def hidden_states(self, x: Tensor) -> list[Tensor]:
        """Run the native form: the output (B, 1 + h*w, D) of every block, averaged over sensors."""
        grid = self.embed(x)
        h, w, count = grid.shape[1:4]
        tokens, states = self.add_class_token(grid.flatten(1, 3)), []
        for block in self.blocks[:-1]:
            tokens = block(tokens)
            places = tokens[:, 1:].unflatten(1, (h * w, count)).mean(dim=2)
            states.append(torch.cat([tokens[:, :1], places], dim=1))
        return [*states, self._read(tokens, (h, w), count)]

    def tokens(self, x: Tensor) -> Tensor:
        """Run the native form: the last block's tokens (B, 1 + h*w, D), the class token first."""
        return self.hidden_states(x)[-1]

    def maps(self, x: Tensor, layers: Sequence[int], window: int | None = None) -> list[Tensor]:
        """Run the windowed form: the outputs of some blocks, averaged over sensors, as maps (B, D, h, w).

        Args:
            x: Images (B, bands, H, W) or (B, T, bands, H, W).
            layers: Blocks, counted from 0.
            window: Side of the windows in places, as for `ViT.maps`; the last block reads the whole image.
        """
        return self.date_maps(x, layers, window, None, flat=True)

    def date_maps(
        self,
        x: Tensor,
        layers: Sequence[int],
        window: int | None,
        acquired: Sequence[date] | None,
        *,
        flat: bool = False,
    ) -> list[Tensor]:
        """Run the windowed form on images (B, T, bands, H, W): maps (B, 1, D, h, w) of all dates together.

        With `flat` they are (B, D, h, w).
        """
        grid = self.embed(x, acquired)
        b, h, w, count, d = grid.shape
        last = self.depth - 1
        size = vit.choose_windows((h, w), window)
        within = [last - 1 if layer == last else layer for layer in layers]
        states = vit.windowed_states(
            self.blocks[:-1],
            grid.reshape(b, h, w * count, d),
            window=None if size is None else (size[0], size[1] * count),
            global_at=self.global_at,
            layers=within,
        )
        found = []
        for layer, state in zip(layers, states):
            if layer == last:
                place = self._read(state.flatten(1, 2), (h, w), count).unflatten(1, (h, w))
            else:
                place = state.unflatten(2, (w, count)).mean(dim=3)
            made = place.permute(0, 3, 1, 2)
            found.append(made if flat else made[:, None])
        return found

    def _read(self, tokens: Tensor, grid: vit.Size, count: int) -> Tensor:
        """Let the last block read tokens (B, K, D), with or without the class token in front: (B, h*w, D), or one more.

        Args:
            tokens: Of the places, row by row, those of the sensors side by side.
            grid: Height and width in places.
            count: Number of sensors.
        """
        places = list_places(grid, tokens.device)
        positions = embed_places(places * self.patch, self.dim)
        at = places.repeat_interleave(count, dim=0)
        if tokens.shape[1] > len(at):
            nowhere = places.new_full((1, 2), -1)
            places, at = torch.cat([nowhere, places]), torch.cat([nowhere, at])
            positions = torch.cat([torch.zeros_like(positions[:1]), positions])
        return self.blocks[-1](tokens, positions, places, at)

    # -- tokens

    def _choose_days(self, x: Tensor, acquired: Sequence[date] | None) -> Tensor:
        count = 1 if x.dim() == 4 else x.shape[1]
        days = tuple(acquired) if acquired is not None else self.acquired
        if len(days) != count:
            if count > 1:
                raise BackboneError(
                    f'AnySat has to know when each of {count} dates was: pass dates=[date(2024, 5, 1), ...]'
                )
            days = (DEFAULT_DAY,)
        return torch.tensor([day.timetuple().tm_yday - 1 for day in days], device=x.device)

    def embed(self, x: Tensor, acquired: Sequence[date] | None = None) -> Tensor:
        """Turn images into the tokens of the second transformer, (B, h, w, sensors, D), with positions.

        Images are padded right and bottom with zeros, the mean of normalized pixels, to whole patches.
        """
        days = self._choose_days(x, acquired)
        frames = vit.pad_to_multiple(x[:, None] if x.dim() == 4 else x, self.patch)
        p = self.patch
        h, w = frames.shape[3] // p, frames.shape[4] // p
        # patch by patch, the series of its pixels
        cut = frames.unflatten(4, (w, p)).unflatten(3, (h, p)).permute(0, 3, 5, 4, 6, 1, 2).flatten(0, 2).flatten(1, 2)
        grids = [
            self._summarize(cut[..., places], self.projectors[name], days).unflatten(0, (len(x), h, w))
            for name, places in self.sensors.items()
        ]
        position = embed_places(list_places((h, w), x.device) * p, self.dim).reshape(h, w, 1, -1)
        return torch.stack(grids, dim=3) + position.to(grids[0].dtype)

    def _summarize(self, patches: Tensor, series: nn.Module, days: Tensor) -> Tensor:
        """Summarize patches (n, p * p, T, bands) as (n, D), some at a time where no gradient is needed."""
        whole = torch.is_grad_enabled() or torch.compiler.is_exporting() or torch.jit.is_tracing()
        step = len(patches) if whole else max(CHUNK // patches.shape[1], 1)
        made = [
            self.spatial_encoder(series(part.flatten(0, 1), days).unflatten(0, part.shape[:2]))
            for part in patches.split(step)
        ]
        return made[0] if len(made) == 1 else torch.cat(made)


# -- weights


def assign_sensors(record: catalog.WeightsRecord, bands: Sequence[Band]) -> dict[Sensor, list[int]]:
    """Sort bands to the sensors that they are read as: radar to Sentinel-1, others to Sentinel-2, or to Landsat.

    Raises:
        BandError: If radar is to be read as Landsat.
    """
    radar = [i for i, band in enumerate(bands) if band.is_radar]
    optical = [i for i in range(len(bands)) if i not in radar]
    if record.name == 'anysat_base_landsat':
        building.require_kinds(record, bands)
        return {LANDSAT8: optical}
    return {sensor: places for sensor, places in ((SENTINEL2, optical), (SENTINEL1, radar)) if places}


def convert_anysat(
    checkpoint: building.Checkpoint,
    record: catalog.WeightsRecord,
    bands: Sequence[Band],
    sensors: Mapping[Sensor, Sequence[int]],
) -> building.Checkpoint:
    """Turn the published file into the state of `AnySat` for some sensors; such a state stays as it is.

    Args:
        checkpoint: With the published names.
        record: The encoder.
        bands: Of the image.
        sensors: Positions of the bands of each sensor.

    Raises:
        WeightsError: If a tensor that is needed is missing.
    """
    if any(name.startswith('projectors.') for name in checkpoint.state):
        return checkpoint
    state = dict(checkpoint.state)
    made: dict[str, Tensor] = {}
    names, notes = {'attention_heads.Q': 'queries'}, []
    names |= {f'attention_heads.fc1_k.{part}': f'keys.{part}' for part in ('weight', 'bias')}
    inputs = {entry.get_bands()[0].is_radar: entry.get_bands() for entry in record.inputs}
    for sensor, places in sensors.items():
        stem, first = f'projector_{sensor.name}.patch_embed.', 'inconv.0.weight'
        own = inputs[sensor is SENTINEL1]
        kernel = _take(state, stem + first)
        if kernel.dim() != 2 or kernel.shape[1] != len(own):
            raise WeightsError(
                f'{stem}{first} has shape {tuple(kernel.shape)}, needed one for {len(own)} bands; take AnySat.pth'
            )
        wanted = [bands[i] for i in places]
        fitted, how = building.adapt_input_kernel(kernel[..., None, None], own, wanted)
        made[f'projectors.{sensor.name}.{first}'] = fitted[..., 0, 0]
        if not how.unchanged:
            notes.append(f'{sensor.name}: {how}')
        for name in [name for name in state if name.startswith(stem)]:
            short = name.removeprefix(stem)
            made[f'projectors.{sensor.name}.{names.get(short, short)}'] = state.pop(name)
    unused = [name for name in state if name.startswith('projector_')]
    return replace(
        checkpoint,
        state=made | {name: value for name, value in state.items() if name not in unused},
        dropped=(*checkpoint.dropped, *unused),
        resized=tuple(f'projectors.{note.partition(":")[0]}.inconv.0.weight' for note in notes),
        source=checkpoint.source + (f' ({"; ".join(notes)})' if notes else ''),
    )


_take: Any = partial(building.take_tensor, family='AnySat', published='AnySat.pth')


@building.register_family('anysat')
def build_anysat(name: str, bands: tuple[Band, ...], options: backbone.BackboneOptions) -> backbone.Backbone:
    """Build AnySat for Sentinel-2 and Sentinel-1, or for Landsat."""
    if options.relative_positions:
        raise BackboneError(f'{name} has relative positions of its own; pass relative_positions=False')
    record = catalog.get_record(name)
    patch = building.choose_patch(record, name, options, limits=PATCHES, of_maps=(1, 2, 4, 8))
    sensors = assign_sensors(record, bands)
    checkpoint = building.read_checkpoint(record, bands, options, own=('projector_',))
    trunk = AnySat(building.make_config(record, options), sensors, patch=patch)
    report = None
    if checkpoint is not None:
        report = building.load_checkpoint(trunk, convert_anysat(checkpoint, record, bands, sensors), options)
    return backbone.finish_backbone(name, trunk, options, load_report=report)
