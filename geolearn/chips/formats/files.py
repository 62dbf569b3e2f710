"""List the files of a chip folder, pair images with labels by name, and find the class that a folder is named after."""

import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import NamedTuple

from geolearn.chips.label import ChipSource
from geolearn.classes import ClassInfo, color_classes
from geolearn.errors import ChipFolderError

IMAGE_SUFFIXES = frozenset({'.tif', '.tiff', '.png', '.jpg', '.jpeg', '.mrf'})


def list_files(
    folder: Path, suffixes: Iterable[str] = IMAGE_SUFFIXES, *, prefer: Callable[[str], str | None] | None = None
) -> dict[str, Path]:
    """Return files below a folder by their name: the path within the folder, without suffix, with forward slashes.

    Sidecar files (world files, overviews, statistics) and hidden files are passed over, as are names of other suffixes.

    Args:
        folder: The folder.
        suffixes: In lower case.
        prefer: Returns the file name that a label states for a name, so that of two files of one name the right one is
            taken; None where nothing states it.

    Raises:
        ChipFolderError: If the folder is missing or cannot be read, or two files have one name.
    """
    wanted, found, twice = frozenset(suffixes), dict[str, Path](), dict[str, tuple[Path, Path]]()
    if not folder.is_dir():
        raise ChipFolderError(f'{folder.parent} has no {folder.name}/ folder')
    try:
        paths = sorted(path for path in folder.rglob('*') if path.suffix.lower() in wanted)
    except OSError as error:
        raise ChipFolderError(f'cannot list {folder}: {error.strerror}') from error
    for path in paths:
        relative = path.relative_to(folder)
        if any(part.startswith('.') for part in relative.parts):
            continue
        name = relative.with_suffix('').as_posix()
        if name in found:
            stated = prefer(name) if prefer else None
            if stated not in (found[name].name, path.name):
                twice.setdefault(name, (found[name], path))
            path = path if stated == path.name else found[name]
        found[name] = path
    if twice:
        first, second = next(iter(twice.values()))
        beside = ' (into labels/ beside it if they are labels)' if folder.name.lower().startswith('im') else ''
        advice = f'move the others away{beside}, or rename those that are chips of their own'
        raise ChipFolderError(
            f'{first} and {second} are one chip twice ({len(twice)} of {len(found)} names there are of two files); '
            f'keep one file of each name in {folder.name}/: {advice}'
        )
    return found


class _Affixes(NamedTuple):
    """What names of images and of labels have around the part that they share."""

    image: tuple[str, str]
    label: tuple[str, str]

    def keys(self, names: Iterable[str], affix: tuple[str, str]) -> dict[str, str]:
        """Return the names that carry a prefix and a suffix, by the part between them."""
        front, back = affix
        return {
            name[len(front) : len(name) - len(back)]: name
            for name in names
            if name.startswith(front) and name.endswith(back) and len(name) > len(front) + len(back)
        }

    def pairs(self, images: Iterable[str], labels: Iterable[str]) -> dict[str, str]:
        """Return label by image."""
        named, known = self.keys(images, self.image), self.keys(labels, self.label)
        return {named[key]: known[key] for key in named.keys() & known.keys()}


_COMPARED = 2000


def pair_names(images: Iterable[str], labels: Iterable[str]) -> tuple[dict[str, str], str | None]:
    """Find the label of each image: the one of its name; or, where no label has the name of an image, by affixes.

    Affixes are one prefix and one suffix on either side, such as those of ``img_1`` and ``mask_1``, or ``x`` and
    ``x_label``; they must pair more than half of the images or of the labels, each once.

    Returns:
        Name of the label by name of the image, and a note on affixes.
    """
    named, known = sorted(images), sorted(labels)
    if equal := set(named) & set(known):
        return {name: name for name in equal}, None
    best: dict[str, str] = {}
    for rule in sorted({rule for name in named[:2] for other in known[:_COMPARED] if (rule := _affixes(name, other))}):
        found = rule.pairs(named, known)
        if len(found) > len(best):
            best = found
    if not best or 2 * len(best) <= min(len(named), len(known)):
        return {}, None
    first = min(best)
    return best, f'names of images and labels differ: {first} is paired with {best[first]}, and others in the same way'


def _affixes(image: str, label: str) -> _Affixes | None:
    """Return what two names have around the longest part that they share; None where that may be chance."""
    match = SequenceMatcher(None, image, label, autojunk=False).find_longest_match()
    if not match.size:
        return None
    image_end, label_end = match.a + match.size, match.b + match.size
    found = _Affixes((image[: match.a], image[image_end:]), (label[: match.b], label[label_end:]))
    shared = image[match.a : image_end]
    # a number is shared whole or not at all: img_1 is not of mask_12
    cut = any(
        (front[-1:].isdigit() and shared[0].isdigit()) or (back[:1].isdigit() and shared[-1].isdigit())
        for front, back in found
    )
    return None if cut else found


