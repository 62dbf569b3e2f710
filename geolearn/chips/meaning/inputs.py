"""Choose what goes into a network: which bands, what is known of their values, and what their labels count."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rasterio.windows import Window

from geolearn import errors, units
from geolearn.bands import Band
from geolearn.chips.emd import ExportMetadata
from geolearn.chips.meaning.bands import BandChoice, choose_bands, choose_statistics
from geolearn.chips.packing import collection, read_chip
from geolearn.chips.packing.table import ChipTable
from geolearn.normalize import Normalize, check_normalize, zero_range_bands, zero_range_note
from geolearn.raster import border
from geolearn.statistics import BandStatistics, Percentiles

log = logging.getLogger('geolearn')


@dataclass(frozen=True)
class ChosenInput:
    """Which bands go in, and what is known of them."""

    bands: tuple[Band, ...]
    indexes: tuple[int, ...]
    channels: tuple[int, ...]
    statistics: BandStatistics
    percentiles: Percentiles | None
    value_counts: Counter[int]
    table: ChipTable
    """Facts about every chip, over pixels that are valid in the chosen bands."""
    notes: tuple[str, ...]
    normalize: Normalize
    """As the user gave it; means and stds are those of `bands`."""


def choose_input(
    chips: collection.Collection, given: BandChoice, wanted: Sequence[str | int] | None, normalize: Normalize
) -> ChosenInput:
    """Name the bands, choose among them, and drop those that hold a single value.

    Raises:
        ChipFolderError: If bands do not fit, no pixel is valid or every band holds a single value.
        BandError: If bands or normalization do not fit.
    """
    folder = chips.folders[0].opened.folder
    bands = chips.name_bands(given)
    indexes, notes = _without_empty(chips, bands, choose_bands(bands, wanted), named=wanted is not None)
    if wanted is None and len(indexes) < len(bands):
        normalize = _without_flat(normalize, indexes, len(bands))
    table = read_chip.recount(chips.store, _channels(chips, indexes))
    counted = table.pooled(range(len(table)), indexes)
    if not len(counted.count):
        raise errors.ChipFolderError(
            f'all pixels of {len(table)} chips are NoData; nothing can be learned from {folder}'
        )
    statistics, source = _stated_or(counted.result(), chips, indexes)
    notes.append(source)
    flat = zero_range_bands(statistics)
    if flat:
        note = zero_range_note(statistics, [bands[index] for index in indexes])
        if len(flat) == len(indexes):
            raise errors.ChipFolderError(f'{note}; nothing can be learned from {folder}')
        log.warning(note)
        notes.append(str(note))
        kept = [position for position in range(len(indexes)) if position not in flat]
        normalize = _without_flat(normalize, kept, len(indexes))
        statistics, indexes = statistics.select(kept), [indexes[position] for position in kept]
        # pixels that only the dropped bands marked as NoData count now
        table = read_chip.recount(chips.store, _channels(chips, indexes))
    selected = tuple(bands[index] for index in indexes)
    check_normalize(normalize, len(selected))
    if filled := _border_note(chips, table, indexes):
        log.warning('%s: %s', folder, filled)
        notes.append(filled)
    percentiles = table.percentiles(indexes)
    if percentiles is not None:
        notes[:0] = _unit_notes(percentiles, selected, table.dtype)
    channels, counts = _channels(chips, indexes), table.value_counts()
    return ChosenInput(
        selected, tuple(indexes), channels, statistics, percentiles, counts, table, tuple(notes), normalize
    )


def _without_flat(normalize: Normalize, kept: Sequence[int], count: int) -> Normalize:
    """Take the bands that are kept out of means and stds of all chosen ones; those of the kept ones stay."""
    if isinstance(normalize, str):
        return normalize
    try:
        means, stds = (list(column) for column in normalize)
    except (TypeError, ValueError):
        return normalize  # what is no pair is refused by check_normalize
    if not len(means) == len(stds) == count:
        return normalize
    return [means[position] for position in kept], [stds[position] for position in kept]


def _stated_or(counted: BandStatistics, chips: collection.Collection, indexes: list[int]) -> tuple[BandStatistics, str]:
    """Return the .emd's statistics of some bands where those of all bands fit the pixels, else what was counted."""
    table = chips.table
    if len(chips.folders) > 1 or table.dates > 1 or chips.metadata == ExportMetadata.empty():
        return counted, 'statistics counted from the chips'
    if chips.folders[0].opened.listing.nodata != chips.metadata.nodata:
        return counted, 'statistics counted from the chips: those in the .emd count what nodata= names'
    pooled = table.pooled(range(len(table)))
    stated, source = choose_statistics(chips.metadata.statistics, pooled.result() if len(pooled.count) else counted)
    return (stated.select(indexes), source) if stated is chips.metadata.statistics else (counted, source)


