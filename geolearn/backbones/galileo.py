"""Galileo: a transformer over groups of channels, so that any of Sentinel-1, Sentinel-2, NDVI and terrain serve alone.

Tseng et al. 2025, "Galileo: Learning Global & Local Features of Many Remote Sensing Modalities", arXiv:2502.09356.
Every group of channels (`GROUPS`) has its own patch embedding and its own token at every place; groups without a band
are left out, as in pretraining. The tokens of a place are averaged to one map, as its authors do for segmentation.
What is no image (weather, night lights, population, location) and the two land cover products take no part.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geolearn.backbones import backbone, building, catalog, vit
from geolearn.backbones.trunk import BlockTrunk, ViTConfig, make_blocks
from geolearn.bands import Band, get_bands, match_bands
from geolearn.errors import BackboneError, BandError, WeightsError

KERNEL = 8
"""Side of the published patch kernels, in pixels."""

BASE_RESOLUTION_M = 10.0
"""Ground resolution of the pretraining images, in meters per pixel: the unit of the positions."""

DEFAULT_MONTH = 6
"""Every token carries a month. Images bring none, so this one (June) is taken; set ``trunk.month`` to 1..12."""

GROUPS: dict[str, tuple[Band, ...]] = {
    'S1': get_bands('sentinel1', ['VV', 'VH']),
    'S2_RGB': get_bands('sentinel2_l2a', ['B2', 'B3', 'B4']),
    'S2_Red_Edge': get_bands('sentinel2_l2a', ['B5', 'B6', 'B7']),
    'S2_NIR_10m': get_bands('sentinel2_l2a', ['B8']),
    'S2_NIR_20m': get_bands('sentinel2_l2a', ['B8A']),
    'S2_SWIR': get_bands('sentinel2_l2a', ['B11', 'B12']),
    'NDVI': (Band('NDVI'),),
    'SRTM': (Band('elevation'), Band('slope')),
}
"""Channel groups that images can fill, in the order of their tokens. Those of `_STATIC` have no time."""

_STATIC = ('SRTM',)
_CHANNEL_TABLES = ('s_t_channel_embed', 'sp_channel_embed')


class Galileo(BlockTrunk):
    """Galileo's encoder for images of one date, of any size.

    Args:
        config: Shape of the transformer.
        groups: For each group in use, the positions of its bands in the image.
        patch: Side of the patches, in pixels, 1 to 8.
        ground_resolution_m: Of the images, in meters per pixel.
    """

    pos_embed: Tensor
    month_embed: Tensor
    knows_resolution = True

    def __init__(
        self,
        config: ViTConfig,
        groups: Mapping[str, Sequence[int]],
        *,
        patch: int = KERNEL,
        ground_resolution_m: float = BASE_RESOLUTION_M,
    ) -> None:
        super().__init__(config, patch)
        self.ground_resolution_m = ground_resolution_m
        self.groups = {name: tuple(positions) for name, positions in groups.items()}
        self.month = DEFAULT_MONTH
        d = config.dim
        self.embeds = nn.ModuleDict(
            {name: nn.Conv2d(len(at), d, patch, stride=patch) for name, at in self.groups.items()}
        )
        self.group_embed = nn.Parameter(torch.empty(len(groups), d // 4))
        self.register_buffer('pos_embed', embed_places(torch.arange(24), d // 4))
        self.register_buffer('month_embed', month_table(d // 4))
        self.blocks = make_blocks(config)
        self.norm = nn.LayerNorm(d, eps=config.eps)
        nn.init.normal_(self.group_embed, std=0.02)

    def first_tokens(self, x: Tensor) -> Tensor:
        """Return what the first block takes in the native form: tokens (B, h*w*groups, D), place by place."""
        return self.embed(x).flatten(1, 3)

    def hidden_states(self, x: Tensor) -> list[Tensor]:
        """Run the native form: the output of every block, averaged over groups, (B, h*w, D), before the final norm."""
        return [self._average(state) for state in super().hidden_states(x)]

    def tokens(self, x: Tensor) -> Tensor:
        """Run the native form: the last block's tokens after the final norm, averaged over groups, (B, h*w, D)."""
        return self._average(super().tokens(x))

    def _average(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(1, (-1, len(self.groups))).mean(dim=2)

    def maps(self, x: Tensor, layers: Sequence[int], window: int | None = None) -> list[Tensor]:
        """Run the windowed form: the outputs of some blocks, averaged over groups, as maps (B, D, h, w).

        Args:
            x: Images (B, bands, H, W).
            layers: Blocks, counted from 0.
            window: Side of the windows in places; None chooses per axis, 0 is global attention. The groups of a place
                always share its window.
        """
        y = self.embed(x)
        b, h, w, g, d = y.shape
        size = vit.choose_windows((h, w), window)
        states = vit.windowed_states(
            self.blocks,
            y.reshape(b, h, w * g, d),
            window=None if size is None else (size[0], size[1] * g),
            global_at=self.global_at,
            layers=layers,
        )
        return [state.reshape(b, h, w, g, d).mean(dim=3).permute(0, 3, 1, 2) for state in states]

    def embed(self, x: Tensor) -> Tensor:
        """Turn images (B, bands, H, W) of any size into tokens with positions (B, h, w, groups, D).

        Images are padded right and bottom with zeros to whole patches.
        """
        x = vit.pad_to_multiple(x, self.patch)
        maps = [self.embeds[name](x[:, list(at)]) for name, at in self.groups.items()]
        tokens = torch.stack(maps, dim=-1).permute(0, 2, 3, 4, 1)
        return tokens + self._encodings((tokens.shape[1], tokens.shape[2])).to(tokens.dtype)

    def _encodings(self, grid: tuple[int, int]) -> Tensor:
        """Make what is added to tokens, (h, w, groups, D): group, date, month and place take a quarter each."""
        if not 1 <= self.month <= 12:
            raise ValueError(f'month must lie in 1..12, got {self.month}')
        static = torch.tensor([name in _STATIC for name in self.groups], device=self.group_embed.device)
        time = torch.cat([self.pos_embed[0], self.month_embed[self.month - 1]]) * ~static[:, None]
        per_group = torch.cat([self.group_embed, time], dim=1)
        step = self.ground_resolution_m * self.patch / BASE_RESOLUTION_M
        place = place_table(grid, self.dim // 4, step, self.group_embed.device)
        shape = (*grid, len(self.groups), -1)
        return torch.cat([per_group.expand(shape), place[:, :, None].expand(shape)], dim=-1)


def embed_places(positions: Tensor, dim: int) -> Tensor:
    """Embed positions (N) as (N, dim), sines first; frequencies fall to 10000 ** -0.25 only, as published."""
    frequency = 1.0 / 10000 ** (torch.arange(dim // 2, device=positions.device) / dim / 2)
    angle = positions.float()[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def month_table(dim: int) -> Tensor:
    """Embed the months as (12, dim): sines, then cosines, all of one wave a year."""
    angle = (torch.arange(12) * (2 * torch.pi / 12))[:, None].expand(12, dim // 2)
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def place_table(grid: tuple[int, int], dim: int, step: float, device: torch.device) -> Tensor:
    """Embed the places of a grid as (h, w, dim): the column, then the row, in units of `BASE_RESOLUTION_M`."""
    rows, columns = (embed_places(torch.arange(n, device=device) * step, dim // 2) for n in grid)
    shape = (*grid, -1)
    return torch.cat([columns[None].expand(shape), rows[:, None].expand(shape)], dim=-1)


def assign_groups(bands: Sequence[Band]) -> dict[str, tuple[int, ...]]:
    """Find the channel group of every band: the one that names it, else, if optical, that of the nearest wavelength.

    Returns:
        Positions of the bands by group, groups in the order of `GROUPS`; those without a band are absent.

    Raises:
        BandError: If a band fits no group.
    """
    chosen = [_find_group(band) for band in bands]
    return {name: tuple(i for i, at in enumerate(chosen) if at == name) for name in GROUPS if name in chosen}


def _find_group(band: Band) -> str:
    known = [(name, own) for name, group in GROUPS.items() for own in group]
    try:
        return known[match_bands([own for _, own in known], [band])[0]][0]
    except BandError as error:
        if band.is_radar:
            return 'S1'
        if (w := band.wavelength_um) is None:
            names = ', '.join(own.name for _, own in known)
            raise BandError(
                f'Galileo cannot place band {band.name!r}; give it a wavelength in micrometers, or a name of {names}'
            ) from error
        return min((abs(own.wavelength_um - w), name) for name, own in known if own.wavelength_um is not None)[1]


def convert_galileo(
    checkpoint: building.Checkpoint, bands: Sequence[Band], *, patch: int = KERNEL
) -> building.Checkpoint:
    """Turn the published encoder into the state of `Galileo` for these bands; a state of `Galileo` stays as it is.

    Args:
        checkpoint: With the tensors of ``encoder.pt`` by name.
        bands: Of the images.
        patch: Side of the patches; the published kernels, 8 wide, are resampled to it as FlexiViT does.

    Raises:
        WeightsError: If a tensor that is needed is missing or is no kernel of Galileo.
    """
    if 'group_embed' in checkpoint.state:
        return checkpoint
    left, made, rows, notes = dict(checkpoint.state), {}, [], {}
    for name, positions in assign_groups(bands).items():
        weight = _take(left, f'{_kind(name)}_embed.{name}.proj.weight')
        if weight.shape[1:] != (len(GROUPS[name]), KERNEL, KERNEL):
            raise WeightsError(f'the kernel of {name} has shape {tuple(weight.shape)}; take the encoder.pt of Galileo')
        kernel, how = building.adapt_input_kernel(weight, GROUPS[name], [bands[i] for i in positions])
        made[f'embeds.{name}.weight'] = resample_patch_kernel(kernel, patch)
        made[f'embeds.{name}.bias'] = _take(left, f'{_kind(name)}_embed.{name}.proj.bias')
        rows.append(_channel_row(left, name))
        if kernel.shape != weight.shape or not torch.equal(kernel, weight):
            notes[f'embeds.{name}.weight'] = f'{name}: {how}'
    made['group_embed'] = torch.stack(rows)
    made['month_embed'] = _take(left, 'month_embed.weight')
    unused = [name for name in left if name.startswith(('space_time_embed.', 'space_embed.'))]
    kept = {name: value for name, value in left.items() if name not in {*unused, *_CHANNEL_TABLES}}
    return building.Checkpoint(
        made | building.join_qkv(kept),
        (*checkpoint.dropped, *unused),
        tuple(notes),
        checkpoint.source + (f' ({"; ".join(notes.values())})' if notes else ''),
    )


def _kind(group: str) -> str:
    return 'space' if group in _STATIC else 'space_time'


_take = partial(building.take_tensor, family='Galileo', published='its encoder.pt')


def _channel_row(state: Mapping[str, Tensor], group: str) -> Tensor:
    table = _CHANNEL_TABLES[_kind(group) == 'space']
    index = [name for name in GROUPS if _kind(name) == _kind(group)].index(group)
    if table not in state or len(state[table]) <= index:
        raise WeightsError(f'the file holds no {table} of {index + 1} or more rows; take the encoder.pt of Galileo')
    return state[table][index]


def resample_patch_kernel(kernel: Tensor, patch: int) -> Tensor:
    """Resample kernels (O, C, k, k) so that a patch scaled to the new side gives the same token (arXiv:2212.08013)."""
    k = kernel.shape[-1]
    if k == patch:
        return kernel
    # what a graph traces must not be kept for later calls
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    resample = (_resampling.__wrapped__ if traced else _resampling)(k, patch)
    rows = kernel.float().flatten(2) @ resample.to(kernel.device)
    return rows.reshape(*kernel.shape[:2], patch, patch).to(kernel.dtype)


@lru_cache(maxsize=16)
def _resampling(k: int, patch: int) -> Tensor:
    """Make the matrix (k * k, patch * patch) on the CPU by which rows of kernels are multiplied."""
    with torch.inference_mode(False), torch.no_grad():
        units = torch.eye(k * k, device='cpu').reshape(k * k, 1, k, k)
        resize = F.interpolate(units, size=(patch, patch), mode='bicubic', antialias=True).flatten(1)
        return torch.linalg.pinv(resize).T


@building.register_family('galileo')
def build_galileo(name: str, bands: tuple[Band, ...], options: backbone.BackboneOptions) -> backbone.Backbone:
    """Build one of Galileo's sizes."""
    if options.relative_positions:
        raise BackboneError(f'{name} knows no relative positions; pass relative_positions=False')
    record = catalog.get_record(name)
    config = building.make_config(record, options, eps=1e-5)
    checkpoint = building.read_checkpoint(record, bands, options)
    trunk = Galileo(config, assign_groups(bands), patch=record.patch)
    report = None
    if checkpoint is not None:
        report = building.load_checkpoint(trunk, convert_galileo(checkpoint, bands, patch=record.patch), options)
    return backbone.finish_backbone(name, trunk, options, load_report=report)
