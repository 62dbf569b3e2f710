"""Turn the contents of a report into a page of HTML: no script, no file beside it, every text escaped."""

import base64
import html
import math
import re
from pathlib import Path

from geolearn.files import atomic_write
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

CSS = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --text: #1d2530; --soft: #5b6673; --line: #dde2e8;
  --accent: #0b63a5; --bar: #7fb2dc; --warn-line: #c77700; --warn-page: #fff6e5; --code: #eef1f4;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14181d; --card: #1d232a; --text: #e4e8ed; --soft: #9aa5b1; --line: #323a44;
    --accent: #74b6ee; --bar: #3d7fb5; --warn-line: #e0a33a; --warn-page: #2e2615; --code: #262d35;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1.5rem clamp(.8rem, 3vw, 2.5rem) 3rem; max-width: 76rem; background: var(--page);
  color: var(--text); font: 16px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  overflow-wrap: break-word;
}
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .2rem; }
h2 { font-size: 1.2rem; margin: 0 0 .6rem; }
p { margin: .5rem 0; max-width: 46rem; }
.made { color: var(--soft); margin: 0 0 1rem; }
.tiles {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(10.5rem, 45%), 1fr)); gap: .6rem; margin: 1rem 0;
}
.tiles div { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .5rem .8rem; }
.tiles dt { color: var(--soft); font-size: .8rem; }
.tiles dd { margin: 0; font-size: 1.1rem; font-weight: 600; overflow-wrap: anywhere; }
nav ol { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; list-style: none; margin: 0 0 1rem; padding: 0; }
a { color: var(--accent); }
section, .warnings {
  background: var(--card); border: 1px solid var(--line); border-radius: .6rem; margin: 0 0 1rem;
  padding: 1rem clamp(.8rem, 2.5vw, 1.5rem);
}
.warnings { background: var(--warn-page); border-left: .35rem solid var(--warn-line); }
ul { margin: .3rem 0; padding-left: 1.2rem; }
.scroll { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
.caption { color: var(--soft); margin: 1rem 0 0; }
.caption + .scroll { margin-top: .3rem; }
th, td { padding: .28rem .8rem .28rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
td { unicode-bidi: isolate; min-width: 7.5rem; max-width: 28rem; overflow-wrap: anywhere; }
.number { text-align: right; white-space: nowrap; }
td.number { min-width: 3.5rem; }
.bar { display: inline-block; width: 4.5rem; height: .65rem; margin-right: .5rem; background: var(--code); }
.bar span { display: block; height: 100%; background: var(--bar); }
.swatch {
  display: inline-block; width: .85rem; height: .85rem; margin-right: .5rem; border: 1px solid var(--soft);
  border-radius: .15rem; vertical-align: -.08rem;
}
.facts { display: grid; grid-template-columns: minmax(7rem, max-content) 1fr; gap: .15rem 1.2rem; margin: .6rem 0; }
.facts dt { color: var(--soft); }
.facts dd { margin: 0; overflow-wrap: anywhere; }
figure { margin: .8rem 0; }
figure img { max-width: 100%; height: auto; background: #ffffff; border-radius: .35rem; padding: .3rem; }
figcaption { color: var(--soft); font-size: .9rem; }
pre {
  background: var(--code); border-radius: .35rem; padding: .8rem 1rem; overflow-x: auto; overflow-wrap: normal;
  font: .87rem/1.45 ui-monospace, "SFMono-Regular", Consolas, "DejaVu Sans Mono", monospace;
}
@media (max-width: 34rem) { .facts { grid-template-columns: 1fr; gap: 0; } .facts dd { margin-bottom: .5rem; } }
@media print {
  :root {
    color-scheme: light; --page: #ffffff; --card: #ffffff; --text: #000000; --soft: #444444; --line: #cccccc;
    --code: #eeeeee; --accent: #000000; --bar: #9a9a9a; --warn-page: #ffffff;
  }
  body { max-width: none; padding: 0; font-size: 10.5pt; }
  nav { display: none; }
  section { border: 0; padding: 0; }
  h2 { break-after: avoid; }
  figure, tr, .tiles, .warnings, pre { break-inside: avoid; }
  figure img { max-height: 22cm; object-fit: contain; object-position: left; }
  table { font-size: .8rem; }
  td, td.number { min-width: 0; }
  .scroll, pre { overflow: visible; white-space: pre-wrap; }
  .bar { display: none; }
  .swatch { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""

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


def write_report(path: str | Path, report: ReportContents) -> Path:
    """Write a report as one page of HTML that needs no other file, no script and no network.

    Args:
        path: Target, such as ``'report.html'``.
        report: What it holds.

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
