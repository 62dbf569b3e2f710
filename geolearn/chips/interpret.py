"""Decide what the chips' bands, classes and statistics are, from metadata and pixels; never by guessing."""

from collections import Counter
from collections.abc import Mapping, Sequence
from numbers import Integral
from pathlib import Path

from geolearn.bands import Band, get_bands, is_placeholder, match_bands, resolve_bands
from geolearn.chips.emd import ExportMetadata
from geolearn.chips.reader import ChipSummary, chip_bands
from geolearn.classes import UNLABELLED, ClassInfo, default_color
from geolearn.errors import BandError, ChipFolderError
from geolearn.statistics import BandStatistics

BandChoice = str | Sequence[str | Band] | None


def name_bands(given: BandChoice, metadata: ExportMetadata, summary: ChipSummary) -> tuple[Band, ...]:
    """Name every band of the chips: as given, else by the .emd, else by the chips' own metadata.

    Raises:
        ChipFolderError: If the .emd states another number of bands than the chips hold.
        BandError: If the number of given names differs.
    """
    first = summary.files[0].image
    if given is not None:
        bands = _given_bands(given, metadata)
        if len(bands) != summary.band_count:
            raise BandError(f'bands= names {len(bands)} bands but the chips hold {summary.band_count} ({first})')
        return bands
    if metadata.band_count is not None and metadata.band_count != summary.band_count:
        raise ChipFolderError(
            f'the .emd describes {metadata.band_count} bands but the chips hold {summary.band_count} ({first}); '
            'export them again, or pass bands= with the name of each band'
        )
    names, stored = metadata.band_names, _fitting(metadata.wavelengths_um, summary.band_count)
    own, tagged = chip_bands(first)
    if names and len(names) == summary.band_count and (stored or not all(is_placeholder(name) for name in names)):
        return resolve_bands(names, sensor=metadata.sensor, stored_wavelengths_um=stored, tag_wavelengths_um=tagged)
    return own


def _fitting(values: tuple[float | None, ...] | None, count: int) -> tuple[float | None, ...] | None:
    return values if values is not None and len(values) == count else None


def _given_bands(given: str | Sequence[str | Band], metadata: ExportMetadata) -> tuple[Band, ...]:
    if isinstance(given, str):
        return get_bands(given)
    resolved = resolve_bands([b.name if isinstance(b, Band) else b for b in given], sensor=metadata.sensor)
    return tuple(b if isinstance(b, Band) else found for b, found in zip(given, resolved))


def choose_bands(bands: Sequence[Band], wanted: Sequence[str | int] | None) -> list[int]:
    """Return 0-based indexes of the wanted bands, given by name or 0-based index; None means all.

    Raises:
        BandError: If one does not exist or is wanted twice.
    """
    if wanted is None:
        return list(range(len(bands)))
    if isinstance(wanted, str):
        raise BandError(f'extract_bands is the text {wanted!r}; pass a list, such as [{wanted!r}]')
    indexes = []
    for item in wanted:
        if isinstance(item, str):
            indexes.extend(match_bands(bands, resolve_bands([item])))
        elif 0 <= item < len(bands):
            indexes.append(item)
        else:
            raise BandError(f'extract_bands holds {item}, but the chips have bands 0..{len(bands) - 1}')
    if len(set(indexes)) < len(indexes) or not indexes:
        raise BandError(f'extract_bands={list(wanted)} must name at least one band, each once')
    return indexes


def check_mapping(renamed: Mapping[int, str]) -> None:
    """Raise ChipFolderError unless `renamed` goes from label values to names."""
    hint = "class_mapping is {value: name}, such as {1: 'water', 2: 'forest'}"
    if not isinstance(renamed, Mapping):
        raise ChipFolderError(f'{hint}; got {renamed!r}')
    for value, name in renamed.items():
        if not str(value).strip().isdecimal() or not isinstance(name, str):
            raise ChipFolderError(f'{hint}; got {value!r}: {name!r}')


