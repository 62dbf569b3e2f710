"""Turn the contents of a report into a page of HTML: no script, no file beside it, every text escaped."""

import base64
import html
import math
import re

from geolearn.report.contents import (
    Cell,
    Code,
    Facts,
    Notes,
    Part,
    Picture,
    ReportContents,
    Section,
    Share,
    Swatch,
    Table,
)
from geolearn.report.style import CSS

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""What the page itself forbids a browser: to run or to fetch anything."""

HEAD = (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
)
"""How every page begins; what forbids must stand before what it forbids."""

_DASH = '\N{EN DASH}'
_CONTROLS = re.compile('[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]')


def render_report(contents: ReportContents) -> bytes:
    """Return the page, in UTF-8."""
    title = _text(contents.title)
    sections = [
        f'<section id="s{number}">\n<h2>{_text(section.title)}</h2>\n{_parts(section)}</section>\n'
        for number, section in enumerate(contents.sections, 1)
    ]
    links = ''.join(
        f'<li><a href="#s{number}">{_text(section.title)}</a></li>'
        for number, section in enumerate(contents.sections, 1)
    )
    page = (
        f'{HEAD}<title>{title}</title>\n<style>{CSS}</style>\n</head>\n<body>\n'
        f'<header>\n<h1>{title}</h1>\n<p class="made">Made by geolearn on {contents.made.isoformat()}.</p>\n'
        f'<dl class="tiles">{_pairs(contents.summary, grouped=True)}</dl>\n</header>\n'
        f'{_warnings(contents.warnings)}<nav><ol>{links}</ol></nav>\n'
        f'<main>\n{"".join(sections)}</main>\n</body>\n</html>\n'
    )
    return page.encode()


def _parts(section: Section) -> str:
    return ''.join(_part(part) + '\n' for part in section.parts)


def _part(part: Part) -> str:
    match part:
        case str():
            return f'<p>{_text(part)}</p>'
        case Table():
            return _table(part)
        case Picture():
            return _picture(part)
        case Facts():
            return f'<dl class="facts">{_pairs(part.rows)}</dl>'
        case Notes():
            return _list(part.texts)
        case Code():
            return f'<pre><code>{_text(part.text)}</code></pre>'


def _table(table: Table) -> str:
    numeric = [all(not isinstance(row[i], str | Swatch) for row in table.rows) for i in range(len(table.columns))]
    classes = [' class="number"' if is_number else '' for is_number in numeric]
    head = ''.join(f'<th scope="col"{kind}>{_text(name)}</th>' for name, kind in zip(table.columns, classes))
    rows = ''.join(
        '<tr>' + ''.join(f'<td{kind}>{_cell(cell)}</td>' for cell, kind in zip(row, classes)) + '</tr>\n'
        for row in table.rows
    )
    caption = f'<p class="caption">{_text(table.caption)}</p>\n' if table.caption else ''
    return f'<div class="scroll"><table>{caption}<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody></table></div>'


def _cell(cell: Cell) -> str:
    match cell:
        case Share(value) if not math.isnan(value):
            width = 100 * min(max(value, 0.0), 1.0)
            return f'<span class="bar"><span style="width:{width:.1f}%"></span></span>{value:.3f}'
        case Swatch(name, (red, green, blue)):
            return f'<span class="swatch" style="background:#{red:02x}{green:02x}{blue:02x}"></span>{_text(name)}'
        case str():
            return _text(cell)
        case int():
            return f'{cell:,}'
        case float() if not math.isnan(cell):
            return f'{cell:.4g}'
        case _:
            return _DASH


def _picture(picture: Picture) -> str:
    width, height = picture.size
    data = base64.b64encode(picture.png).decode()
    caption = f'<figcaption>{_text(picture.caption)}</figcaption>' if picture.caption else ''
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{_text(picture.alt)}" width="{width}" '
        f'height="{height}">{caption}</figure>'
    )


def _pairs(rows: tuple[tuple[str, str], ...], *, grouped: bool = False) -> str:
    pairs = [f'<dt>{_text(label)}</dt><dd>{_text(value)}</dd>' for label, value in rows]
    return ''.join(f'<div>{pair}</div>' if grouped else pair for pair in pairs)


def _warnings(texts: tuple[str, ...]) -> str:
    if not texts:
        return ''
    return f'<div class="warnings" role="note">\n<h2>Before you trust the numbers</h2>\n{_list(texts)}\n</div>\n'


def _list(texts: tuple[str, ...]) -> str:
    return '<ul>' + ''.join(f'<li>{_text(text)}</li>' for text in texts) + '</ul>'


def _text(text: str) -> str:
    """Escape a text; what is no character of HTML becomes the replacement character."""
    return html.escape(_CONTROLS.sub('\N{REPLACEMENT CHARACTER}', text))
