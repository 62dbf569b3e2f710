"""Prithvi-EO 1.0 and 2.0: masked autoencoders of six bands over one to many dates, some with dates and places too.

Jakubik et al. 2023, "Foundation Models for Generalist Geospatial Artificial Intelligence", arXiv:2310.18660;
Szwarcman et al. 2024, "Prithvi-EO-2.0: A Versatile Multi-Temporal Foundation Model", arXiv:2412.02732.

Positions are never trained: 3-D sine-cosine, made anew for any number of dates. At other image sizes than 224 the
grid of 224 is interpolated (bicubic, corners kept in place) as the authors' own software, terratorch, does; computing
it anew for the larger grid, as PANGAEA does, would give the same token quite other numbers.
"""

from collections.abc import Sequence
from datetime import date
from typing import NamedTuple

import torch
from torch import Tensor, nn

from geolearn.backbones import backbone, building, catalog, vit
from geolearn.backbones.trunk import BlockTrunk, ViTConfig, make_blocks
from geolearn.bands import Band
from geolearn.errors import BackboneError

EPS = 1e-5
"""Of the layer norms; DOFA's and timm's is 1e-6."""

SCALE = 0.1
"""First value of the learned factors on embedded dates and places."""


class Coordinates(NamedTuple):
    """When and where images were taken; what is None is left out, as pretraining did at random.

    Args:
        time: (B, T, 2): year, and day of the year.
        location: (B, 2): latitude, then longitude, in degrees of the image's center.
    """

    time: Tensor | None = None
    location: Tensor | None = None


