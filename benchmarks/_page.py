"""Rows of figures in files, and docs/results.md, of which each script writes a section and leaves the rest as it is."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / 'docs' / 'results.md'
TITLE = '# Results on real imagery\n'


def write_section(name: str, text: str, *, page: Path = PAGE) -> None:
    """Replace a section of the page, or add it at the end.

    Args:
        name: Of the section, for its markers.
        text: What comes between them.
        page: Created if it does not exist.

    Raises:
        ValueError: If the page holds only one of the two markers.
    """
    begin, end = f'<!-- {name}: begin -->', f'<!-- {name}: end -->'
    section = f'{begin}\n{text.strip()}\n{end}'
    content = page.read_text() if page.exists() else TITLE
    if (begin in content) != (end in content):
        raise ValueError(f'{page} holds only one of {begin} and {end}; put the other one back')
    if begin in content:
        before, rest = content.split(begin, 1)
        content = before + section + rest.split(end, 1)[1]
    else:
        content = f'{content.rstrip()}\n\n{section}\n'
    page.parent.mkdir(exist_ok=True)
    page.write_text(content)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a file with a JSON object on each line; nothing where there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def format_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 2) -> str:
    """Return a table in Markdown, of which the first `left` columns are words and the others numbers."""
    lines = [columns, ['---'] * left + ['---:'] * (len(columns) - left), *rows]
    return '\n'.join('| ' + ' | '.join(cells) + ' |' for cells in lines)
