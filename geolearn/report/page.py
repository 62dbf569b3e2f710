"""Turn the contents of a report into a page of HTML: no script, no file beside it, every text escaped."""

import base64
import functools
import math
import re
from importlib import resources
from pathlib import Path

import jinja2

from geolearn.files import atomic_write
from geolearn.report.contents import Cell, Part, ReportContents, Swatch, Table

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
