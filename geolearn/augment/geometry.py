"""Move pixels: flips, quarter turns, zoom. Images, masks, values, boxes and outlines move together."""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from geolearn.augment.step import check_between
from geolearn.batch import Batch, Objects
from geolearn.classes import IGNORE_INDEX


class _Turn(NamedTuple):
    """One of the eight flips and turns: first the flips, then rows and columns change places."""

    across: bool
    down: bool
    swap: bool

    def pixels(self, planes: Tensor) -> Tensor:
        """Turn (..., height, width); may return a view."""
        axes = [-1] * self.across + [-2] * self.down
        flipped = planes.flip(axes) if axes else planes
        return flipped.transpose(-1, -2) if self.swap else flipped

    def boxes(self, boxes: Tensor, shape: tuple[int, int]) -> Tensor:
        """Turn boxes (n, 4) that lie in a plane of `shape`."""
        height, width = shape
        left, top, right, bottom = boxes.unbind(-1)
        if self.across:
            left, right = width - right, width - left
        if self.down:
            top, bottom = height - bottom, height - top
        return torch.stack((top, left, bottom, right) if self.swap else (left, top, right, bottom), -1)

    def objects(self, found: Objects, shape: tuple[int, int]) -> Objects:
        masks = None if found.masks is None else self.pixels(found.masks).contiguous()
        return Objects(self.boxes(found.boxes, shape), found.labels, masks)


@dataclass(frozen=True)
class Dihedral:
    """One of the eight flips and quarter turns for each image.

    Args:
        all_eight: Without it only left-right flips (oblique images have an up). Images that are no squares take the
            four that keep their shape.
    """

    all_eight: bool = True

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Return a turned copy."""
        count, shape = len(batch.images), (batch.images.shape[-2], batch.images.shape[-1])
        draws = torch.rand((3, count), generator=generator) < 0.5
        draws[1] &= self.all_eight
        draws[2] &= self.all_eight and shape[0] == shape[1]
        turns = [_Turn(*column) for column in draws.T.tolist()]
        objects = batch.objects
        return replace(
            batch,
            images=_turned(batch.images, turns),
            masks=None if batch.masks is None else _turned(batch.masks, turns),
            values=None if batch.values is None else _turned(batch.values, turns),
            objects=objects and tuple(turn.objects(found, shape) for turn, found in zip(turns, objects)),
        )


def _turned(planes: Tensor, turns: list[_Turn]) -> Tensor:
    # image by image, so that the flipped image is still in the processor's cache when it is copied to its place
    out = torch.empty_like(planes, memory_format=torch.contiguous_format)
    for target, source, turn in zip(out, planes, turns):
        target.copy_(turn.pixels(source))
    return out


class _Window(NamedTuple):
    """The part of an image that will fill the frame; it may reach beyond the image."""

    left: float
    top: float
    zoom: float

    def lines(self, start: float, size: int, device: torch.device) -> Tensor:
        """Return where in the source each of `size` new pixels has its centre, in pixels from the source's edge."""
        return start + (torch.arange(size, device=device) + 0.5) / self.zoom

    def boxes(self, boxes: Tensor) -> Tensor:
        return (boxes - boxes.new_tensor([self.left, self.top, self.left, self.top])) * self.zoom

    def nearest(self, planes: Tensor, fill: float | bool) -> Tensor:
        """Resample (..., height, width); `fill` where the window reaches beyond it."""
        height, width = planes.shape[-2:]
        y = self.lines(self.top, height, planes.device).floor().long()
        x = self.lines(self.left, width, planes.device).floor().long()
        picked = planes[..., y.clamp(0, height - 1), :][..., x.clamp(0, width - 1)]
        outside = ((y < 0) | (y >= height))[:, None] | ((x < 0) | (x >= width))
        return picked.masked_fill_(outside, fill)

    def bilinear(self, image: Tensor, *, holes: bool) -> Tensor:
        """Resample (..., height, width) float; `holes` says that NaN may be among the pixels."""
        height, width = image.shape[-2:]
        y = self.lines(self.top, height, image.device) * (2 / height) - 1
        x = self.lines(self.left, width, image.device) * (2 / width) - 1
        grid = torch.stack((x.expand(height, width), y[:, None].expand(height, width)), -1)[None]

        def sample(planes: Tensor) -> Tensor:
            planes = planes.reshape(1, -1, height, width)
            found = grid_sample(planes, grid, mode='bilinear', padding_mode='border', align_corners=False)
            return found.view(image.shape)

        if not holes:
            outside = self.nearest(torch.zeros_like(image[(0,) * (image.ndim - 2)], dtype=torch.bool), fill=True)
            return sample(image).masked_fill_(outside, math.nan)
        # A missing neighbour takes no part, and whether a pixel is missing follows the nearest, as in the mask. The
        # nearest pixel weighs a quarter or more, so nothing is divided by zero where it is there.
        valid = ~image.isnan()
        mixed = sample(image.nan_to_num(0, math.inf, -math.inf)) / sample(valid.to(image.dtype))
        return mixed.masked_fill_(~self.nearest(valid, fill=False), math.nan)


