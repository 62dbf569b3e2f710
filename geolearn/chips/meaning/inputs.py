"""Choose what goes into a network: which bands, what is known of their values, and what their labels count."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from geolearn.bands import Band
from geolearn.chips.emd import ExportMetadata
from geolearn.chips.meaning.bands import BandChoice, choose_bands, choose_statistics
from geolearn.chips.packing.collection import Collection
from geolearn.chips.packing.read_chip import measure_chip
from geolearn.errors import ChipFolderError
from geolearn.normalize import Normalize, check_normalize, zero_range_bands, zero_range_note
from geolearn.statistics import BandStatistics, Percentiles
from geolearn.units import radar_note, radar_scale, reflectance_note, reflectance_scale

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
    notes: tuple[str, ...]
    normalize: Normalize
    """As the user gave it; means and stds are those of `bands`."""


def choose_input(
    chips: Collection, given: BandChoice, wanted: Sequence[str | int] | None, normalize: Normalize
) -> ChosenInput:
    """Name the bands, choose among them, and drop those that hold a single value.

    Raises:
        ChipFolderError: If bands do not fit, no pixel is valid or every band holds a single value.
        BandError: If bands or normalization do not fit.
    """
    table, folder = chips.table, chips.folders[0].opened.folder
    bands = chips.name_bands(given)
    indexes = choose_bands(bands, wanted)
    counted, counts = _count(chips, indexes)
    if counted is None:
        raise ChipFolderError(
            f'all pixels of {len(table)} chips are NoData; nothing can be learned from {folder}. If one band is empty, '
            'choose the others with extract_bands'
        )
    statistics, source = _stated_or(counted, chips, indexes)
    notes = [source]
    flat = zero_range_bands(statistics)
    if flat:
        note = zero_range_note(statistics, [bands[index] for index in indexes])
        if len(flat) == len(indexes):
            raise ChipFolderError(f'{note}; nothing can be learned from {folder}')
        log.warning(note)
        notes.append(str(note))
        kept = [position for position in range(len(indexes)) if position not in flat]
        normalize = _without_flat(normalize, kept, len(indexes))
        statistics, indexes = statistics.select(kept), [indexes[position] for position in kept]
        counts = _count(chips, indexes)[1]  # pixels that only the dropped bands marked as NoData count now
    selected = tuple(bands[index] for index in indexes)
    check_normalize(normalize, len(selected))
    percentiles = table.percentiles(indexes)
    if percentiles is not None:
        notes[:0] = _unit_notes(percentiles, selected, table.dtype)
    channels = _channels(chips, indexes)
    return ChosenInput(selected, tuple(indexes), channels, statistics, percentiles, counts, tuple(notes), normalize)


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


def _stated_or(counted: BandStatistics, chips: Collection, indexes: list[int]) -> tuple[BandStatistics, str]:
    """Return the .emd's statistics of some bands where those of all bands fit the pixels, else what was counted."""
    table = chips.table
    if len(chips.folders) > 1 or table.dates > 1 or chips.metadata == ExportMetadata.empty():
        return counted, 'statistics counted from the chips'
    pooled = table.pooled(range(len(table)))
    stated, source = choose_statistics(chips.metadata.statistics, pooled.result() if len(pooled.count) else counted)
    return (stated.select(indexes), source) if stated is chips.metadata.statistics else (counted, source)


def _channels(chips: Collection, indexes: Sequence[int]) -> tuple[int, ...]:
    """Return the channels of some bands on every date."""
    return tuple(date * chips.table.band_count + index for date in range(chips.table.dates) for index in indexes)


def _count(chips: Collection, indexes: Sequence[int]) -> tuple[BandStatistics | None, Counter[int]]:
    """Count bands and label values over pixels that are valid in the chosen bands; None where no pixel is."""
    table, channels = chips.table, _channels(chips, indexes)
    # NoData of a band that is not used does not count, so chips whose bands differ in what is valid are counted again
    varying = np.flatnonzero(table.nodata_varies).tolist() if len(channels) < table.channels else []
    whole = sorted(set(range(len(table))) - set(varying))
    running, counts = table.pooled(whole).select(indexes), table.value_counts(whole if varying else None)
    for position in varying:
        chip = chips.store.chip(position)
        mask = None if chip.mask is None else chip.mask[list(channels)]
        facts = measure_chip(chip._replace(pixels=chip.pixels[list(channels)], mask=mask), sampled=0)
        for date in range(table.dates):
            running.merge(facts.statistics.select(range(date * len(indexes), (date + 1) * len(indexes))))
        counts.update(facts.pixels_by_value)
    return running.result() if len(running.count) else None, counts


def _unit_notes(percentiles: Percentiles, bands: Sequence[Band], dtype: str) -> list[str]:
    radar = radar_note(radar_scale(percentiles, bands, dtype=dtype), bands)
    optical = reflectance_note(reflectance_scale(percentiles, bands, dtype=dtype))
    return [note for note in (radar, optical) if note]
