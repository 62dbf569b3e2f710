"""Move pixels: flips, quarter turns, zoom. Images, masks, values, boxes and outlines move together."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

from geolearn import classes, errors
from geolearn.augment import transforms as draws
from geolearn.bands import Band
from geolearn.batch import Batch, Objects
from geolearn.oriented import geometry
from geolearn.statistics import BandStatistics


class ChipGenerator(torch.Generator):
    """A generator for a batch that also has one for each image.

    Draws for an image come from its own generator, seeded by chip and epoch. So a chip is changed in the same way
    whatever batch, micro-batch or process it is in. As a plain `torch.Generator` it runs on through the epoch.
    """

    images: tuple[torch.Generator, ...] = ()
    """One for each image of the batch at hand."""

    common: torch.Generator
    """In the same state for each batch of an epoch, for what all images share."""

    def begin_batch(self, seeds: Iterable[int], common: int) -> None:
        """Seed the draws of a batch.

        Args:
            seeds: For each image.
            common: For what all images share.
        """
        self.images = tuple(torch.Generator().manual_seed(seed) for seed in seeds)
        self.common = torch.Generator().manual_seed(common)


def generator_of(generator: torch.Generator, image: int) -> torch.Generator:
    """Return the generator that an image's draws come from."""
    return generator.images[image] if isinstance(generator, ChipGenerator) else generator


def common_generator(generator: torch.Generator) -> torch.Generator:
    """Return the generator for what all images of a batch share."""
    return generator.common if isinstance(generator, ChipGenerator) else generator


def rand(generator: torch.Generator, count: int, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """Draw (count, *shape) evenly from 0..1, for each of `count` images its part."""
    if not isinstance(generator, ChipGenerator):
        return torch.rand((count, *shape), generator=generator, dtype=dtype)
    return torch.stack([torch.rand(shape, generator=own, dtype=dtype) for own in generator.images])


def randint(generator: torch.Generator, high: int, count: int, *shape: int) -> Tensor:
    """Draw (count, *shape) whole numbers below `high`, for each of `count` images its part."""
    if not isinstance(generator, ChipGenerator):
        return torch.randint(high, (count, *shape), generator=generator)
    return torch.stack([torch.randint(high, shape, generator=own) for own in generator.images])


def permutation(generator: torch.Generator, count: int) -> Tensor:
    """Draw an order of the images; it depends on which are together in the batch."""
    if not isinstance(generator, ChipGenerator):
        return torch.randperm(count, generator=generator)
    return rand(generator, count, dtype=torch.float64).argsort()


BatchTransform = Callable[[Batch, torch.Generator], Batch]
"""Takes a batch and a generator on the CPU; returns a changed batch and leaves the given one as it was."""


class PixelStep(ABC):
    """A change of pixel values alone: `change_` writes into the images, calling the step spares them.

    Every such step keeps NaN (NoData) where it was, and adds none.
    """

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Return the batch with changed copies of its images."""
        batch = replace(batch, images=batch.images.clone(memory_format=torch.contiguous_format))
        self.change_(batch.images, generator)
        return batch

    @abstractmethod
    def change_(self, images: Tensor, generator: torch.Generator) -> None:
        """Change contiguous images (n, ..., bands, height, width) in place."""


@dataclass(frozen=True)
class Chain:
    """Changes that follow one another; the images are copied once, whatever the number of changes.

    Args:
        steps: Called in this order, each as a `BatchTransform`.
    """

    steps: Sequence[BatchTransform]

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Return a changed copy of the batch."""
        given = batch.images.untyped_storage().data_ptr()
        for step in self.steps:
            images = batch.images
            ours = images.untyped_storage().data_ptr() != given and images.is_contiguous()
            if isinstance(step, PixelStep) and ours:
                step.change_(images, generator)
            else:
                batch = step(batch, generator)
        return batch


def per_band(values: Sequence[float], images: Tensor, what: str) -> Tensor:
    """Return a float32 CPU tensor (bands, 1, 1) of one value for each band.

    Raises:
        BandError: If the images hold another number of bands.
    """
    bands = images.shape[-3]
    if len(values) != bands:
        raise errors.BandError(
            f'found {len(values)} values in {what} for images of {bands} bands; give one for each band'
        )
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)