@dataclass(frozen=True)
class ScaleCrop:
    """Zoom each image by its own factor, and cut or pad it to the size it had.

    Images are resampled bilinearly, masks and values to the nearest pixel. What lies beyond the image is NaN, in masks
    IGNORE_INDEX.
    Labels of whole images stay as they are.

    Args:
        low: Lowest factor; below 1 the image shrinks. Under about 0.5 thin things begin to vanish.
        high: Highest factor. Factors are drawn evenly on a logarithmic scale.
        min_visible: An object stays if at least this share of its box is still in the image.
    """

    low: float
    high: float
    min_visible: float = 0.3

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high < math.inf:
            raise ValueError(f'low and high must be zoom factors, 0 < low <= high, got {self.low!r} and {self.high!r}')
        check_between('min_visible', self.min_visible, 0, 1)

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Return a zoomed copy."""
        images, objects = batch.images, batch.objects
        windows = self._draw(len(images), images.shape[-2], images.shape[-1], generator)
        holes = images.isnan().flatten(1).any(1).tolist()
        return replace(
            batch,
            images=torch.stack([w.bilinear(image, holes=hole) for w, image, hole in zip(windows, images, holes)]),
            masks=_nearest(windows, batch.masks, IGNORE_INDEX),
            values=_nearest(windows, batch.values, math.nan),
            objects=objects and tuple(self._objects(w, o, images.shape) for w, o in zip(windows, objects)),
        )

    def _draw(self, count: int, height: int, width: int, generator: torch.Generator) -> list[_Window]:
        draws = torch.rand((count, 3), generator=generator, dtype=torch.float64).tolist()
        zooms = [self.low * (self.high / self.low) ** draw[0] for draw in draws]
        # a window that is larger than the image starts before it; the share is then of a negative room
        return [
            _Window((width - width / zoom) * across, (height - height / zoom) * down, zoom)
            for zoom, (_, across, down) in zip(zooms, draws)
        ]

    def _objects(self, window: _Window, found: Objects, shape: torch.Size) -> Objects:
        whole = window.boxes(found.boxes)
        limits = whole.new_tensor([shape[-1], shape[-2], shape[-1], shape[-2]])
        boxes = torch.minimum(whole.clamp(min=0), limits)
        visible = _area(boxes) / _area(whole).clamp(min=1e-9)
        kept = (visible >= self.min_visible) & (_area(boxes) > 0)
        masks = found.masks
        if masks is not None:
            masks = window.nearest(masks, fill=False)
            kept &= masks.flatten(1).any(1)
            masks = masks[kept]
            return Objects(tight_boxes(masks), found.labels[kept], masks)
        return Objects(boxes[kept], found.labels[kept])


def _nearest(windows: list[_Window], planes: Tensor | None, fill: float) -> Tensor | None:
    if planes is None:
        return None
    return torch.stack([window.nearest(plane, fill) for window, plane in zip(windows, planes)])


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2] - boxes[:, 0]).clamp(min=0) * (boxes[:, 3] - boxes[:, 1]).clamp(min=0)


def tight_boxes(masks: Tensor) -> Tensor:
    """Return the tight box (n, 4) float32 of each mask (n, height, width) bool, none of which may be empty."""
    edges = []
    for used in (masks.any(1), masks.any(2)):
        size = used.shape[1]
        edges.append((used.to(torch.uint8).argmax(1), size - used.flip(1).to(torch.uint8).argmax(1)))
    (left, right), (top, bottom) = edges
    return torch.stack((left, top, right, bottom), 1).to(torch.float32)
