"""Clay v1.5: a transformer for any bands, with ground positions, time and place as inputs.

Clay Foundation 2024, https://clay-foundation.github.io/model. Its patch kernels are generated from wavelengths, after
DOFA but not as DOFA's: other frequencies, activations, layout and scale. Positions are patch counts times the ground
resolution, and the last eight features of a position hold the time and the place.
"""

import math
from collections.abc import Sequence
from datetime import datetime

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geolearn.backbones import backbone, building, catalog, dofa, vit
from geolearn.backbones.trunk import ViT, ViTConfig
from geolearn.bands import Band, require_wavelengths
from geolearn.errors import BandError

RADAR_WAVELENGTHS_UM = {'vv': 3.5, 'vh': 4.0}
"""What Clay was trained with for Sentinel-1: placeholders, no wavelengths."""

KERNEL_SCALE = 0.02

CONTEXT = 8
"""Features of a position that hold time and place."""

BASE_RESOLUTION_M = 10.0
"""Ground resolution that is taken until ``trunk.ground_resolution_m`` is set: Sentinel-2's."""


class ClayWaveResidual(dofa.WaveResidual):
    """Two linear layers with GELU after each, added to their input."""

    def forward(self, x: Tensor) -> Tensor:
        """Transform embedded wavelengths; shape (C, 128) is kept."""
        return x + F.gelu(self.w2(F.gelu(self.w1(x))))


class ClayPatchEmbed(dofa.DynamicPatchEmbed):
    """Clay's patch embedding: kernels generated from wavelengths, and kept while the generator does not learn.

    Args:
        wavelengths_um: Center wavelength of each band in micrometers, in band order.
        dim: Width D of the tokens.
        patch: Side of the patches, in pixels.
    """

    padding = 0

    def __init__(self, wavelengths_um: Sequence[float], dim: int, patch: int) -> None:
        super().__init__(wavelengths_um, dim, patch)
        self.fclayer = ClayWaveResidual()
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def _generate(self) -> tuple[Tensor, Tensor]:
        device = self.weight_generator.weight_tokens.device
        with torch.autocast(device.type, enabled=False):
            waves = embed_clay_wavelengths(torch.tensor(self.wavelengths_um, device=device))
            waves = dofa.call_float32(self.fclayer, waves)
            rows, bias = dofa.call_float32(self.weight_generator, waves)
            weight = rows.reshape(-1, self.dim, self.stride, self.stride).transpose(0, 1)
            return (weight * KERNEL_SCALE).contiguous(), bias


class ClayViT(ViT):
    """Clay's encoder: positions on the ground, time and place instead of a stored table.

    Args:
        config: Shape of the transformer.
        patch_embed: As for `ViT`.
        patch: Stride of `patch_embed`, in pixels.
    """

    knows_resolution = True

    def __init__(self, config: ViTConfig, patch_embed: nn.Module, patch: int) -> None:
        super().__init__(config, patch_embed, patch)
        for block in self.blocks:
            assert isinstance(block, vit.Block)
            block.attn.proj = nn.Linear(config.dim, config.dim, bias=False)
        self.blocks.apply(vit.init_linear)
        self.ground_resolution_m = BASE_RESOLUTION_M
        # that of the class token, which has none
        self.register_buffer('pos_embed', torch.zeros(1, 1, config.dim), persistent=False)
        self.register_buffer('context', torch.zeros(CONTEXT), persistent=False)

    context: Tensor
    """Time and place of all images, as `encode_context` makes them; zeros where they are unknown."""

    def place(self, patches: Tensor) -> Tensor:
        """Add positions to a map of patches (B, D, h, w), giving the grid (B, h, w, D) without a class token."""
        h, w = patches.shape[2:]
        ground = clay_positions(self.dim - CONTEXT, (h, w), self.ground_resolution_m, patches.device)
        positions = torch.cat([ground, self.context.expand(h, w, -1)], dim=2)
        return patches.permute(0, 2, 3, 1) + positions.to(patches.dtype)


def encode_context(moment: datetime, latitude: float, longitude: float) -> Tensor:
    """Encode a time and a place as Clay takes them, for ``trunk.context``: (8) float32.

    Sine and cosine of the ISO week of 52, of the hour of 24, of the latitude and of the longitude in degrees.
    """
    angles = (
        2 * math.pi * moment.isocalendar().week / 52,
        2 * math.pi * moment.hour / 24,
        math.radians(latitude),
        math.radians(longitude),
    )
    return torch.tensor([wave(angle) for angle in angles for wave in (math.sin, math.cos)])


