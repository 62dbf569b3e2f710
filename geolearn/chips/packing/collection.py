"""Open one chip folder, or several as one: their chips, classes and metadata."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path

import numpy as np

from geolearn import errors, units
from geolearn.bands import Band
from geolearn.chips import emd, label
from geolearn.chips.formats import OpenedFolder, open_chips
from geolearn.chips.formats.styles import ClassStyle, read_raster_style
from geolearn.chips.meaning.bands import BandChoice, bad_bands, name_bands, scaling_note
from geolearn.chips.meaning.classes import unite_classes
from geolearn.chips.packing.read_chip import ChipStore
from geolearn.chips.packing.store import JoinedChips, open_store, state_of_chips
from geolearn.chips.packing.table import ChipTable
from geolearn.classes import ClassInfo, color_classes
from geolearn.raster import Dequantize, EmbeddingProduct, GeoBox, find_product, open_raster, raster_geobox
from geolearn.raster.embeddings import check_dequantize, difference, name_product
from geolearn.raster.geobox import lie_apart
from geolearn.raster.scaling import ADVICE, Scaling, scaling_difference, scaling_of


@dataclass(frozen=True)
class OpenChips:
    """One folder with its chips, ready to be read."""

    opened: OpenedFolder
    store: ChipStore
    notes: tuple[str, ...]

    @property
    def first(self) -> label.ChipSource:
        """The first chip that could be read."""
        wanted = self.store.table.names[0]
        return next(source for source in self.opened.listing.chips if source.name == wanted)


@dataclass(frozen=True)
class Collection:
    """The chips of one or several folders, one folder after the other.

    Args:
        folders: The folders in order.
        store: All their chips.
    """

    folders: tuple[OpenChips, ...]
    store: ChipStore

    @property
    def table(self) -> ChipTable:
        """Facts about every chip."""
        return self.store.table

    @property
    def task(self) -> label.Task:
        """Task of the labels."""
        return self.folders[0].opened.listing.task

    @property
    def metadata(self) -> emd.ExportMetadata:
        """The first folder's .emd."""
        return self.folders[0].opened.metadata

    @property
    def acquired(self) -> tuple[date, ...]:
        """When the images of each date were taken; empty where folders do not say or differ."""
        found = {part.opened.listing.acquired or part.opened.metadata.acquired for part in self.folders}
        return found.pop() if len(found) == 1 and self.table.dates > 1 else ()

    @property
    def published_parts(self) -> Mapping[str, tuple[str, ...]]:
        """Names of the chips of each part that the one data set publishes, of those that can be read; else empty."""
        if len(self.folders) != 1:
            return {}
        known = set(self.table.names)
        parts = {part: tuple(n for n in names if n in known) for part, names in self.folders[0].opened.listing.parts}
        return {part: names for part, names in parts.items() if names}

    @property
    def part_of(self) -> np.ndarray:
        """Position of each chip's folder: (chips,) int64."""
        return np.repeat(np.arange(len(self.folders)), [len(part.store.table) for part in self.folders])

    def fingerprint(self) -> str:
        """Return what tells these chips from others, and from what they were before a file of theirs was changed."""
        digest = hashlib.sha256()
        for part in self.folders:
            opened = part.opened
            state = state_of_chips(part.store, opened.folder, opened.dataset_type, opened.listing)
            digest.update(state.encode('utf-8', 'surrogateescape'))
            if part.first.read_image is not None:  # not each in a file: by what they hold
                for name, column in sorted(part.store.table.to_arrays().items()):
                    digest.update(name.encode() + np.ascontiguousarray(column).tobytes())
        return digest.hexdigest()[:24]

    def file_of(self, position: int) -> str:
        """Return the label file of a chip, or its image, for messages."""
        part = self.folders[int(self.part_of[position])]
        inner = position - int(np.flatnonzero(self.part_of == self.part_of[position])[0])
        name = part.store.table.names[inner]
        source = next(source for source in part.opened.listing.chips if source.name == name)
        return str(source.labels[0] if source.labels else source.image)

    def listed_classes(self, renamed: Mapping[int, str]) -> tuple[ClassInfo, ...] | None:
        """Return the classes of all folders, united by value; None where only the label rasters tell."""
        lists = {str(part.opened.folder): part.opened.listing.classes for part in self.folders}
        if any(infos is None for infos in lists.values()):
            return None
        return unite_classes({name: infos or () for name, infos in lists.items()}, renamed)

    @property
    def bad_bands(self) -> frozenset[int]:
        """0-based bands that the export, or the first chip, tags as bad: ``bbl`` is 0, as ENVI writes it."""
        stated = self.metadata.bad_bands
        first = self.folders[0].first
        if first.read_image is not None and (first.image.suffix == '.npy' or not first.image.is_file()):  # an array
            return stated
        with open_raster(first.image, chip=first.read_image is None) as src:
            return stated or bad_bands(src)

    def label_style(self) -> Mapping[str, ClassStyle]:
        """Return names and colors that the first label raster, or a file beside it, gives to classes."""
        first = self.folders[0].first
        labels = first.labels
        if not labels:
            return {}
        try:
            with open_raster(labels[0], chip=first.read_image is None) as src:
                return read_raster_style(src, labels[0])
        except errors.RasterError:
            return {}

    def zero_note(self) -> str | None:
        """Return a note where the first label raster declares 0 as NoData and nothing lists the classes, else None."""
        part = self.folders[0]
        first = part.first
        if part.opened.listing.classes or not first.labels or self.task not in (label.Task.PIXELS, label.Task.CHANGE):
            return None
        try:
            with open_raster(first.labels[0], chip=first.read_image is None) as src:
                declared = src.nodatavals[0]
        except errors.RasterError:
            return None
        if declared != 0:
            return None
        return (
            f'{first.labels[0]} declares 0 as NoData, so that pixels of value 0 are unlabelled: neither trained nor '
            'evaluated. If 0 is a class, take the declaration out of the label rasters '
            '(gdal_edit.py -unsetnodata <file>), which leaves their values as they are'
        )

    def product(self, stated: str | None) -> EmbeddingProduct | None:
        """Return the precomputed embeddings that the bands are; None for other images.

        Args:
            stated: Name and version, as the user gives them.

        Raises:
            ChipFolderError: If a folder holds another product than `stated`.
        """
        return next(iter([_product_of(part, stated) for part in self.folders]))

    def name_bands(self, given: BandChoice) -> tuple[Band, ...]:
        """Name the bands; folders must agree.

        Raises:
            ChipFolderError: If folders name different bands.
            BandError: If names do not fit the chips.
        """
        named = [
            name_bands(
                given,
                part.opened.metadata,
                part.opened.listing,
                part.first.image,
                self.table.band_count,
                chip=part.first.read_image is None,
            )
            for part in self.folders
        ]
        for bands, part in zip(named, self.folders):
            if [band.name for band in bands] != [band.name for band in named[0]]:
                raise errors.ChipFolderError(
                    f'{self.folders[0].opened.folder} names its bands {[band.name for band in named[0]]} but '
                    f'{part.opened.folder} {[band.name for band in bands]}; pass bands= if they are the same'
                )
        self._check_units(named[0])
        return named[0]

    def _check_units(self, bands: Sequence[Band]) -> None:
        """Refuse folders whose pixels are in units known to differ, such as decibels and linear power."""
        samples = []
        for part in self.folders if len(self.folders) > 1 else ():
            table = part.store.table
            found, statistics = table.percentiles(), table.statistics()
            if found is not None and statistics.mean:
                samples.append(units.Sample(str(part.opened.folder), found, statistics, table.dtype))
        units.check_same_units(samples, bands)

    def notes(self) -> list[str]:
        """Say what was picked, left out or is odd, folder by folder; several folders are named."""
        several, notes = len(self.folders) > 1, []
        for part in self.folders:
            table = part.store.table
            found = [*part.opened.notes, *part.opened.listing.notes, *_losses(table), *part.notes]
            if part.first.read_image is None and (scaled := scaling_note(part.first.image)):
                found.append(scaled)
            if apart := _lying_apart(part.first, table):
                found.append(apart)
            notes += [f'{part.opened.folder.name}: {note}' if several else note for note in found]
        zero = self.zero_note()
        return notes + ([zero] if zero else [])


