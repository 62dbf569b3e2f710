"""What every transformer offers to a backbone, what those of blocks in a row share, and the plain one."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import torch
from torch import Tensor, nn

from geolearn.backbones import vit
from geolearn.backbones.calendar import review_days


class Trunk(nn.Module):
    """What a transformer offers to the forms of a backbone.

    Images are normalized, (B, bands, H, W) of any size, and padded right and bottom with zeros to whole patches;
    trunks of several dates also take (B, T, bands, H, W).
    """

    patch: int
    """Stride of the tokens, in pixels."""

    knows_resolution = False
    """Whether positions depend on the resolution of the images, `ground_resolution_m`, which may be set."""

    ground_resolution_m: float
    """Of the images, in meters per pixel, where `knows_resolution`."""

    knows_dates = False
    """Whether it matters when images were taken, `acquired`, which may be set where they are of one date."""

    acquired: tuple[date, ...] = ()
    """When the images were taken; empty where that is not known."""

    knows_location = False
    """Whether it may know where the images lie, `location`, which may be set."""

    location: tuple[float, float] | None = None
    """Latitude and longitude of about the middle of the images in degrees; None where that is not known."""

    takes_missing = False
    """Whether NaN may stand for missing values, which then take no part."""

    takes_dates = False
    """Whether images of several dates go through the blocks together, see `date_maps`."""

    joins_dates = False
    """Whether `date_maps` returns one map of all dates, T = 1."""

    assumes_june = False
    """Whether images of one date are taken as of June where `acquired` is empty, which users are told."""

    class_token_is_trained = False
    """Whether pretraining made the class token describe the image; masked autoencoders leave it to itself."""

    @property
    def reads_dates(self) -> bool:
        """Whether what it computes of images of several dates depends on when these were."""
        return self.knows_dates

    def review_dates(self, days: Sequence[date]) -> list[str]:
        """Say what of the dates of a series of images pretraining never had, a sentence for each; see `review_days`."""
        return review_days(days, ordered=self.takes_dates)

    @property
    def dim(self) -> int:
        """Width D."""
        raise NotImplementedError

    @property
    def step(self) -> int:
        """Pixels at whose multiples an image may be cut so that its parts are seen through the same patches."""
        return self.patch

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.stages)

    @property
    def prefix(self) -> int:
        """Tokens in front of the native form that belong to no place: 1 with a class token, else 0."""
        return 0

    @property
    def stages(self) -> nn.ModuleList:
        """The blocks in order, for freezing and for learning rates by depth."""
        raise NotImplementedError

    @property
    def offers_attention(self) -> bool:
        """Whether `attention_maps`, `first_tokens`, `heads` and `attention_in` can be called."""
        return False

    @property
    def heads(self) -> int:
        """Number of attention heads of each block."""
        first: Any = self.stages[0]
        return int(first.attn.heads)

    def attention_in(self, block: nn.Module, tokens: Tensor) -> Tensor:
        """Return what a block attends to, (B, heads, N, N) float32, given its input (B, N, D); rows sum to 1."""
        if not isinstance(block, vit.Block):
            raise TypeError(f'attention maps need a plain transformer block, got {type(block).__name__}')
        return block.attn.weights(block.norm1(tokens))

    def last_attention(self, tokens: Tensor) -> Tensor:
        """Run all blocks but the last over what the first takes, and return what the last attends to."""
        *before, last = self.stages
        for block in before:
            tokens = block(tokens)
        return self.attention_in(last, tokens)

    def first_tokens(self, x: Tensor) -> Tensor:
        """Return what the first block takes in the native form: tokens (B, prefix + n, D) with positions."""
        raise NotImplementedError

    def attention_maps(self, x: Tensor) -> Tensor:
        """Return the last block's attention (B, heads, prefix + n, prefix + n) in the native form; rows sum to 1."""
        return self.last_attention(self.first_tokens(x))

    def hidden_states(self, x: Tensor) -> list[Tensor]:
        """Run the native form: the output (B, prefix + n, D) of every block, before any final norm."""
        raise NotImplementedError

    def tokens(self, x: Tensor) -> Tensor:
        """Run the native form: the last block's output (B, prefix + n, D) after the final norm."""
        raise NotImplementedError

    def maps(self, x: Tensor, layers: Sequence[int], window: int | None = None) -> list[Tensor]:
        """Run the windowed form: the outputs of these blocks as maps (B, D, h, w), with no class token."""
        raise NotImplementedError

    def date_maps(
        self, x: Tensor, layers: Sequence[int], window: int | None, acquired: Sequence[date] | None
    ) -> list[Tensor]:
        """Run the windowed form on images (B, T, bands, H, W), acquired on these dates: maps (B, T, D, h, w)."""
        raise NotImplementedError

    def native_parameters(self) -> Iterable[nn.Parameter]:
        """Go through the parameters that only the native form uses: class token and final norm."""
        raise NotImplementedError

    @property
    def takes_visible(self) -> bool:
        """Whether `visible_tokens` can be called: places have one token each, and blocks take any number of them."""
        return False

    def visible_tokens(self, x: Tensor, visible: Tensor) -> Tensor:
        """Run the native form on some of the patches, as masked autoencoders do.

        Args:
            x: Images.
            visible: Places (B, k) int64 of the patches that are seen, row by row from 0.

        Returns:
            (B, prefix + k, D) after the final norm.
        """
        raise NotImplementedError

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Let the blocks compute their activations again instead of keeping them while training."""
        for module in self.modules():
            if isinstance(module, vit.Stage):
                module.checkpointing = enable


@dataclass(frozen=True, slots=True)
class ViTConfig:
    """Shape of a plain vision transformer.

    Args:
        dim: Width D.
        depth: Number of blocks.
        heads: Attention heads.
        grid: Side of the token grid that the position embedding is stored for.
        eps: Of the layer norms.
        qkv_bias: Whether queries, keys and values have a bias.
        layer_scale: First value of LayerScale, or None for none.
        drop_path: Rate of stochastic depth at the last block; it grows linearly from 0.
        final_norm: Whether a norm follows the last block in the native form.
        relative_positions: Whether blocks add decomposed relative positions, zero at first, in the windowed form.
    """

    dim: int
    depth: int
    heads: int
    grid: int = 14
    eps: float = 1e-6
    qkv_bias: bool = True
    layer_scale: float | None = None
    drop_path: float = 0.0
    final_norm: bool = True
    relative_positions: bool = False


class BlockTrunk(Trunk):
    """A trunk whose tokens go through blocks in a row; the native form is the same for all such trunks.

    Subclasses fill `blocks` and `norm` (or say in `stages` and `final_norm` where else they are), and write
    `first_tokens` and `maps`.

    Args:
        config: Shape of the transformer.
        patch: Side of the patches, in pixels.
        class_token: Whether a class token, zero until it is filled, goes in front of the native form's tokens.
    """

    blocks: nn.ModuleList
    norm: nn.Module

    def __init__(self, config: ViTConfig, patch: int, *, class_token: bool = False) -> None:
        super().__init__()
        self.config, self.patch = config, patch
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.dim)) if class_token else None

    @property
    def dim(self) -> int:
        """Width D."""
        return self.config.dim

    @property
    def prefix(self) -> int:
        """Tokens in front of the native form that belong to no place: 1 with a class token, else 0."""
        return 0 if self.cls_token is None else 1

    @property
    def stages(self) -> nn.ModuleList:
        """The blocks in order."""
        return self.blocks

    @property
    def final_norm(self) -> nn.Module:
        """What follows the last block in the native form."""
        return self.norm

    @property
    def global_at(self) -> tuple[int, ...]:
        """Blocks that attend globally in the windowed form, counted from 0."""
        return vit.global_blocks(self.depth)

    def hidden_states(self, x: Tensor) -> list[Tensor]:
        """Run the native form: the output (B, prefix + n, D) of every block, before any final norm."""
        return self.run_each(self.first_tokens(x))

    def tokens(self, x: Tensor) -> Tensor:
        """Run the native form: the last block's output (B, prefix + n, D) after the final norm, if there is one."""
        return self.run_all(self.first_tokens(x))

    def visible_tokens(self, x: Tensor, visible: Tensor) -> Tensor:
        """Run the native form on some of the patches (see `Trunk.visible_tokens`): (B, prefix + k, D)."""
        return self.run_all(take_tokens(self.first_tokens(x), visible, self.prefix))

    def run_each(self, tokens: Tensor) -> list[Tensor]:
        """Run the blocks over tokens (B, N, D), all of them global; return every output."""
        states = [tokens]
        for block in self.stages:
            states.append(block(states[-1]))
        return states[1:]

    def run_all(self, tokens: Tensor) -> Tensor:
        """Run the blocks and the final norm over tokens (B, N, D), keeping nothing on the way."""
        for block in self.stages:
            tokens = block(tokens)
        return self.final_norm(tokens)

    def add_class_token(self, tokens: Tensor, position: Tensor | float = 0.0) -> Tensor:
        """Put the class token, at its own position (1, 1, D) where it has one, in front of tokens (B, n, D)."""
        assert self.cls_token is not None  # only trunks that have one call this
        # len() would write the number of images into an exported graph
        cls = (self.cls_token + position).to(tokens.dtype).expand(tokens.shape[0], -1, -1)
        return torch.cat([cls, tokens], dim=1)

    def native_parameters(self) -> Iterator[nn.Parameter]:
        """Go through the parameters that only the native form uses: class token and final norm."""
        if self.cls_token is not None:
            yield self.cls_token
        yield from self.final_norm.parameters()


