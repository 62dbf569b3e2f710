"""What a notebook shows of values: a table of a title and rows, from one template that escapes every text."""

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

TEMPLATE = """<table><caption style="text-align:left">{{ title }}</caption>
{%- for label, cell in rows -%}
<tr><th style="text-align:left;vertical-align:top">{{ label }}</th><td style="text-align:left">
{%- if cell is string -%}<span style="white-space:pre-wrap">{{ cell }}</span>
{%- else -%}{%- for name, color in cell %} <span style="white-space:nowrap">
<span style="display:inline-block;width:.8em;height:.8em;border:1px solid #888;background:rgb{{ color }}"></span>
{{ name }}</span>{% endfor -%}{%- endif -%}
</td></tr>
{%- endfor -%}
</table>"""


class Swatch(NamedTuple):
    """A name beside its color.

    Args:
        name: Such as that of a class.
        color: Red, green and blue, 0..255.
    """

    name: str
    color: tuple[int, int, int]


def table_as_html(title: str, rows: Iterable[tuple[str, str | Sequence[Swatch]]]) -> str:
    """Return a table for `_repr_html_`.

    Args:
        title: Above the table.
        rows: A label and a text, whose runs of blanks stay; or names with colors. Rows without content are not shown.
    """
    shown = [
        (label, cell if isinstance(cell, str) else [(name, tuple(map(int, color))) for name, color in cell])
        for label, cell in rows
        if cell
    ]
    text: str = _template().render(title=title, rows=shown)
    return text


def rows_as_html(text: str) -> str:
    """Return the lines of a `repr` as a table.

    Args:
        text: A headline, then lines such as ``'  bands    red, nir'``.
    """
    head, *rows = text.splitlines()
    cells = [row.strip().partition(' ') for row in rows]
    return table_as_html(head, [(name, rest.strip() or ' ') for name, _, rest in cells])


@cache
def _template() -> Any:
    from jinja2 import Environment

    return Environment(autoescape=True).from_string(TEMPLATE)
