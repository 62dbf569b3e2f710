"""LEVIR-CD and LEVIR-CD+: new and vanished buildings in pairs of aerial images of 50 cm, 1024 x 1024 px."""

from collections.abc import Iterator
from pathlib import Path

from geolearn.chips.formats.content import FolderContent
from geolearn.chips.formats.published.rows import PARTS, Published, Row, existing, glob_files
from geolearn.chips.label import Task


def find_rows(folder: Path) -> Iterator[Row]:
    """Find the pairs in ``train/``, ``val/`` and ``test/``."""
    for place, part in PARTS.items():
        for before in glob_files(folder / place / 'A', '*.png'):
            after = existing(folder / place / 'B' / before.name)
            label = existing(folder / place / 'label' / before.name)
            if after is not None:
                yield Row(f'{place}/{before.stem}', ((before,), (after,)), label, part)


def fits(content: FolderContent) -> bool:
    """Whether a folder holds train and test pairs under the published names."""
    parts = [content.root / place for place in ('train', 'test')]
    return all((part / name).is_dir() for part in parts for name in ('A', 'B', 'label'))


LEVIR_CD = Published(
    'LEVIR-CD',
    'train/, val/ and test/ (LEVIR-CD+: train/ and test/), each with A/, B/ and label/ of .png of the same names',
    Task.CHANGE,
    None,
    find_rows,
    bands=('Red', 'Green', 'Blue'),
)
