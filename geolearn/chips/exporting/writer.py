"""Write chip folders in ArcGIS's layout: images/, labels/, .emd, statistics, map.txt."""

import re
import shutil
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import numpy as np

from geolearn.chips.exporting.metadata import ExportDescription, Tally, band_statistics, metadata_texts
from geolearn.chips.formats import find_writer
from geolearn.chips.formats.writing import ChipFile
from geolearn.chips.label import Label
from geolearn.errors import ChipFolderError
from geolearn.files import STALE_AFTER_S
from geolearn.raster import GeoBox
from geolearn.raster.images import SUFFIXES, write_image
from geolearn.statistics import count_values

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
        facts: ExportDescription,
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
        self._tally, self._start = Tally(), start_index
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
                if time.time() - newest > STALE_AFTER_S:
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
        tally: Tally,
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
            mask=valid if self._needs_mask(pixels, valid) else None,
        )
        tally.add_chip((image, *self._format.write(chip, label)), band_statistics(pixels, mask), geobox)
        side_x, side_y = geobox.resolution
        self._count(tally, label, features, side_x * side_y)

    @property
    def count(self) -> int:
        """Number of chips that are counted so far."""
        return len(self._tally.rows)

    def take(self, tallies: Iterable[Tally], notes: Sequence[str] = ()) -> None:
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
        if valid is None or self._nodata is not None or self._image_format != 'TIFF':
            return False
        return pixels.dtype.kind != 'f' or bool(np.isfinite(pixels[:, ~valid]).all(axis=0).any())

    def _count(
        self, tally: Tally, label: Label, features: tuple[np.ndarray, np.ndarray] | None, cell_area: float
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
            raise ChipFolderError(f'no chip was written to {self.folder}: no tile holds both image and label')
        self._format.finish()
        texts = metadata_texts(
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
        return {value: count for value, count in count_values(label.raster).items() if value}
    return dict(count_values(label.raster[~label.unlabelled]))


def _check_values(values: Iterable[int]) -> None:
    seen = set[int]()
    for value in values:
        if not 0 <= value <= MAX_VALUE:
            raise ChipFolderError(f'class value {value} is outside 0..{MAX_VALUE}, the range of a label raster')
        if value in seen:
            raise ChipFolderError(f'two classes have the value {value}; values must differ')
        seen.add(value)