def per_image(images: Tensor, *extra: int) -> tuple[int, ...]:
    """Return the shape of one number for each image (and each of `extra`), so that it spreads over its pixels."""
    dates = [1] * (images.ndim - 4)
    return (len(images), *dates, *(extra or (1,)), 1, 1)


def check_between(what: str, value: float, low: float, high: float = math.inf) -> None:
    """Raise ValueError unless a parameter lies in low..high."""
    if not low <= value <= high:
        needed = f'at least {low:g}' if high == math.inf else f'in {low:g}..{high:g}'
        raise ValueError(f'{what} must be {needed}, got {value!r}')


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
        boxes = self.boxes(found.boxes, shape)
        return replace(found, boxes=boxes, masks=masks, turned=self.turned(found.turned, shape))

    def turned(self, boxes: Tensor | None, shape: tuple[int, int]) -> Tensor | None:
        """Turn oriented boxes (n, 5) that lie in a plane of `shape`."""
        if boxes is None:
            return None
        boxes = geometry.mirrored(
            boxes, width=shape[1] if self.across else None, height=shape[0] if self.down else None
        )
        return geometry.transposed(boxes) if self.swap else boxes


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
        flips = draws.rand(generator, count, 3).T < 0.5
        flips[1] &= self.all_eight
        flips[2] &= self.all_eight and shape[0] == shape[1]
        turns = [_Turn(*column) for column in flips.T.tolist()]
        objects = batch.objects
        return replace(
            batch,
            images=_turned(batch.images, turns),
            masks=None if batch.masks is None else _turned(batch.masks, turns),
            regression_targets=None if batch.regression_targets is None else _turned(batch.regression_targets, turns),
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
        """Return where in the source each of `size` new pixels has its center, in pixels from the source's edge."""
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

    def bilinear(self, image: Tensor, *, has_nodata: bool) -> Tensor:
        """Resample (..., height, width) float; `has_nodata` says that NaN may be among the pixels."""
        height, width = image.shape[-2:]
        y = self.lines(self.top, height, image.device) * (2 / height) - 1
        x = self.lines(self.left, width, image.device) * (2 / width) - 1
        grid = torch.stack((x.expand(height, width), y[:, None].expand(height, width)), -1)[None]

        def sample(planes: Tensor) -> Tensor:
            planes = planes.reshape(1, -1, height, width)
            found = grid_sample(planes, grid, mode='bilinear', padding_mode='border', align_corners=False)
            return found.view(image.shape)

        if not has_nodata:
            outside = self.nearest(torch.zeros_like(image[(0,) * (image.ndim - 2)], dtype=torch.bool), fill=True)
            return sample(image).masked_fill_(outside, math.nan)
        # A missing neighbor takes no part, and whether a pixel is missing follows the nearest, as in the mask. The
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
        keep_visible: An oriented object stays if at least this share of it is seen; see `mark_visible`.
        ignore_visible: With a smaller share, down to this one, it is ignored; below, it is left out.
    """

    low: float
    high: float
    min_visible: float = 0.3
    keep_visible: float = 0.7
    ignore_visible: float = 0.3

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high < math.inf:
            raise ValueError(f'low and high must be zoom factors, 0 < low <= high, got {self.low!r} and {self.high!r}')
        check_between('min_visible', self.min_visible, 0, 1)
        check_between('keep_visible', self.keep_visible, 0, 1)
        check_between('ignore_visible', self.ignore_visible, 0, 1)

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Return a zoomed copy."""
        images, objects = batch.images, batch.objects
        windows = self._draw(len(images), images.shape[-2], images.shape[-1], generator)
        nodata = images.isnan().flatten(1).any(1).tolist()
        zoomed = torch.stack([w.bilinear(image, has_nodata=some) for w, image, some in zip(windows, images, nodata)])
        return replace(
            batch,
            images=zoomed,
            masks=_nearest(windows, batch.masks, classes.IGNORE_INDEX),
            regression_targets=_nearest(_finer(windows, batch), batch.regression_targets, math.nan),
            objects=objects and tuple(self._objects(w, o, image) for w, o, image in zip(windows, objects, zoomed)),
        )

    def _draw(self, count: int, height: int, width: int, generator: torch.Generator) -> list[_Window]:
        drawn = draws.rand(generator, count, 3, dtype=torch.float64).tolist()
        zooms = [self.low * (self.high / self.low) ** draw[0] for draw in drawn]
        # a window that is larger than the image starts before it; the share is then of a negative room
        return [
            _Window((width - width / zoom) * across, (height - height / zoom) * down, zoom)
            for zoom, (_, across, down) in zip(zooms, drawn)
        ]

    def _objects(self, window: _Window, found: Objects, image: Tensor) -> Objects:
        shape = image.shape
        if found.turned is not None and found.masks is None:
            zoomed = self._zoomed(window, found.turned)
            return mark_visible(zoomed, found, image, least=self.ignore_visible, keep=self.keep_visible)
        whole = window.boxes(found.boxes)
        limits = whole.new_tensor([shape[-1], shape[-2], shape[-1], shape[-2]])
        boxes = torch.minimum(whole.clamp(min=0), limits)
        visible = _area(boxes) / _area(whole).clamp(min=1e-9)
        kept = (visible >= self.min_visible) & (_area(boxes) > 0)
        masks = found.masks
        if masks is not None:
            masks = window.nearest(masks, fill=False)
            kept &= masks.flatten(1).any(1)
            turned = None if found.turned is None else self._zoomed(window, found.turned)
            found = replace(found, masks=masks, turned=turned).select(kept)
            assert found.masks is not None
            return replace(found, boxes=tight_boxes(found.masks))
        return replace(found, boxes=boxes).select(kept)

    def _zoomed(self, window: _Window, turned: Tensor) -> Tensor:
        return geometry.scaled(geometry.moved(turned, -window.left, -window.top), window.zoom)


def mark_visible(turned: Tensor, found: Objects, image: Tensor, *, least: float, keep: float) -> Objects:
    """Return the oriented objects of an image in which they have moved, by the rule of crops.

    The share of an object that is seen is that of its rectangle over pixels with data: what lies beyond the image from
    which this one was made was not labelled, and is not seen.

    Args:
        turned: (n, 5) the oriented boxes, where they are now.
        found: The objects.
        image: (..., bands, height, width), NaN where there is no data.
        least: Objects of which less is seen are left out.
        keep: Objects of which less is seen are ignored.
    """
    shares = _seen_shares(turned, image)
    height, width = image.shape[-2:]
    boxes = torch.minimum(geometry.hulls(turned).clamp(min=0), turned.new_tensor([width, height, width, height]))
    kept = (shares >= least) & (shares > 0) & (_area(boxes) > 0)
    ignored = shares < keep
    if found.ignored is not None:
        ignored |= found.ignored
    return replace(found, boxes=boxes, turned=turned, ignored=ignored).select(kept)


_POINTS = 32
"""Along each side of a rectangle, to measure which share of it is seen."""


def _seen_shares(turned: Tensor, image: Tensor) -> Tensor:
    """Return the share (n,) of each oriented box over pixels of an image that have data in any band."""
    height, width = image.shape[-2:]
    seen = ~image.reshape(-1, height, width).isnan().all(0)
    steps = (torch.arange(_POINTS, device=turned.device) + 0.5) / _POINTS
    across, down = steps[:, None, None], steps[:, None]
    corners = geometry.corners(turned.float())[:, None, None]
    points = (
        (1 - across) * (1 - down) * corners[..., 0, :]
        + across * (1 - down) * corners[..., 1, :]
        + across * down * corners[..., 2, :]
        + (1 - across) * down * corners[..., 3, :]
    )
    x, y = points.flatten(1, 2).floor().long().unbind(-1)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return (inside & seen[y.clamp(0, height - 1), x.clamp(0, width - 1)]).float().mean(1)


def _finer(windows: list[_Window], batch: Batch) -> list[_Window]:
    """Return the windows in pixels of the regression targets, which may be finer than those of the images."""
    targets = batch.regression_targets
    times = 1 if targets is None else targets.shape[-1] / batch.images.shape[-1]
    return [_Window(window.left * times, window.top * times, window.zoom) for window in windows]


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


@dataclass(frozen=True)
class Radiometry(PixelStep):
    """Contrast and brightness, drawn for each band of each image; all dates of an image take the same.

    Args:
        band_std: Standard deviation of each band in the units of the images.
        gain: Each band is multiplied by 1 ± gain.
        offset: Each band is moved by ± offset standard deviations.
    """

    band_std: Sequence[float]
    gain: float = 0.1
    offset: float = 0.1

    def __post_init__(self) -> None:
        check_between('gain', self.gain, 0, 1)
        check_between('offset', self.offset, 0)

    def change_(self, images: Tensor, generator: torch.Generator) -> None:
        """Change images in place."""
        std = per_band(self.band_std, images, 'band_std')
        shape = per_image(images, images.shape[-3])
        gain = 1 + self.gain * (2 * draws.rand(generator, *shape) - 1)
        offset = self.offset * std * (2 * draws.rand(generator, *shape) - 1)
        # two passes over an image that is in the cache by then are faster than addcmul over the batch
        for image, factor, term in zip(images, gain.to(images.device), offset.to(images.device)):
            image.mul_(factor).add_(term)


@dataclass(frozen=True)
class Noise(PixelStep):
    """Normal noise, of a strength drawn for each image.

    Drawing a number for every pixel would take longer than all other changes together. So a stock of about four
    planes is drawn, and each band takes a piece that starts anywhere in it.

    Args:
        band_std: Standard deviation of each band in the units of the images.
        strength: The noise has at most this share of the band's standard deviation.
    """

    band_std: Sequence[float]
    strength: float

    def __post_init__(self) -> None:
        check_between('strength', self.strength, 0)

    def change_(self, images: Tensor, generator: torch.Generator) -> None:
        """Change images in place."""
        std = per_band(self.band_std, images, 'band_std').view(-1, 1)
        planes = images.view(*images.shape[:-2], -1)
        size = planes.shape[-1]
        strength = self.strength * draws.rand(generator, *per_image(images)[:-1])
        stock = torch.randn(max(4 * size, 2**16), generator=draws.common_generator(generator))
        starts = draws.randint(generator, len(stock) - size + 1, *planes.shape[:-1])
        device, pieces = images.device, stock.to(images.device).unfold(0, size, 1)
        scales = (strength * std).to(device)
        for image, start, scale in zip(planes, starts.to(device), scales):
            image.add_(pieces[start].mul_(scale))


@dataclass(frozen=True)
class BandDropout(PixelStep):
    """Set bands to their mean, so that a network does not lean on one band; never all bands of an image.

    Args:
        band_mean: Mean of each band in the units of the images.
        probability: Of each band of each image; in all dates alike.
    """

    band_mean: Sequence[float]
    probability: float

    def __post_init__(self) -> None:
        check_between('probability', self.probability, 0, 1)

    def change_(self, images: Tensor, generator: torch.Generator) -> None:
        """Change images in place."""
        means = per_band(self.band_mean, images, 'band_mean').flatten().tolist()
        dropped = draws.rand(generator, len(images), len(means)) < self.probability
        spared = draws.randint(generator, len(means), len(images), 1)
        dropped &= ~(dropped.all(1, keepdim=True) & (torch.arange(len(means)) == spared))
        for image, band in dropped.nonzero().tolist():
            # times zero, since NaN must stay
            images[image, ..., band, :, :].mul_(0).add_(means[band])


@dataclass(frozen=True)
class Clouds(PixelStep):
    """Lay haze or clouds over images; each date has its own sky.

    The label stays that of the ground, so what is under a thick cloud should still shine through a little.

    Args:
        brightness: Of an opaque cloud in each band, in the units of the images; None where clouds are not seen (radar,
            elevation, thermal). `cloud_brightness` gives it.
        probability: Of each image, and of each of its dates.
        cover: Least and largest share of the image that is clouded; 1 is haze all over.
        opacity: Least and largest opacity where the cloud is thickest, 0..1.
    """

    brightness: Sequence[float | None]
    probability: float
    cover: tuple[float, float] = (0.1, 0.8)
    opacity: tuple[float, float] = (0.2, 0.8)

    def __post_init__(self) -> None:
        check_between('probability', self.probability, 0, 1)
        for what, (low, high) in {'cover': self.cover, 'opacity': self.opacity}.items():
            if not 0 <= low <= high <= 1:
                raise ValueError(f'{what} must be (least, largest) in 0..1, got {(low, high)}')

    def change_(self, images: Tensor, generator: torch.Generator) -> None:
        """Change images in place."""
        targets = per_band([0.0 if v is None else v for v in self.brightness], images, 'brightness').to(images.device)
        seen = torch.tensor([float(v is not None) for v in self.brightness], device=images.device).view(-1, 1, 1)
        skies = images.view(-1, *images.shape[-3:])
        for index, image in enumerate(skies):
            own = draws.generator_of(generator, index * len(images) // len(skies))
            clouded, cover, opacity = torch.rand(3, generator=own).tolist()
            if clouded < self.probability:
                field = _field((image.shape[-2], image.shape[-1]), own, image.device)
                image.lerp_(targets, self._thickness(field, cover, opacity) * seen)

    def _thickness(self, field: Tensor, cover: float, opacity: float) -> Tensor:
        cover, opacity = _between(self.cover, cover), _between(self.opacity, opacity)
        edge = field.flatten().kthvalue(1 + round((1 - cover) * (field.numel() - 1))).values
        return opacity * ((field - edge) / (field.max() - edge).clamp(min=1e-6)).clamp(0, 1).sqrt()


def _between(limits: tuple[float, float], share: float) -> float:
    low, high = limits
    return low + share * (high - low)


def _field(shape: tuple[int, int], generator: torch.Generator, device: torch.device) -> Tensor:
    """Draw smooth noise: grids that double in fineness and halve in strength, as clouds do."""
    total = torch.zeros(shape, device=device)
    for octave in range(5):
        grid = torch.randn((1, 1, 3 * 2**octave, 3 * 2**octave), generator=generator).to(device)
        total += 0.5**octave * interpolate(grid, shape, mode='bicubic', align_corners=True)[0, 0]
    return total


def cloud_brightness(bands: Sequence[Band], statistics: BandStatistics) -> tuple[float | None, ...]:
    """Say how bright clouds are in each band: three standard deviations over the mean, within what was seen.

    Args:
        bands: With wavelengths; clouds are seen at 0.3..3 micrometers.
        statistics: Of these bands.

    Returns:
        What `Clouds` takes; None for radar, thermal and other bands.

    Raises:
        BandError: If no band is known to see clouds.
    """
    found = tuple(
        min(high, mean + 3 * std) if band.wavelength_um is not None and band.wavelength_um <= 3 else None
        for band, high, mean, std in zip(bands, statistics.maximum, statistics.mean, statistics.std)
    )
    if all(value is None for value in found):
        names = ', '.join(repr(band.name) for band in bands)
        raise errors.BandError(
            f'clouds need a band with a wavelength in 0.3..3 micrometers; found {names}; pass wavelengths'
        )
    return found
