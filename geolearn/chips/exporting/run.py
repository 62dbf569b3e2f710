"""Cut chips in several threads; chips are numbered in one order whatever thread is first."""

import os
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rasterio.windows import Window

from geolearn.chips.exporting.labels import LabelSource, Truth, turned
from geolearn.chips.exporting.metadata import Tally
from geolearn.chips.exporting.options import ExportOptions
from geolearn.chips.exporting.placement import Job, Tile, compose
from geolearn.chips.exporting.writer import ChipWriter
from geolearn.progress import ProgressBar
from geolearn.raster import GeoBox, open_raster, raster_geobox, read_window

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
    tile: Tile
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
    """

    raster: str | Path | Sequence[str | Path]
    labels: LabelSource
    writer: ChipWriter
    options: ExportOptions

    def run(self, jobs: Sequence[Job], threads: int, start: int) -> tuple[list[Tally], Counter[str]]:
        """Cut all jobs, numbering chips from `start`.

        Returns:
            What the metadata tells of each job's chips, and how often something was left out, by reason.
        """
        order, tallies, skipped = _Order(start), [Tally() for _ in jobs], Counter[str]()
        waiting = iter(jobs)
        lock = threading.Lock()
        count = sum(len(job.tiles) for job in jobs)

        def work() -> None:
            try:
                with open_raster(self.raster) as src, self.labels.open() as lab:
                    while True:
                        with lock:
                            job = next(waiting, None)
                        if job is None:
                            return
                        found = self._cut(src, lab, job, tallies[job.number], order)
                        with lock:
                            skipped.update(found)
                            bar.update(len(job.tiles))
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
        for tile in job.tiles:
            order.check()
            found = _crop(shared, job.window, tile) if shared and job.window else self._read(src, lab, tile.window)
            if chip := self._look(tile, found, skipped):
                chips.append(chip)
        first = order.take(job.number, len(chips))
        box = raster_geobox(src)
        for number, chip in enumerate(chips, first):
            order.check()
            place = GeoBox(chip.tile.shape, compose(box.transform, chip.tile.to_raster), box.crs)
            pixels, mask = _blacken(chip) if self.options.blacken_around_feature else (chip.pixels, chip.mask)
            self.writer.write(
                number, pixels, chip.truth.label, place, tally, mask=mask, valid=chip.mask, features=chip.truth.features
            )
        return skipped

    def _read(self, src: Any, lab: Any, window: tuple[int, int, int, int]) -> _Read:
        row, col, height, width = window
        pixels, mask = read_window(src, Window(col, row, width, height), src.indexes)
        return _Read(pixels, mask, self.labels.values(lab, window, mask))

    def _look(self, tile: Tile, found: _Read, skipped: Counter[str]) -> _Chip | None:
        """Decide whether a tile becomes a chip."""
        mask = None if found.mask is None else turned(found.mask, tile)
        mask = None if mask is None or mask.all() else mask
        if mask is not None and not mask.any():
            skipped[WITHOUT_DATA] += 1
            return None
        if mask is not None and self.options.image_format == 'JPEG':
            skipped[PARTLY_WITHOUT_DATA] += 1
            return None
        values = None if found.values is None else turned(found.values, tile)
        truth = self.labels.truth(tile, mask, values, self.options)
        if truth.empty and not (self.options.output_nofeature_tiles and not self.options.per_feature):
            return None
        skipped.update(truth.label.skipped)
        return _Chip(tile, turned(found.pixels, tile), mask, truth)


def _crop(shared: _Read, window: tuple[int, int, int, int], tile: Tile) -> _Read:
    """Return views of the tile's part of what was read for a whole job."""
    top, left = tile.window[0] - window[0], tile.window[1] - window[1]
    part = np.s_[..., top : top + tile.window[2], left : left + tile.window[3]]
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
