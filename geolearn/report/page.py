"""Turn the contents of a report into a page of HTML: no script, no file beside it, every text escaped."""

import base64
import functools
import math
import re
import struct
from dataclasses import dataclass
from datetime import date
from importlib import resources
from pathlib import Path

import jinja2

from geolearn.files import atomic_write

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


POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""What the page itself forbids a browser: to run or to fetch anything."""

_DASH = '\N{EN DASH}'

_CONTROLS = re.compile('[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]')


def render_report(contents: ReportContents) -> bytes:
    """Return the page, in UTF-8."""
    return _template().render(contents=contents).encode()


def write_report(path: str | Path, report: ReportContents) -> Path:
    """Write a report as one page of HTML that needs no other file, no script and no network.

    Args:
        path: Target, such as ``'report.html'``.
        report: Its contents.

    Returns:
        The path written.

    Raises:
        FileWriteError: If it cannot be written.
    """
    path = Path(path).expanduser()
    page = render_report(report)
    with atomic_write(path) as part:
        part.write_bytes(page)
    return path


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader('geolearn', 'report'),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        'clean': _clean,
        'number': _number,
        'base64': _base64,
        'kind': _kind,
    }
    environment.tests['numeric'] = _is_numeric
    css = resources.files('geolearn').joinpath('report/page.css').read_text(encoding='utf-8')
    environment.globals |= {'css': css, 'policy': POLICY}
    return environment.get_template('page.html')


def _kind(part: Part | Cell) -> str:
    return type(part).__name__


def _is_numeric(table: Table, column: int) -> bool:
    """Whether a column is set to the right: it holds nothing but numbers and gaps."""
    return all(not isinstance(row[column], str | Swatch) for row in table.rows)


def _number(cell: Cell) -> str:
    """Return a cell as text: whole numbers with separators, others with four digits, None and NaN as a dash."""
    match cell:
        case str():
            return cell
        case int():
            return f'{cell:,}'
        case float() if not math.isnan(cell):
            return f'{cell:.4g}'
        case _:
            return _DASH


def _base64(png: bytes) -> str:
    return base64.b64encode(png).decode()


def _clean(text: str) -> str:
    """Replace what is no character of HTML by the replacement character; jinja escapes the rest."""
    return _CONTROLS.sub('\N{REPLACEMENT CHARACTER}', text)
