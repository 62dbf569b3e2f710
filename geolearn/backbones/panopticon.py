"""Panopticon: one transformer for any bands, whose patch embedding attends over the bands at each place.

Waldmann et al. 2025, "Panopticon: Advancing Any-Sensor Foundation Models for Earth Observation", arXiv:2503.10845.
Optical bands are identified by their wavelength, radar bands by their polarization (of any orbit).
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geolearn.backbones import backbone, building, catalog, vit
from geolearn.backbones.trunk import ViT
from geolearn.bands import Band, require_wavelengths
from geolearn.errors import BandError

ATTENTION_HEADS = 16
POLARIZATIONS = {'vv': (0, 0), 'vh': (0, 1), 'hh': (1, 1), 'hv': (1, 0)}
"""Rows of the tables of sent and received waves: 0 vertical, 1 horizontal."""

_RENAMES = (
    (r'^patch_embed\.conv3d\.conv3d\.', 'patch_embed.conv.'),
    (r'^patch_embed\.chnfus\.xattn\.inproj_k\.', 'patch_embed.key.'),
    (r'^patch_embed\.chnfus\.xattn\.inproj_v\.', 'patch_embed.value.'),
    (r'^patch_embed\.chnfus\.query', 'patch_embed.query'),
    (r'^patch_embed\.chnfus\.chnemb\.embed_', 'patch_embed.'),
)


class BandAttentionEmbed(nn.Module):
    """Embed each band's patches alike, add an embedding of the band, and let one learned query attend over the bands.

    Args:
        bands: Of the images.
        dim: Width D of the tokens.
        patch: Side of the patches, in pixels.
        width: Width of the attention over bands; memory grows with bands x places x width.
        heads: Its heads.
    """

    optical: Tensor

    def __init__(
        self,
        bands: Sequence[Band],
        dim: int,
        patch: int,
        *,
        width: int,
        heads: int = ATTENTION_HEADS,
    ) -> None:
        super().__init__()
        self.bands, self.heads = tuple(bands), heads
        self.conv = nn.Conv2d(1, width, patch, stride=patch)
        self.query = nn.Parameter(torch.randn(1, 1, width))
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.proj = nn.Linear(width, dim)
        third = width // 3
        self.transmit = nn.Parameter(torch.zeros(2, third))
        self.receive = nn.Parameter(torch.zeros(2, third))
        self.orbit = nn.Parameter(torch.zeros(2, width - 2 * third))
        self.register_buffer('optical', embed_nanometers(bands, width), persistent=False)
        if not any(band.is_radar for band in bands):
            for table in (self.transmit, self.receive, self.orbit):
                table.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Embed images (B, C, H, W), sides multiples of the patch p, as maps (B, D, H/p, W/p)."""
        b, c, h, w = x.shape
        y = self.conv(x.reshape(b * c, 1, h, w))
        h, w = y.shape[2:]
        y = y.reshape(b, c, -1, h * w) + self.embed_bands().to(y.dtype)[None, :, :, None]
        y = y.permute(0, 3, 1, 2).flatten(0, 1)  # each place is a sequence of bands
        q = self.query.expand(y.shape[0], -1, -1)
        q, k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in (q, self.key(y), self.value(y)))
        merged = F.scaled_dot_product_attention(q.to(k.dtype), k, v).transpose(1, 2).flatten(1)
        return self.proj(merged).reshape(b, h, w, -1).permute(0, 3, 1, 2)

    def embed_bands(self) -> Tensor:
        """Return the embedding of each band: (C, width)."""
        rows = []
        for band, optical in zip(self.bands, self.optical):
            if band.is_radar:
                sent, received = POLARIZATIONS[str(band.common_name)]
                rows.append(torch.cat([self.transmit[sent], self.receive[received], self.orbit.mean(dim=0)]))
            else:
                rows.append(optical)
        return torch.stack(rows)


class PanopticonViT(ViT):
    """Panopticon's transformer, whose class token learned to describe the image, as DINOv2's does."""

    class_token_is_trained = True


def embed_nanometers(bands: Sequence[Band], width: int) -> Tensor:
    """Embed wavelengths in whole nanometers as (C, width) float32: sines, then cosines; zeros for radar."""
    nanometers = torch.tensor([float(round(1000 * (band.wavelength_um or 0))) for band in bands])
    return vit.embed_numbers(nanometers, width) * torch.tensor([[not band.is_radar] for band in bands])


def check_bands(bands: Sequence[Band], needed_by: str) -> None:
    """Raise BandError unless every band has a wavelength or is radar of a known polarization."""
    require_wavelengths(bands, needed_by)
    if strange := [b.name for b in bands if b.is_radar and b.common_name not in POLARIZATIONS]:
        raise BandError(
            f'{needed_by} needs the polarization of every radar band; unknown: {strange}; name them VV, VH, HH or HV'
        )


def convert_panopticon(checkpoint: building.Checkpoint, patch: int) -> building.Checkpoint:
    """Rename tensors of the published layout, and resample the kernel to another side of the patches."""
    renamed = building.rename(checkpoint, _RENAMES)
    kernel = renamed.state.get('patch_embed.conv.weight')
    if kernel is None or kernel.dim() != 5:
        return renamed
    fitted = building.resample_kernel(kernel.squeeze(2), patch)
    return replace(renamed, state={**renamed.state, 'patch_embed.conv.weight': fitted})


@building.register_family('panopticon')
def build_panopticon(name: str, bands: tuple[Band, ...], options: backbone.BackboneOptions) -> backbone.Backbone:
    """Build Panopticon for these bands."""
    record = catalog.get_record(name)
    check_bands(bands, name)
    patch = record.patch if options.form == 'tokens' else 16
    checkpoint = building.read_checkpoint(record, bands, options)
    config = building.make_config(record, options, checkpoint=checkpoint, layer_scale=1e-5 if checkpoint else 1.0)
    # the width of the attention over bands is three times that of the tokens
    embed = BandAttentionEmbed(bands, record.dim, patch, width=3 * record.dim)
    trunk = PanopticonViT(config, embed, patch)
    report = None
    if checkpoint is not None:
        report = building.load_checkpoint(trunk, convert_panopticon(checkpoint, patch), options)
    return backbone.finish_backbone(name, trunk, options, load_report=report)
