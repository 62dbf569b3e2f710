"""Decide which chips are cut, and cut them in several threads, numbered in one order whatever thread is first."""

import math
import os
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from affine import Affine
from rasterio.windows import Window

from geolearn.chips.exporting.labels import LabelSource, Truth, turned
from geolearn.chips.exporting.metadata import Tally
from geolearn.chips.exporting.placement import (
    Cutout,
    ExportOptions,
    Job,
    NothingThereError,
    compose,
    grid_jobs,
    hull,
    turned_cutout,
    turned_cutouts,
)
from geolearn.chips.exporting.vector_labels import Features, need_shapely
from geolearn.chips.exporting.writer import ChipWriter
from geolearn.chips.meaning.values import named_nodata
from geolearn.errors import ChipFolderError
from geolearn.progress import ProgressBar
from geolearn.raster import GeoBox, open_raster, raster_geobox, read_window
from geolearn.raster.nodata import valid_in_all_bands

CUTOUTS_PER_JOB = 16
"""Of cutouts that are read one by one."""


def plan_jobs(src: Any, options: ExportOptions, features: Features | None, areas: Any, threads: int) -> tuple[Job, ...]:
    """Return all jobs in the order in which chips are numbered.

    Args:
        src: Dataset of the image.
        options: How chips are cut.
        features: Vector labels.
        areas: Polygon in pixels of the raster; chips not completely within are left out. None keeps all.
        threads: How many work at once.

    Raises:
        NothingThereError: If no chip fits.
        ChipFolderError: If the raster is smaller than a chip.
    """
    if options.per_feature and features is not None:
        cutouts: Iterable[Cutout] = _inside(_feature_cutouts((src.height, src.width), options, features), areas)
        jobs = [Job(at, group) for at, group in enumerate(_batched(cutouts, CUTOUTS_PER_JOB))]
    else:
        # cutouts without features are neither read nor written
        jobs = _grids(src, options, areas, threads, needed=None if options.output_nofeature_tiles else features)
    if not jobs:
        where = 'that lies within mask_polygons' if areas is not None else 'inside the raster that shows a feature'
        raise NothingThereError(f'there is no chip of {options.tile_size} pixels {where}; choose a smaller tile_size')
    return tuple(jobs)


def _grids(src: Any, options: ExportOptions, areas: Any, threads: int, needed: Features | None) -> list[Job]:
    shape, size, stride = (src.height, src.width), options.tile_size, options.stride
    pixel_bytes = sum(_itemsize(dtype) for dtype in src.dtypes)
    groups = grid_jobs(shape, size, stride, block=src.block_shapes[0], pixel_bytes=pixel_bytes, threads=threads)
    jobs: list[Job] = []
    for group in groups:
        if cutouts := tuple(_inside(_showing(group, needed), areas)):
            jobs.append(Job(len(jobs), cutouts, hull(cutouts)))
    for angle in options.angles[1:]:
        turned = list(turned_cutouts(shape, size, stride, angle))
        for cutouts in _batched(_inside(_showing(turned, needed), areas), CUTOUTS_PER_JOB):
            jobs.append(Job(len(jobs), cutouts))
    return jobs


def _showing(cutouts: Sequence[Cutout], features: Features | None) -> Sequence[Cutout]:
    """Return the cutouts that touch any feature; all where None are given."""
    return cutouts if features is None else [cutouts[at] for at in features.touching(cutouts)]


def _batched(cutouts: Iterable[Cutout], size: int) -> Iterator[tuple[Cutout, ...]]:
    rest = iter(cutouts)
    while group := tuple(islice(rest, size)):
        yield group


def _itemsize(dtype: str) -> int:
    return int(''.join(letter for letter in dtype if letter.isdigit()) or 8) // 8 or 1


def _inside(cutouts: Iterable[Cutout], areas: Any) -> Iterator[Cutout]:
    if areas is None:
        yield from cutouts
        return
    shapely = need_shapely()
    shapely.prepare(areas)
    for cutout in cutouts:
        if areas.covers(shapely.polygons(cutout.corners())):
            yield cutout


