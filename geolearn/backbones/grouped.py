"""Trunks that see an image as several groups of bands, each with a token of its own at every place."""

from collections.abc import Sequence

from torch import Tensor

from geolearn.backbones.trunk import BlockTrunk, ViTConfig
from geolearn.backbones.vit import choose_windows, windowed_states


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
        size = choose_windows((y.shape[1], y.shape[2]), window)
        states = windowed_states(self.stages, y, window=size, global_at=self.global_at, layers=layers, frames=count)
        return [s.reshape(-1, count, *s.shape[1:]).mean(dim=1).permute(0, 3, 1, 2) for s in states]
