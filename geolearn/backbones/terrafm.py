"""TerraFM: a plain transformer with a stem for each sensor and level of Sentinel-2, whose tokens are narrowed.

Danish et al. 2025, "TerraFM: A Scalable Foundation Model for Unified Multisensor Earth Observation", arXiv:2506.06281.
An image is of one sensor. The published code leads Level-2A through the stem of Level-1C, whatever it is asked; here
the name of the backbone says which stem is taken.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geolearn.backbones import backbone, building, catalog, vit
from geolearn.backbones.trunk import ViT, ViTConfig
from geolearn.bands import Band
from geolearn.errors import BandError

WIDER = 3
"""Times the width of the transformer that a stem's tokens are wide."""

STEMS = {'terrafm_base': 's2_l2a', 'terrafm_base_l1c': 's2_l1c'}
"""Which of the published stems the optical bands of each backbone take."""


class Projection(nn.Module):
    """Narrow tokens (..., W) to (..., D): three linear layers and a norm, without activations.

    Args:
        wide: Width W.
        dim: Width D.
    """

    def __init__(self, wide: int, dim: int) -> None:
        super().__init__()
        self.proj1 = nn.Linear(wide, wide, bias=False)
        self.norm_input = nn.LayerNorm(wide, eps=1e-5)
        self.proj2 = nn.Linear(wide, wide)
        self.proj3 = nn.Linear(wide, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Narrow tokens."""
        return self.proj3(self.proj2(self.norm_input(self.proj1(tokens))))


class TerraFMEmbed(building.PatchEmbed):
    """The stem of one sensor: a convolution, a code of the sensor, and the projection to the transformer's width.

    Args:
        bands: Number of bands.
        dim: Width D.
        patch: Side of the patches, in pixels.
    """

    def __init__(self, bands: int, dim: int, patch: int) -> None:
        super().__init__(bands, WIDER * dim, patch)
        self.sensor_embed = nn.Parameter(torch.zeros(1, WIDER * dim))
        self.projection = Projection(WIDER * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Embed images (B, bands, H, W), sides multiples of the patch p, as maps (B, D, H/p, W/p)."""
        tokens = self.proj(x).permute(0, 2, 3, 1) + self.sensor_embed
        return self.projection(tokens).permute(0, 3, 1, 2)


class TerraFM(ViT):
    """A `ViT` whose positions are resized as DINO does it: by a factor that a tenth of a token makes a little larger.

    Args:
        config: Shape of the transformer.
        patch_embed: The stem.
        patch: Its stride, in pixels.
    """

    def __init__(self, config: ViTConfig, patch_embed: TerraFMEmbed, patch: int) -> None:
        super().__init__(config, patch_embed, patch)
        del self.pos_embed
        self.pos_embed = nn.Parameter(vit.sincos_position_grid(config.dim, (config.grid, config.grid)))
        patch_embed.projection.apply(vit.init_linear)

    def place(self, patches: Tensor) -> Tensor:
        """Add positions to a map of patches (B, D, h, w), giving the grid (B, h, w, D) without a class token."""
        h, w = patches.shape[2:]
        side = round((self.pos_embed.shape[1] - 1) ** 0.5)
        table = self.pos_embed[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
        if (h, w) != (side, side):
            factors = ((h + 0.1) / side, (w + 0.1) / side)
            table = F.interpolate(table, scale_factor=factors, mode='bicubic', align_corners=False)
        return (patches + table.to(patches.dtype)).permute(0, 2, 3, 1)


def choose_stem(record: catalog.WeightsRecord, bands: Sequence[Band]) -> tuple[str, catalog.WeightsRecord]:
    """Choose the published stem for some bands, and the record whose first input is what it was made for.

    Raises:
        BandError: If radar and optical bands come together.
    """
    kinds = {band.is_radar for band in bands}
    if len(kinds) > 1:
        raise BandError(
            f'{record.name} sees one sensor at a time, found radar and optical bands; pass one kind of them, or take a '
            'backbone that joins both, such as croma_base or olmoearth_v1_base'
        )
    radar = kinds == {True}
    inputs = tuple(entry for entry in record.inputs if entry.get_bands()[0].is_radar == radar)
    return ('s1' if radar else STEMS[record.name]), replace(record, inputs=inputs)


def convert_terrafm(checkpoint: building.Checkpoint, stem: str) -> building.Checkpoint:
    """Turn the published file into the state of `TerraFM` with one of its stems; such a state stays as it is.

    Args:
        checkpoint: With the published names.
        stem: ``'s2_l2a'``, ``'s2_l1c'`` or ``'s1'``.
    """
    if 'patch_embed.proj.weight' in checkpoint.state:
        return checkpoint
    mine = {
        f'patch_embed.conv2d_{stem}.weight': 'patch_embed.proj.weight',
        f'patch_embed.conv2d_{stem}.bias': 'patch_embed.proj.bias',
        f'patch_embed.{stem}_embed': 'patch_embed.sensor_embed',
    }
    stems = ('patch_embed.conv2d_', 'patch_embed.s1_embed', 'patch_embed.s2_')
    others = [name for name in checkpoint.state if name.startswith(stems) and name not in mine]
    kept = {mine.get(name, name): value for name, value in checkpoint.state.items() if name not in others}
    return replace(checkpoint, state=kept, dropped=(*checkpoint.dropped, *others))


@building.register_family('terrafm')
def build_terrafm(name: str, bands: tuple[Band, ...], options: backbone.BackboneOptions) -> backbone.Backbone:
    """Build TerraFM for optical or radar bands."""
    stem, record = choose_stem(catalog.get_record(name), bands)
    checkpoint = building.read_checkpoint(record, bands, options)
    config = building.make_config(record, options, checkpoint=checkpoint)
    trunk = TerraFM(config, TerraFMEmbed(len(bands), record.dim, record.patch), record.patch)
    if checkpoint is not None:
        checkpoint = convert_terrafm(checkpoint, stem)
    return building.build_fixed_band(record, trunk, bands, options, checkpoint=checkpoint)
