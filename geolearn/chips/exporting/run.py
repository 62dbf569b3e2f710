"""Decide which chips are cut, and cut them in several threads, numbered in one order whatever thread is first."""

import math
import os
import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Self
from uuid import uuid4

import numpy as np
from affine import Affine
from rasterio.windows import Window

from geolearn import files, progress, statistics
from geolearn.chips.exporting import metadata, placement, vector_labels
from geolearn.chips.exporting.labels import LabelSource, Truth, turned
from geolearn.chips.formats import find_writer
from geolearn.chips.formats.writing import ChipFile
from geolearn.chips.label import Label
from geolearn.chips.meaning.values import named_nodata
from geolearn.errors import ChipFolderError
from geolearn.raster import Dequantize, GeoBox, open_raster, raster_geobox, read_window_masks
from geolearn.raster.border import BorderCheck
from geolearn.raster.images import SUFFIXES, write_image
from geolearn.raster.nodata import valid_in_all_bands

MAX_VALUE = 65535


class ChipWriter:
    """Write chips, then the metadata that describes all of them; the folder appears when it is whole.

    A context manager: `add` chips inside; leaving it writes the metadata, or deletes everything where an error does so.

    Args:
        folder: New or empty folder.
        facts: What is true of all chips.
        image_format: ``'TIFF'``, ``'PNG'``, ``'JPEG'`` or ``'MRF'``.
        compress: Compression of TIFFs: ``'none'``, ``'deflate'``, ``'lzw'`` or ``'zstd'``.
        nodata: NoData value of the images.
        start_index: Number of the first chip.

    Raises:
        ChipFolderError: If the folder already holds files, or the format cannot hold a class.
        UnknownNameError: If there is no such format.
    """

    def __init__(
        self,
        folder: str | Path,
        facts: metadata.ExportDescription,
        *,
        image_format: str = 'TIFF',
        compress: str = 'none',
        nodata: float | None = None,
        start_index: int = 0,
    ) -> None:
        self.folder, self.facts = Path(folder), facts
        if self.folder.exists() and not self.folder.is_dir():
            raise ChipFolderError(f'{self.folder} is a file; export into a new folder')
        if self.folder.is_dir() and any(self.folder.iterdir()):
            raise ChipFolderError(f'{self.folder} is not empty; export into a new folder so that two exports never mix')
        _check_values(info.value for info in facts.classes)
        self._part = self.folder.parent / f'.{self.folder.name}-{uuid4().hex[:8]}.part'
        self._format = find_writer(facts.metadata_format)(self._part, facts.classes, compress)
        self._image_format, self._compress, self._nodata = image_format, compress, nodata
        self._listed = {0} | {info.value for info in facts.classes}
        self._tally, self._start = metadata.Tally(), start_index
        self._notes: tuple[str, ...] = ()

    def __enter__(self) -> Self:
        self._remove_stale()
        try:
            self._format.prepare()
        except BaseException as error:
            shutil.rmtree(self._part, ignore_errors=True)
            if isinstance(error, ChipFolderError):
                raise ChipFolderError(f'cannot write {self.folder}: {error}') from error
            raise
        return self

    def _remove_stale(self) -> None:
        """Remove what killed exports into this folder left beside it, unless another one may still be at work."""
        name = re.compile(re.escape(f'.{self.folder.name}-') + r'[0-9a-f]{8}\.part')
        with suppress(OSError):  # whether the folder can be written to is asked next
            for part in [path for path in self.folder.parent.iterdir() if name.fullmatch(path.name)]:
                newest = max(path.stat().st_mtime for path in (part, *part.rglob('*/')))
                if time.time() - newest > files.STALE_AFTER_S:
                    shutil.rmtree(part, ignore_errors=True)

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            if error is None:
                self._finish()
        finally:
            shutil.rmtree(self._part, ignore_errors=True)

    def add(self, pixels: np.ndarray, label: Label, geobox: GeoBox, *, mask: np.ndarray | None = None) -> None:
        """Write the next chip.

        Args:
            pixels: (bands, height, width) in the dtype to store.
            label: In the form that the format needs.
            geobox: Place of the chip.
            mask: True where the pixels are valid; None where all are.

        Raises:
            ChipFolderError: If band count, size or class values do not fit.
            RasterError: If a file cannot be written.
        """
        self.write(self._start + len(self._tally.rows), pixels, label, geobox, self._tally, mask=mask, valid=mask)

    def write(
        self,
        number: int,
        pixels: np.ndarray,
        label: Label,
        geobox: GeoBox,
        tally: metadata.Tally,
        *,
        mask: np.ndarray | None = None,
        valid: np.ndarray | None = None,
        features: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> None:
        """Write a chip of a number of its own; threads may do so at once, each with its own tally.

        Args:
            number: Number of the chip.
            pixels: As in `add`.
            label: As in `add`.
            geobox: As in `add`.
            tally: Counts what is written.
            mask: True where pixels count in statistics.
            valid: True where pixels hold data.
            features: Class value and area in pixels of each feature, where the label does not tell.
        """
        shape = self._check(pixels, label)
        place = geobox if self.facts.map_space else None
        chip = ChipFile(f'{number:012d}', SUFFIXES[self._image_format], len(pixels), shape, place)
        image = self._format.image(chip, label)
        write_image(
            self._part / image,
            pixels,
            place,
            image_format=self._image_format,
            compress=self._compress,
            nodata=self._nodata,
            band_names=[band.name for band in self.facts.bands],
            mask=valid if self._image_format == 'TIFF' and self._needs_mask(pixels, valid) else None,
        )
        tally.add_chip((image, *self._format.write(chip, label)), metadata.band_statistics(pixels, mask), geobox)
        side_x, side_y = geobox.resolution
        self._count(tally, label, features, side_x * side_y)

    @property
    def nodata(self) -> float | None:
        """NoData value that the images declare."""
        return self._nodata

    @property
    def count(self) -> int:
        """Number of chips that are counted so far."""
        return len(self._tally.rows)

    def take(self, tallies: Iterable[metadata.Tally], notes: Sequence[str] = ()) -> None:
        """Take in what threads counted, in the order of the chips, and what people should know."""
        for tally in tallies:
            self._tally.merge(tally)
        self._notes += tuple(notes)

    def _check(self, pixels: np.ndarray, label: Label) -> tuple[int, int]:
        shape = (pixels.shape[1], pixels.shape[2])
        others = [] if label.raster is None else [label.raster.shape]
        others += [mask.shape for mask in label.masks or ()]
        if pixels.shape[0] != len(self.facts.bands) or any(other != shape for other in others):
            raise ChipFolderError(
                f'chip of {pixels.shape} pixels with label {others[0] if others else "of no size"} does not fit '
                f'{len(self.facts.bands)} bands'
            )
        found = set(label.class_ids.tolist())
        found |= _count_labelled(label).keys()
        if unknown := found - self._listed:
            raise ChipFolderError(f'label holds {sorted(unknown)}, which are no class values: {sorted(self._listed)}')
        return shape

    def _needs_mask(self, pixels: np.ndarray, valid: np.ndarray | None) -> bool:
        """Whether neither a NoData value nor NaN shows which pixels are invalid."""
        if valid is None or self._nodata is not None:
            return False
        return pixels.dtype.kind != 'f' or bool(np.isfinite(pixels[:, ~valid]).all(axis=0).any())

    def marks(self, pixels: np.ndarray, valid: np.ndarray) -> bool:
        """Whether an image can say which of its pixels are invalid; only TIFFs hold a mask, and JPEG changes values."""
        if self._image_format == 'JPEG':
            return False
        return self._image_format == 'TIFF' or not self._needs_mask(pixels, valid)

    def _count(
        self, tally: metadata.Tally, label: Label, features: tuple[np.ndarray, np.ndarray] | None, cell_area: float
    ) -> None:
        if label.raster is not None and label.raster.dtype.kind != 'f':
            tally.add_raster(_count_labelled(label))
        if features is not None:
            tally.add_features(features[0], features[1] * cell_area)
        elif label.boxes is not None:
            boxes = label.boxes.astype(np.float64)
            areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
            if label.masks is not None:
                areas = np.array([mask.sum() for mask in label.masks], np.float64)
            tally.add_features(label.class_ids, areas * cell_area)
        elif label.raster is None and self.facts.classes:
            tally.add_features(label.class_ids, np.zeros(len(label.class_ids)))

    def _finish(self) -> None:
        if not self._tally.rows:
            why = '; '.join(self._notes) or 'no tile holds both image and label'
            raise ChipFolderError(f'no chip was written to {self.folder}: {why}')
        self._format.finish()
        texts = metadata.metadata_texts(
            self.facts,
            self._tally,
            next_index=self._start + len(self._tally.rows),
            extra=self._format.emd(),
            notes=self._notes,
        )
        for name, text in texts.items():
            try:
                (self._part / name).write_text(text, encoding='utf-8', newline='\n')
            except OSError as error:
                raise ChipFolderError(f'cannot write {self.folder / name}: {error.strerror}') from error
        try:
            if self.folder.is_dir():
                self.folder.rmdir()  # Windows renames onto nothing, not even onto an empty folder
            self._part.rename(self.folder)
        except OSError as error:
            raise ChipFolderError(f'cannot write {self.folder}: {error.strerror}') from error


def _count_labelled(label: Label) -> dict[int, int]:
    """Count the class values of labelled pixels: those above 0, unless the label says itself what is unlabelled."""
    if label.raster is None or label.raster.dtype.kind == 'f':
        return {}
    if label.unlabelled is None:
        return {value: count for value, count in statistics.count_values(label.raster).items() if value}
    return dict(statistics.count_values(label.raster[~label.unlabelled]))


def _check_values(values: Iterable[int]) -> None:
    seen = set[int]()
    for value in values:
        if not 0 <= value <= MAX_VALUE:
            raise ChipFolderError(f'class value {value} is outside 0..{MAX_VALUE}, the range of a label raster')
        if value in seen:
            raise ChipFolderError(f'two classes have the value {value}; values must differ')
        seen.add(value)


CUTOUTS_PER_JOB = 16
"""Of cutouts that are read one by one."""


def plan_jobs(
    src: Any, options: placement.ExportOptions, features: vector_labels.Features | None, areas: Any, threads: int
) -> tuple[placement.Job, ...]:
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
        cutouts: Iterable[placement.Cutout] = _inside(
            _feature_cutouts((src.height, src.width), options, features), areas
        )
        jobs = [placement.Job(at, group) for at, group in enumerate(_batched(cutouts, CUTOUTS_PER_JOB))]
    else:
        # cutouts without features are neither read nor written
        jobs = _grids(src, options, areas, threads, needed=None if options.output_nofeature_tiles else features)
    if not jobs:
        where = 'that lies within mask_polygons' if areas is not None else 'inside the raster that shows a feature'
        raise placement.NothingThereError(
            f'there is no chip of {options.tile_size} pixels {where}; choose a smaller tile_size'
        )
    return tuple(jobs)


def _grids(
    src: Any, options: placement.ExportOptions, areas: Any, threads: int, needed: vector_labels.Features | None
) -> list[placement.Job]:
    shape, size, stride = (src.height, src.width), options.tile_size, options.stride
    pixel_bytes = sum(_itemsize(dtype) for dtype in src.dtypes)
    groups = placement.grid_jobs(
        shape, size, stride, block=src.block_shapes[0], pixel_bytes=pixel_bytes, threads=threads
    )
    jobs: list[placement.Job] = []
    for group in groups:
        if cutouts := tuple(_inside(_showing(group, needed), areas)):
            jobs.append(placement.Job(len(jobs), cutouts, placement.hull(cutouts)))
    for angle in options.angles[1:]:
        turned = list(placement.turned_cutouts(shape, size, stride, angle))
        for cutouts in _batched(_inside(_showing(turned, needed), areas), CUTOUTS_PER_JOB):
            jobs.append(placement.Job(len(jobs), cutouts))
    return jobs


def _showing(
    cutouts: Sequence[placement.Cutout], features: vector_labels.Features | None
) -> Sequence[placement.Cutout]:
    """Return the cutouts that touch any feature; all where None are given."""
    return cutouts if features is None else [cutouts[at] for at in features.touching(cutouts)]


def _batched(cutouts: Iterable[placement.Cutout], size: int) -> Iterator[tuple[placement.Cutout, ...]]:
    rest = iter(cutouts)
    while group := tuple(islice(rest, size)):
        yield group


def _itemsize(dtype: str) -> int:
    return int(''.join(letter for letter in dtype if letter.isdigit()) or 8) // 8 or 1


def _inside(cutouts: Iterable[placement.Cutout], areas: Any) -> Iterator[placement.Cutout]:
    if areas is None:
        yield from cutouts
        return
    shapely = vector_labels.need_shapely()
    shapely.prepare(areas)
    for cutout in cutouts:
        if areas.covers(shapely.polygons(cutout.corners())):
            yield cutout


def _feature_cutouts(
    shape: tuple[int, int], options: placement.ExportOptions, features: vector_labels.Features
) -> Iterator[placement.Cutout]:
    height, width = shape
    size = options.tile_size
    if options.crop_mode == 'fixed' and min(shape) < size:
        raise ChipFolderError(
            f'the raster is {width}x{height} pixels, smaller than tile_size {size}; choose a smaller tile_size'
        )
    for feature, (left, top, right, bottom) in enumerate(features.bounds.tolist()):
        if right <= 0 or bottom <= 0 or left >= width or top >= height:
            continue
        if options.crop_mode == 'bounding_box':
            row, col = max(0, math.floor(top)), max(0, math.floor(left))
            crop = (min(height, math.ceil(bottom)) - row, min(width, math.ceil(right)) - col)
            yield placement.Cutout((row, col, *crop), crop, None, feature)
            continue
        middle = (left + right) / 2, (top + bottom) / 2
        # at the edge of the raster a chip moves inwards
        col = min(max(0, round(middle[0] - size / 2)), width - size)
        row = min(max(0, round(middle[1] - size / 2)), height - size)
        yield placement.Cutout((row, col, size, size), (size, size), None, feature)
        for angle in options.angles[1:]:
            cos, sin = (round(f(math.radians(angle)), 15) for f in (math.cos, math.sin))
            x = middle[0] - (cos - sin) * size / 2
            y = middle[1] - (sin + cos) * size / 2
            if cutout := placement.turned_cutout(shape, size, Affine(cos, -sin, x, sin, cos, y), feature):
                yield cutout


WITHOUT_DATA = 'chips without any valid pixel were left out'

PARTLY_WITHOUT_DATA = 'chips with invalid pixels were left out, as {0} cannot mark them; use TIFF to keep them'

FEW_CHIPS = 500
"""Fewer are cut without a progress bar."""


class _Read(NamedTuple):
    """Pixels (bands, height, width), their mask and class values (height, width) of a window."""

    pixels: np.ndarray
    mask: np.ndarray | None
    values: np.ndarray | None


class _Chip(NamedTuple):
    cutout: placement.Cutout
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
        border: Reports where the raster has a border that nothing declares as NoData.
        dequantize: Read codes of embeddings as vectors.
    """

    raster: str | Path | Sequence[str | Path]
    labels: LabelSource
    writer: ChipWriter
    options: placement.ExportOptions
    nodata: tuple[float, ...] = ()
    bands: tuple[str, ...] | None = None
    border: BorderCheck | None = None
    dequantize: Dequantize | None = None

    def run(self, jobs: Sequence[placement.Job], threads: int, start: int) -> tuple[list[metadata.Tally], Counter[str]]:
        """Cut all jobs, numbering chips from `start`.

        Returns:
            What the metadata tells of each job's chips, and how often something was left out, by reason.
        """
        order, tallies, skipped = _Order(start), [metadata.Tally() for _ in jobs], Counter[str]()
        waiting = iter(jobs)
        lock = threading.Lock()
        count = sum(len(job.cutouts) for job in jobs)

        def work() -> None:
            try:
                named = open_raster(
                    self.raster,
                    bands=self.bands,
                    nodata=self.nodata or None,
                    quiet=True,
                    dequantize=self.dequantize,
                )
                with named as src, self.labels.open() as lab:
                    if self.border is not None:
                        src.check_border(self.border)
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
            progress.ProgressBar(count, 'cutting chips', 'chip', at_least=FEW_CHIPS) as bar,
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

    def _cut(self, src: Any, lab: Any, job: placement.Job, tally: metadata.Tally, order: _Order) -> Counter[str]:
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
            place = GeoBox(chip.cutout.shape, placement.compose(box.transform, chip.cutout.to_raster), box.crs)
            pixels, mask = _blacken(chip) if self.options.blacken_around_feature else (chip.pixels, chip.mask)
            self.writer.write(
                number, pixels, chip.truth.label, place, tally, mask=mask, valid=chip.mask, features=chip.truth.features
            )
        return skipped

    def _read(self, src: Any, lab: Any, window: tuple[int, int, int, int]) -> _Read:
        row, col, height, width = window
        pixels, masks = read_window_masks(src, Window(col, row, width, height), src.indexes)
        if self.nodata:
            shared = [] if masks is None else [masks]
            masks = named_nodata(pixels, shared, self.nodata, len(pixels), str(src.name))
        mask = valid_in_all_bands(masks)
        if masks is not None and mask is not None and self.writer.nodata is not None:
            # chips declare one value only, and neither a mask nor other values of single bands
            np.copyto(pixels, np.array(self.writer.nodata, pixels.dtype), where=~masks)
        return _Read(pixels, mask, self.labels.values(lab, window, mask))

    def _make_chip(self, cutout: placement.Cutout, found: _Read, skipped: Counter[str]) -> _Chip | None:
        """Decide whether a cutout becomes a chip."""
        mask = None if found.mask is None else turned(found.mask, cutout)
        mask = None if mask is None or mask.all() else mask
        if mask is not None and not mask.any():
            skipped[WITHOUT_DATA] += 1
            return None
        if mask is not None and not self.writer.marks(turned(found.pixels, cutout), mask):
            skipped[PARTLY_WITHOUT_DATA.format(self.options.image_format)] += 1
            return None
        values = None if found.values is None else turned(found.values, cutout)
        truth = self.labels.truth(cutout, mask, values, self.options)
        if truth.empty and not (self.options.output_nofeature_tiles and not self.options.per_feature):
            return None
        skipped.update(truth.label.skipped)
        return _Chip(cutout, turned(found.pixels, cutout), mask, truth)


def _crop(shared: _Read, window: tuple[int, int, int, int], cutout: placement.Cutout) -> _Read:
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