def pair_notes(images: Mapping[str, Path], labels: Iterable[str]) -> list[str]:
    """Tell how many images have no label and how many labels no image, with the first of each.

    Args:
        images: Images by name.
        labels: Names of labels.
    """
    known = set(labels)
    lonely, orphans = sorted(images.keys() - known), sorted(known - images.keys())
    notes = []
    if lonely:
        notes.append(f'{len(lonely)} images have no label and were left out, the first is {lonely[0]}')
    if orphans:
        notes.append(f'{len(orphans)} labels have no image and were left out, the first is {orphans[0]}')
    return notes


def list_images(folder: Path, *, prefer: Callable[[str], str | None] | None = None) -> dict[str, Path]:
    """Return the rasters in a folder such as ``images/`` by name (see `list_files`).

    Raises:
        ChipFolderError: If there is none; the message tells what there is instead.
    """
    images = list_files(folder, prefer=prefer)
    if not images:
        suffixes = sorted({path.suffix or path.name for path in folder.iterdir()})
        found = ', '.join(suffixes[:8]) if suffixes else 'no file at all'
        raise ChipFolderError(f'{folder} holds no image ({", ".join(sorted(IMAGE_SUFFIXES))}), but {found}')
    return images


def require_pairs(folder: Path, paired: Sequence[object], images: int, labels: int, example: str) -> None:
    """Refuse a folder in which no image has a label.

    Args:
        folder: The export.
        paired: What has an image and a label.
        images: Number of images.
        labels: Number of labels.
        example: Where the label of ``images/000000001.tif`` belongs.

    Raises:
        ChipFolderError: If nothing is paired.
    """
    if not paired:
        raise ChipFolderError(
            f'{folder}: none of {images} images has a label among {labels} label files; '
            f'an image and its label must share their name, such as images/000000001.tif and {example}'
        )


def list_subfolders(folder: Path) -> list[Path]:
    """Return the folders in a folder, sorted by name, without hidden ones.

    Raises:
        ChipFolderError: If it is missing or cannot be read.
    """
    if not folder.is_dir():
        raise ChipFolderError(f'{folder.parent} has no {folder.name}/ folder')
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith('.'))
    except OSError as error:
        raise ChipFolderError(f'cannot list {folder}: {error.strerror}') from error


def match_class_folders(names: Iterable[str], classes: Iterable[ClassInfo]) -> dict[str, int]:
    """Return the class value of each folder that is named after a class; others are absent.

    A class's name goes before a value as digits. Case, blanks at the ends and the spelling of accents do not matter, as
    file systems change them. A name that several classes have says nothing.
    """
    folded = {name: _fold(name) for name in names}
    exact: dict[str, set[int]] = {name: set() for name in folded}
    near: dict[str, set[int]] = {text: set() for text in folded.values()}
    values = set()
    for info in classes:
        values.add(info.value)
        if info.name in exact:
            exact[info.name].add(info.value)
        if (text := _fold(info.name)) in near:
            near[text].add(info.value)
    found = {}
    for name, text in folded.items():
        if named := exact[name] or near[text]:
            if len(named) == 1:
                found[name] = next(iter(named))
        elif (value := _whole_number(name)) in values:
            found[name] = value
    return found


def classes_of_folders(names: Iterable[str]) -> tuple[ClassInfo, ...]:
    """Make classes of folder names: numbers 1..65535 are values if all names are such, else values are 1..n by name."""
    ordered = sorted(set(names))
    numbers = [_whole_number(name) for name in ordered]
    if len(set(numbers)) == len(ordered) and all(0 < number < 65536 for number in numbers):
        pairs = sorted(zip(numbers, ordered))
    else:
        pairs = list(enumerate(ordered, 1))
    return color_classes((value, name, None) for value, name in pairs)


def counts_folders(classes: Iterable[ClassInfo]) -> bool:
    """Whether the values of `classes_of_folders` only count the names, as these are no numbers."""
    return any(_whole_number(info.name) != info.value for info in classes)


def _fold(name: str) -> str:
    return (name if name.isascii() else unicodedata.normalize('NFC', name)).strip().casefold()


def _whole_number(name: str) -> int:
    """Read up to nine ASCII digits; -1 for whatever else a folder may be called."""
    return int(name) if re.fullmatch('[0-9]{1,9}', name) else -1


MAP_NAME = 'map.txt'

MAX_LINE_BYTES = 2**20

# Blanks may stand in class folders, so a column begins only where a folder of the export is named. Looking behind for
# a single blank keeps this linear in the length of the line.
_COLUMN = re.compile(r'(?<=\s)(?=(?:images\d*|labels2?|labelTxt)[\\/])', re.IGNORECASE)


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
