"""Views of images: random crops, resized and flipped, drawn so that a seed repeats them."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from geolearn.pretrain.options import ViewOptions

ASPECT = 4 / 3
"""Widest and narrowest crops, as width over height and its inverse."""


def draw_views(
    images: Tensor,
    count: int,
    side: int,
    scale: tuple[float, float],
    *,
    options: ViewOptions,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Cut random crops and resize them, bilinearly.

    Args:
        images: Normalized (N, C, H, W), without NaN.
        count: Crops of each image.
        side: Of the crops that are returned, in pixels.
        scale: Least and greatest share of the image that a crop covers.
        options: Flips and jitter.
        generator: On the CPU; None draws from torch's own, whose state a checkpoint holds.

    Returns:
        (count, N, C, side, side).
    """
    drawn = torch.rand(len(images), count, 6, generator=generator)
    share = scale[0] + (scale[1] - scale[0]) * drawn[..., 0]
    aspect = torch.exp((2 * drawn[..., 1] - 1) * math.log(ASPECT))
    width, height = (share * aspect).sqrt().clamp(max=1), (share / aspect).sqrt().clamp(max=1)
    flips = drawn[..., 2:4].lt(0.5) if options.flips else torch.zeros(*drawn.shape[:2], 2, dtype=torch.bool)
    signs = 1 - 2 * flips.float()
    theta = torch.zeros(len(images), count, 2, 3)
    theta[..., 0, 0], theta[..., 1, 1] = width * signs[..., 0], height * signs[..., 1]
    theta[..., 0, 2] = (1 - width) * (2 * drawn[..., 4] - 1)
    theta[..., 1, 2] = (1 - height) * (2 * drawn[..., 5] - 1)
    theta = theta.transpose(0, 1).to(images)
    size = [len(images), images.shape[1], side, side]
    grids = (F.affine_grid(one, size, align_corners=False) for one in theta)
    return torch.stack(
        [F.grid_sample(images, grid, mode='bilinear', padding_mode='border', align_corners=False) for grid in grids]
    )


def jitter(views: Tensor, options: ViewOptions, *, generator: torch.Generator | None = None) -> Tensor:
    """Change the gain and the offset of each band of each view (V, N, C, h, w), which are normalized."""
    if not options.gain and not options.offset:
        return views
    drawn = 2 * torch.rand(2, *views.shape[:3], 1, 1, generator=generator).to(views) - 1
    return views * (1 + options.gain * drawn[0]) + options.offset * drawn[1]


def fixed_generator() -> torch.Generator:
    """Return a generator that draws the same each time, for validation."""
    return torch.Generator().manual_seed(0)