def take_tokens(tokens: Tensor, places: Tensor, prefix: int) -> Tensor:
    """Keep the prefix of tokens (B, prefix + n, D) and those of some places (B, k), in the order of these."""
    index = places[..., None].expand(-1, -1, tokens.shape[2])
    return torch.cat([tokens[:, :prefix], tokens[:, prefix:].gather(1, index)], dim=1)


class ViT(BlockTrunk):
    """A vision transformer over any image size, with a class token and fixed positions.

    `hidden_states` and `tokens` run the native form: class token kept, every block global. `maps` runs the
    windowed form of ViTDet: no class token, no final norm, most blocks within windows. Positions are stored for a
    square grid (2-D sine-cosine until weights are loaded) and interpolated to the grid of each image.

    Args:
        config: Shape of the transformer.
        patch_embed: Maps images (B, bands, H, W), sides multiples of `patch`, to maps (B, D, H/patch, W/patch).
        patch: Stride of `patch_embed`, in pixels.
    """

    pos_embed: Tensor

    def __init__(self, config: ViTConfig, patch_embed: nn.Module, patch: int) -> None:
        super().__init__(config, patch, class_token=True)
        assert self.cls_token is not None  # just asked for
        self.patch_embed = patch_embed
        self.register_buffer('pos_embed', vit.sincos_position_grid(config.dim, (config.grid, config.grid)))
        self.blocks = make_blocks(config)
        self.norm = nn.LayerNorm(config.dim, eps=config.eps) if config.final_norm else nn.Identity()
        nn.init.normal_(self.cls_token, std=0.02)

    @property
    def takes_visible(self) -> bool:
        """Whether `visible_tokens` can be called."""
        return True

    def embed(self, x: Tensor) -> Tensor:
        """Turn images (B, bands, H, W) of any size into a map of patches (B, D, h, w), before positions.

        Images are padded right and bottom with zeros, the mean of normalized pixels, to whole patches.
        """
        return self.patch_embed(vit.pad_to_multiple(x, self.patch))

    @property
    def offers_attention(self) -> bool:
        """Whether every block is a `Block`, whose attention can be read."""
        return all(isinstance(block, vit.Block) for block in self.stages)

    def maps(self, x: Tensor, layers: Sequence[int], window: int | None = None) -> list[Tensor]:
        """Run the windowed form: the outputs of some blocks as maps (B, D, h, w), before any final norm.

        Args:
            x: Images (B, bands, H, W).
            layers: Blocks, counted from 0.
            window: Side of the windows in tokens; None chooses per axis (see `choose_window`), 0 is global attention.
        """
        y = self.place(self.embed(x))
        size = vit.choose_windows((y.shape[1], y.shape[2]), window)
        states = vit.windowed_states(self.blocks, y, window=size, global_at=self.global_at, layers=layers)
        return [state.permute(0, 3, 1, 2) for state in states]

    def first_tokens(self, x: Tensor) -> Tensor:
        """Return what the first block takes in the native form: tokens (B, 1 + h*w, D) with positions."""
        return self.add_class_token(self.place(self.embed(x)).flatten(1, 2), self.pos_embed[:, :1])

    def place(self, patches: Tensor) -> Tensor:
        """Add positions to a map of patches (B, D, h, w), giving the grid (B, h, w, D) without a class token."""
        h, w = patches.shape[2:]
        pos = vit.resize_position_grid(self.pos_embed[:, 1:], (h, w), prefix=0)
        return patches.permute(0, 2, 3, 1) + pos.reshape(1, h, w, -1)


