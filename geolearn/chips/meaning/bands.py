"""Decide what the chips' bands and statistics are, from metadata and pixels; never by guessing."""

import logging
import re
from collections.abc import Sequence
from contextlib import suppress
from numbers import Integral
from pathlib import Path
from typing import Any

from geolearn import errors, statistics
from geolearn.bands import Band, get_bands, is_placeholder, match_bands, resolve_bands, unique_names
from geolearn.chips import emd, label
from geolearn.raster import open_raster, raster_bands, tag_wavelengths_um

log = logging.getLogger('geolearn')

BandChoice = str | Sequence[str | Band] | None


def name_bands(
    given: BandChoice,
    metadata: emd.ExportMetadata,
    listing: label.Listing,
    first: Path,
    count: int,
    *,
    chip: bool = True,
) -> tuple[Band, ...]:
    """Name every band of the chips: as given, else by the format or the .emd, else by the chips' own metadata.

    Args:
        given: The user's bands=.
        metadata: What the .emd says.
        listing: What the format itself says.
        first: An image that can be read.
        count: Bands that the chips hold.
        chip: Whether the image lies in a folder of chips.

    Raises:
        ChipFolderError: If the .emd states another number of bands than the chips hold.
        BandError: If the number of given names differs.
    """
    metadata = metadata.of_one_date(count)
    if given is not None:
        bands = _given_bands(given, metadata)
        if len(bands) != count:
            raise errors.BandError(f'bands= names {len(bands)} bands but the chips hold {count} ({first})')
        if chip:
            with suppress(errors.ChipFolderError, errors.BandError):
                warn_of_order(bands, name_bands(None, metadata, listing, first, count), str(first))
        return bands
    if listing.band_names is not None and len(listing.band_names) == count:
        return resolve_bands(unique_names(listing.band_names), sensor=listing.sensor)
    if metadata.band_count is not None and metadata.band_count != count:
        raise errors.ChipFolderError(
            f'the .emd describes {metadata.band_count} bands but the chips hold {count} ({first}); '
            'export them again, or pass bands= with the name of each band'
        )
    names, stored = metadata.band_names, _fitting(metadata.wavelengths_um, count)
    with open_raster(first, chip=chip) as src:
        own = _of_one_date(raster_bands(src), src.stated, count, first)
        tagged = tag_wavelengths_um(src)[:count]
    if names and len(names) == count and (stored or not all(is_placeholder(name) for name in names)):
        numbered = unique_names(names)
        return resolve_bands(numbered, sensor=metadata.sensor, stored_wavelengths_um=stored, tag_wavelengths_um=tagged)
    return own


def warn_of_order(given: Sequence[Band], own: Sequence[Band], shown: str) -> None:
    """Warn where the user names the bands that a file names too, in another order: one of the two is wrong.

    Args:
        given: What the user says that the bands are.
        own: What the file says.
        shown: The file, for messages.
    """
    if len(given) != len(own) or any(is_placeholder(band.name) for band in own):
        return
    try:
        order = match_bands(own, given)
    except errors.BandError:
        return
    if order != sorted(order):
        log.warning(
            'bands= says that the bands of %s are %s, in this order, but the file calls them %s; if the file is right, '
            'leave bands= out or pass the names in its order',
            shown,
            ', '.join(band.name for band in given),
            ', '.join(band.name for band in own),
        )


def _of_one_date(bands: tuple[Band, ...], stated: Sequence[str], count: int, first: Path) -> tuple[Band, ...]:
    """Return the bands of the first date in an image that holds several."""
    names = [name or band.name for name, band in zip(stated, bands[:count])]
    if len(bands) > count and len(set(names)) < count:
        raise errors.ChipFolderError(
            f'{first} names the {count} bands of its first date {names}, some of them twice; '
            'the bands of one date must lie together'
        )
    return bands[:count]


