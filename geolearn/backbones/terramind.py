"""TerraMind 1.0: one transformer over the tokens of several sensors, chosen here by the bands that are given.

Jakubik et al. 2025, "TerraMind: Large-Scale Generative Multimodality for Earth Observation", arXiv:2504.11171. Each
sensor has a patch embedding of its own; the outputs at one place are averaged over the sensors, as terratorch does.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geolearn.backbones import backbone, building, catalog, vit
from geolearn.backbones.trunk import GroupedTrunk, ViTConfig
from geolearn.bands import Band
from geolearn.errors import BackboneError, WeightsError

log = logging.getLogger('geolearn')

KEYS = ('untok_sen2l2a@224', 'untok_sen2l1c@224', 'untok_sen1grd@224', 'untok_sen1rtc@224', 'untok_sen2rgb@224')
"""Names of the patch embeddings in the weights, in the order of the catalog's `inputs`."""

ELEVATION = 'untok_dem@224'
_ELEVATION_NAMES = ('dem', 'dsm', 'dtm', 'elevation', 'height', 'altitude')


class GatedMlp(nn.Module):
    """Two linear layers with a gate between them (SwiGLU), without biases."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = int(2 * 4 * dim / 3)
        self.fc1 = nn.Linear(dim, hidden, bias=False)
        self.fc2 = nn.Linear(hidden, dim, bias=False)
        self.fc3 = nn.Linear(dim, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Transform tokens (..., D)."""
        return self.fc2(F.silu(self.fc1(x)) * self.fc3(x))


class TerraMindBlock(vit.Block):
    """A block whose norms have no bias; gated, it has no biases at all."""

    def __init__(self, config: ViTConfig, index: int, *, gated: bool) -> None:
        super().__init__(
            config.dim,
            config.heads,
            qkv_bias=not gated,
            eps=config.eps,
            drop_path=config.drop_path * index / max(config.depth - 1, 1),
            rel_pos=(config.grid, config.grid) if config.relative_positions else None,
        )
        self.norm1 = nn.LayerNorm(config.dim, eps=config.eps, bias=False)
        self.norm2 = nn.LayerNorm(config.dim, eps=config.eps, bias=False)
        if gated:
            self.attn.proj = nn.Linear(config.dim, config.dim, bias=False)
            self.mlp = GatedMlp(config.dim)  # type: ignore[assignment] # it is called alike


