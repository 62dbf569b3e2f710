"""Pages of the site that are made from the source: the reference, the command line, the diagram of imports.

MkDocs calls `on_files` and `on_page_markdown`. Everything is read from the syntax trees of geolearn's files, so that
building the site imports neither torch nor GDAL; the page of the command line asks geolearn's parser, which needs none.
"""

import ast
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'geolearn'

PAGES = {
    'data': (
        'Data',
        'Chips from rasters and labels, and data to train on.',
        ('chips', 'data', 'prepare', 'sources', 'raster_windows'),
    ),
    'models': ('Models', 'Classes to train, save and load. All have the methods of `Model`.', ('models',)),
    'maps': ('Maps', 'What is done with maps after a model has written them.', ('inference', 'plotting')),
    'backbones': ('Backbones', 'Encoders, and how they are adapted.', ('adaptation', 'backbones')),
    'embeddings': ('Embeddings', 'Vectors of images, probes on them, pretraining.', ('embed', 'pretrain', 'probe')),
    'bands': ('Bands and classes', 'Small values that describe data, and errors.', ('bands', 'classes', 'errors')),
}
"""Name of a page of the reference, its title, a sentence, and the packages whose public names stand on it."""

BESIDE = {'models': ('geolearn.models.base.Model',)}
"""What a page shows first although it is not among the names of `geolearn` itself."""

IMPORTS = '<!-- diagram of imports -->'


def imported_names(path: Path) -> dict[str, str]:
    """Return the full names of what a stub re-exports, by its public name."""
    tree = ast.parse(path.read_text(encoding='utf-8'))
    rows = [(node.module, alias.name) for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    return {name: f'{module}.{name}' for module, name in rows}


def public_names() -> dict[str, str]:
    """Return the public names of geolearn with the modules that define them."""
    models = imported_names(PACKAGE / 'models' / '__init__.pyi')
    return {
        name: models.get(name, full) if full == f'geolearn.models.{name}' else full
        for name, full in imported_names(PACKAGE / '__init__.pyi').items()
    }


def reference_pages() -> Iterator[tuple[str, str]]:
    """Yield path and text of each page of the reference.

    Raises:
        ValueError: If a public name stands on no page.
    """
    left = public_names()
    index = ['# Reference', '', 'Generated from the docstrings. Everything here is imported from `geolearn`.', '']
    for page, (title, sentence, packages) in PAGES.items():
        names = {name: full for name, full in left.items() if full.split('.')[1] in packages}
        left = {name: full for name, full in left.items() if name not in names}
        shown = [*BESIDE.get(page, ()), *dict.fromkeys(names.values())]
        body = '\n\n'.join(f'::: {full}' for full in shown)
        yield f'reference/{page}.md', f'# {title}\n\n{sentence}\n\n{body}\n'
        links = ', '.join(f'[`{name}`][{full}]' for name, full in names.items())
        index += [f'## [{title}]({page}.md)', '', f'{sentence} {links}', '']
    if left:
        raise ValueError(f'no page of the reference shows {", ".join(left)}: add their packages to docs/site_pages.py')
    index += ['## [Command line](command-line.md)', '', 'All commands with their options, as `--help` prints them.', '']
    yield 'reference/index.md', '\n'.join(index)


def command_line_page() -> str:
    """Return the page of all commands, as `--help` prints them."""
    from geolearn.cli import COMMANDS, build_parsers

    _, commands = build_parsers()
    parts = ['# Command line', '', 'What `geolearn COMMAND --help` prints. [How to use it](../command-line.md).', '']
    for name, command in commands.items():
        command.formatter_class = _wide(command.formatter_class)
        text = textwrap.indent(command.format_help().rstrip(), '    ')
        parts += [f'## geolearn {name}', '', f'{COMMANDS[name][0].capitalize()}.', '', '    :::text', text, '']
    return '\n'.join(parts)


def _wide(formatter: Any) -> Any:
    """Return a formatter whose width does not depend on the terminal that builds the site."""
    return lambda prog: formatter(prog, width=100)


def layers() -> list[str]:
    """Return the packages from the lowest to the highest, as the test of imports holds them."""
    tree = ast.parse((ROOT / 'tests' / 'test_imports.py').read_text(encoding='utf-8'))
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', '') == 'LAYERS':
            call = node.value
            assert isinstance(call, ast.Call)
            assert isinstance(call.func, ast.Attribute)
            return str(ast.literal_eval(call.func.value)).split()
    raise ValueError('tests/test_imports.py holds no LAYERS')


def package_imports() -> dict[str, set[str]]:
    """Return which packages of geolearn each of them imports, directly and at any place of its files."""
    names = layers()
    found: dict[str, set[str]] = {name: set() for name in names}
    for path in sorted(PACKAGE.rglob('*.py')):
        own = path.relative_to(PACKAGE).parts[0].removesuffix('.py')
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            targets = []
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                targets = [f'{node.module}.{alias.name}' for alias in node.names]
            for target in targets:
                first, _, rest = target.partition('.')
                package = rest.split('.')[0]
                if first == 'geolearn' and package in found and package != own and own in found:
                    found[own].add(package)
    return found


def _reduced(imports: Mapping[str, set[str]], order: list[str]) -> dict[str, set[str]]:
    """Return the imports that no chain of other imports implies."""
    reach: dict[str, set[str]] = {}
    kept: dict[str, set[str]] = {}
    for name in order:
        indirect = {far for near in imports[name] for far in reach[near]}
        kept[name] = imports[name] - indirect
        reach[name] = imports[name] | indirect
    return kept


WIDTH, HEIGHT, GAP = 92, 24, 34
"""Size of a box of the diagram and room between rows, in pixels."""


def draw_imports() -> str:
    """Return the diagram of imports as SVG: what a package imports stands below it."""
    order, imports = layers(), package_imports()
    edges = _reduced(imports, order)
    rank: dict[str, int] = {}
    for name in order:
        rank[name] = 1 + max((rank[below] for below in imports[name]), default=-1)
    rows = [[name for name in order if rank[name] == row] for row in range(max(rank.values()), -1, -1)]
    width = max(map(len, rows)) * (WIDTH + 16) + 16
    place = {
        name: ((width - len(row) * (WIDTH + 16)) / 2 + 8 + index * (WIDTH + 16), 8 + number * (HEIGHT + GAP))
        for number, row in enumerate(rows)
        for index, name in enumerate(row)
    }
    parts = []
    for name, below in edges.items():
        x, y = place[name][0] + WIDTH / 2, place[name][1] + HEIGHT
        for other in sorted(below):
            to_x, to_y = place[other][0] + WIDTH / 2, place[other][1]
            middle = (y + to_y) / 2
            parts.append(f'<path d="M{x:g} {y:g}C{x:g} {middle:g} {to_x:g} {middle:g} {to_x:g} {to_y:g}"/>')
    for name, (x, y) in place.items():
        title = f'{name} imports {", ".join(sorted(imports[name])) or "nothing of geolearn"}'
        parts.append(
            f'<g><title>{title}</title><rect x="{x:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="3"/>'
            f'<text x="{x + WIDTH / 2:g}" y="{y + 16:g}" text-anchor="middle">{name}</text></g>'
        )
    height = len(rows) * (HEIGHT + GAP) - GAP + 16
    head = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="packages of geolearn and what they import">'
    return f'<div class="drawing">{head}{"".join(parts)}</svg></div>'


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages."""
    for path, text in [*reference_pages(), ('reference/command-line.md', command_line_page())]:
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Put the diagram where a page asks for it."""
    return markdown.replace(IMPORTS, draw_imports()) if IMPORTS in markdown else markdown
