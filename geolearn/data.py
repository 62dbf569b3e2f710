"""prepare_data: from an exported chip folder to batches, with everything a model must know about them."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm

from geolearn.augment import Augmentation, BatchTransform
from geolearn.bands import Band
from geolearn.chips.emd import read_metadata
from geolearn.chips.folder import find_export, list_chips
from geolearn.chips.interpret import (
    BandChoice,
    check_trainable,
    choose_bands,
    choose_classes,
    choose_statistics,
    class_notes,
    count_values,
    folder_notes,
    name_bands,
)
from geolearn.chips.loader import ChipDataset, ChipLoader
from geolearn.chips.reader import ChipReader, ChipSummary, summarise
from geolearn.chips.splits import Split, split_blocks, split_random
from geolearn.classes import ClassInfo, index_table
from geolearn.errors import ChipFolderError, UnknownNameError
from geolearn.plotting import show_chips
from geolearn.statistics import BandStatistics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger('geolearn')


@dataclass(frozen=True)
class ChipData:
    """Batches of chips, with everything a model must know about them.

    Args:
        path: The export folder.
        working_dir: Where models go; None means ``<path>/models``.
        bands: Bands of the images, in order.
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
        notes: What was found, skipped or decided, for people.
    """

    path: Path
    working_dir: Path | None
    bands: tuple[Band, ...]
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
    notes: tuple[str, ...]

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
        images, masks = next(iter(self.train_dl))
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


def prepare_data(
    path: str | Path,
    class_mapping: Mapping[int, str] | None = None,
    chip_size: int = 224,
    val_split_pct: float = 0.1,
    batch_size: int = 64,
    transforms: BatchTransform | bool | None = None,
    seed: int = 42,
    *,
    dataset_type: str | None = None,
    working_dir: str | Path | None = None,
    ignore_classes: Sequence[int] = (),
    split: str = 'random',
    block_size: float | None = None,
    bands: BandChoice = None,
    extract_bands: Sequence[str | int] | None = None,
    num_workers: int = 0,
) -> ChipData:
    """Read a folder that "Export Training Data For Deep Learning" wrote.

    Args:
        path: The export folder, or the one above it.
        class_mapping: New names of classes by label value.
        chip_size: Side of the training images in pixels, at most that of the chips; larger chips are cropped.
        val_split_pct: Share of the chips to validate on, 0..1.
        batch_size: Chips per batch.
        transforms: None for flips, turns and radiometric jitter, False for none, or a function of images, masks and a
            generator that returns both changed.
        seed: Fixes split, order, crops and augmentation.
        dataset_type: Only ``'Classified_Tiles'`` is read so far; None takes the export's own word.
        working_dir: Where models are saved; None means ``<path>/models``.
        ignore_classes: Label values to leave out of training, metrics and predictions; 0 for sparse labels.
        split: ``'random'`` or ``'blocks'`` (whole squares of land are held out; overlapping chips never straddle).
        block_size: Side of a block in map units; None means four chips.
        bands: What the chips' bands are, where the export does not say or is wrong: a sensor such as
            ``'sentinel2_l2a'``, or a name or Band for each.
        extract_bands: Bands to use, by name or 0-based index; None uses all.
        num_workers: Processes that read chips; 0 reads in this one.

    Returns:
        Training and validation batches and their metadata; print it to see what was found.

    Raises:
        ChipFolderError: If the folder is no export or its content does not fit together.
        BandError: If bands do not fit.
    """
    folder = find_export(path)
    metadata = read_metadata(folder)
    _check_type(dataset_type or metadata.metadata_mode, folder)
    listing = list_chips(folder)
    with tqdm(total=len(listing.chips), desc='reading chips', leave=False, disable=len(listing.chips) < 500) as bar:
        reader, summary = summarise(ChipReader(listing.chips), on_chip=bar.update)
    all_bands = name_bands(bands, metadata, summary)
    chosen = choose_bands(all_bands, extract_bands)
    if chosen != list(range(summary.band_count)):
        reader = reader.with_bands([index + 1 for index in chosen])
    statistics, source = choose_statistics(metadata, summary)
    statistics = statistics.select(chosen)
    counts = count_values(summary)
    infos = choose_classes(metadata.classes, class_mapping or {}, ignore_classes, counts, summary)
    parts = _split(summary, split, val_split_pct, block_size, seed)
    lost = folder_notes(Path(path), folder, len(listing.unlabelled), len(listing.orphans), summary.unreadable)
    for note in lost:
        log.warning('%s: %s', folder, note)
    if parts.dropped:
        lost.append(f'{len(parts.dropped)} chips overlap validation blocks and are in neither part')
    augmentation = (
        Augmentation(statistics.std, dihedral=metadata.dihedral) if transforms in (None, True) else transforms
    )
    size = min(chip_size, max(max(box.shape) for box in summary.geoboxes))
    table = index_table(infos, ignore_classes)

    def loader(positions: tuple[int, ...], *, training: bool) -> ChipLoader:
        dataset = ChipDataset(reader.select(positions), table, size, random_crop=training, seed=seed)
        return ChipLoader(
            dataset,
            batch_size=min(batch_size, len(positions)),
            shuffle=training,
            transform=augmentation if training and callable(augmentation) else None,
            seed=seed,
            num_workers=num_workers,
            device=torch.device('cuda' if torch.cuda.is_available() else 'cpu'),
        )

    return ChipData(
        path=folder,
        working_dir=Path(working_dir) if working_dir else None,
        bands=tuple(all_bands[index] for index in chosen),
        class_infos=infos,
        ignored_values=tuple(sorted(ignore_classes)),
        chip_size=size,
        statistics=statistics,
        value_counts=counts,
        dtype=summary.dtype,
        train_dl=loader(parts.train, training=True),
        valid_dl=loader(parts.valid, training=False),
        split=parts,
        cell_size=metadata.cell_size,
        notes=(*lost, *class_notes(infos, counts), source),
    )


def _check_type(dataset_type: str | None, folder: Path) -> None:
    if dataset_type not in (None, 'Classified_Tiles'):
        raise ChipFolderError(
            f"{folder} is an export of type {dataset_type!r}; 'Classified_Tiles' is needed. Export with that metadata "
            "format, or pass dataset_type='Classified_Tiles' if its labels are class rasters all the same"
        )


def _split(summary: ChipSummary, split: str, fraction: float, block_size: float | None, seed: int) -> Split:
    if split == 'random':
        return split_random(len(summary.files), fraction=fraction, seed=seed)
    if split == 'blocks':
        return split_blocks(summary.geoboxes, fraction=fraction, block_size=block_size, seed=seed)
    raise UnknownNameError('split', split, ['random', 'blocks'])


def _band_text(band: Band) -> str:
    if band.is_radar:
        return f'{band.name} (radar)'
    return f'{band.name} ({band.wavelength_um:g} µm)' if band.wavelength_um else f'{band.name} (wavelength unknown)'
