"""SpectralGPT: a transformer over Sentinel-2 whose tokens each see three neighboring bands.

Hong et al. 2024, "SpectralGPT: Spectral Remote Sensing Foundation Model", arXiv:2311.07113. One 3-D kernel serves all
triples of bands, so that bands cannot be matched to kernels: here they are matched by name to their places in the
twelve, triples without any band are left out, and in others the bands that are there stand in for those that are not.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from geolearn.backbones import backbone, building, catalog, vit, weights
from geolearn.backbones.trunk import GroupedTrunk, ViTConfig, make_blocks
from geolearn.bands import Band, require_wavelengths
from geolearn.errors import BackboneError, WeightsError

TRIPLE = 3
"""Bands that one token sees."""


class TriplePatchEmbed(nn.Module):
    """One convolution over each triple of bands."""

    def __init__(self, dim: int, patch: int) -> None:
        super().__init__()
        size = (TRIPLE, patch, patch)
        self.proj = nn.Conv3d(1, dim, size, stride=size)
        nn.init.xavier_uniform_(self.proj.weight.data.view(dim, -1))
        nn.init.zeros_(self.proj.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Embed images (B, 3 * triples, H, W) as maps (B, D, triples, h, w)."""
        return self.proj(x[:, None])


class SpectralGpt(GroupedTrunk):
    """SpectralGPT's encoder; native tokens are those of one triple after the other, maps average over the triples.

    Args:
        config: Shape of the transformer.
        places: Matrix (12, bands) on the CPU that mixes the images' bands into the twelve, see `place_bands`.
        patch: Side of the patches, in pixels.
    """

    mixing: Tensor

    def __init__(self, config: ViTConfig, places: Tensor, patch: int = 8) -> None:
        triples = places.split(TRIPLE)
        used = [i for i, triple in enumerate(triples) if triple.any()]
        super().__init__(config, patch, len(used))
        self.triples = used
        mixing = torch.cat([triples[i] for i in used])
        self.register_buffer('mixing', mixing, persistent=False)
        self.patch_embed = TriplePatchEmbed(config.dim, patch)
        grid = (config.grid, config.grid)
        self.pos_embed_spatial = nn.Parameter(vit.sincos_position_grid(config.dim, grid, cls=False))
        self.pos_embed_temporal = nn.Parameter(torch.randn(1, len(triples), config.dim) * 0.02)
        self.blocks = make_blocks(config)
        self.norm = nn.LayerNorm(config.dim, eps=config.eps)

    def embed(self, x: Tensor) -> Tensor:
        """Turn images (B, bands, H, W) of any size into grids (B * triples, h, w, D), an image's side by side."""
        x = torch.einsum('sc,bchw->bshw', self.mixing.to(x), vit.pad_to_multiple(x, self.patch))
        y = self.patch_embed(x).permute(0, 2, 3, 4, 1)
        h, w = y.shape[2:4]
        spatial = vit.resize_position_grid(self.pos_embed_spatial, (h, w), prefix=0).reshape(1, 1, h, w, -1)
        spectral = self.pos_embed_temporal[:, self.triples, None, None]
        return (y + spatial + spectral).flatten(0, 1)


def place_bands(source: Sequence[Band], bands: Sequence[Band]) -> tuple[Tensor, str]:
    """Match bands to SpectralGPT's, by name and else by wavelength.

    Bands of one place are averaged; in a triple with places left free, the others are scaled to keep the response to
    a flat image.

    Returns:
        Matrix (12, bands) that mixes images into the twelve, and how it was made.
    """
    # each source band's kernel is the unit vector of its place, which says where a band goes
    units = torch.eye(len(source), device='cpu')[:, :, None, None]
    kernels, how = building.adapt_input_kernel(units, source, bands)
    places = (kernels[:, :, 0, 0] / how.scale).round()
    places = places / places.sum(dim=1, keepdim=True).clamp(min=1)
    triples = places.reshape(-1, TRIPLE, len(bands))
    filled = triples.any(dim=2).sum(dim=1).clamp(min=1)
    scaled = triples * (TRIPLE / filled)[:, None, None]
    return scaled.flatten(0, 1), str(replace(how, scale=1.0)).removesuffix('; kernels x 1')


@building.register_family('spectralgpt')
def build_spectralgpt(name: str, bands: tuple[Band, ...], options: backbone.BackboneOptions) -> backbone.Backbone:
    """Build SpectralGPT for the triples of bands that the images hold."""
    record = catalog.get_record(name)
    building.require_kinds(record, bands)
    require_wavelengths(bands, name)
    if options.pretrained and options.weights is None and weights.find_weights(record) is None:
        raise WeightsError(
            f'the weights of {name} are not on the hub; download {record.sources[0].file} from '
            'zenodo.org/records/8412455 and pass weights=<file>, or pass pretrained=False'
        )
    places, how = place_bands(record.source_bands, bands)
    config = building.make_config(record, options)
    trunk = SpectralGpt(config, places, record.patch)
    if options.relative_positions and len(trunk.triples) > 1:
        raise BackboneError(
            f'{name} sees {len(trunk.triples)} triples of bands, among which relative_positions mean nothing'
        )
    report = None
    checkpoint = building.read_checkpoint(record, bands, options)
    if checkpoint is not None:
        checkpoint = replace(
            checkpoint, state=building.join_qkv(checkpoint.state), source=f'{checkpoint.source} ({how})'
        )
        report = building.load_checkpoint(trunk, checkpoint, options)
    return backbone.finish_backbone(record.name, trunk, options, load_report=report)
