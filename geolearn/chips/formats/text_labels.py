"""What the readers of text labels share: text files, images paired with labels, and texts that name classes."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from geolearn.chips.emd import ExportMetadata
from geolearn.chips.formats.content import FolderContent
from geolearn.chips.formats.files import list_files, list_images, pair_notes, require_pairs
from geolearn.chips.label import ChipSource, Label, Listing, Task, class_lookup
from geolearn.classes import ClassInfo, color_classes
from geolearn.errors import ChipFolderError
from geolearn.files import decode_text

MAX_LABEL_BYTES = 8 * 2**20
"""About 20,000 boxes in XML: far more than a chip holds."""

MAX_NUMBER = 65535
"""Largest class value; texts that are larger numbers are names."""


def read_text(path: Path, *, limit: int = MAX_LABEL_BYTES, decode: Callable[[bytes], str] = decode_text) -> str:
    """Return the text of a file, UTF-8 or UTF-16 with or without a byte order mark.

    Args:
        path: The file.
        limit: Most bytes that are read.
        decode: Decodes the file's content.

    Raises:
        ChipFolderError: If it cannot be read, is no plain file, holds more than `limit` bytes or is neither.
    """
    try:
        if path.exists() and not path.is_file():
            raise ChipFolderError(f'{path} is no file; a label file is needed')
        with path.open('rb') as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise ChipFolderError(f'cannot read {path}: {error.strerror}') from error
    if len(content) > limit:
        raise ChipFolderError(f'{path} is larger than {limit} bytes, the most that is read')
    try:
        return decode(content)
    except UnicodeDecodeError as error:
        raise ChipFolderError(
            f'{path} is not {error.encoding.upper()} text: {error.reason} at byte {error.start}; save it as UTF-8'
        ) from error


def read_lines(path: Path) -> list[tuple[int, list[str]]]:
    """Return the words of each line that has any, with its number from 1.

    Raises:
        ChipFolderError: As `read_text` does.
    """
    # only line ends count: str.splitlines() would also split at form feeds and rarer signs
    lines = read_text(path).replace('\r\n', '\n').replace('\r', '\n').split('\n')
    return [(number, words) for number, line in enumerate(lines, 1) if (words := line.split())]


def parse_number(text: str) -> float:
    """Return the number that a text holds, NaN where it holds none."""
    try:
        return float(text)
    except ValueError:
        return float('nan')


@dataclass(frozen=True, slots=True)
class Pair:
    """An image and its label file."""

    name: str
    image: Path
    label: Path


def pair_files(
    folder: Path,
    suffix: str,
    *,
    ignored: Iterable[str] = (),
    stated: Callable[[Path], str] | None = None,
    labels: Path | None = None,
) -> tuple[list[Pair], list[str]]:
    """Pair images with labels of the same name, in order of name.

    Args:
        folder: The chip folder.
        suffix: Of the label files, such as ``'.xml'``.
        ignored: Names of files among the labels that are none.
        stated: Returns the name of the image that a label file states; of two images of one name, such as a.png and
            a.tif, it is taken.
        labels: Folder of the labels; None takes the one that `FolderContent.labels` names.

    Returns:
        The pairs, and notes on images without a label and the reverse.

    Raises:
        ChipFolderError: If a folder is missing or no image has a label.
    """
    content = FolderContent(folder)
    label_folder, passed = labels or content.labels, frozenset(ignored)
    there = label_folder.is_dir()
    found = list_files(label_folder, {suffix}) if there else {}
    # GDAL leaves a.tif.aux.xml beside rasters that it opened
    label_files = {name: path for name, path in found.items() if name not in passed and not name.endswith('.aux')}
    image_files = list_images(
        content.images, prefer=lambda name: stated(label_files[name]) if stated and name in label_files else None
    )
    if not there:
        list_files(label_folder, {suffix})  # says that it is missing
    names = sorted(image_files.keys() & label_files.keys())
    require_pairs(folder, names, len(image_files), len(label_files), f'{label_folder.name}/000000001{suffix}')
    return [Pair(name, image_files[name], label_files[name]) for name in names], pair_notes(image_files, label_files)


@dataclass(frozen=True)
class LabelClasses:
    """The classes of a folder and the texts that name them.

    Args:
        classes: In the order of training.
        values: Class value of each text.
        notes: Where the classes come from, if not from the .emd.
        numbered: See `Listing.numbered`.
    """

    classes: tuple[ClassInfo, ...]
    values: Mapping[str, int]
    notes: tuple[str, ...] = ()
    numbered: bool = False


def label_classes(
    folder: Path, metadata: ExportMetadata, labels: Iterable[Path], read_names: Callable[[Path], Iterable[str]]
) -> LabelClasses:
    """Take the classes from the .emd, else from all label files.

    Labels that cannot be read are passed over here; reading the chip tells what is wrong with them.

    Args:
        folder: For messages.
        metadata: Of the .emd; an empty one has no classes.
        labels: The label files.
        read_names: Returns the texts in a label file that name classes.

    Raises:
        ChipFolderError: If no class is found.
    """
    if metadata.classes:
        values = {' '.join(text.split()): value for text, value in class_lookup(metadata.classes).items()}
        return LabelClasses(metadata.classes, values)
    names, broken = set[str](), list[ChipFolderError]()
    for path in labels:
        try:
            names.update(read_names(path))
        except ChipFolderError as error:
            broken.append(error)
    names.discard('')
    if not names and broken:
        raise broken[0]
    if not names:
        raise ChipFolderError(f'no label below {folder} names a class and no .emd lists any; add labels with objects')
    return found_classes(names)


def list_named_boxes(
    folder: Path,
    metadata: ExportMetadata,
    paired: tuple[list[Pair], list[str]],
    read_names: Callable[[Path], Iterable[str]],
    read_boxes: Callable[[Path, Mapping[str, int], tuple[int, int]], Label],
) -> Listing:
    """List images with a file of boxes each, in which texts name the classes.

    Args:
        folder: For messages.
        metadata: Of the .emd.
        paired: What `pair_files` returns.
        read_names: As in `label_classes`.
        read_boxes: Reads a label file, given the class value of each text and the shape of the chip.

    Raises:
        ChipFolderError: If no class is found.
    """
    pairs, notes = paired
    known = label_classes(folder, metadata, [pair.label for pair in pairs], read_names)
    chips = tuple(
        ChipSource(p.name, ((p.image,),), (p.label,), partial(read_boxes, p.label, known.values)) for p in pairs
    )
    return Listing(Task.OBJECTS, chips, known.classes, notes=(*notes, *known.notes), numbered=known.numbered)


def found_classes(names: Iterable[str]) -> LabelClasses:
    """Make classes of the names found in labels: whole numbers are the values, else sorted names get 1, 2, 3, ..."""
    texts = sorted(set(names))
    if all(text.isascii() and text.isdigit() and len(text) < 9 and int(text) <= MAX_NUMBER for text in texts):
        values = {text: int(text) for text in texts}
        named, numbered = {value: str(value) for value in sorted(values.values())}, False
    else:
        numbered = True
        values = {text: position for position, text in enumerate(texts, 1)}
        named = {value: text for text, value in values.items()}
    classes = color_classes((value, name, None) for value, name in named.items())
    return LabelClasses(classes, values, ('no .emd lists classes; they were taken from the labels',), numbered)


def unknown_class(name: str) -> str:
    """Say that an object was left out because its class is unknown."""
    if not name:
        return 'object without a class'
    return f'object of class {name[:60]!r}, which is no class of the .emd'


MAX_DEPTH = 32
"""Labels are three levels deep; a million levels are an attack on memory."""


class _ShallowBuilder(ElementTree.TreeBuilder):
    """Builds the tree, but no deep one."""

    depth = 0

    def start(self, tag: str, attributes: dict[str, str], /) -> Element:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ElementTree.ParseError(f'elements lie more than {MAX_DEPTH} levels deep')
        return super().start(tag, attributes)

    def end(self, tag: str, /) -> Element:
        self.depth -= 1
        return super().end(tag)


def read_xml(path: Path, root: str) -> Element:
    """Return the root element of an XML file, in the encoding that it declares.

    A document type is refused: only there can entities be declared, which XML bombs and reads of foreign files need.

    Raises:
        ChipFolderError: If the file cannot be read, is empty, too large, not UTF-8, broken or too deep, declares a
            document type, or its root element has another name; the message names the file.
    """
    text = read_text(path, decode=_decode_xml)
    if not text.strip():
        raise ChipFolderError(f'{path} is empty; XML with the root <{root}> is needed')
    found = parse_xml(text, path)
    if found.tag != root:
        raise ChipFolderError(f'{path} has the root <{found.tag[:60]}>; <{root}> is needed')
    return found


def parse_xml(text: str, path: Path) -> Element:
    """Return the root element of a text of XML.

    Raises:
        ChipFolderError: If it is broken or too deep, or declares a document type; the message names `path`.
    """
    if '<!DOCTYPE' in text:  # the parser gets this very text, so no other encoding can hide one
        raise ChipFolderError(f'{path} declares a document type, which may hide an XML bomb; remove <!DOCTYPE ...>')
    parser = ElementTree.XMLParser(target=_ShallowBuilder())
    try:
        parser.feed(text)
        return parser.close()
    except (ElementTree.ParseError, ValueError) as error:
        raise ChipFolderError(f'{path} is not valid XML: {error}') from error


_DECLARED = re.compile(r'<\?xml[^>]*?encoding\s*=\s*["\']([A-Za-z][A-Za-z0-9._-]{1,40})["\'][^>]*\?>')

_ENCODINGS = frozenset(
    'us-ascii ascii iso-8859-1 iso8859-1 latin-1 latin1 iso-8859-2 iso-8859-9 iso-8859-15 windows-1250 '
    'windows-1251 windows-1252 windows-1254 cp1250 cp1251 cp1252 gbk gb2312 gb18030 big5 shift_jis euc-jp euc-kr '
    'koi8-r'.split()
)


def _decode_xml(content: bytes) -> str:
    """Decode XML as its byte order mark or its declaration says, UTF-8 where neither does.

    Raises:
        UnicodeDecodeError: If it is not in this encoding.
    """
    if content[:2] in (b'\xff\xfe', b'\xfe\xff') or content[:4] in (b'<\0?\0', b'\0<\0?'):
        text = decode_text(content)
    else:
        declared = _DECLARED.match(content[:200].lstrip(b'\xef\xbb\xbf').decode('latin-1').lstrip())
        named = declared[1].lower() if declared else 'utf-8'
        text = content.decode(named if named in _ENCODINGS else 'utf-8-sig')
    # the parser takes a text as it is, so its declaration, which may say otherwise, must go
    return _DECLARED.sub('', text, count=1)


def element_text(parent: Element, tag: str) -> str:
    """Return the text of the first child `tag` with single blanks between words, ``''`` where there is none."""
    return ' '.join((parent.findtext(tag) or '').split())