def embed_clay_wavelengths(wavelengths_um: Tensor) -> Tensor:
    """Embed wavelengths (C) in micrometers as (C, 128) float32: sines, then cosines; no nanometers as in DOFA."""
    half = dofa.GENERATOR_DIM // 2
    frequency = 1.0 / 10000 ** (torch.arange(half, device=wavelengths_um.device) / (half - 1))
    angle = wavelengths_um.float()[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def clay_positions(dim: int, grid: tuple[int, int], resolution_m: float, device: torch.device | None = None) -> Tensor:
    """Make Clay's positions (h, w, dim) in float32: the column's sines and cosines, then the row's.

    All frequencies lie near the ground resolution in meters per patch count, as published.
    """
    power = torch.arange(dim // 4, device=device) / (dim // 4 - 1)
    frequency = 1.0 / 10000 ** (2 * power / dim) * resolution_m
    halves = []
    for n in grid:
        angle = torch.arange(n, device=device)[:, None] * frequency
        halves.append(torch.cat([angle.sin(), angle.cos()], dim=1))
    (h, w), (rows, columns) = grid, halves
    return torch.cat([columns[None].expand(h, -1, -1), rows[:, None].expand(-1, w, -1)], dim=2)


def clay_wavelengths(bands: Sequence[Band], needed_by: str = 'Clay') -> tuple[float, ...]:
    """Resolve the wavelength of every band in micrometers; VV and VH get `RADAR_WAVELENGTHS_UM`.

    Raises:
        BandError: If an optical band has no wavelength, or a radar band is neither VV nor VH.
    """
    require_wavelengths(bands, needed_by)
    if strange := [b.name for b in bands if b.is_radar and b.common_name not in RADAR_WAVELENGTHS_UM]:
        raise BandError(f'{needed_by} knows the radar bands VV and VH only, found {", ".join(strange)}; leave them out')
    return tuple(RADAR_WAVELENGTHS_UM[b.common_name or ''] if b.is_radar else b.wavelength_um or 0.0 for b in bands)


_RENAMES = (
    (r'^patch_embedding\.', 'patch_embed.'),
    (r'\.weight_generator\.encoder\.', '.weight_generator.transformer_encoder.'),
    (r'\.fclayer\.l([12])\.', r'.fclayer.w\1.'),
    (r'^transformer\.norm\.', 'norm.'),
    (r'^transformer\.layers\.', 'blocks.'),
    (r'^(blocks\.\d+)\.0\.norm\.', r'\1.norm1.'),
    (r'^(blocks\.\d+)\.0\.to_qkv\.', r'\1.attn.qkv.'),
    (r'^(blocks\.\d+)\.0\.to_out\.', r'\1.attn.proj.'),
    (r'^(blocks\.\d+)\.1\.net\.0\.', r'\1.norm2.'),
    (r'^(blocks\.\d+)\.1\.net\.1\.', r'\1.mlp.fc1.'),
    (r'^(blocks\.\d+)\.1\.net\.3\.', r'\1.mlp.fc2.'),
)
"""From the published names to those of `ClayViT`, applied in this order."""


def convert_clay(checkpoint: building.Checkpoint) -> building.Checkpoint:
    """Turn the names of the published encoder, their prefix off, into those of `ClayViT`; own names stay."""
    return building.rename(checkpoint, _RENAMES)


@building.register_family('clay')
def build_clay(name: str, bands: tuple[Band, ...], options: backbone.BackboneOptions) -> backbone.Backbone:
    """Build Clay v1.5."""
    record = catalog.get_record(name)
    config = building.make_config(record, options, eps=1e-5, qkv_bias=False)
    patch_embed = ClayPatchEmbed(clay_wavelengths(bands, name), record.dim, record.patch)
    checkpoint, report = building.read_checkpoint(record, bands, options), None
    trunk = ClayViT(config, patch_embed, record.patch)
    if checkpoint is None:
        patch_embed.strengthen()
    else:
        report = building.load_checkpoint(trunk, convert_clay(checkpoint), options)
    return backbone.finish_backbone(name, trunk, options, load_report=report)
