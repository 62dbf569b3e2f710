"""Where chips lie in a raster, and in what pieces it is read so that its blocks are decompressed about once."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Real

import numpy as np
from affine import Affine

from geolearn.chips.label import Task
from geolearn.errors import ChipFolderError, UnknownNameError
from geolearn.raster.geobox import apply_affine

CROP_MODES = ('fixed', 'bounding_box')

PROCESSING_MODES = ('mosaic', 'collection')

REFERENCE_SYSTEMS = ('MAP_SPACE', 'PIXEL_SPACE')


LEAST_ANGLE = 1.0
"""Grids are cut at all multiples of an angle; smaller ones would give thousands."""


@dataclass(frozen=True)
class ExportOptions:
    """How chips are cut; the arguments of `export_training_data` by the same names.

    Args:
        task: Task of the labels of the format.
        per_feature: Whether each feature gets a chip of its own instead of a grid of chips.
    """

    task: Task
    tile_size: int
    stride: int
    per_feature: bool = False
    output_nofeature_tiles: bool = False
    rotation_angle: float = 0.0
    min_polygon_overlap_ratio: float = 0.0
    min_labelled: float = 0.0
    crop_mode: str = 'fixed'
    blacken_around_feature: bool = False
    reference_system: str = 'MAP_SPACE'
    image_format: str = 'TIFF'
    compress: str = 'none'
    start_index: int = 0

    def __post_init__(self) -> None:
        for name, lowest in (('tile_size', 1), ('stride', 1), ('start_index', 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
                raise ChipFolderError(f'{name} is {value!r}; a whole number of at least {lowest} is needed')
        for name in ('min_polygon_overlap_ratio', 'min_labelled'):
            value = getattr(self, name)
            if not isinstance(value, Real) or not 0 <= float(value) <= 1:
                raise ChipFolderError(f'{name} is {getattr(self, name)!r}; a share from 0 to 1 is needed')
        angle = self.rotation_angle
        if not isinstance(angle, Real) or not 0 <= angle < 360 or 0 < angle < LEAST_ANGLE:
            raise ChipFolderError(
                f'rotation_angle is {angle!r}; degrees from 0 to under 360 are needed, 0 or at least {LEAST_ANGLE:g}'
            )
        if self.crop_mode not in CROP_MODES:
            raise UnknownNameError('crop mode', self.crop_mode, CROP_MODES)
        if self.reference_system not in REFERENCE_SYSTEMS:
            raise UnknownNameError('reference system', self.reference_system, REFERENCE_SYSTEMS)
        self._check_together()

    def _check_together(self) -> None:
        if self.min_labelled and self.task not in (Task.PIXELS, Task.REGRESSION, Task.PANOPTIC):
            raise ChipFolderError('min_labelled needs a format with a class per pixel: Classified_Tiles or Panoptic')
        if not self.per_feature:
            for name, plain in (('crop_mode', 'fixed'), ('blacken_around_feature', False)):
                if getattr(self, name) != plain:
                    raise ChipFolderError(
                        f'{name}={getattr(self, name)!r} needs chips that each show one feature: vector labels and '
                        'Labeled_Tiles or Imagenet'
                    )
        if self.crop_mode == 'bounding_box' and self.rotation_angle:
            raise ChipFolderError("rotation_angle cannot be combined with crop_mode='bounding_box'; leave one out")

    @property
    def angles(self) -> tuple[float, ...]:
        """0 and the multiples of `rotation_angle` below 360, in degrees."""
        if not self.rotation_angle:
            return (0.0,)
        count = int(360 / self.rotation_angle - 1e-9) + 1
        return tuple(index * self.rotation_angle for index in range(count))


SLAB_BYTES = 48 * 2**20
"""Pixels that a thread reads at once; all threads together take no more than ten of these."""


class NothingThereError(ChipFolderError):
    """No chip can be cut from a raster: labels lie elsewhere, or no cutout fits."""


@dataclass(frozen=True, slots=True)
class Cutout:
    """Where one chip lies.

    Args:
        window: Row, column, height and width of the pixels that must be read.
        shape: Height and width of the chip; those of the window where the chip is not turned.
        turn: Affine from the chip's pixels to the raster's, for a turned chip.
        feature: Index of the one feature that the chip shows; None where it shows whatever is there.
    """

    window: tuple[int, int, int, int]
    shape: tuple[int, int]
    turn: Affine | None = None
    feature: int | None = None

    @property
    def to_raster(self) -> Affine:
        """Affine from the chip's (column, row) to the raster's."""
        return self.turn or Affine(1, 0, self.window[1], 0, 1, self.window[0])

    def corners(self) -> np.ndarray:
        """Return the outline (4, 2) as columns and rows of the raster."""
        (height, width), t = self.shape, self.to_raster
        points = np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float64)
        return apply_affine(t, points)


@dataclass(frozen=True, slots=True)
class Job:
    """Tiles that one thread cuts in one go.

    Args:
        number: Position in the order of jobs.
        cutouts: In the order in which chips are numbered.
        window: What to read for all of them; None reads each cutout by itself.
    """

    number: int
    cutouts: tuple[Cutout, ...]
    window: tuple[int, int, int, int] | None = None


def compose(outer: Affine, inner: Affine) -> Affine:
    """Return the affine that applies `inner`, then `outer`; affine 3 warns of `*`, and older ones have no `@`."""
    o, i = outer, inner
    return Affine(
        o.a * i.a + o.b * i.d,
        o.a * i.b + o.b * i.e,
        o.a * i.c + o.b * i.f + o.c,
        o.d * i.a + o.e * i.d,
        o.d * i.b + o.e * i.e,
        o.d * i.c + o.e * i.f + o.f,
    )


def grid_jobs(
    shape: tuple[int, int], size: int, stride: int, *, block: tuple[int, int], pixel_bytes: int, threads: int
) -> Iterator[list[Cutout]]:
    """Yield the straight cutouts that lie wholly inside, in groups whose common window fits a thread's memory.

    Args:
        shape: Height and width of the raster.
        size: Side of a cutout.
        stride: Pixels from cutout to cutout.
        block: Height and width of the blocks in which the raster is stored.
        pixel_bytes: Bytes of one pixel with all bands.
        threads: How many such groups are in memory at once.
    """
    if min(shape) < size:
        raise ChipFolderError(
            f'the raster is {shape[1]}x{shape[0]} pixels, smaller than tile_size {size}; choose a smaller tile_size'
        )
    pixels = min(SLAB_BYTES, 10 * SLAB_BYTES // threads) // pixel_bytes
    rows, cols = (range(0, side - size + 1, stride) for side in shape)
    striped = block[1] >= shape[1]  # a part of a strip costs as much as all of it
    width = shape[1] if striped or pixels >= shape[1] * 2 * size else max(size, math.isqrt(pixels))
    across = len(cols) if width == shape[1] else _group(len(cols), size, stride, block[1], width)
    width = min(shape[1], size + (across - 1) * stride)
    down = _group(len(rows), size, stride, block[0], pixels // width)
    for first_row in range(0, len(rows), down):
        for first_col in range(0, len(cols), across):
            corners = [
                (row, col) for row in rows[first_row : first_row + down] for col in cols[first_col : first_col + across]
            ]
            yield [Cutout((row, col, size, size), (size, size)) for row, col in corners]


def _group(count: int, size: int, stride: int, block: int, length: int) -> int:
    """Return how many cutouts in a row fit `length`, a whole number of blocks where that is possible."""
    fitting = max(1, min(count, (length - size) // stride + 1))
    aligned = math.lcm(stride, block) // stride
    return fitting // aligned * aligned if fitting >= aligned else fitting


def hull(cutouts: Sequence[Cutout]) -> tuple[int, int, int, int]:
    """Return the smallest window that holds those of all cutouts."""
    top, left = min(t.window[0] for t in cutouts), min(t.window[1] for t in cutouts)
    bottom, right = max(t.window[0] + t.window[2] for t in cutouts), max(t.window[1] + t.window[3] for t in cutouts)
    return top, left, bottom - top, right - left


def turned_cutouts(shape: tuple[int, int], size: int, stride: int, degrees: float) -> Iterator[Cutout]:
    """Yield the cutouts of a grid that is turned, those that lie wholly inside.

    The grid begins at the turned bounding box of the raster; at 90, 180 and 270 degrees its pixels are the raster's.
    """
    height, width = shape
    cos, sin = (round(f(math.radians(degrees)), 15) for f in (math.cos, math.sin))
    corners = np.array([(0, 0), (width, 0), (0, height), (width, height)], np.float64)
    along, across = corners @ np.array([cos, sin]), corners @ np.array([-sin, cos])
    for v in np.arange(across.min(), across.max() - size + 1e-6, stride):
        for u in np.arange(along.min(), along.max() - size + 1e-6, stride):
            turn = Affine(cos, -sin, float(u * cos - v * sin), sin, cos, float(u * sin + v * cos))
            if cutout := turned_cutout(shape, size, turn):
                yield cutout


def turned_cutout(shape: tuple[int, int], size: int, turn: Affine, feature: int | None = None) -> Cutout | None:
    """Return the cutout that `turn` puts into the raster; None where it does not lie wholly inside."""
    corners = Cutout((0, 0, 0, 0), (size, size), turn).corners()
    low, high = corners.min(axis=0), corners.max(axis=0)
    if (low < -1e-6).any() or high[0] > shape[1] + 1e-6 or high[1] > shape[0] + 1e-6:
        return None
    left, top = (max(0, math.floor(value + 1e-6)) for value in low)
    right, bottom = (min(side, math.ceil(value - 1e-6)) for value, side in zip(high, shape[::-1]))
    return Cutout((top, left, bottom - top, right - left), (size, size), turn, feature)


def turn_pixels(array: np.ndarray, cutout: Cutout) -> np.ndarray:
    """Take a turned chip out of its window by nearest neighbor, so that no value is mixed from others.

    Args:
        array: (..., height, width) of the cutout's window.
        cutout: A turned cutout.
    """
    height, width = cutout.shape
    rows, cols = np.mgrid[0:height, 0:width]
    centers = np.stack([cols.ravel() + 0.5, rows.ravel() + 0.5], axis=1)
    found = np.floor(apply_affine(cutout.to_raster, centers)).astype(np.int64)
    col = np.clip(found[:, 0] - cutout.window[1], 0, array.shape[-1] - 1)
    row = np.clip(found[:, 1] - cutout.window[0], 0, array.shape[-2] - 1)
    taken: np.ndarray = array[..., row, col].reshape(*array.shape[:-2], height, width)
    return taken