def _lying_apart(chip: label.ChipSource, table: ChipTable) -> str:
    """Say that the files of a chip are matched by their names although their places have nothing in common."""
    if chip.read_image is not None:
        return ''
    box = _place_of(chip.image)
    others = {files[0]: _place_of(files[0]) for files in chip.dates[1:]}
    height, width = table.shapes[0].tolist()
    if chip.labels and (place := chip.read_label((height, width)).place) is not None:
        others[chip.labels[0]] = place
    found = next((path for path, place in others.items() if lie_apart(box, place)), None)
    return f'{found} and {chip.image} share no ground; files are matched by their names' if found else ''


def _place_of(path: Path) -> GeoBox:
    with open_raster(path, chip=True) as src:
        return raster_geobox(src)


def _refuse_mixed_products(folders: Sequence[OpenChips]) -> None:
    first = _product_of(folders[0], None)
    for part in folders[1:]:
        found = _product_of(part, None)
        if (found is None) != (first is None) or (found and first and difference(found, first)):
            raise errors.ChipFolderError(
                f'{folders[0].opened.folder} holds {first or "no embeddings"} and {part.opened.folder} '
                f'{found or "no embeddings"}, which cannot be mixed; pass folders of one product and version'
            )


def _product_of(part: OpenChips, stated: str | None) -> EmbeddingProduct | None:
    """Return what an export, or its first chip, says that its bands are."""
    kept, first = part.opened.metadata.product, part.first
    named = None if stated is None else name_product(stated)
    if kept is not None:
        kept = kept if first.dequantize is None else replace(kept, form='floats', dequantize=first.dequantize)
        if named is not None and difference(replace(named, form=kept.form), kept):
            raise errors.ChipFolderError(
                f'product= says {named.name} {named.version}, but {part.opened.folder} holds {kept}'
            )
        return kept
    if first.read_image is not None:
        return named
    with open_raster(first.image, chip=True, dequantize=first.dequantize) as src:
        return find_product(src, stated=stated)


