"""TESSERA v1, v1.1 and the students of v2: transformers over the days of one pixel, of Sentinel-2 and Sentinel-1.

Feng et al. 2025, "TESSERA: Temporal Embeddings of Surface Spectra for Earth Representation and Analysis",
arXiv:2506.20380. Each sensor has an encoder of its own over the dates on which the pixel has data; what they say is
joined by a reducer. v1 pools dates with a GRU, v1.1 with a GRU of its own kind, v2 without.

v1 was trained on 40 dates of each sensor, drawn at random; here 40 evenly spaced ones are taken, so that a pixel has
one vector. v1.1 and v2 take all dates with data, brought to the next multiple of 8 as their authors do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geolearn.backbones import backbone, building, catalog, pixel_series
from geolearn.backbones.calendar import Calendar
from geolearn.bands import Band, match_bands
from geolearn.errors import BackboneError, BandError, WeightsError

DRAWN = 40
"""Dates of a sensor that v1 takes."""

STEP, MOST = 8, 256
"""Numbers of dates that v1.1 and v2 take are multiples of the first, up to the second."""

USED = 128
"""Numbers of a vector that are in use, of the 192 that v1.1 puts out."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a network.

    Args:
        dim: Width of the encoders.
        depth: Layers of each.
        heads: Attention heads.
        hidden: Width of the perceptrons.
        out: Numbers of a vector.
        norm_keys: Whether queries and keys are normed (some students of v2).
    """

    dim: int
    depth: int
    heads: int
    hidden: int
    out: int = 128
    norm_keys: bool = False


SHAPES = {
    '1': Shape(512, 8, 8, 4096),
    '1.1': Shape(768, 4, 4, 2048, out=192),
    '2': Shape(256, 4, 4, 1024),
}
"""Published; of v2 that of the small student, others are read from their files."""


class NormedLayer(nn.Module):
    """A layer as `torch.nn.TransformerEncoderLayer` has it, post-norm with ReLU, whose queries and keys are normed."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        d = shape.dim
        self.heads = shape.heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(d, d) for _ in range(4))
        self.q_norm, self.k_norm = (nn.RMSNorm(d // shape.heads, eps=torch.finfo(torch.float32).eps) for _ in range(2))
        self.linear1, self.linear2 = nn.Linear(d, shape.hidden), nn.Linear(shape.hidden, d)
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)

    def forward(self, x: Tensor) -> Tensor:
        """Transform tokens (n, T, d)."""
        q, k, v = (
            layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        y = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        x = self.norm1(x + self.out_proj(y.transpose(1, 2).flatten(2)))
        return self.norm2(x + self.linear2(F.relu(self.linear1(x))))


class GatedCell(nn.Module):
    """The recurrent cell of v1.1, whose reset comes before the product, and whose update is the share of the new."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        for name in ('W_ir', 'W_iz', 'W_ih', 'W_hr', 'W_hz', 'W_hh'):
            self.add_module(name, nn.Linear(dim, dim, bias=False))
        self.b_r, self.b_z, self.b_h = (nn.Parameter(torch.zeros(dim)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """Run over tokens (n, T, d), and return the states (n, T, d)."""
        own: Any = self
        inputs = [own.W_ir(x) + self.b_r, own.W_iz(x) + self.b_z, own.W_ih(x) + self.b_h]
        state, states = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            reset = torch.sigmoid(inputs[0][:, t] + own.W_hr(state))
            update = torch.sigmoid(inputs[1][:, t] + own.W_hz(state))
            state = (1 - update) * state + update * torch.tanh(inputs[2][:, t] + own.W_hh(reset * state))
            states.append(state)
        return torch.stack(states, dim=1)


class Pool(nn.Module):
    """The mean of dates, weighed by what stands before, in v1 and v1.1 with what came earlier.

    Args:
        version: ``'1'``, ``'1.1'`` or ``'2'``.
        dim: Width.
    """

    def __init__(self, version: str, dim: int) -> None:
        super().__init__()
        self.version = version
        self.query = nn.Linear(dim, 1)
        self.temporal_context: nn.Module | None = None
        self.layer_norm: nn.Module | None = None
        if version == '1':
            self.temporal_context = nn.GRU(dim, dim, batch_first=True)
        elif version == '1.1':
            self.temporal_context = nn.ModuleDict({'gru_cell': GatedCell(dim)})
            self.layer_norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Pool tokens (n, T, d) to (n, d)."""
        if x.shape[1] == 1 and self.version != '1':
            return x[:, 0]
        context = x
        if isinstance(self.temporal_context, nn.GRU):
            context = self.temporal_context(x)[0]
        elif isinstance(self.temporal_context, nn.ModuleDict) and self.layer_norm is not None:
            context = self.layer_norm(self.temporal_context['gru_cell'](x))
        return (self.query(context).softmax(dim=1) * x).sum(dim=1)


class SensorEncoder(nn.Module):
    """The encoder of one sensor.

    Args:
        version: Of TESSERA.
        shape: Of the network.
        bands: Of the sensor.
    """

    def __init__(self, version: str, shape: Shape, bands: int) -> None:
        super().__init__()
        d = shape.dim
        self.embedding = nn.Sequential(nn.Linear(bands, d), nn.ReLU(), nn.Linear(d, d))
        self.transformer_encoder: nn.Module
        if shape.norm_keys:
            self.transformer_encoder = nn.Sequential(*(NormedLayer(shape) for _ in range(shape.depth)))
        else:
            layer = nn.TransformerEncoderLayer(d, shape.heads, shape.hidden, dropout=0.0, batch_first=True)
            self.transformer_encoder = nn.TransformerEncoder(layer, shape.depth, enable_nested_tensor=False)
        self.attn_pool = Pool(version, d)

    @property
    def layers(self) -> list[nn.Module]:
        """The layers in order."""
        encoder = self.transformer_encoder
        return list(encoder.layers if isinstance(encoder, nn.TransformerEncoder) else encoder.children())

    def forward(self, x: Tensor, days: Tensor) -> Tensor:
        """Encode standardized bands (n, T, bands) of days of the year (n, T), 1 to 366, as (n, d)."""
        tokens = self.embedding(x)
        return self.attn_pool(self.transformer_encoder(tokens + embed_days(days, tokens.shape[2]).to(tokens.dtype)))


def embed_days(days: Tensor, dim: int) -> Tensor:
    """Embed days of the year (n, T) as (n, T, dim): sines at even places, cosines at odd ones."""
    frequency = 10000 ** (-torch.arange(0, dim, 2, device=days.device) / dim)
    angle = days.float()[..., None] * frequency
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2)


@dataclass(frozen=True, slots=True)
class SensorBands:
    """Where the bands of a sensor are in an image.

    Args:
        at: Positions, in the order of the weights.
        scale: Of each band, by which radar of another orbit is brought to the statistics of its own.
        shift: Of each band, added after that.
    """

    at: tuple[int, ...]
    scale: tuple[float, ...]
    shift: tuple[float, ...]


class Tessera(pixel_series.PixelTrunk):
    """TESSERA over the dates of pixels: those of a sensor on which a value is missing are left out.

    Args:
        version: ``'1'``, ``'1.1'`` or ``'2'``.
        shape: Of the network.
        optical: Where Sentinel-2's bands are; None where there are none.
        radar: Where the bands of Sentinel-1 are, once for each orbit.
    """

    def __init__(self, version: str, shape: Shape, optical: SensorBands | None, radar: Sequence[SensorBands]) -> None:
        super().__init__()
        self.version, self.shape, self.optical, self.radar = version, shape, optical, tuple(radar)
        self.s2_backbone = SensorEncoder(version, shape, 10)
        self.s1_backbone = SensorEncoder(version, shape, 2)
        joined, out = 2 * shape.dim, shape.out
        self.dim_reducer: nn.Sequential
        if version == '1':
            self.dim_reducer = nn.Sequential(nn.Linear(joined, out))
        else:
            wide = 2 * joined
            self.dim_reducer = nn.Sequential(
                nn.Linear(joined, wide), nn.LayerNorm(wide), nn.ReLU(), nn.Identity(), nn.Linear(wide, out)
            )

    @property
    def dim(self) -> int:
        """Numbers of a vector."""
        return min(self.shape.out, USED)

    @property
    def stages(self) -> nn.ModuleList:
        """The layers of both encoders, side by side."""
        pairs = zip(self.s2_backbone.layers, self.s1_backbone.layers)
        return nn.ModuleList(nn.ModuleList(pair) for pair in pairs)

    def like(self, state: Mapping[str, Tensor]) -> 'Tessera':
        """Return a network of the shape that weights have."""
        return Tessera(self.version, shape_of(state, self.shape.heads), self.optical, self.radar)

    def check_calendar(self, calendar: Calendar) -> None:
        """Refuse calendars of months alone: the day of the year is needed.

        Raises:
            BackboneError: If only months are known.
        """
        if not calendar.days:
            raise BackboneError('TESSERA takes the day of the year, found only months; pass dates')

    def encode(self, series: Tensor, calendar: Calendar, location: Tensor | None) -> Tensor:
        """Encode pixels (n, T, bands) as (n, D); see `PixelTrunk.encode`."""
        self.check_calendar(calendar)
        days = [float(day.timetuple().tm_yday) for day in calendar.days]
        day = torch.tensor(days, device=series.device)
        optical = [] if self.optical is None else [self._take(series, day, self.optical)]
        radar = [self._take(series, day, one) for one in self.radar]
        nothing = series[:, :0]
        return self.join(
            self._encode(self.s2_backbone, optical or [(nothing[..., :1].expand(-1, -1, 10), nothing[..., 0])]),
            self._encode(self.s1_backbone, radar or [(nothing[..., :1].expand(-1, -1, 2), nothing[..., 0])]),
        )

    def join(self, optical: Tensor, radar: Tensor) -> Tensor:
        """Make the vectors (n, D) of what the encoders say of Sentinel-2 and Sentinel-1, each (n, d)."""
        found = self.dim_reducer(torch.cat([optical, radar], dim=1))
        if self.version == '2':
            return F.layer_norm(found, found.shape[1:])
        return found[:, :USED]

    def _take(self, series: Tensor, day: Tensor, bands: SensorBands) -> tuple[Tensor, Tensor]:
        values = series[..., list(bands.at)]
        values = values * values.new_tensor(bands.scale) + values.new_tensor(bands.shift)
        return values, day.expand(series.shape[:2])

    def _encode(self, encoder: SensorEncoder, parts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Encode the dates with data of each pixel, pixels of equally many together."""
        values, days = torch.cat([v for v, _ in parts], dim=1), torch.cat([d for _, d in parts], dim=1)
        bands = values.shape[2]
        there = torch.isfinite(values).all(dim=2)
        counts = there.sum(dim=1)
        # dates with data first, in their order
        order = torch.argsort(~there, dim=1, stable=True)
        found = values.new_zeros(len(values), self.shape.dim)
        for count in counts.unique().tolist():
            rows = (counts == count).nonzero()[:, 0]
            if count == 0:  # as the authors do where a sensor has nothing: one date of zeros
                nothing = values.new_zeros(len(rows), 1, bands)
                found[rows] = encoder(nothing, nothing[..., 0]).to(found.dtype)
                continue
            places = torch.tensor(choose_dates(count, self.version), device=values.device)
            chosen = order[rows][:, places]
            part = values[rows].gather(1, chosen[..., None].expand(-1, -1, bands))
            found[rows] = encoder(part, days[rows].gather(1, chosen)).to(found.dtype)
        return found


def choose_dates(count: int, version: str) -> list[int]:
    """Choose which of the dates with data a network takes, some of them more than once."""
    if version == '1':
        return [position * count // DRAWN for position in range(DRAWN)]
    size = min(-(-count // STEP) * STEP, MOST)
    if count >= size:
        if version == '2':
            return _spaced(count, size)
        return [(2 * i + 1) * count // (2 * size) for i in range(size)]
    missing, everything = size - count, list(range(count))
    if version == '2':
        if missing <= count:
            return everything + [(2 * i + 1) * count // (2 * missing) for i in range(missing)]
        return everything + [i % count for i in range(missing)]
    return everything + [round((i + 1) * (count - 1) / (missing + 1)) for i in range(missing)]


def _spaced(count: int, size: int) -> list[int]:
    if size == 1:
        return [0]
    return [int(i * (count - 1) / (size - 1)) for i in range(size)]


def find_bands(
    bands: Sequence[Band], record: catalog.WeightsRecord, version: str
) -> tuple[SensorBands | None, list[SensorBands]]:
    """Find where the bands of both sensors are in an image.

    Raises:
        BandError: If one is missing or of no sensor, or it is not said of which orbit radar is.
    """
    optical = [i for i, band in enumerate(bands) if not band.is_radar]
    own = record.inputs[0].get_bands()
    found = None
    if optical:
        at = match_bands([bands[i] for i in optical], own)
        if len(optical) > len(own):
            strange = [bands[i].name for k, i in enumerate(optical) if k not in at]
            raise BandError(f'TESSERA knows no bands {", ".join(strange)}; leave them out')
        found = SensorBands(tuple(optical[i] for i in at), (1.0,) * len(own), (0.0,) * len(own))
    orbits: dict[str, list[int]] = {}
    for i, band in enumerate(bands):
        if band.is_radar:
            name = band.name.lower()
            orbit = 'descending' if 'desc' in name else 'ascending' if 'asc' in name else ''
            orbits.setdefault(orbit, []).append(i)
    radar = []
    for orbit, positions in orbits.items():
        if version != '1' and not orbit:
            raise BandError(
                f'TESSERA v{version} has to know the orbit of {bands[positions[0]].name!r}; name radar bands so, such '
                "as Band('VV_ascending', common_name='vv', is_radar=True)"
            )
        at = match_bands([bands[i] for i in positions], record.inputs[1].get_bands())
        scale: tuple[float, ...] = (1.0, 1.0)
        shift: tuple[float, ...] = (0.0, 0.0)
        if orbit == 'descending' and version != '1':
            ascending, descending = record.inputs[1:3]
            scale = tuple(a / b for a, b in zip(ascending.std, descending.std))
            shift = tuple((a - b) / s for a, b, s in zip(ascending.mean, descending.mean, descending.std))
        radar.append(SensorBands(tuple(positions[i] for i in at), scale, shift))
    lacking = 'Sentinel-2' if found is None else 'Sentinel-1' if not radar else ''
    if lacking and version != '2':
        raise BandError(f'TESSERA v{version} needs the bands of both sensors, found none of {lacking}')
    return found, radar


def shape_of(state: Mapping[str, Tensor], heads: int) -> Shape:
    """Read the shape of a network from its weights, which do not say the number of heads where keys are not normed."""
    stem = 's2_backbone.'
    try:
        dim = state[f'{stem}embedding.0.weight'].shape[0]
        out = state['dim_reducer.4.weight' if 'dim_reducer.4.weight' in state else 'dim_reducer.0.weight'].shape[0]
        normed = f'{stem}transformer_encoder.0.q_norm.weight' in state
        layers = f'{stem}transformer_encoder.' + ('' if normed else 'layers.')
        depth = len({name.removeprefix(layers).partition('.')[0] for name in state if name.startswith(layers)})
        hidden = state[f'{layers}0.linear1.weight'].shape[0]
        heads = dim // state[f'{layers}0.q_norm.weight'].shape[0] if normed else heads
    except KeyError as error:
        raise WeightsError(f'the file holds no {error}, so it is not of TESSERA') from error
    return Shape(dim, depth, heads, hidden, out, normed)


def _check_provider(source: str, name: str) -> None:
    """Refuse weights of v1.1 of the other provider of imagery: tensors are alike, statistics are not."""
    file = Path(source.partition(' (')[0]).name.lower()
    for part, needed in (('_aws', 'tessera_v1_1_aws'), ('_mpc', 'tessera_v1_1')):
        if name.startswith('tessera_v1_1') and part in file and name != needed:
            raise WeightsError(f'{file} goes with other statistics than those of {name}; pass backbone={needed!r}')


def version_of(state: Mapping[str, Tensor]) -> str:
    """Tell the version of weights by the names of their tensors."""
    if any('gru_cell.' in name for name in state):
        return '1.1'
    return '1' if any('temporal_context.' in name for name in state) else '2'


@building.register_family('tessera', tokens=False)
def build_tessera(name: str, bands: tuple[Band, ...], options: backbone.BackboneOptions) -> backbone.Backbone:
    """Build one of TESSERA's versions."""
    if options.drop_path:
        raise BackboneError(f'{name} drops no paths; pass drop_path=0')
    record = catalog.get_record(name)
    version = {'tessera_v1': '1', 'tessera_v1_1': '1.1', 'tessera_v1_1_aws': '1.1'}.get(name, '2')
    optical, radar = find_bands(bands, record, version)
    checkpoint = building.read_checkpoint(record, bands, options)
    shape = replace(SHAPES[version], dim=record.dim, depth=record.depth, heads=record.heads)
    if checkpoint is not None:
        _check_provider(checkpoint.source, name)
        if (found := version_of(checkpoint.state)) != version:
            raise WeightsError(f'weights {checkpoint.source} are of TESSERA v{found}, needed v{version}')
        shape = shape_of(checkpoint.state, record.heads)
        if version == '2' and not shape.norm_keys and shape.dim != record.dim:
            raise WeightsError(
                f'weights {checkpoint.source} are of width {shape.dim} and do not say their number of attention heads; '
                'only the small student of v2 and those with normed keys are known'
            )
    trunk = Tessera(version, shape, optical, radar)
    report = None if checkpoint is None else building.load_checkpoint(trunk, checkpoint, options)
    return pixel_series.finish_pixel_backbone(name, trunk, options, load_report=report)
