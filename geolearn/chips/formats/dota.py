"""DOTA: a text file for each image, four corners, a class and a mark of difficulty a line."""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from geolearn.chips.emd import ExportMetadata
from geolearn.chips.formats import shapes, text_labels, writing
from geolearn.chips.formats.content import FolderContent
from geolearn.chips.label import ChipSource, Label, Listing, Task
from geolearn.errors import ChipFolderError
from geolearn.oriented.geometry import corners, rectangles_of_quadrilaterals

NUMBERS = 8
"""Columns before the class: x and y of four corners, in pixels."""

_HEADER = re.compile(r'(imagesource|gsd)\s*:', re.IGNORECASE)

_NOT_KNOWN = {'', 'null', 'none', 'nan'}
"""What stands for a pixel size that is not known."""

PIXEL_METERS = (1e-3, 1e5)
"""Sizes of pixels that images of the ground may have."""

ALIKE = 1.5
"""Pixels that differ in size by more than this factor are told of."""


def is_dota(content: FolderContent) -> bool:
    """Whether there is a folder of DOTA's labels, or labels are text in lines of DOTA."""
    return content.images.is_dir() and (bool(content.dota_folders) or content.line_format == 'DOTA')


def list_dota(folder: Path, metadata: ExportMetadata) -> Listing:
    """List images with a text file each: images/ and labelTxt/, also of another name such as labelTxt-v1.0/ or labels/.

    The folder of the labels may lie beside that of the images or one level above, for images of several sensors that
    share them. Classes come from the .emd, else they are the names in all files, sorted, with the values 1, 2, 3, ...
    Objects become the rectangles of least area around their corners; difficult ones are ignored in training and
    metrics. The median of the images' ``gsd:``, meters per pixel, is the pixel size of images without a place.

    Raises:
        ChipFolderError: If a folder is missing, there are several of labels, no image has a text file, no class is
            known, or a ``gsd:`` is no size.
    """
    content = FolderContent(folder)
    pairs, notes = text_labels.pair_files(folder, '.txt', ignored=('classes',), labels=content.dota_labels)
    known = text_labels.label_classes(folder, metadata, [pair.label for pair in pairs], dota_names)
    # names in these files have no blanks
    values = {_word(name): value for name, value in known.values.items()} | dict(known.values)
    chips = tuple(ChipSource(p.name, ((p.image,),), (p.label,), partial(read_dota, p.label, values)) for p in pairs)
    meters, told = _pixel_meters([pair.label for pair in pairs])
    notes += [*known.notes, *told]
    return Listing(
        Task.ORIENTED, chips, known.classes, notes=tuple(notes), pixel_meters=meters, numbered=known.numbered
    )


def _pixel_meters(paths: Sequence[Path]) -> tuple[float | None, list[str]]:
    """Return the median pixel size that label files state, in meters, None where none does; and a note if they differ.

    Raises:
        ChipFolderError: If one states what is no size.
    """
    sizes = [size for path in paths if (size := read_gsd(path)) is not None]
    if not sizes:
        return None, []
    median = float(np.median(sizes))
    if max(sizes) <= ALIKE * min(sizes):
        return median, []
    return median, [
        f'pixels measure {min(sizes):g} to {max(sizes):g} m (gsd: of {len(sizes)} images); their median, {median:g} m, '
        "is what resolution='training' means"
    ]


def read_gsd(path: Path) -> float | None:
    """Return the pixel size in meters that a label file states, or None.

    Raises:
        ChipFolderError: If it states what is no size.
    """
    for number, words in text_labels.read_lines(path):
        name, colon, text = ' '.join(words).partition(':')
        if not colon:
            return None  # headers come first
        if name.strip().lower() != 'gsd' or text.strip().lower() in _NOT_KNOWN:
            continue
        size = text_labels.parse_number(text)
        if not PIXEL_METERS[0] <= size <= PIXEL_METERS[1]:
            raise ChipFolderError(
                f'{path}, line {number}: gsd: is the side of a pixel in meters, {PIXEL_METERS[0]:g} to '
                f'{PIXEL_METERS[1]:g}, found {text.strip()[:40]!r}; correct it, or write gsd:null where it is not known'
            )
        return size
    return None


def dota_names(path: Path) -> Iterator[str]:
    """Yield the class of each line.

    Raises:
        ChipFolderError: If a line is broken.
    """
    for number, words in _object_lines(path):
        yield _parse(words, path, number)[1]