def _losses(table: ChipTable) -> list[str]:
    notes = []
    if table.unreadable:
        count, reason = len(table.unreadable), table.unreadable[0]
        notes.append(f'{count} chips cannot be read and were left out; the first: {reason}')
    notes += [f'left out of labels, {count} times: {text}' for text, count in Counter(table.skipped).most_common(10)]
    return notes


class GivenChips:
    """Chips that lie in no folder, such as arrays.

    Args:
        name: For people.
        opened: What is known of them.
        labels_apart: Whether chips of different parts share no labelled pixel even where they share ground.
    """

    def __init__(self, name: str, opened: OpenedFolder, *, labels_apart: bool = False) -> None:
        self.name, self.opened, self.labels_apart = name, opened, labels_apart

    def __repr__(self) -> str:
        return f'<{len(self.opened.listing.chips)} chips: {self.name}>'


def open_collection(
    paths: Sequence['str | Path | GivenChips'],
    dataset_type: str | None,
    *,
    pack: bool,
    target: label.Target | None = None,
    downsample: int = 1,
    nodata: Sequence[float] = (),
    unlabelled: Sequence[float] = (),
    dequantize: Dequantize | None = None,
    box_angles: str | None = None,
) -> Collection:
    """Open chip folders as one.

    Args:
        paths: The folders.
        dataset_type: Of all of them; None takes their own word.
        pack: Whether to copy chips into the cache.
        target: What the pixels of label rasters are.
        downsample: Of images that are to be predicted from larger pixels.
        nodata: NoData value of the images, or one for each band.
        unlabelled: Values of label rasters that mean "not labelled".
        dequantize: Read the codes of embeddings in the chips as vectors.
        box_angles: What the angles of boxes of five numbers are.

    Raises:
        ChipFolderError: If one is no chip folder, or they do not fit together.
    """
    if not paths:
        raise errors.ChipFolderError('path is an empty list; pass at least one chip folder')
    listed = [
        path.opened
        if isinstance(path, GivenChips)
        else open_chips(
            path,
            dataset_type,
            target=target,
            downsample=downsample,
            nodata=nodata,
            unlabelled=unlabelled,
            box_angles=box_angles,
        )
        for path in paths
    ]
    check_dequantize(dequantize)
    listed = listed if dequantize is None else [_as_vectors(opened, dequantize) for opened in listed]
    _check_alike(listed)
    listed = _number_alike(listed)
    folders = []
    for opened in listed:
        store, notes = open_store(opened.folder, opened.dataset_type, opened.listing, pack=pack)
        folders.append(OpenChips(opened, store, tuple(notes)))
    _refuse_mixed_products(folders)
    for other in folders[1:]:
        _check_fit(folders[0], other)
    if len(folders) == 1:
        return Collection((folders[0],), folders[0].store)
    names = [opened.folder.resolve().name for opened in listed]
    prefixes = names if len(set(names)) == len(names) else [str(opened.folder) for opened in listed]
    return Collection(tuple(folders), JoinedChips([part.store for part in folders], prefixes))


