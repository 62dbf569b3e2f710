"""Read map.txt, which names the image and the labels of each chip; nothing depends on it, as exports outgrow it."""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from geolearn.chips.source import ChipSource
from geolearn.errors import ChipFolderError

MAP_NAME = 'map.txt'
MAX_LINE_BYTES = 2**20

# Blanks may stand in class folders, so a column begins only where a folder of the export is named. Looking behind for
# a single blank keeps this linear in the length of the line.
_COLUMN = re.compile(r'(?<=\s)(?=(?:images\d*|labels2?)[\\/])', re.IGNORECASE)


def split_map_line(line: str) -> list[str]:
    r"""Return the columns of a line of map.txt, paths within the export with forward slashes.

    Example: ``r'images\\1.tif  labels\\Solar Panel\\1.tif '`` gives ``['images/1.tif', 'labels/Solar Panel/1.tif']``.
    """
    columns = (column.strip().replace('\\', '/') for column in _COLUMN.split(line))
    return [column for column in columns if column]


def read_map(path: Path) -> Iterator[list[str]]:
    """Yield the columns of each line of a map.txt that says something; bytes that are no text are replaced.

    Raises:
        ChipFolderError: If the file cannot be read, or has a line that no list of files would have.
    """
    try:
        with path.open('rb') as file:
            while line := file.readline(MAX_LINE_BYTES):
                if len(line) == MAX_LINE_BYTES:
                    raise ChipFolderError(f'{path} has a line of more than {MAX_LINE_BYTES} bytes; it lists no files')
                if columns := split_map_line(line.decode('utf-8-sig', errors='replace')):
                    yield columns
    except OSError as error:
        raise ChipFolderError(f'cannot read {path}: {error.strerror}') from error


def stale_map_notes(folder: Path, chips: Iterable[ChipSource]) -> list[str]:
    """Tell how many images a folder's map.txt names that are not there; a missing or broken map.txt does not matter."""
    path = folder / MAP_NAME
    if not path.is_file():
        return []
    known = {
        os.path.relpath(file, folder).replace(os.sep, '/') for chip in chips for date in chip.dates for file in date
    }
    gone: dict[str, None] = {}
    try:
        for columns in read_map(path):
            for name in columns:
                # exists() of os, unlike that of pathlib, is False for names that no file can have
                if name.startswith('images') and name not in known and not os.path.exists(folder / name):
                    gone[name] = None
    except ChipFolderError as error:
        return [f'{error}; it was passed over']
    if not gone:
        return []
    return [f'{MAP_NAME} names {len(gone)} images that are not there any more, the first is {next(iter(gone))}']
