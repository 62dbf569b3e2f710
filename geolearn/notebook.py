"""What a notebook shows of values that print as a line and indented rows of a word and a text."""

from html import escape


def rows_as_html(text: str) -> str:
    """Return the lines of a `repr` as a table.

    Args:
        text: A headline, then lines such as ``'  bands    red, nir'``; runs of blanks in a row's text stay.
    """
    head, *rows = text.splitlines()
    cells = [row.strip().partition(' ') for row in rows]
    left = 'style="text-align:left"'
    table = ''.join(
        f'<tr><th {left}>{escape(name)}</th><td {left}><span style="white-space:pre-wrap">{escape(rest.strip())}</span>'
        '</td></tr>'
        for name, _, rest in cells
    )
    return f'<table><caption {left}>{escape(head)}</caption>{table}</table>'
