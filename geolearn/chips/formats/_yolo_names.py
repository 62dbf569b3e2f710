"""Find the class names of a YOLO folder: classes.txt, data.yaml or *.names."""

from pathlib import Path
from typing import Any

import yaml

from geolearn.chips.formats._labels import read_text
from geolearn.errors import ChipFolderError

MAX_NAMES_BYTES = 2**18
"""Enough for thousands of names; YAML takes seconds for a megabyte."""

SUBSETS = frozenset({'train', 'val', 'valid', 'test'})


def read_names(folder: Path) -> dict[int, str] | None:
    """Return the class names by index, None where no file tells them.

    Looks in the folder and in its labels/; for a folder such as train/ also one level up, where data.yaml then lies.

    Raises:
        ChipFolderError: If a file is broken, or two files give different names.
    """
    places = [folder, folder / 'labels', *([folder.parent] if folder.name in SUBSETS else [])]
    found: dict[Path, dict[int, str]] = {}
    for place in places:
        for path in sorted([place / 'classes.txt', *place.glob('*.names')]):
            if path.is_file():
                found[path] = _lines(path)
        for path in (place / 'data.yaml', place / 'data.yml', place / 'dataset.yaml'):
            if path.is_file() and (names := _yaml_names(path)):
                found[path] = names
    told = {path: names for path, names in found.items() if names}
    if not told:
        return None
    first = next(iter(told))
    for path, names in told.items():
        if names != told[first]:
            raise ChipFolderError(f'{first} and {path} give different class names; remove the wrong one')
    return told[first]


def _lines(path: Path) -> dict[int, str]:
    """Take a name from each line; its place counts, so only empty lines at the end are passed over."""
    names = [' '.join(line.split()) for line in read_text(path, limit=MAX_NAMES_BYTES).rstrip().splitlines()]
    if '' in names:
        raise ChipFolderError(
            f'{path}, line {names.index("") + 1} is empty; each line must name the class of its place'
        )
    return dict(enumerate(names))


def _yaml_names(path: Path) -> dict[int, str]:
    text = read_text(path, limit=MAX_NAMES_BYTES)
    try:
        # the base loader makes texts only: no objects, and a class called `no` stays one
        content: Any = yaml.load(text, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = ' '.join(str(error).split())[:200]
        raise ChipFolderError(f'{path} is not valid YAML: {reason}') from error
    names = content.get('names') if isinstance(content, dict) else None
    if names is None or names == '':
        return {}
    pairs = (
        list(enumerate(names)) if isinstance(names, list) else list(names.items()) if isinstance(names, dict) else []
    )
    result = {_index(key): name for key, name in pairs}
    if not result or -1 in result or not all(isinstance(name, str) and name for name in result.values()):
        raise ChipFolderError(f'{path}: names must be a list of texts, or texts by whole numbers')
    return result


def _index(key: Any) -> int:
    """Read up to five ASCII digits, -1 for whatever else a key may be."""
    text = str(key)
    return int(text) if text.isascii() and text.isdigit() and len(text) < 6 else -1