def bad_bands(src: Any) -> frozenset[int]:
    """Return the 0-based bands that a dataset tags as bad: ``bbl`` of the band, or of ENVI's list, is 0."""
    listed = re.findall(r'[0-9.]+', src.tags(ns='ENVI').get('bbl', ''))
    found = {
        index - 1
        for index in src.indexes
        if {key.lower(): value for key, value in src.tags(index).items()}.get('bbl', '1').strip() in ('0', '0.0')
    }
    if len(listed) == src.count:
        found |= {index for index, text in enumerate(listed) if text in ('0', '0.0')}
    return frozenset(found)


def scaling_note(first: Path) -> str | None:
    """Tell about a scale or offset that a chip states, since pixels are taken as they are stored."""
    with open_raster(first, chip=True) as src:
        if set(src.scales) == {1.0} and set(src.offsets) == {0.0}:
            return None
        return (
            f'the chips state scale {src.scales[0]:g} and offset {src.offsets[0]:g}, which are not applied; '
            'rasters to predict must hold the same stored values'
        )


def _fitting(values: tuple[float | None, ...] | None, count: int) -> tuple[float | None, ...] | None:
    return values if values is not None and len(values) == count else None


def _given_bands(given: str | Sequence[str | Band], metadata: emd.ExportMetadata) -> tuple[Band, ...]:
    if isinstance(given, str):
        return get_bands(given)
    if not isinstance(given, Sequence) or not all(isinstance(band, str | Band) for band in given):
        raise errors.BandError(
            f"bands must be a sensor such as 'sentinel2_l2a', or a name or Band for each band; got {given!r}"
        )
    resolved = resolve_bands([b.name if isinstance(b, Band) else b for b in given], sensor=metadata.sensor)
    return tuple(b if isinstance(b, Band) else found for b, found in zip(given, resolved))


def choose_bands(bands: Sequence[Band], wanted: Sequence[str | int] | None) -> list[int]:
    """Return 0-based indexes of the wanted bands, given by name or 0-based index; None means all.

    Raises:
        BandError: If one does not exist or is wanted twice.
    """
    if wanted is None:
        return list(range(len(bands)))
    if isinstance(wanted, str | Integral):
        raise errors.BandError(f'extract_bands is {wanted!r}; pass a list, such as [{wanted!r}]')
    indexes = []
    for item in wanted:
        if isinstance(item, str):
            indexes.extend(match_bands(bands, resolve_bands([item])))
        elif not isinstance(item, Integral) or isinstance(item, bool):
            raise errors.BandError(f'extract_bands holds {item!r}; a band is chosen by its name or 0-based index')
        elif 0 <= item < len(bands):
            indexes.append(int(item))
        else:
            raise errors.BandError(f'extract_bands holds {item}, but the chips have bands 0..{len(bands) - 1}')
    if len(set(indexes)) < len(indexes) or not indexes:
        raise errors.BandError(f'extract_bands={list(wanted)} must name at least one band, each once')
    return indexes


def choose_statistics(
    found: statistics.BandStatistics | None, counted: statistics.BandStatistics
) -> tuple[statistics.BandStatistics, str]:
    """Take the .emd's statistics if they fit the chips, else those counted from the pixels; say which."""
    if found is None:
        return counted, 'statistics counted from the chips: the .emd has none that can be true'
    if len(found.mean) != len(counted.mean):
        return counted, 'statistics counted from the chips: the .emd has them for another number of bands'
    for index in range(len(counted.mean)):
        spread = counted.maximum[index] - counted.minimum[index]
        outside = max(found.minimum[index] - counted.minimum[index], counted.maximum[index] - found.maximum[index])
        # chips removed since the export may narrow the range and shift the mean a little, never widen the range
        # (but NoData that was counted as if it were data does widen the deviation)
        std = max(counted.std[index], 1e-9)
        shift, stretch = abs(found.mean[index] - counted.mean[index]), abs(found.std[index] - counted.std[index])
        if outside > 1e-3 * spread or shift > 0.5 * std or stretch > 0.25 * std:
            return counted, f'statistics counted from the chips: those in the .emd do not fit band {index}'
    return found, 'statistics from the .emd'