def read_dota(path: Path, values: Mapping[str, int], shape: tuple[int, int]) -> Label:
    """Read the oriented boxes of a chip; an empty file says that it holds no object.

    Left out, and told in `Label.skipped`, are objects of an unknown class, outside of the chip, or without an area.

    Args:
        path: The text file.
        values: Class value of each text that names a class.
        shape: Height and width of the chip.

    Raises:
        ChipFolderError: If a line is broken; the message names file and line.
    """
    found, points, ignored, skipped = list[int](), list[list[float]](), list[bool](), list[str]()
    for number, words in _object_lines(path):
        numbers, name, difficult = _parse(words, path, number)
        if name not in values:
            skipped.append(text_labels.unknown_class(name))
            continue
        found.append(values[name])
        points.append(numbers)
        ignored.append(difficult)
    return quadrilateral_label(found, np.array(points), shape, skipped, ignored)


def quadrilateral_label(
    values: list[int],
    points: np.ndarray,
    shape: tuple[int, int],
    skipped: list[str] | tuple[str, ...] = (),
    ignored: list[bool] | None = None,
) -> Label:
    """Return the label of a chip whose objects are quadrilaterals; they need be no rectangles and may cross themselves.

    Args:
        values: n class values.
        points: (n, 4, 2) corners in pixels, in any order.
        shape: Height and width of the chip.
        skipped: What was left out already.
        ignored: Which objects are ignored; None for none.
    """
    quadrilaterals = np.asarray(points, np.float64).reshape(-1, 4, 2)
    finite: np.ndarray = np.asarray(np.isfinite(quadrilaterals).all(axis=(1, 2)))
    turned = rectangles_of_quadrilaterals(np.where(finite[:, None, None], quadrilaterals, 0))
    turned[~finite] = np.nan
    return shapes.oriented_label(
        values, turned, shape, skipped, ignored, least_area=shapes.SMALLEST_AREA, too_small=shapes.TWO_POINTS
    )


def _object_lines(path: Path) -> list[tuple[int, list[str]]]:
    """Return the words of the lines that describe objects."""
    return [(number, words) for number, words in text_labels.read_lines(path) if not _HEADER.match(' '.join(words))]


def _parse(words: list[str], path: Path, number: int) -> tuple[list[float], str, bool]:
    """Return corners, class and difficulty of a line; files without the last column mark nothing as difficult."""
    numbers = [text_labels.parse_number(word) for word in words[:NUMBERS]]
    rest = words[NUMBERS:]
    marked = len(rest) > 1 and rest[-1] in ('0', '1', '2')
    name = ' '.join(rest[:-1] if marked else rest)
    unreadable = any(np.isnan(value) and word.lower() != 'nan' for value, word in zip(numbers, words))
    if len(numbers) < NUMBERS or unreadable or not name:
        raise ChipFolderError(
            f'{path}, line {number}: x and y of four corners, a class and 0 or 1 for difficult are needed, found '
            f'{" ".join(words)[:120]!r}'
        )
    return numbers, name, marked and rest[-1] != '0'


class DotaWriter(writing.FormatWriter):
    """``labelTxt/<chip>.txt`` with the corners of each object, its class, and 1 where it is ignored.

    Blanks in class names become hyphens.
    """

    task = Task.ORIENTED
    folders = ('images', 'labelTxt')

    def check(self) -> None:
        """Refuse names that are one once their blanks are hyphens."""
        writing.check_texts(self.classes, 'DOTA')
        seen: dict[str, str] = {}
        for info in self.classes:
            other = seen.setdefault(_word(info.name), info.name)
            if other != info.name:
                raise ChipFolderError(
                    f'classes {other!r} and {info.name!r} have one name in DOTA, which has no blanks; {writing.RENAME}'
                )

    def write(self, chip: writing.ChipFile, label: Label) -> tuple[str, ...]:
        """Write the boxes."""
        place = chip.place
        size = 'null'
        if place is not None and place.crs is not None and not place.transform.is_identity:
            size = f'{np.hypot(place.transform.a, place.transform.d):.6g}' if writing.in_meters(place) else 'null'
        lines = ['imagesource:geolearn\n', f'gsd:{size}\n']
        ignored = np.zeros(len(label.class_ids), bool) if label.ignored is None else label.ignored
        for (value, box), passed in zip(writing.oriented_of(label, chip), ignored.tolist()):
            points = ' '.join(f'{number:.4f}' for number in corners(box[None])[0].ravel())
            lines.append(f'{points} {_word(self.names[value])} {int(passed)}\n')
        return (self.write_text(f'labelTxt/{chip.stem}.txt', ''.join(lines)),)


def _word(name: str) -> str:
    return name.replace(' ', '-')
