"""prepare_data: read an exported chip folder, check that it makes sense, and make batches of it."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from geolearn.augment import Augmentation, BatchTransform
from geolearn.chips.emd import read_metadata
from geolearn.chips.folder import Listing, find_export, list_chips
from geolearn.chips.interpret import (
    BandChoice,
    check_mapping,
    choose_bands,
    choose_classes,
    choose_statistics,
    count_values,
    folder_notes,
    ignored_values,
    name_bands,
)
from geolearn.chips.loader import ChipDataset, ChipLoader
from geolearn.chips.reader import ChipReader, ChipSummary, scaling_note, summarise
from geolearn.chips.splits import Split, split_blocks, split_random
from geolearn.classes import index_table
from geolearn.data import ChipData
from geolearn.device import choose_device
from geolearn.errors import ChipFolderError, UnknownNameError
from geolearn.statistics import BandStatistics

log = logging.getLogger('geolearn')

DEFAULT_BATCH_SIZE = 64


def prepare_data(
    path: str | Path,
    class_mapping: Mapping[int, str] | None = None,
    chip_size: int = 224,
    val_split_pct: float = 0.1,
    batch_size: int | None = DEFAULT_BATCH_SIZE,
    transforms: BatchTransform | bool | None = None,
    seed: int = 42,
    *,
    dataset_type: str | None = None,
    working_dir: str | Path | None = None,
    ignore_classes: Sequence[int | str] = (),
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
        batch_size: Chips per batch; None means 64.
        transforms: None for flips, turns and radiometric jitter, False for none, or a function of images, masks and a
            generator that returns both changed.
        seed: Fixes split, order, crops and augmentation.
        dataset_type: Only ``'Classified_Tiles'`` is read so far; None takes the export's own word.
        working_dir: Models go to ``<working_dir>/models/<name>``; None means the export folder.
        ignore_classes: Label values or class names to leave out of training, metrics and predictions; 0 for sparse
            labels.
        split: ``'random'`` or ``'blocks'`` (whole squares of land are held out; overlapping chips never straddle).
        block_size: Side of a block in map units, for ``split='blocks'``; None means four chips.
        bands: What the chips' bands are, where the export does not say or is wrong: a sensor such as
            ``'sentinel2_l2a'``, or a name or Band for each.
        extract_bands: Bands to use, by name or 0-based index; None uses all.
        num_workers: Processes that read chips; 0 reads in this one.

    Returns:
        Training and validation batches and their metadata; print it to see what was found.

    Raises:
        ChipFolderError: If the folder is no export, its content does not fit together or an argument makes no sense.
        BandError: If bands do not fit.
    """
    _check_numbers(chip_size=chip_size, batch_size=batch_size, seed=seed)
    check_mapping(class_mapping or {})
    if block_size is not None and split != 'blocks':
        raise ChipFolderError(f"block_size={block_size} has no effect without split='blocks'; pass both or neither")
    folder = find_export(path)
    metadata = read_metadata(folder)
    _check_type(dataset_type or metadata.metadata_mode, folder)
    listing = list_chips(folder)
    with tqdm(total=len(listing.chips), desc='reading chips', leave=False, disable=len(listing.chips) < 500) as bar:
        reader, summary = summarise(ChipReader(listing.chips), on_chip=bar.update)
    all_bands = name_bands(bands, metadata, summary)
    chosen = choose_bands(all_bands, extract_bands)
    statistics, source = choose_statistics(metadata, summary)
    reader, summary = _keep_bands(reader, summary, chosen)
    statistics = statistics.select(chosen) if statistics is metadata.statistics else summary.statistics
    counts = count_values(summary)
    ignored = ignored_values(ignore_classes, metadata.classes, class_mapping or {}, counts)
    infos = choose_classes(metadata.classes, class_mapping or {}, ignored, counts, summary)
    parts = _split(summary, split, val_split_pct, block_size, seed)
    remarks = [*_tell_losses(Path(path), folder, listing, summary, parts), source]
    train_dl, valid_dl = _make_loaders(
        reader,
        parts,
        table=index_table(infos, ignored),
        chip_size=min(chip_size, max(max(box.shape) for box in summary.geoboxes)),
        batch_size=batch_size or DEFAULT_BATCH_SIZE,
        transform=_choose_transform(transforms, statistics, dihedral=metadata.dihedral),
        seed=seed,
        num_workers=num_workers,
    )
    if batch_size is None:
        remarks.insert(0, f'batch_size=None means batches of {DEFAULT_BATCH_SIZE}, or fewer where chips are fewer')
    return ChipData(
        path=folder,
        working_dir=Path(working_dir) if working_dir else None,
        bands=tuple(all_bands[index] for index in chosen),
        band_indexes=tuple(chosen),
        class_infos=infos,
        ignored_values=ignored,
        chip_size=train_dl.dataset.chip_size,
        statistics=statistics,
        value_counts=counts,
        dtype=summary.dtype,
        train_dl=train_dl,
        valid_dl=valid_dl,
        split=parts,
        cell_size=metadata.cell_size,
        image_space=metadata.image_space,
        remarks=tuple(remarks),
    )


