"""A plain vision transformer as a trunk: one set of weights, run natively or within windows."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geolearn.backbones.positions import resize_position_grid, sincos_position_grid
from geolearn.backbones.vit import Block, choose_window, global_blocks, run_windowed


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


class ViT(nn.Module):
    """A vision transformer over any image size, with a class token and fixed positions.

    `hidden_states` and `tokens` run the native form: class token kept, every block global. `last_map` runs the
    windowed form of ViTDet: no class token, no final norm, most blocks within windows. Positions are stored for a
    square grid (2-D sine-cosine until weights are loaded) and interpolated to the grid of each image.

    Args:
        config: Shape of the transformer.
        patch_embed: Maps images (B, bands, H, W), sides multiples of `patch`, to maps (B, D, H/patch, W/patch).
        patch: Stride of `patch_embed`, in pixels.
    """

    pos_embed: Tensor

    def __init__(self, config: ViTConfig, patch_embed: nn.Module, patch: int) -> None:
        super().__init__()
        self.config, self.patch = config, patch
        self.patch_embed = patch_embed
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.register_buffer('pos_embed', sincos_position_grid(config.dim, (config.grid, config.grid)))
        self.blocks = nn.ModuleList(_block(config, i) for i in range(config.depth))
        self.norm = nn.LayerNorm(config.dim, eps=config.eps) if config.final_norm else nn.Identity()
        nn.init.normal_(self.cls_token, std=0.02)
        self.blocks.apply(_init_linear)

    def embed(self, x: Tensor) -> Tensor:
        """Turn images (B, bands, H, W) of any size into a map of patches (B, D, h, w), before positions.

        Images are padded right and bottom with zeros, the mean of normalised pixels, to whole patches.
        """
        return self.patch_embed(F.pad(x, (0, -x.shape[-1] % self.patch, 0, -x.shape[-2] % self.patch)))

    def hidden_states(self, x: Tensor) -> list[Tensor]:
        """Run the native form: the output (B, 1 + h*w, D) of every block, class token first, before any final norm."""
        grid = self.embed(x)
        pos = resize_position_grid(self.pos_embed, (grid.shape[2], grid.shape[3]))
        tokens = grid.flatten(2).transpose(1, 2) + pos[:, 1:]
        cls = (self.cls_token + pos[:, :1]).to(tokens.dtype).expand(tokens.shape[0], -1, -1)
        states = [torch.cat([cls, tokens], dim=1)]
        for block in self.blocks:
            states.append(block(states[-1]))
        return states[1:]

    def tokens(self, x: Tensor) -> Tensor:
        """Run the native form: the last block's output (B, 1 + h*w, D) after the final norm, if there is one."""
        return self.norm(self.hidden_states(x)[-1])

    def last_map(self, x: Tensor, window: int | None = None) -> Tensor:
        """Run the windowed form: the last block's output as a map (B, D, h, w).

        Args:
            x: Images (B, bands, H, W).
            window: Side of the windows in tokens; None chooses per axis (see `choose_window`), 0 is global attention.
        """
        y = self.place(self.embed(x))
        size = (choose_window(y.shape[1]), choose_window(y.shape[2])) if window is None else (window, window)
        y = run_windowed(self.blocks, y, window=size if all(size) else None, global_at=self.global_at)
        return y.permute(0, 3, 1, 2)

    def place(self, patches: Tensor) -> Tensor:
        """Add positions to a map of patches (B, D, h, w), giving the grid (B, h, w, D) without a class token."""
        h, w = patches.shape[2:]
        pos = resize_position_grid(self.pos_embed[:, 1:], (h, w), prefix=0)
        return patches.permute(0, 2, 3, 1) + pos.reshape(1, h, w, -1)

    @property
    def global_at(self) -> tuple[int, ...]:
        """Blocks that attend globally in the windowed form, counted from 0."""
        return global_blocks(self.config.depth)

    def native_parameters(self) -> Iterator[nn.Parameter]:
        """Go through the parameters that only the native form uses: class token and final norm."""
        yield self.cls_token
        yield from self.norm.parameters()


def _block(config: ViTConfig, index: int) -> Block:
    return Block(
        config.dim,
        config.heads,
        qkv_bias=config.qkv_bias,
        eps=config.eps,
        layer_scale=config.layer_scale,
        drop_path=config.drop_path * index / max(config.depth - 1, 1),
    )


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