def _as_vectors(opened: OpenedFolder, method: Dequantize) -> OpenedFolder:
    """Return a folder whose chips are read as vectors; those that were exported as vectors are such already."""
    product = opened.metadata.product
    if product is not None and product.dequantize == method:
        return opened
    if any(chip.read_image is not None for chip in opened.listing.chips):
        raise errors.ChipFolderError('dequantize= is for files; pass it to from_rasters, or arrays of vectors')
    if any(len(files) > 1 for chip in opened.listing.chips for files in chip.dates):
        raise errors.ChipFolderError(
            f'dequantize={method!r} takes chips that hold all bands in one file; those of {opened.folder} have a file '
            'for each band'
        )
    chips = tuple(replace(chip, dequantize=method) for chip in opened.listing.chips)
    return replace(opened, listing=replace(opened.listing, chips=chips))


def _check_alike(listed: Sequence[OpenedFolder]) -> None:
    """Refuse before any image is read what file names and metadata show."""
    seen, first = set[Path](), listed[0]
    for opened in listed:
        if opened.folder.resolve() in seen:
            raise errors.ChipFolderError(f'{opened.folder} is given twice; its chips would count twice')
        seen.add(opened.folder.resolve())
        if opened.listing.task != first.listing.task:
            raise errors.ChipFolderError(
                f'{first.folder} is of type {first.dataset_type} but {opened.folder} {opened.dataset_type} '
                f'(labels are of task {first.listing.task} and {opened.listing.task}); folders must be of one type'
            )


def _scaling(part: OpenChips) -> Scaling:
    """Return what the first image of a folder states of its values."""
    if part.first.read_image is not None:
        return ()
    with open_raster(part.first.image, chip=True) as src:
        return scaling_of(src)


def _number_alike(listed: Sequence[OpenedFolder]) -> list[OpenedFolder]:
    """Give classes that folders only count, each its own names, one value for each name; others stay as they are."""
    tables = [{info.name: info.value for info in opened.listing.classes or ()} for opened in listed]
    if not all(opened.listing.numbered for opened in listed) or all(table == tables[0] for table in tables):
        return list(listed)
    infos = color_classes((value, name, None) for value, name in enumerate(sorted(set().union(*tables)), 1))
    values = {info.name: info.value for info in infos}
    found = []
    for opened, table in zip(listed, tables):
        moved = {value: values[name] for name, value in table.items()}
        chips = tuple(
            replace(chip, read_label=partial(read_renumbered, chip.read_label, moved)) for chip in opened.listing.chips
        )
        found.append(replace(opened, listing=replace(opened.listing, chips=chips, classes=infos)))
    return found


def read_renumbered(read: label.LabelReader, values: Mapping[int, int], shape: tuple[int, int]) -> label.Label:
    """Read a label, and give its objects the class values that other folders have for them."""
    known = read(shape)
    return replace(known, class_ids=np.array([values[value] for value in known.class_ids.tolist()], np.int64))


def _check_fit(first: OpenChips, other: OpenChips) -> None:
    here, there = first.opened, other.opened
    a, b = first.store.table, other.store.table
    if (a.band_count, a.dates) != (b.band_count, b.dates):
        dates = '' if a.dates == b.dates else f' of {a.dates} and {b.dates} dates'
        raise errors.ChipFolderError(
            f'{here.folder} holds {a.band_count} bands and {there.folder} {b.band_count}{dates}; '
            'folders must have the same'
        )
    if (a.target_bands, a.target_times) != (b.target_bands, b.target_times):
        raise errors.ChipFolderError(
            f'the images to predict in {here.folder} have {a.target_bands} bands, {a.target_times} times as fine, and '
            f'those in {there.folder} {b.target_bands} bands, {b.target_times} times; folders must have the same'
        )
    if apart := scaling_difference(_scaling(first), _scaling(other)):
        raise errors.ChipFolderError(
            f'{here.folder} and {there.folder} hold values of different units: they state {apart}; {ADVICE}'
        )
    one, two = a.statistics(), b.statistics()
    if a.dtype != b.dtype and one.mean and two.mean:
        unnamed = [Band(f'band {i}') for i in range(a.band_count)]
        comparison = units.compare_units(units.likely_percentiles(two), one, unnamed)
        if comparison.far:
            raise errors.ChipFolderError(
                f'{here.folder} holds {a.dtype} pixels and {there.folder} {b.dtype}, in other units; '
                f'bring them to one scale first\n{comparison.table}'
            )
