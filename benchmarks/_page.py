"""docs/results.md, of which each script writes its own section: between two markers, the rest stays as it is."""

from collections.abc import Sequence
from pathlib import Path

PAGE = Path(__file__).parents[1] / 'docs' / 'results.md'
TITLE = '# Results on real imagery\n'


def write_section(name: str, text: str, *, page: Path = PAGE) -> None:
    """Replace a section of the page, or add it at the end.

    Args:
        name: Of the section, for its markers.
        text: What comes between them.
        page: Made where there is none.

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


def format_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 2) -> str:
    """Return a table in Markdown, of which the first `left` columns are words and the others numbers."""
    lines = [columns, ['---'] * left + ['---:'] * (len(columns) - left), *rows]
    return '\n'.join('| ' + ' | '.join(cells) + ' |' for cells in lines)