def _keep_bands(reader: ChipReader, summary: ChipSummary, chosen: list[int]) -> tuple[ChipReader, ChipSummary]:
    """Return reader and summary of the chosen bands, by 0-based index."""
    if chosen == list(range(summary.band_count)):
        return reader, summary
    reader = reader.with_bands([index + 1 for index in chosen])
    valid, pixels = sum(count_values(summary).values()), sum(math.prod(box.shape) for box in summary.geoboxes)
    if valid == pixels:
        return reader, replace(summary, statistics=summary.statistics.select(chosen))
    # what is valid depends on the bands: a hole in a band that is not used is none
    reader, picked = summarise(reader)
    return reader, replace(picked, unreadable=(*summary.unreadable, *picked.unreadable))


def _tell_losses(asked: Path, folder: Path, listing: Listing, summary: ChipSummary, parts: Split) -> list[str]:
    """Say what was left out and what is odd about the files; what is missing is logged as well."""
    lost = folder_notes(asked, folder, len(listing.unlabelled), len(listing.orphans), summary.unreadable)
    for note in lost:
        log.warning('%s: %s', folder, note)
    if scaled := scaling_note(summary.files[0].image):
        lost.append(scaled)
    if parts.dropped:
        lost.append(f'{len(parts.dropped)} chips overlap validation blocks and are in neither part')
    return lost


def _make_loaders(
    reader: ChipReader,
    parts: Split,
    *,
    table: np.ndarray,
    chip_size: int,
    batch_size: int,
    transform: BatchTransform | None,
    seed: int,
    num_workers: int,
) -> tuple[ChipLoader, ChipLoader]:
    """Make the training and the validation loader; only the first is shuffled, cropped at random and augmented."""

    def make(positions: tuple[int, ...], *, training: bool) -> ChipLoader:
        return ChipLoader(
            ChipDataset(reader.select(positions), table, chip_size, random_crop=training, seed=seed),
            batch_size=min(batch_size, len(positions)),
            shuffle=training,
            transform=transform if training else None,
            seed=seed,
            num_workers=num_workers,
            device=choose_device(),
        )

    return make(parts.train, training=True), make(parts.valid, training=False)


def _choose_transform(
    given: BatchTransform | bool | None, statistics: BandStatistics, *, dihedral: bool
) -> BatchTransform | None:
    if given is None or given is True:
        return Augmentation(statistics.std, dihedral=dihedral)
    if given is False:
        return None
    if not callable(given):
        raise TypeError(f'transforms must be None, False or a function of images, masks and a generator, got {given!r}')
    return given


def _check_numbers(*, chip_size: int, batch_size: int | None, seed: int) -> None:
    lowest = {'chip_size': (chip_size, 1), 'batch_size': (batch_size, 1), 'seed': (seed, 0)}
    for name, (value, low) in lowest.items():
        if name == 'batch_size' and value is None:
            continue
        if not isinstance(value, Integral) or isinstance(value, bool) or value < low:
            raise ChipFolderError(f'{name} must be a whole number of at least {low}, got {value!r}')


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