class PatchEmbed(nn.Module):
    """One convolution over each date."""

    def __init__(self, bands: int, dim: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(bands, dim, (1, patch, patch), stride=(1, patch, patch))
        nn.init.xavier_uniform_(self.proj.weight.data.view(dim, -1))
        nn.init.zeros_(self.proj.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Embed images (B, bands, T, H, W) as maps (B, D, T, h, w)."""
        return self.proj(x)


class NumberPair(nn.Module):
    """Two numbers, half of the width each, times one learned factor."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        # learned at pretraining; images that come without coordinates would leave it without gradient
        self.scale = nn.Parameter(torch.full((1,), SCALE), requires_grad=False)

    def forward(self, pairs: Tensor) -> Tensor:
        """Embed pairs (..., 2) as (..., D)."""
        return self.scale * vit.embed_numbers(pairs.float(), self.dim // 2).flatten(-2)


class PrithviViT(BlockTrunk):
    """Prithvi's encoder, over any image size and any number of dates.

    Images are (B, bands, H, W), or (B, T, bands, H, W). Tokens of the native form are the class token, then date by
    date, row by row. In the windowed form windows stay within a date, and global blocks attend over all dates.

    Args:
        config: Shape of the transformer; `config.grid` is the token grid of 224 pixels.
        bands: Number of bands.
        patch: Side of the patches, in pixels.
        coordinates: Whether the weights know dates and places.
    """

    space: Tensor
    takes_dates = True

    def __init__(self, config: ViTConfig, bands: int, patch: int, *, coordinates: bool = False) -> None:
        super().__init__(config, patch, class_token=True)
        assert self.cls_token is not None  # just asked for
        self.patch_embed = PatchEmbed(bands, config.dim, patch)
        nn.init.normal_(self.cls_token, std=0.02)
        self.temporal_embed_enc = NumberPair(config.dim) if coordinates else None
        self.location_embed_enc = NumberPair(config.dim) if coordinates else None
        self.register_buffer('space', _space_grid(config.dim, config.grid), persistent=False)
        self.blocks = make_blocks(config)
        self.norm = nn.LayerNorm(config.dim, eps=config.eps)

    def hidden_states(self, x: Tensor, where: Coordinates | None = None) -> list[Tensor]:
        """Run the native form: the output (B, 1 + T*h*w, D) of every block, class token first, before the final norm.

        Args:
            x: Images (B, bands, H, W) or (B, T, bands, H, W).
            where: When and where they were taken, for weights that know what to do with it.
        """
        return self.run_each(self.first_tokens(x, where))

    def tokens(self, x: Tensor, where: Coordinates | None = None) -> Tensor:
        """Run the native form: the last block's output (B, 1 + T*h*w, D) after the final norm."""
        return self.run_all(self.first_tokens(x, where))

    @property
    def reads_dates(self) -> bool:
        """Whether these weights know dates."""
        return self.temporal_embed_enc is not None

    @property
    def takes_visible(self) -> bool:
        """Whether `visible_tokens` can be called."""
        return True

    @property
    def offers_attention(self) -> bool:
        """Whether every block is a `Block`, whose attention can be read."""
        return all(isinstance(block, vit.Block) for block in self.blocks)

    def attention_maps(self, x: Tensor, where: Coordinates | None = None) -> Tensor:
        """Return the last block's attention (B, heads, 1 + T*h*w, 1 + T*h*w) in the native form; rows sum to 1."""
        return self.last_attention(self.first_tokens(x, where))

    def maps(
        self, x: Tensor, layers: Sequence[int], window: int | None = None, where: Coordinates | None = None
    ) -> list[Tensor]:
        """Run the windowed form: the outputs of some blocks as maps (B, D, h, w), the mean over the dates."""
        return [frames.mean(dim=1) for frames in self.frame_maps(x, layers, window, where)]

    def date_maps(
        self, x: Tensor, layers: Sequence[int], window: int | None, acquired: Sequence[date] | None
    ) -> list[Tensor]:
        """Run the windowed form on images (B, T, bands, H, W): maps (B, T, D, h, w), every date having seen the others.

        Weights that know dates get those in `acquired`.
        """
        where = None
        if acquired is not None and self.temporal_embed_enc is not None:
            pairs = [(day.year, day.timetuple().tm_yday) for day in acquired]
            time = torch.tensor(pairs, dtype=torch.float32, device=x.device)
            where = Coordinates(time=time.expand(x.shape[0], -1, -1))
        return self.frame_maps(x, layers, window, where)

    def frame_maps(
        self, x: Tensor, layers: Sequence[int], window: int | None = None, where: Coordinates | None = None
    ) -> list[Tensor]:
        """Run the windowed form: the outputs of some blocks, date by date.

        Args:
            x: Images (B, bands, H, W) or (B, T, bands, H, W).
            layers: Blocks, counted from 0.
            window: Side of the windows in tokens; None chooses per axis (see `choose_window`), 0 is global attention.
            where: When and where the images were taken.

        Returns:
            Maps (B, T, D, h, w) for each of `layers`.
        """
        y = self.place(x, where)
        b, t, h, w, d = y.shape
        states = vit.windowed_states(
            self.blocks,
            y.reshape(b * t, h, w, d),
            window=vit.choose_windows((h, w), window),
            global_at=self.global_at,
            layers=layers,
            frames=t,
        )
        return [state.reshape(b, t, h, w, d).permute(0, 1, 4, 2, 3) for state in states]

    def first_tokens(self, x: Tensor, where: Coordinates | None = None) -> Tensor:
        """Return what the first block takes in the native form: tokens (B, 1 + T*h*w, D) with positions."""
        return self.add_class_token(self.place(x, where).flatten(1, 3))

    def place(self, x: Tensor, where: Coordinates | None = None) -> Tensor:
        """Turn images into a grid of patches (B, T, h, w, D) with positions, dates and places added.

        Images are padded right and bottom with zeros, the mean of normalized pixels, to whole patches.
        """
        frames = (x[:, None] if x.dim() == 4 else x).transpose(1, 2)
        grid = self.patch_embed(vit.pad_to_multiple(frames, self.patch)).permute(0, 2, 3, 4, 1)
        grid = grid + self._positions(grid.shape[1], (grid.shape[2], grid.shape[3]))
        return grid if where is None else grid + self._embed_coordinates(where, grid)

    def _positions(self, frames: int, grid: tuple[int, int]) -> Tensor:
        """Return the positions (T, h, w, D): column and row, six parts of sixteen each, then the date, four."""
        space = vit.resize_position_grid(self.space, grid, prefix=0, align_corners=True).reshape(1, *grid, -1)
        number = torch.arange(frames, dtype=torch.float32, device=space.device)
        time = vit.embed_numbers(number, self.dim - space.shape[-1]).to(space.dtype)
        return torch.cat([space.expand(frames, -1, -1, -1), time[:, None, None].expand(-1, *grid, -1)], dim=-1)

    def _embed_coordinates(self, where: Coordinates, grid: Tensor) -> Tensor:
        """Embed dates and places to be added to a grid (B, T, h, w, D)."""
        if self.temporal_embed_enc is None or self.location_embed_enc is None:
            raise BackboneError('these weights know no dates and places; take a backbone whose name ends in TL')
        b, t, *_, d = grid.shape
        added = grid.new_zeros(b, t, 1, 1, d)
        for what, found, needed in (('time', where.time, (b, t, 2)), ('location', where.location, (b, 2))):
            if found is not None and tuple(found.shape) != needed:
                raise ValueError(f'{what} of {b} images of {t} dates needs shape {needed}, got {tuple(found.shape)}')
        if where.time is not None:
            added = added + self.temporal_embed_enc(where.time)[:, :, None, None]
        if where.location is not None:
            added = added + self.location_embed_enc(where.location)[:, None, None, None]
        return added.to(grid.dtype)


def _space_grid(dim: int, side: int) -> Tensor:
    """Make the sine-cosine positions (1, side*side, D*6/8): columns, then rows."""
    if dim % 16:
        raise ValueError(f'the positions of Prithvi need a width that is a multiple of 16, got {dim}')
    return vit.sincos_position_grid(dim // 16 * 12, (side, side), cls=False)


@building.register_family('prithvi')
def build_prithvi(name: str, bands: tuple[Band, ...], options: backbone.BackboneOptions) -> backbone.Backbone:
    """Build one of Prithvi's variants."""
    record = catalog.get_record(name)
    config = building.make_config(record, options, eps=EPS)
    patch = record.patch if options.form == 'tokens' else 16
    checkpoint = building.read_checkpoint(record, bands, options)
    trunk = PrithviViT(config, len(bands), patch, coordinates=name.endswith('_TL'))
    return building.build_fixed_band(record, trunk, bands, options, checkpoint=checkpoint)
