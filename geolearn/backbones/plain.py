"""What plain transformers share: a patch embedding for fixed bands, their shape by the catalog, joined projections."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from geolearn.backbones import catalog
from geolearn.backbones.backbone import Backbone, ConvBackbone
from geolearn.backbones.building import Checkpoint, load_checkpoint, read_checkpoint, register_family
from geolearn.backbones.catalog import WeightsRecord
from geolearn.backbones.options import BackboneOptions, choose_strides, refuse_transformer_options
from geolearn.backbones.trunk import ViTConfig
from geolearn.bands import Band
from geolearn.errors import BackboneError, WeightsError


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


CHANNELS = (64, 128, 256, 512)

STRIDES = (1, 2, 4, 8)
"""Channels and strides of the blocks, in pixels, finest first."""


class PlainEncoder(nn.Module):
    """Blocks of two convolutions, each at half the resolution of the one before.

    Args:
        bands: Number of bands.
        strides: Of the maps wanted, some of `STRIDES`; blocks after the last of them are left out.
    """

    def __init__(self, bands: int, strides: tuple[int, ...] = STRIDES) -> None:
        super().__init__()
        self.taken = tuple(STRIDES.index(stride) for stride in strides)
        widths = (bands, *CHANNELS[: max(self.taken) + 1])
        self.stages = nn.ModuleList(double_conv(before, after) for before, after in pairwise(widths))
        self.pool = nn.MaxPool2d(2)
        self.channels = tuple(CHANNELS[i] for i in self.taken)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Compute maps (B, channels[i], H/s, W/s) from images (B, bands, H, W), sides multiples of the last stride."""
        maps = []
        for i, stage in enumerate(self.stages):
            x = stage(self.pool(x) if i else x)
            maps.append(x)
        return [maps[i] for i in self.taken]


def double_conv(before: int, after: int) -> nn.Sequential:
    """Make two convolutions of 3 x 3 pixels, each with batch norm and ReLU, from `before` to `after` channels."""
    layers: list[nn.Module] = []
    for channels in (before, after):
        conv = nn.Conv2d(channels, after, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode='fan_out', nonlinearity='relu')
        layers += [conv, nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


@register_family('plain_cnn')
def build_plain_cnn(name: str, bands: tuple[Band, ...], options: BackboneOptions) -> Backbone:
    """Build the plain encoder; weights can only be a file of one's own.

    Raises:
        BackboneError: If options ask for tokens, other strides, or anything else that it does not have.
        WeightsError: If pretrained weights are asked for: there are none.
    """
    record = catalog.get_record(name)
    refuse_transformer_options(name, options)
    if options.drop_path:
        raise BackboneError(f'{name} has no residuals to drop; pass drop_path=0')
    strides = choose_strides(name, options.strides, STRIDES)
    trunk = PlainEncoder(len(bands), strides)
    checkpoint = read_checkpoint(record, options)
    report = None if checkpoint is None else load_checkpoint(trunk, checkpoint, options)
    return ConvBackbone(name, trunk, channels=trunk.channels, strides=strides, load_report=report)