def _channels(chips: collection.Collection, indexes: Sequence[int]) -> tuple[int, ...]:
    """Return the channels of some bands on every date."""
    return tuple(date * chips.table.band_count + index for date in range(chips.table.dates) for index in indexes)


def _without_empty(
    chips: collection.Collection, bands: Sequence[Band], indexes: list[int], *, named: bool
) -> tuple[list[int], list[str]]:
    """Leave out bands that are tagged as bad, unless the user named them, and those that are NoData everywhere.

    Returns:
        The bands that are left, all where none would be, and notes on the others.
    """
    bad = [] if named else [index for index in indexes if index in chips.bad_bands]
    kept = [index for index in indexes if index not in bad] or indexes
    notes = [
        f'band {bands[index].name!r} is tagged as bad (bbl = 0) and is left out' for index in bad if kept != indexes
    ]
    table = read_chip.recount(chips.store, _channels(chips, kept))
    if not len(table.pooled(range(len(table)), kept).count):
        valid = _valid_counts(chips)
        full = [index for index in kept if valid[index]]
        if full:
            empty = [bands[index].name for index in kept if not valid[index]]
            notes += [f'band {name!r} is NoData in all chips and is left out' for name in empty]
            kept = full
    for note in notes:
        log.warning(note)
    return kept, notes


def _valid_counts(chips: collection.Collection) -> np.ndarray:
    """Return how many pixels of each band (bands,) hold data on some date, whatever the other bands hold."""
    table = chips.table
    counts = np.zeros(table.band_count, np.int64)
    for position in range(len(table)):
        chip = chips.store.chip(position)
        if chip.mask is None:
            return np.ones(table.band_count, np.int64)
        valid = np.broadcast_to(chip.mask, chip.pixels.shape).sum(axis=(1, 2))
        counts += valid.reshape(table.dates, table.band_count).sum(axis=0)
    return counts


CHIPS_COMPARED = 64
"""Of the chips that may hold a border, so many are looked into."""


def _border_note(chips: collection.Collection, table: ChipTable, indexes: Sequence[int]) -> str | None:
    """Tell about chips that hold large blocks of one value in all bands, as those at the border of a scene do."""
    if chips.metadata.blackened or len(table.sample) == 0:
        return None
    channels = list(_channels(chips, indexes))
    lows, highs = table.minimums[:, channels], table.maximums[:, channels]
    single = (lows == highs).all(axis=1)
    ends = ((lows == lows[:, :1]).all(axis=1) & np.isfinite(lows[:, 0])) | (highs == highs[:, :1]).all(axis=1)
    whole = Counter(tuple(row.tolist()) for row in lows[single])
    held = Counter(whole)
    others = np.flatnonzero(ends & ~single & np.isfinite(highs[:, 0]))
    step = max(1, len(others) // CHIPS_COMPARED)
    for position in others[::step].tolist():
        chip = chips.store.chip(position)
        shape = chip.pixels.shape[1:]
        mask = chip.mask if chip.mask is None or len(chip.mask) == 1 else chip.mask[channels]
        side = min(shape) // 4
        if not side:
            continue
        found = border.edge_values(chip.pixels[channels], mask, Window(0, 0, shape[1], shape[0]), shape, side)
        held.update({value: step for value, area in found.items() if area >= border.LEAST_BLOCKS * side**2})
    rest = table.sample[:, channels].T
    rest = rest[:, ~np.isnan(rest).any(axis=0)]
    for value, count in held.most_common(3):
        if border.looks_like_fill(value, rest):
            about = 'about ' if step > 1 and count > whole[value] else ''
            return (
                f'{about}{min(count, len(table))} of {len(table)} chips hold large blocks of the value '
                f'{border.nodata_words(value)} in all bands ({whole[value]} of them nothing else), which looks like '
                f'missing pixels that are not declared as NoData; if they are, pass '
                f'nodata={border.nodata_words(value)}'
            )
    marker = border.find_marker(np.concatenate([rest, lows[np.isfinite(lows).all(axis=1)].T], axis=1))
    if marker is None:
        return None
    words = border.nodata_words([marker])
    count = int((lows == marker).any(axis=1).sum())
    return (
        f'{count} of {len(table)} chips hold the value {words}, far below all others, '
        f'which looks like missing pixels that are not declared as NoData; if they are, pass nodata={words}'
    )


def _unit_notes(percentiles: Percentiles, bands: Sequence[Band], dtype: str) -> list[str]:
    radar = units.radar_note(units.radar_scale(percentiles, bands, dtype=dtype), bands)
    optical = units.reflectance_note(units.reflectance_scale(percentiles, bands, dtype=dtype))
    return [note for note in (radar, optical) if note]
