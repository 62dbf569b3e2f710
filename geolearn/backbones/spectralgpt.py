"""SpectralGPT: a transformer over Sentinel-2 whose tokens each see three neighbouring bands.

Hong et al. 2024, "SpectralGPT: Spectral Remote Sensing Foundation Model", arXiv:2311.07113. One 3-D kernel serves all
triples of bands, so that bands cannot be matched to kernels: here they are matched by name to their places in the
twelve, triples without any band are left out, and in others the bands that are there stand in for those that are not.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geolearn.backbones import catalog
from geolearn.backbones._backbone import Backbone, BackboneOptions, finish_backbone, register_backbone
from geolearn.backbones.building import load_checkpoint, read_checkpoint, require_kinds
from geolearn.backbones.kernels import adapt_input_kernel
from geolearn.backbones.plain import join_qkv
from geolearn.backbones.positions import resize_position_grid, sincos_position_grid
from geolearn.backbones.store import find_weights
from geolearn.backbones.trunk import ViTConfig, make_blocks
from geolearn.backbones.vit import choose_windows, global_blocks, init_linear, windowed_states
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


class SpectralGpt(nn.Module):
    """SpectralGPT's encoder; native tokens are those of one triple after the other, maps average over the triples.

    Args:
        config: Shape of the transformer.
        places: Matrix (12, bands) on the CPU that mixes the images' bands into the twelve, see `place_bands`.
        patch: Side of the patches, in pixels.
    """

    mixing: Tensor
    prefix = 0

    def __init__(self, config: ViTConfig, places: Tensor, patch: int = 8) -> None:
        super().__init__()
        self.config, self.patch = config, patch
        count = places.shape[0] // TRIPLE
        self.triples = [i for i, triple in enumerate(places.split(TRIPLE)) if triple.any()]
        mixing = torch.cat([places.split(TRIPLE)[i] for i in self.triples])
        self.register_buffer('mixing', mixing, persistent=False)
        self.patch_embed = TriplePatchEmbed(config.dim, patch)
        grid = (config.grid, config.grid)
        self.pos_embed_spatial = nn.Parameter(sincos_position_grid(config.dim, grid, cls=False))
        self.pos_embed_temporal = nn.Parameter(torch.randn(1, count, config.dim) * 0.02)
        self.blocks = make_blocks(config)
        self.norm = nn.LayerNorm(config.dim, eps=config.eps)
        self.blocks.apply(init_linear)

    @property
    def dim(self) -> int:
        """Width D."""
        return self.config.dim

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @property
    def stages(self) -> nn.ModuleList:
        """The blocks in order."""
        return self.blocks

    @property
    def global_at(self) -> tuple[int, ...]:
        """Blocks that attend globally in the windowed form, counted from 0."""
        return global_blocks(self.depth)

    def embed(self, x: Tensor) -> Tensor:
        """Turn images (B, bands, H, W) of any size into grids (B * triples, h, w, D), an image's side by side."""
        x = F.pad(x, (0, -x.shape[-1] % self.patch, 0, -x.shape[-2] % self.patch))
        x = torch.einsum('sc,bchw->bshw', self.mixing.to(x), x)
        y = self.patch_embed(x).permute(0, 2, 3, 4, 1)
        h, w = y.shape[2:4]
        spatial = resize_position_grid(self.pos_embed_spatial, (h, w), prefix=0).reshape(1, 1, h, w, -1)
        spectral = self.pos_embed_temporal[:, self.triples, None, None]
        return (y + spatial + spectral).flatten(0, 1)

    def hidden_states(self, x: Tensor) -> list[Tensor]:
        """Run the native form: the output (B, triples * h*w, D) of every block, before the final norm."""
        states = [self.embed(x).reshape(x.shape[0], -1, self.dim)]
        for block in self.blocks:
            states.append(block(states[-1]))
        return states[1:]

    def tokens(self, x: Tensor) -> Tensor:
        """Run the native form: the last block's output (B, triples * h*w, D) after the final norm."""
        y = self.embed(x).reshape(x.shape[0], -1, self.dim)
        for block in self.blocks:
            y = block(y)
        return self.norm(y)

    def maps(self, x: Tensor, layers: Sequence[int], window: int | None = None) -> list[Tensor]:
        """Run the windowed form: the outputs of some blocks as maps (B, D, h, w), averaged over the triples.

        Args:
            x: Images (B, bands, H, W).
            layers: Blocks, counted from 0.
            window: Side of the windows, as for `ViT.maps`; global blocks attend over the tokens of all triples.
        """
        y, count = self.embed(x), len(self.triples)
        size = choose_windows((y.shape[1], y.shape[2]), window)
        states = windowed_states(self.blocks, y, window=size, global_at=self.global_at, layers=layers, frames=count)
        return [s.reshape(-1, count, *s.shape[1:]).mean(dim=1).permute(0, 3, 1, 2) for s in states]

    def native_parameters(self) -> Iterator[nn.Parameter]:
        """Go through the parameters that only the native form uses: the final norm."""
        yield from self.norm.parameters()


def place_bands(source: Sequence[Band], bands: Sequence[Band]) -> tuple[Tensor, str]:
    """Match bands to SpectralGPT's, by name and else by wavelength.

    Bands of one place are averaged; in a triple with places left free, the others are scaled to keep the response to
    a flat image.

    Returns:
        Matrix (12, bands) that mixes images into the twelve, and how it was made.
    """
    # each source band's kernel is the unit vector of its place, which says where a band goes
    units = torch.eye(len(source), device='cpu')[:, :, None, None]
    kernels, how = adapt_input_kernel(units, source, bands)
    places = (kernels[:, :, 0, 0] / how.scale).round()
    places = places / places.sum(dim=1, keepdim=True).clamp(min=1)
    triples = places.reshape(-1, TRIPLE, len(bands))
    filled = triples.any(dim=2).sum(dim=1).clamp(min=1)
    scaled = triples * (TRIPLE / filled)[:, None, None]
    return scaled.flatten(0, 1), str(replace(how, scale=1.0)).removesuffix('; kernels x 1')


def build_spectralgpt(name: str, bands: tuple[Band, ...], options: BackboneOptions) -> Backbone:
    """Build SpectralGPT for the triples of bands that the images hold."""
    record = catalog.get_record(name)
    require_kinds(record, bands)
    require_wavelengths(bands, name)
    if options.pretrained and options.weights is None and find_weights(record) is None:
        raise WeightsError(
            f'the weights of {name} are not on the hub; download {record.sources[0].file} from '
            'zenodo.org/records/8412455 and pass weights=<file>, or pass pretrained=False'
        )
    places, how = place_bands(record.source_bands, bands)
    config = ViTConfig(
        record.dim,
        record.depth,
        record.heads,
        grid=record.grid,
        drop_path=options.drop_path,
        relative_positions=options.relative_positions,
    )
    trunk = SpectralGpt(config, places, record.patch)
    if options.relative_positions and len(trunk.triples) > 1:
        raise BackboneError(
            f'{name} sees {len(trunk.triples)} triples of bands, among which relative_positions mean nothing'
        )
    report = None
    checkpoint = read_checkpoint(record, options)
    if checkpoint is not None:
        checkpoint = replace(checkpoint, state=join_qkv(checkpoint.state), source=f'{checkpoint.source} ({how})')
        report = load_checkpoint(trunk, checkpoint, options)
    return finish_backbone(record.name, trunk, options, load_report=report)


for _record in catalog.read_catalog().values():
    if _record.family == 'spectralgpt':
        register_backbone(_record.name)(build_spectralgpt)