def _feature_cutouts(shape: tuple[int, int], options: ExportOptions, features: Features) -> Iterator[Cutout]:
    height, width = shape
    size = options.tile_size
    if options.crop_mode == 'fixed' and min(shape) < size:
        raise ChipFolderError(f'the raster is {width}x{height} pixels, smaller than tile_size {size}')
    for feature, (left, top, right, bottom) in enumerate(features.bounds.tolist()):
        if right <= 0 or bottom <= 0 or left >= width or top >= height:
            continue
        if options.crop_mode == 'bounding_box':
            row, col = max(0, math.floor(top)), max(0, math.floor(left))
            crop = (min(height, math.ceil(bottom)) - row, min(width, math.ceil(right)) - col)
            yield Cutout((row, col, *crop), crop, None, feature)
            continue
        middle = (left + right) / 2, (top + bottom) / 2
        # at the edge of the raster a chip moves inwards
        col = min(max(0, round(middle[0] - size / 2)), width - size)
        row = min(max(0, round(middle[1] - size / 2)), height - size)
        yield Cutout((row, col, size, size), (size, size), None, feature)
        for angle in options.angles[1:]:
            cos, sin = (round(f(math.radians(angle)), 15) for f in (math.cos, math.sin))
            x = middle[0] - (cos - sin) * size / 2
            y = middle[1] - (sin + cos) * size / 2
            if cutout := turned_cutout(shape, size, Affine(cos, -sin, x, sin, cos, y), feature):
                yield cutout


WITHOUT_DATA = 'chips without any valid pixel were left out'

PARTLY_WITHOUT_DATA = 'chips with invalid pixels were left out, as JPEG cannot mark them; use TIFF to keep them'

FEW_CHIPS = 500
"""Fewer are cut without a progress bar."""


class _Read(NamedTuple):
    """Pixels (bands, height, width), their mask and class values (height, width) of a window."""

    pixels: np.ndarray
    mask: np.ndarray | None
    values: np.ndarray | None


class _Chip(NamedTuple):
    cutout: Cutout
    pixels: np.ndarray
    mask: np.ndarray | None
    truth: Truth


class _StoppedError(Exception):
    """Another thread failed; this one only goes home."""


class _Order:
    """Hands out chip numbers, job after job, and tells all threads when one has failed."""

    def __init__(self, start: int) -> None:
        self._ready = threading.Condition()
        self._job, self._number, self._stopped = 0, start, False

    def take(self, job: int, count: int) -> int:
        """Return the first of `count` numbers, once all earlier jobs have taken theirs."""
        with self._ready:
            self._ready.wait_for(lambda: self._stopped or self._job == job)
            self.check()
            first = self._number
            self._job, self._number = job + 1, first + count
            self._ready.notify_all()
            return first

    def check(self) -> None:
        if self._stopped:
            raise _StoppedError

    def stop(self) -> None:
        with self._ready:
            self._stopped = True
            self._ready.notify_all()


