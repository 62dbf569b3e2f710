"""timm's plain transformers as a trunk: their tokens, and their maps with global or windowed attention."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from geolearn.backbones.padding import pad_to_multiple
from geolearn.backbones.vit import (
    Size,
    choose_windows,
    global_blocks,
    window_partition,
    window_unpartition,
    windowed_states,
)

_AFTER_THE_BLOCKS = ('norm.', 'fc_norm.', 'head.', 'head_drop.', 'attn_pool.', 'cls_attn_blocks.', 'neck.')
"""Parameters of timm's transformers that only their heads, or the native form, use."""


class TimmTransformer(nn.Module):
    """A transformer of timm that keeps one resolution, for images of any size.

    timm's `VisionTransformer` runs within windows, without prefix tokens, where maps are wanted; the others keep their
    prefix tokens and attend globally, through timm's `forward_intermediates`.

    Args:
        net: The model, without a classifier.
        patch: Stride of its patches, in pixels.
        native: Whether tokens are wanted, so that nothing of the network is left unused.
    """

    def __init__(self, net: Any, patch: int, *, native: bool = False) -> None:
        super().__init__()
        self.net = net
        self.patch = patch
        self.native = native
        self.depth = len(net.feature_info)
        self.dim = int(net.feature_info[-1]['num_chs'])
        self.prefix = int(getattr(net, 'num_prefix_tokens', 0))
        # other classes run more than their blocks (position biases, rotary positions) on the way
        self.can_window = type(net) is VisionTransformer and bool(getattr(net, 'dynamic_img_size', False))

    @property
    def stages(self) -> nn.ModuleList:
        """The blocks in order."""
        return nn.ModuleList(self.net.blocks)

    @property
    def global_at(self) -> tuple[int, ...]:
        """Blocks that attend globally in the windowed form, counted from 0."""
        return global_blocks(self.depth) if self.can_window else tuple(range(self.depth))

    def hidden_states(self, x: Tensor) -> list[Tensor]:
        """Run the native form: the output (B, prefix + h*w, D) of every block, before any final norm."""
        return self._intermediates(x, list(range(self.depth)), norm=False)

    def tokens(self, x: Tensor) -> Tensor:
        """Run the native form: the last block's output (B, prefix + h*w, D) after the final norm."""
        return self._intermediates(x, [self.depth - 1], norm=True)[0]

    def maps(self, x: Tensor, layers: Sequence[int], window: int | None = None) -> list[Tensor]:
        """Return the outputs of some blocks as maps (B, D, h, w), before any final norm.

        Args:
            x: Images (B, bands, H, W).
            layers: Blocks, counted from 0.
            window: Side of the windows in tokens, as for `ViT.maps`; ignored where `can_window` is False.
        """
        if not self.can_window:
            found = self.net.forward_intermediates(
                pad_to_multiple(x, self.patch),
                indices=sorted(set(layers)),
                norm=False,
                stop_early=True,
                intermediates_only=True,
            )
            return [found[sorted(set(layers)).index(layer)] for layer in layers]
        y = self._grid(pad_to_multiple(x, self.patch))
        size = choose_windows((y.shape[1], y.shape[2]), window)
        blocks = [_WindowedBlock(self, block) for block in self.net.blocks]
        states = windowed_states(blocks, y, window=size, global_at=self.global_at, layers=layers)  # type: ignore[arg-type]
        return [state.permute(0, 3, 1, 2) for state in states]

    def native_parameters(self) -> Iterator[nn.Parameter]:
        """Go through the parameters that only the native form uses."""
        # where class attention follows the blocks (xcit), the class token joins only there
        no_prefix = self.can_window or hasattr(self.net, 'cls_attn_blocks')
        unused = _AFTER_THE_BLOCKS + (('cls_token', 'reg_token') if no_prefix else ())
        for name, parameter in self.net.named_parameters():
            if name.startswith(unused):
                yield parameter

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Let the blocks compute their activations again instead of keeping them while training."""
        self.net.set_grad_checkpointing(enable)

    @torch.no_grad()
    def takes_any_size(self) -> bool:
        """Whether images that are no square and of another size than in training come out as maps of their size."""
        device, training = next(self.parameters()).device, self.training
        self.eval()
        taken = True
        for h, w in ((2, 4), (6, 2)):
            image = torch.zeros(1, 3, h * self.patch, w * self.patch, device=device)
            shape = self.maps(image, [self.depth - 1], 0)[0].shape
            taken = taken and tuple(shape) == (1, self.dim, h, w)
        self.train(training)
        return taken

    def _intermediates(self, x: Tensor, layers: list[int], *, norm: bool) -> list[Tensor]:
        found = self.net.forward_intermediates(
            pad_to_multiple(x, self.patch),
            indices=layers,
            norm=norm,
            intermediates_only=True,
            return_prefix_tokens=self.prefix > 0,
        )
        if not self.prefix:
            return [state.flatten(2).transpose(1, 2) for state in found]
        return [torch.cat([prefix, state.flatten(2).transpose(1, 2)], dim=1) for state, prefix in found]

    def _grid(self, x: Tensor) -> Tensor:
        """Embed padded images as a grid (B, h, w, D) with positions, prefix tokens dropped."""
        patches = self.net.patch_embed(x)
        tokens = self.net.norm_pre(self.net.patch_drop(self.net._pos_embed(patches)))
        return tokens[:, self.prefix :].reshape(patches.shape)


class _WindowedBlock:
    """Call a block of timm, which takes tokens only, on a grid of them or window by window."""

    def __init__(self, trunk: TimmTransformer, block: nn.Module) -> None:
        self.trunk, self.block = trunk, block

    def __call__(self, x: Tensor, window: Size | None) -> Tensor:
        if window is None:
            return self._run(x.reshape(x.shape[0], -1, x.shape[-1])).reshape(x.shape)
        if x.dim() == 3:
            return self._run(x.reshape(-1, window[0] * window[1], x.shape[2])).reshape(x.shape)
        windows = window_partition(x, window)
        return window_unpartition(self._run(windows.flatten(1, 2)), window, (x.shape[1], x.shape[2]))

    def _run(self, tokens: Tensor) -> Tensor:
        if self.trunk.net.grad_checkpointing and self.trunk.training and torch.is_grad_enabled():
            return checkpoint(self.block, tokens, use_reentrant=False)
        return self.block(tokens)
