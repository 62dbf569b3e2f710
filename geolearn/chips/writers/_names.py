"""Refuse class names that folders or lists of names cannot hold."""

from collections.abc import Iterable

from geolearn.classes import ClassInfo
from geolearn.errors import ChipFolderError

_DEVICES = {'con', 'prn', 'aux', 'nul'} | {f'{device}{number}' for device in ('com', 'lpt') for number in range(1, 10)}
_FORBIDDEN = set('/\\:*?"<>|')
MAX_LENGTH = 200
"""Bytes of a folder name; file systems allow 255."""


def check_folders(classes: Iterable[ClassInfo], metadata_format: str) -> None:
    """Refuse class names that are no folder names on every system.

    Raises:
        ChipFolderError: If a name is empty, reserved, too long or ends in a dot or blank, or two differ in case alone.
    """
    listed = list(classes)
    check_texts(listed, metadata_format)
    for info in listed:
        name = info.name
        reserved = name.split('.')[0].rstrip().lower() in _DEVICES
        if reserved or _FORBIDDEN & set(name) or name.endswith('.') or len(name.encode()) > MAX_LENGTH:
            raise ChipFolderError(
                f'class {info.value} is called {name!r}, which is no folder name on every system, and '
                f'{metadata_format} has a folder for each class; rename it with classes= or in the labels'
            )
        if name.startswith('.'):
            raise ChipFolderError(
                f'class {info.value} is called {name!r}; folders whose names begin with a dot are hidden, and '
                f'{metadata_format} has a folder for each class; rename it with classes= or in the labels'
            )


def check_texts(classes: Iterable[ClassInfo], metadata_format: str, *, forbidden: str = '') -> None:
    """Refuse class names that do not tell classes apart where labels hold names.

    Args:
        classes: All classes.
        metadata_format: For messages.
        forbidden: Letters that separate names.
    """
    listed = list(classes)
    seen: dict[str, ClassInfo] = {}
    values = {str(info.value): info for info in listed}
    for info in listed:
        name = info.name
        if not name or name != ' '.join(name.split()) or not name.isprintable() or set(forbidden) & set(name):
            raise ChipFolderError(
                f'class {info.value} is called {name!r}; {metadata_format} needs printable names without blanks at the '
                f'ends{f" and without {forbidden!r}" if forbidden else ""}; rename it with classes= or in the labels'
            )
        other = seen.setdefault(name.casefold(), info)
        if name in values and values[name] is not info:
            other = values[name]
        if other is not info:
            raise ChipFolderError(
                f'classes {other.value} and {info.value} cannot be told apart by their names {other.name!r} and '
                f'{name!r}, which is what {metadata_format} stores; rename one with classes= or in the labels'
            )
