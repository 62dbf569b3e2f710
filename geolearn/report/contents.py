"""What a report holds: sections of text, tables, pictures, facts and code, as plain values."""

import struct
from dataclasses import dataclass
from datetime import date

_PNG = b'\x89PNG\r\n\x1a\n'


@dataclass(frozen=True, slots=True)
class Share:
    """A number in 0..1 that a table shows with a bar; NaN where it is not defined."""

    value: float


@dataclass(frozen=True, slots=True)
class Swatch:
    """A name with its color, such as that of a class.

    Args:
        name: Shown as it is.
        color: Red, green, blue in 0..255.
    """

    name: str
    color: tuple[int, int, int]

    def __post_init__(self) -> None:
        if len(self.color) != 3 or not all(0 <= part <= 255 for part in self.color):
            raise ValueError(f'the color of {self.name!r} must have three parts in 0..255, got {self.color}')


Cell = str | int | float | Share | Swatch | None
"""What a table may hold. Whole numbers get separators, others four digits; None and NaN are a dash."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under a header.

    Args:
        columns: The header.
        rows: As long as the header.
        caption: What the rows are.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ''

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(
                    f'a row of {len(row)} cells does not fit the {len(self.columns)} columns {self.columns}'
                )


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure.

    Args:
        png: The bytes of a PNG.
        alt: What it shows, for those who do not see it.
        caption: Below it.
        density: Pixels of the PNG for each pixel of the page; 2 keeps lines sharp on fine screens and in print.
        name: By which a bundle keeps the picture by itself too, such as ``'loss_graph'``; empty for none.
    """

    png: bytes
    alt: str
    caption: str = ''
    density: float = 1.0
    name: str = ''

    def __post_init__(self) -> None:
        if not self.png.startswith(_PNG) or len(self.png) < 24:
            raise ValueError(f'the picture {self.alt!r} must be a PNG, found bytes that begin with {self.png[:8]!r}')

    @property
    def size(self) -> tuple[int, int]:
        """Width and height on the page, in pixels."""
        width, height = struct.unpack('>II', self.png[16:24])
        return round(width / self.density), round(height / self.density)


@dataclass(frozen=True, slots=True)
class Facts:
    """Pairs of a label and what there is to say."""

    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Notes:
    """A list of sentences."""

    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Code:
    """Lines to copy."""

    text: str


Part = str | Table | Picture | Facts | Notes | Code
"""What a section is made of; a text is a paragraph."""


@dataclass(frozen=True, slots=True)
class Section:
    """A headed piece of a report.

    Args:
        title: Its heading.
        parts: In order.
    """

    title: str
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class ReportContents:
    """A whole report. Equal contents make equal pages, byte for byte.

    Args:
        title: Of the page.
        summary: What matters most, as label and value: task, model, score.
        sections: In order.
        made: Day that the page names.
        warnings: What a reader must know before trusting the numbers.
    """

    title: str
    summary: tuple[tuple[str, str], ...]
    sections: tuple[Section, ...]
    made: date
    warnings: tuple[str, ...] = ()