def make_blocks(config: ViTConfig) -> nn.ModuleList:
    """Make the blocks of a transformer, freshly initialized, with drop path growing from the first to the last."""
    blocks = nn.ModuleList(
        vit.Block(
            config.dim,
            config.heads,
            qkv_bias=config.qkv_bias,
            eps=config.eps,
            layer_scale=config.layer_scale,
            drop_path=config.drop_path * index / max(config.depth - 1, 1),
            rel_pos=(config.grid, config.grid) if config.relative_positions else None,
        )
        for index in range(config.depth)
    )
    return blocks.apply(vit.init_linear)


class GroupedTrunk(BlockTrunk):
    """A trunk over several groups of bands, such as sensors; subclasses write `embed`.

    The native form returns the tokens of one group after the other; maps are averaged over the groups.

    Args:
        config: Shape of the transformer.
        patch: Side of the patches, in pixels.
        groups: Number of groups.
    """

    def __init__(self, config: ViTConfig, patch: int, groups: int) -> None:
        super().__init__(config, patch)
        self.group_count = groups

    def embed(self, x: Tensor) -> Tensor:
        """Turn images (B, bands, H, W) of any size into grids (B * groups, h, w, D), an image's side by side."""
        raise NotImplementedError

    def first_tokens(self, x: Tensor) -> Tensor:
        """Return what the first block takes in the native form: tokens (B, groups * h*w, D) with positions."""
        return self.embed(x).reshape(x.shape[0], -1, self.dim)

    def maps(self, x: Tensor, layers: Sequence[int], window: int | None = None) -> list[Tensor]:
        """Run the windowed form: the outputs of some blocks as maps (B, D, h, w), averaged over the groups.

        Args:
            x: Images (B, bands, H, W).
            layers: Blocks, counted from 0.
            window: Side of the windows, as for `ViT.maps`; global blocks attend over the tokens of all groups.
        """
        y, count = self.embed(x), self.group_count
        size = vit.choose_windows((y.shape[1], y.shape[2]), window)
        states = vit.windowed_states(self.stages, y, window=size, global_at=self.global_at, layers=layers, frames=count)
        return [s.reshape(-1, count, *s.shape[1:]).mean(dim=1).permute(0, 3, 1, 2) for s in states]
