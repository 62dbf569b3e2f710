"""ScaleMAE: a transformer over RGB whose positions are measured on the ground, so that it knows the resolution.

Reed et al. 2023, "Scale-MAE: A Scale-Aware Masked Autoencoder for Multiscale Geospatial Representation Learning",
arXiv:2212.14532.
"""

import torch
from torch import Tensor, nn

from geolearn.backbones import backbone, building, catalog
from geolearn.backbones.trunk import ViT, ViTConfig
from geolearn.bands import Band


class ScaleMaeViT(ViT):
    """A transformer whose sine-cosine positions are patch counts times the ground resolution; none are stored.

    Args:
        config: Shape of the transformer.
        patch_embed: As for `ViT`.
        patch: Stride of `patch_embed`, in pixels.
        ground_resolution_m: Of the images, in meters per pixel. It may be set again for images of another resolution.
    """

    knows_resolution = True

    def __init__(self, config: ViTConfig, patch_embed: nn.Module, patch: int, *, ground_resolution_m: float) -> None:
        super().__init__(config, patch_embed, patch)
        if not ground_resolution_m > 0:
            raise ValueError(f'ground_resolution_m must be above 0 meters, got {ground_resolution_m}')
        self.ground_resolution_m = ground_resolution_m
        # that of the class token, which has none
        self.register_buffer('pos_embed', torch.zeros(1, 1, config.dim), persistent=False)

    def place(self, patches: Tensor) -> Tensor:
        """Add positions to a map of patches (B, D, h, w), giving the grid (B, h, w, D) without a class token."""
        h, w = patches.shape[2:]
        positions = ground_positions(self.dim, (h, w), self.ground_resolution_m, patches.device)
        return patches.permute(0, 2, 3, 1) + positions.to(patches.dtype)


def ground_positions(
    dim: int, grid: tuple[int, int], resolution_m: float, device: torch.device | None = None
) -> Tensor:
    """Make ScaleMAE's positions (1, h, w, D) in float32: the column's sines and cosines, then the row's."""
    frequency = 1.0 / 10000 ** (torch.arange(dim // 4, dtype=torch.float32, device=device) / (dim / 4))
    halves = []
    for n in grid:
        angle = torch.arange(n, dtype=torch.float32, device=device)[:, None] * resolution_m * frequency
        halves.append(torch.cat([angle.sin(), angle.cos()], dim=1))
    rows, columns = halves
    h, w = grid
    return torch.cat([columns[None, :].expand(h, -1, -1), rows[:, None].expand(-1, w, -1)], dim=2)[None]


@building.register_family('scalemae')
def build_scalemae(name: str, bands: tuple[Band, ...], options: backbone.BackboneOptions) -> backbone.Backbone:
    """Build ScaleMAE; the ground resolution starts at the catalog's and can be set on the trunk."""
    record = catalog.get_record(name)
    building.require_kinds(record, bands)
    checkpoint = building.read_checkpoint(record, bands, options)
    config = building.make_config(record, options, checkpoint=checkpoint)
    trunk = ScaleMaeViT(
        config,
        building.PatchEmbed(len(bands), record.dim, record.patch),
        record.patch,
        ground_resolution_m=record.inputs[0].gsd_m or 1.0,
    )
    return building.build_fixed_band(record, trunk, bands, options, checkpoint=checkpoint, may_be_missing=('norm.*',))
