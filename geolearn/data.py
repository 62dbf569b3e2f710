"""ChipData: batches of chips with everything a model must know about them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geolearn.bands import Band
from geolearn.chips.interpret import check_trainable, class_notes
from geolearn.chips.loader import ChipDataset, ChipLoader
from geolearn.chips.splits import Split
from geolearn.classes import ClassInfo, index_table
from geolearn.plotting import show_chips
from geolearn.statistics import BandStatistics

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class ChipData:
    """Batches of chips, with everything a model must know about them.

    Args:
        path: The export folder.
        working_dir: Models go to ``<working_dir>/models/<name>``; None means the export folder.
        bands: Bands of the images, in order.
        band_indexes: 0-based positions of these bands in the chip files.
        class_infos: Trained classes; position is class index.
        ignored_values: Label values that take no part.
        chip_size: Side of the training images in pixels.
        statistics: Of the bands, in stored units, over valid pixels.
        value_counts: Valid pixels per label value.
        dtype: Stored dtype of the chips.
        train_dl: Training batches.
        valid_dl: Validation batches.
        split: Which chips are in which part.
        cell_size: The export's MinCellSize, passed on to saved models.
        image_space: The export's ImageSpaceUsed, such as ``'MAP_SPACE'`` or ``'PIXEL_SPACE'``.
        remarks: What was picked, skipped or recounted while reading, for people.
    """

    path: Path
    working_dir: Path | None
    bands: tuple[Band, ...]
    band_indexes: tuple[int, ...]
    class_infos: tuple[ClassInfo, ...]
    ignored_values: tuple[int, ...]
    chip_size: int
    statistics: BandStatistics
    value_counts: Mapping[int, int]
    dtype: str
    train_dl: ChipLoader = field(repr=False)
    valid_dl: ChipLoader = field(repr=False)
    split: Split
    cell_size: Mapping[str, Any] | None
    image_space: str
    remarks: tuple[str, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know: what was left out while reading, and what is odd about the classes."""
        return (*class_notes(self.class_infos, self.value_counts), *self.remarks)

    @property
    def classes(self) -> list[str]:
        """Names of the trained classes, in index order."""
        return [info.name for info in self.class_infos]

    @property
    def c(self) -> int:
        """Number of trained classes."""
        return len(self.class_infos)

    @property
    def class_mapping(self) -> dict[int, str]:
        """Name of each trained class by label value."""
        return {info.value: info.name for info in self.class_infos}

    @property
    def color_mapping(self) -> dict[int, tuple[int, int, int]]:
        """Colour of each trained class by label value."""
        return {info.value: info.color for info in self.class_infos}

    @property
    def batch_size(self) -> int:
        """Chips per batch."""
        return self.train_dl.batch_size

    @property
    def train_ds(self) -> ChipDataset:
        """Training chips, one by one."""
        return self.train_dl.dataset

    @property
    def valid_ds(self) -> ChipDataset:
        """Validation chips, one by one."""
        return self.valid_dl.dataset

    def ignoring(self, values: Sequence[int]) -> 'ChipData':
        """Return the same chips with more label values left out of loss, metrics and predictions."""
        ignored = tuple(sorted({*self.ignored_values, *values}))
        infos = tuple(info for info in self.class_infos if info.value not in ignored)
        check_trainable(infos)
        table = index_table(infos, ignored)
        return replace(
            self,
            class_infos=infos,
            ignored_values=ignored,
            train_dl=self.train_dl.with_table(table),
            valid_dl=self.valid_dl.with_table(table),
        )

    def show_batch(self, rows: int = 3, *, columns: int = 3, alpha: float = 0.5) -> 'Figure':
        """Draw augmented training chips with their labels laid over them.

        Args:
            rows: Rows of chips.
            columns: Chips per row.
            alpha: Opacity of the labels, 0..1.
        """
        images, masks = self.train_dl.peek()
        count = rows * columns
        return show_chips(
            images[:count].cpu(), masks[:count].cpu(), self.bands, self.class_infos, columns=columns, alpha=alpha
        )

    def __repr__(self) -> str:
        total = sum(self.value_counts.values())
        lines = [
            f'ChipData: {len(self.train_ds)} chips to train, {len(self.valid_ds)} to validate, '
            f'{self.chip_size} px, batches of {self.batch_size}, {self.dtype}',
            f'  folder   {self.path}',
            '  bands    ' + ', '.join(_band_text(band) for band in self.bands),
        ]
        for info in self.class_infos:
            share = self.value_counts.get(info.value, 0) / total
            lines.append(f'  class    {info.value:>5}  {info.name:<24}{share:>8.2%} of pixels')
        lines.extend(
            f'  ignored  {value:>5}  {"":<24}{self.value_counts.get(value, 0) / total:>8.2%} of pixels'
            for value in self.ignored_values
        )
        lines.extend(f'  note     {note}' for note in self.notes)
        return '\n'.join(lines)


def _band_text(band: Band) -> str:
    if band.is_radar:
        return f'{band.name} (radar)'
    return f'{band.name} ({band.wavelength_um:g} µm)' if band.wavelength_um else f'{band.name} (wavelength unknown)'