@dataclass(frozen=True)
class Export:
    """All that the threads share.

    Args:
        raster: What `open_raster` opens.
        labels: Labels of it.
        writer: An entered writer.
        options: How chips are cut.
        nodata: What the user named as NoData of the raster.
        bands: What the user named its bands, or None.
    """

    raster: str | Path | Sequence[str | Path]
    labels: LabelSource
    writer: ChipWriter
    options: ExportOptions
    nodata: tuple[float, ...] = ()
    bands: tuple[str, ...] | None = None

    def run(self, jobs: Sequence[Job], threads: int, start: int) -> tuple[list[Tally], Counter[str]]:
        """Cut all jobs, numbering chips from `start`.

        Returns:
            What the metadata tells of each job's chips, and how often something was left out, by reason.
        """
        order, tallies, skipped = _Order(start), [Tally() for _ in jobs], Counter[str]()
        waiting = iter(jobs)
        lock = threading.Lock()
        count = sum(len(job.cutouts) for job in jobs)

        def work() -> None:
            try:
                named = open_raster(self.raster, bands=self.bands, nodata=self.nodata or None, quiet=True)
                with named as src, self.labels.open() as lab:
                    while True:
                        with lock:
                            job = next(waiting, None)
                        if job is None:
                            return
                        found = self._cut(src, lab, job, tallies[job.number], order)
                        with lock:
                            skipped.update(found)
                            bar.update(len(job.cutouts))
            except BaseException:
                order.stop()
                raise

        with (
            ProgressBar(count, 'cutting chips', 'chip', at_least=FEW_CHIPS) as bar,
            ThreadPoolExecutor(threads, 'geolearn-export') as pool,
        ):
            futures = [pool.submit(work) for _ in range(min(threads, max(1, len(jobs))))]
            try:
                errors = [future.exception() for future in futures]
            except BaseException:  # Ctrl-C reaches this thread only
                order.stop()
                raise
        if failed := [error for error in errors if error is not None]:
            raise next((error for error in failed if not isinstance(error, _StoppedError)), failed[0])
        return tallies, skipped

    def _cut(self, src: Any, lab: Any, job: Job, tally: Tally, order: _Order) -> Counter[str]:
        skipped = Counter[str]()
        shared = None if job.window is None else self._read(src, lab, job.window)
        chips = []
        for cutout in job.cutouts:
            order.check()
            found = _crop(shared, job.window, cutout) if shared and job.window else self._read(src, lab, cutout.window)
            if chip := self._make_chip(cutout, found, skipped):
                chips.append(chip)
        first = order.take(job.number, len(chips))
        box = raster_geobox(src)
        for number, chip in enumerate(chips, first):
            order.check()
            place = GeoBox(chip.cutout.shape, compose(box.transform, chip.cutout.to_raster), box.crs)
            pixels, mask = _blacken(chip) if self.options.blacken_around_feature else (chip.pixels, chip.mask)
            self.writer.write(
                number, pixels, chip.truth.label, place, tally, mask=mask, valid=chip.mask, features=chip.truth.features
            )
        return skipped

    def _read(self, src: Any, lab: Any, window: tuple[int, int, int, int]) -> _Read:
        row, col, height, width = window
        pixels, mask = read_window(src, Window(col, row, width, height), src.indexes)
        if self.nodata:
            shared = [] if mask is None else [mask]
            mask = valid_in_all_bands(named_nodata(pixels, shared, self.nodata, len(pixels), str(src.name)))
            if mask is not None and src.nodata is not None:
                pixels[:, ~mask] = src.nodata  # chips declare one value only
        return _Read(pixels, mask, self.labels.values(lab, window, mask))

    def _make_chip(self, cutout: Cutout, found: _Read, skipped: Counter[str]) -> _Chip | None:
        """Decide whether a cutout becomes a chip."""
        mask = None if found.mask is None else turned(found.mask, cutout)
        mask = None if mask is None or mask.all() else mask
        if mask is not None and not mask.any():
            skipped[WITHOUT_DATA] += 1
            return None
        if mask is not None and self.options.image_format == 'JPEG':
            skipped[PARTLY_WITHOUT_DATA] += 1
            return None
        values = None if found.values is None else turned(found.values, cutout)
        truth = self.labels.truth(cutout, mask, values, self.options)
        if truth.empty and not (self.options.output_nofeature_tiles and not self.options.per_feature):
            return None
        skipped.update(truth.label.skipped)
        return _Chip(cutout, turned(found.pixels, cutout), mask, truth)


def _crop(shared: _Read, window: tuple[int, int, int, int], cutout: Cutout) -> _Read:
    """Return views of the cutout's part of what was read for a whole job."""
    top, left = cutout.window[0] - window[0], cutout.window[1] - window[1]
    part = np.s_[..., top : top + cutout.window[2], left : left + cutout.window[3]]
    pixels, mask, values = shared
    return _Read(pixels[part], None if mask is None else mask[part], None if values is None else values[part])


def _blacken(chip: _Chip) -> tuple[np.ndarray, np.ndarray | None]:
    """Set pixels outside the feature to 0; they take no part in statistics."""
    outline = chip.truth.outline
    if outline is None:
        return chip.pixels, chip.mask
    return np.where(outline, chip.pixels, 0).astype(chip.pixels.dtype), (
        outline if chip.mask is None else outline & chip.mask
    )


def count_threads(wanted: int | None) -> int:
    """Return how many threads to use: those asked for, else one for each processor up to 8."""
    return max(1, min(8, os.cpu_count() or 1)) if wanted is None else max(1, wanted)
