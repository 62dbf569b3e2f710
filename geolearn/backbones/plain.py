"""What plain transformers share: a patch embedding for fixed bands, their shape by the catalog, joined projections."""

import torch
from torch import Tensor, nn

from geolearn.backbones.building import Checkpoint
from geolearn.backbones.catalog import WeightsRecord
from geolearn.backbones.options import BackboneOptions
from geolearn.backbones.trunk import ViTConfig
from geolearn.errors import WeightsError


class PatchEmbed(nn.Module):
    """A convolution that turns each patch of an image into one vector.

    Args:
        bands: Number of bands.
        dim: Width D.
        patch: Side of the patches, in pixels.
    """

    def __init__(self, bands: int, dim: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(bands, dim, patch, stride=patch)
        nn.init.xavier_uniform_(self.proj.weight.view(dim, -1))
        nn.init.zeros_(self.proj.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Embed images (B, bands, H, W), sides multiples of the patch p, as maps (B, D, H/p, W/p)."""
        return self.proj(x)


def make_config(
    record: WeightsRecord,
    options: BackboneOptions,
    *,
    checkpoint: Checkpoint | None = None,
    eps: float = 1e-6,
    qkv_bias: bool = True,
    layer_scale: float | None = None,
) -> ViTConfig:
    """Describe the transformer of a record, as the options want it.

    Args:
        record: Gives width, depth, heads and grid.
        options: Give drop path and relative positions.
        checkpoint: Of weights that come with and without a final norm: tokens are normed only by one that they have.
        eps: Of the layer norms.
        qkv_bias: Whether queries, keys and values have a bias.
        layer_scale: First value of LayerScale, or None for none.
    """
    return ViTConfig(
        record.dim,
        record.depth,
        record.heads,
        grid=record.grid,
        eps=eps,
        qkv_bias=qkv_bias,
        layer_scale=layer_scale,
        drop_path=options.drop_path,
        # maps never use it; having it there always lets one bundle layout serve both published layouts
        final_norm=options.form != 'tokens' or checkpoint is None or 'norm.weight' in checkpoint.state,
        relative_positions=options.relative_positions,
    )


def join_qkv(state: dict[str, Tensor], *, separate: tuple[str, str, str] = ('q', 'k', 'v')) -> dict[str, Tensor]:
    """Join separate projections to queries, keys and values (``attn.q.weight`` ...) into one (``attn.qkv.weight``).

    Raises:
        WeightsError: If one of the three is missing.
    """
    first = f'.attn.{separate[0]}.'
    joined = {}
    for name, value in state.items():
        if first in name:
            needed = [name.replace(first, f'.attn.{part}.') for part in separate]
            if missing := [part for part in needed if part not in state]:
                raise WeightsError(f'the weights hold {name} but no {" and no ".join(missing)}; take the whole file')
            joined[name.replace(first, '.attn.qkv.')] = torch.cat([state[part] for part in needed])
        elif not any(f'.attn.{part}.' in name for part in separate):
            joined[name] = value
    return joined