def ignored_values(
    given: Sequence[int | str], listed: Sequence[ClassInfo], renamed: Mapping[int, str], counts: Mapping[int, int]
) -> tuple[int, ...]:
    """Return the label values to leave out, given as values or class names, in ascending order.

    Raises:
        ChipFolderError: If neither .emd nor labels hold one, or `given` is no list.
    """
    if isinstance(given, str | Integral):
        raise ChipFolderError(f'ignore_classes is {given!r}; pass a list, such as [{given!r}]')
    names = {info.value: info.name for info in listed} | {int(value): name for value, name in renamed.items()}
    by_name = {name: value for value, name in [(0, UNLABELLED.name), *names.items()]}
    values: set[int] = set()
    for item in given:
        value = by_name.get(item) if isinstance(item, str) else item
        if not isinstance(value, Integral) or (value and value not in names and value not in counts):
            known = ', '.join(f'{v} ({names[v]})' if v in names else str(v) for v in sorted({*names, *counts}))
            raise ChipFolderError(f'ignore_classes holds {item!r}, which neither .emd nor labels hold: {known}')
        values.add(int(value))
    return tuple(sorted(values))


def choose_statistics(metadata: ExportMetadata, summary: ChipSummary) -> tuple[BandStatistics, str]:
    """Take the .emd's statistics if they fit the chips, else those counted from the pixels; say which."""
    found, counted = metadata.statistics, summary.statistics
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


def choose_classes(
    listed: Sequence[ClassInfo],
    renamed: Mapping[int, str],
    ignored: Sequence[int],
    counts: Mapping[int, int],
    summary: ChipSummary,
) -> tuple[ClassInfo, ...]:
    """Return the classes to train, in the order of the .emd; value 0 comes first where it is trained.

    Raises:
        ChipFolderError: If labels hold values that are no class, or nothing is left to train.
    """
    names = {int(value): name for value, name in renamed.items()}
    infos = {info.value: ClassInfo(info.value, names.get(info.value, info.name), info.color) for info in listed}
    for value, name in names.items():
        if value not in infos:
            if value not in counts:
                raise ChipFolderError(
                    f'class_mapping names value {value}, which neither .emd nor labels hold: {sorted(infos)}'
                )
            infos[value] = ClassInfo(value, name, default_color(len(infos)))
    unknown = sorted(set(counts) - set(infos) - {0, *ignored})
    if unknown:
        first = next(f.label for f, c in zip(summary.files, summary.value_counts) if unknown[0] in c)
        raise ChipFolderError(
            f'labels hold values {unknown[:10]} that are no class ({sorted(infos)}), first in {first}; '
            f'name them with class_mapping= or leave them out with ignore_classes='
        )
    if 0 in counts or 0 in infos:
        infos = {0: infos.get(0, UNLABELLED)} | infos
    trained = tuple(info for info in infos.values() if info.value not in ignored)
    check_trainable(trained)
    return trained


def check_trainable(infos: Sequence[ClassInfo]) -> None:
    """Raise ChipFolderError unless at least two classes are left."""
    if len(infos) < 2:
        named = ', '.join(info.name for info in infos) or 'none'
        raise ChipFolderError(f'at least two classes are needed to tell apart, found {len(infos)}: {named}')


def class_notes(infos: Sequence[ClassInfo], counts: Mapping[int, int]) -> list[str]:
    """Tell about value 0 and about classes without a pixel."""
    notes, total = [], sum(counts.values())
    if any(info == UNLABELLED for info in infos):
        notes.append(
            f'label value 0 ({counts[0] / total:.1%} of pixels) is trained as class {UNLABELLED.name!r}; '
            'pass ignore_classes=[0] if it means unlabelled'
        )
    empty = [info.name for info in infos if not counts.get(info.value)]
    if empty:
        notes.append(f'no pixel of: {", ".join(empty)}')
    return notes


def folder_notes(asked: Path, folder: Path, unlabelled: int, orphans: int, unreadable: Sequence[str]) -> list[str]:
    """Tell what was picked and what was left out."""
    notes = []
    if asked.expanduser() != folder:
        notes.append(f'{asked} itself is no export; reading {folder}')
    if (folder / 'images2').is_dir():
        notes.append('images2/ (a second date, for change detection) is not read; only images/ is')
    if unlabelled:
        notes.append(f'{unlabelled} images have no label and were left out')
    if orphans:
        notes.append(f'{orphans} labels have no image and were left out')
    if unreadable:
        notes.append(f'{len(unreadable)} chips cannot be read and were left out; the first: {unreadable[0]}')
    return notes


def count_values(summary: ChipSummary) -> Counter[int]:
    """Add up the label values of all chips."""
    return sum(summary.value_counts, Counter())
