"""Chips of several dates: a folder of images for each date, or the bands of all dates in one file."""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

from geolearn.chips.emd import EMD_NAME, ExportMetadata
from geolearn.chips.formats._files import list_files, list_images, list_subfolders, pair_notes, require_pairs
from geolearn.chips.formats.classified import read_class_raster
from geolearn.chips.label import Task
from geolearn.chips.source import ChipSource, Listing
from geolearn.errors import ChipFolderError


def list_multitemporal_tiles(folder: Path, metadata: ExportMetadata) -> Listing:
    """List ``images/``, ``images2/``, ``images3/`` ..., a folder for each date in order, with ``labels/``.

    Labels are rasters of class values, 0 where unlabelled. Where there is only ``images/``, its files hold the bands of
    all dates (see `split_dates`).

    Raises:
        ChipFolderError: If a date's folder is missing, nothing tells the number of dates, or no chip has all dates and
            a label.
    """
    names = _date_folders(folder)
    if len(names) == 1 and (metadata.dates or 1) < 2:
        raise ChipFolderError(
            f'{folder} holds no images2/, and {folder / EMD_NAME} tells of no dates within one file; '
            'add a folder for each date, or "geolearn": {"dates": 3} to the .emd'
        )
    by_date = [list_images(folder / name) for name in names]
    labels = list_files(folder / 'labels')
    whole = set(by_date[0]).intersection(*by_date)
    chosen = sorted(whole & labels.keys())
    require_pairs(folder, chosen, len(whole), len(labels), f'{names[-1]}/000000001.tif and labels/000000001.tif')
    chips = [
        ChipSource(
            name,
            tuple((images[name],) for images in by_date),
            (labels[name],),
            partial(read_class_raster, labels[name]),
        )
        for name in chosen
    ]
    every = set[str]().union(*by_date)
    notes = []
    if lonely := every - whole:
        notes.append(f'{len(lonely)} chips lack the image of a date and were left out, the first is {min(lonely)}')
    notes += pair_notes({name: by_date[0][name] for name in whole}, labels.keys() - lonely)
    return Listing(Task.PIXELS, tuple(chips), metadata.classes or None, notes=tuple(notes))


def _date_folders(folder: Path) -> list[str]:
    """Return images, images2, images3 ... as far as they go; a gap is refused."""
    listed = {path.name for path in list_subfolders(folder)}
    numbers = sorted(int(name[6:]) for name in listed if re.fullmatch('images[1-9][0-9]{0,3}', name))
    expected = list(range(2, len(numbers) + 2))
    if numbers != expected:
        gap = next(wanted for wanted, found in zip(expected, numbers) if wanted != found)
        raise ChipFolderError(
            f'{folder} holds images{numbers[-1]}/ but its dates must be images/, images2/, images3/ ...; '
            f'found {", ".join(f"images{number}/" for number in numbers)}, needed images{gap}/'
        )
    return ['images', *(f'images{number}' for number in numbers)]


def split_dates(folder: Path, metadata: ExportMetadata, listing: Listing) -> Listing:
    """Take in what the .emd says about dates: how many lie in each file, the bands of a date together.

    Args:
        folder: The export.
        metadata: What its .emd says.
        listing: Its chips; where those have a file for each date, or other dates lie beside them, files stay whole.

    Raises:
        ChipFolderError: If the chips have another number of dates than the .emd says.
    """
    dates = metadata.dates
    if dates is None or not listing.chips:
        return listing
    found = len(listing.chips[0].dates)
    if found == 1:
        if dates == 1 or (folder / 'images2').is_dir():
            return listing
        return replace(listing, chips=tuple(replace(chip, dates_in_file=dates) for chip in listing.chips))
    if found != dates:
        raise ChipFolderError(f'{folder / EMD_NAME} says that chips have {dates} dates, but there are {found} folders')
    return listing
