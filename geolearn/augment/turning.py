"""Turn images by any angle about their middle, with everything that is known about them."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from geolearn import classes
from geolearn.augment import transforms
from geolearn.batch import Batch, Objects
from geolearn.oriented import geometry


@dataclass(frozen=True)
class Turn:
    """Turn each image about its middle by an angle of its own.

    Pixels are mixed bilinearly and labels taken from the nearest pixel; corners that come from beyond the image hold no
    data. Oriented boxes and outlines turn with the image; level boxes become the level ones around the turned ones,
    which are larger than the objects.

    Args:
        max_degrees: Angles are drawn evenly from -max_degrees..max_degrees; 180 is any direction.
        min_visible: An object stays if at least this share of its box is still in the image.
        keep_visible: An oriented object stays if at least this share of it is seen; see `transforms.mark_visible`.
        ignore_visible: With a smaller share, down to this one, it is ignored; below, it is left out.
    """

    max_degrees: float = 180.0
    min_visible: float = 0.3
    keep_visible: float = 0.7
    ignore_visible: float = 0.3

    def __post_init__(self) -> None:
        transforms.check_between('max_degrees', self.max_degrees, 0, 180)
        transforms.check_between('min_visible', self.min_visible, 0, 1)
        transforms.check_between('keep_visible', self.keep_visible, 0, 1)
        transforms.check_between('ignore_visible', self.ignore_visible, 0, 1)

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Return a turned copy."""
        count, height, width = len(batch.images), batch.images.shape[-2], batch.images.shape[-1]
        drawn = transforms.rand(generator, count, dtype=torch.float64) * 2 - 1
        angles = (drawn * math.radians(self.max_degrees)).tolist()
        grids = [_grid(angle, (height, width), batch.images.device) for angle in angles]
        objects = batch.objects
        images = torch.stack([_bilinear(image, grid) for image, grid in zip(batch.images, grids)])
        return replace(
            batch,
            images=images,
            masks=_nearest(batch.masks, angles, classes.IGNORE_INDEX),
            regression_targets=_nearest(batch.regression_targets, angles, math.nan),
            objects=objects
            and tuple(
                self._objects(found, angle, grid, image)
                for found, angle, grid, image in zip(objects, angles, grids, images)
            ),
        )

    def _objects(self, found: Objects, angle: float, grid: Tensor, image: Tensor) -> Objects:
        middle = image.shape[-1] / 2, image.shape[-2] / 2
        whole = geometry.from_hulls(found.boxes) if found.turned is None else found.turned
        whole = geometry.rotated(whole.double(), angle, middle).to(found.boxes.dtype)
        if found.masks is None:
            if found.turned is not None:
                shares = {'least': self.ignore_visible, 'keep': self.keep_visible}
                return transforms.mark_visible(whole, found, image, **shares)
            kept = transforms.mark_visible(whole, found, image, least=self.min_visible, keep=0.0)
            return replace(kept, turned=None, ignored=None if found.ignored is None else kept.ignored)
        masks = _sample(found.masks, grid, fill=False)
        counts = [part.flatten(1).sum(1) for part in (masks, found.masks)]
        seen = (counts[0] > 0) & (counts[0] >= self.min_visible * counts[1])
        moved = replace(found, masks=masks, turned=None if found.turned is None else whole).select(seen)
        assert moved.masks is not None
        return replace(moved, boxes=transforms.tight_boxes(moved.masks))


def _grid(angle: float, shape: tuple[int, int], device: torch.device) -> Tensor:
    """Return which place of an image (height, width, 2), x and y in pixels, each pixel of the turned one shows."""
    height, width = shape
    y, x = ((torch.arange(side, device=device) + 0.5 - side / 2) for side in shape)
    cos, sin = math.cos(angle), math.sin(angle)
    across = x[None] * cos + y[:, None] * sin + width / 2
    down = y[:, None] * cos - x[None] * sin + height / 2
    return torch.stack((across, down), -1)


def _nearest(planes: Tensor | None, angles: list[float], fill: float) -> Tensor | None:
    if planes is None:
        return None
    # targets may have finer pixels than the images
    shape = planes.shape[-2], planes.shape[-1]
    return torch.stack(
        [_sample(plane, _grid(angle, shape, planes.device), fill) for plane, angle in zip(planes, angles)]
    )


def _sample(planes: Tensor, grid: Tensor, fill: float | bool) -> Tensor:
    """Take the nearest pixel of (..., height, width); `fill` where there is none."""
    height, width = planes.shape[-2:]
    x, y = grid.floor().long().unbind(-1)
    outside = (x < 0) | (x >= width) | (y < 0) | (y >= height)
    return planes[..., y.clamp(0, height - 1), x.clamp(0, width - 1)].masked_fill(outside, fill)


def _bilinear(image: Tensor, grid: Tensor) -> Tensor:
    """Mix the pixels of an image (..., height, width); missing ones take no part, and are where the nearest is."""
    height, width = image.shape[-2:]
    shares = (2 * grid / grid.new_tensor([width, height]) - 1)[None].to(image.dtype)

    def sample(planes: Tensor) -> Tensor:
        flat = planes.reshape(1, -1, height, width)
        found = grid_sample(flat, shares, mode='bilinear', padding_mode='border', align_corners=False)
        return found.view(planes.shape)

    missing = _sample(image.isnan(), grid, fill=True)
    if not image.isnan().any():
        return sample(image).masked_fill(missing, math.nan)
    weights = sample((~image.isnan()).to(image.dtype))
    return (sample(image.nan_to_num(0, math.inf, -math.inf)) / weights).masked_fill(missing, math.nan)
