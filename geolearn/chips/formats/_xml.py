"""Read the small XML files that label chips, safely."""

from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from geolearn.chips.formats._labels import read_text
from geolearn.errors import ChipFolderError

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
    """Return the root element of a UTF-8 XML file.

    A document type is refused: only there can entities be declared, which XML bombs and reads of foreign files need.

    Raises:
        ChipFolderError: If the file cannot be read, is empty, too large, not UTF-8, broken or too deep, declares a
            document type, or its root element has another name; the message names the file.
    """
    text = read_text(path)
    if not text.strip():
        raise ChipFolderError(f'{path} is empty; XML with the root <{root}> is needed')
    if '<!DOCTYPE' in text:  # the parser gets this very text, so no other encoding can hide one
        raise ChipFolderError(f'{path} declares a document type, which may hide an XML bomb; remove <!DOCTYPE ...>')
    parser = ElementTree.XMLParser(target=_ShallowBuilder())
    try:
        parser.feed(text)
        found = parser.close()
    except (ElementTree.ParseError, ValueError) as error:
        raise ChipFolderError(f'{path} is not valid XML: {error}') from error
    if found.tag != root:
        raise ChipFolderError(f'{path} has the root <{found.tag[:60]}>; <{root}> is needed')
    return found


def element_text(parent: Element, tag: str) -> str:
    """Return the text of the first child `tag` with single blanks between words, ``''`` where there is none."""
    return ' '.join((parent.findtext(tag) or '').split())