class SensorEmbedding(nn.Module):
    """The patch embedding of one sensor: a convolution, an embedding of the sensor, and positions."""

    pos_emb: Tensor

    def __init__(self, bands: int, dim: int, patch: int, grid: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(bands, dim, patch, stride=patch, bias=False)
        self.mod_emb = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        # here the first half of the width holds the row, so the usual grid is turned over
        columns_first = vit.sincos_position_grid(dim, (grid, grid), cls=False).reshape(1, grid, grid, dim)
        self.register_buffer('pos_emb', columns_first.transpose(1, 2).reshape(1, grid * grid, dim).contiguous())
        nn.init.xavier_uniform_(self.proj.weight.view(dim, -1))

    def forward(self, x: Tensor) -> Tensor:
        """Embed images (B, bands, H, W), sides multiples of the patch, as a grid (B, h, w, D) with positions."""
        patches = self.proj(x).permute(0, 2, 3, 1)
        h, w = patches.shape[1:3]
        return patches + (vit.resize_position_grid(self.pos_emb, (h, w), prefix=0) + self.mod_emb).reshape(1, h, w, -1)


class TerraMind(GroupedTrunk):
    """TerraMind's encoder over one or more sensors, whose bands come in one image.

    Args:
        config: Shape of the transformer.
        sensors: For each patch embedding by its name, the places of its bands in the image.
        patch: Side of the patches, in pixels.
        gated: Whether blocks are gated and without biases, as in base and large.
    """

    def __init__(
        self, config: ViTConfig, sensors: Mapping[str, Sequence[int]], patch: int = 16, *, gated: bool = True
    ) -> None:
        super().__init__(config, patch, len(sensors))
        self.sensors = {key: list(places) for key, places in sensors.items()}
        self.encoder_embeddings = nn.ModuleDict(
            {key: SensorEmbedding(len(places), config.dim, patch, config.grid) for key, places in sensors.items()}
        )
        self.encoder = nn.ModuleList(TerraMindBlock(config, i, gated=gated) for i in range(config.depth))
        self.encoder_norm = nn.LayerNorm(config.dim, eps=config.eps, bias=False)
        self.encoder.apply(vit.init_linear)

    @property
    def stages(self) -> nn.ModuleList:
        """The blocks in order."""
        return self.encoder

    @property
    def final_norm(self) -> nn.Module:
        """What follows the last block in the native form."""
        return self.encoder_norm

    def embed(self, x: Tensor) -> Tensor:
        """Turn images (B, bands, H, W) of any size into grids (B * sensors, h, w, D), an image's side by side."""
        x = vit.pad_to_multiple(x, self.patch)
        grids = [embedding(x[:, self.sensors[key]]) for key, embedding in self.encoder_embeddings.items()]
        return torch.stack(grids, dim=1).flatten(0, 1)


def assign_sensors(bands: Sequence[Band]) -> dict[str, list[int]]:
    """Sort bands to TerraMind's patch embeddings: their places by the embedding's name, in a fixed order.

    Radar goes to Sentinel-1, terrain-corrected where a name holds ``gamma0``, else ground-range; elevation to its own;
    red, green and blue alone to the RGB embedding (of values 0-255); other bands to Sentinel-2, Level-1C where there is
    a cirrus band, else Level-2A.
    """
    radar = [i for i, band in enumerate(bands) if band.is_radar]
    height = [i for i, band in enumerate(bands) if _is_elevation(band)]
    optical = [i for i in range(len(bands)) if i not in radar and i not in height]
    names = [bands[i].common_name for i in optical]
    corrected = any('gamma0' in bands[i].name.lower().replace('_', '') for i in radar)
    l2a, l1c, ground_range, terrain, rgb = KEYS
    optical_key = rgb if sorted(map(str, names)) == ['blue', 'green', 'red'] else l1c if 'cirrus' in names else l2a
    chosen = {optical_key: optical, terrain if corrected else ground_range: radar, ELEVATION: height}
    return {key: places for key, places in chosen.items() if places}


def _is_elevation(band: Band) -> bool:
    words = band.name.lower().replace('-', '_').replace(' ', '_').split('_')
    return band.wavelength_um is None and not band.is_radar and any(word in _ELEVATION_NAMES for word in words)


def convert_terramind(
    checkpoint: building.Checkpoint,
    record: catalog.WeightsRecord,
    bands: Sequence[Band],
    sensors: Mapping[str, Sequence[int]],
    patch: int = 16,
) -> building.Checkpoint:
    """Keep the sensors that are used, their kernels fitted to the bands by name, and leave out biases of zero."""
    state, dropped, notes = {}, list(checkpoint.dropped), []
    for name, value in checkpoint.state.items():
        is_other = name.startswith('encoder_embeddings.') and name.split('.')[1] not in sensors
        is_bias = name.endswith(('.norm1.bias', '.norm2.bias')) or name == 'encoder_norm.bias'
        if is_bias and value.count_nonzero():
            raise WeightsError(f'{name} of {checkpoint.source} is not zero; TerraMind has no such biases')
        if is_other or is_bias:
            dropped.append(name)
        else:
            state[name] = value
    for key, places in sensors.items():
        name = f'encoder_embeddings.{key}.proj.weight'
        source = _source_bands(record, key)
        if name not in state or state[name].shape[1] != patch * patch * len(source):
            raise WeightsError(f'weights {checkpoint.source} do not fit {record.name}; {name} is missing or misshapen')
        # a row of the linear layer runs over the patch's rows, columns and bands
        kernel = state[name].reshape(-1, patch, patch, len(source)).permute(0, 3, 1, 2)
        state[name], how = building.adapt_input_kernel(kernel, source, [bands[i] for i in places])
        notes.append(f'{key.removeprefix("untok_").partition("@")[0]}: {how}')
    log.info('%s reads %s', record.name, '; '.join(notes))
    resized = tuple(f'encoder_embeddings.{key}.proj.weight' for key in sensors)
    return replace(
        checkpoint,
        state=state,
        dropped=tuple(dropped),
        resized=resized,
        source=f'{checkpoint.source} ({"; ".join(notes)})',
    )


def _source_bands(record: catalog.WeightsRecord, key: str) -> tuple[Band, ...]:
    return (Band('DEM'),) if key == ELEVATION else record.inputs[KEYS.index(key)].get_bands()


@building.register_family('terramind')
def build_terramind(name: str, bands: tuple[Band, ...], options: backbone.BackboneOptions) -> backbone.Backbone:
    """Build one of TerraMind's sizes for the sensors that the bands come from."""
    record = catalog.get_record(name)
    sensors = assign_sensors(bands)
    if options.relative_positions and len(sensors) > 1:
        raise BackboneError(f'{name} sees {len(sensors)} sensors at once, among which relative_positions mean nothing')
    config = building.make_config(record, options)
    checkpoint = building.read_checkpoint(record, bands, options)
    trunk = TerraMind(config, sensors, record.patch, gated=name in ('terramind_base', 'terramind_large'))
    report = None
    if checkpoint is not None:
        checkpoint = convert_terramind(checkpoint, record, bands, sensors, record.patch)
        report = building.load_checkpoint(trunk, checkpoint, options)
    return backbone.finish_backbone(record.name, trunk, options, load_report=report)
