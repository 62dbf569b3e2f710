"""LandCover.ai: land cover of Poland in aerial images of 25 and 50 cm, cut into tiles of 512 x 512 px."""

from collections.abc import Iterator
from pathlib import Path

from geolearn.chips.formats.content import FolderContent
from geolearn.chips.formats.published.rows import Published, Row, existing, glob_files, parts_by_list
from geolearn.chips.label import Task
from geolearn.classes import color_classes

TILES = 'output'
"""Folder that the data set's own split.py writes."""

LISTS = (('train.txt', 'train'), ('val.txt', 'valid'), ('test.txt', 'test'))


def find_rows(folder: Path) -> Iterator[Row]:
    """Find the tiles in ``output/``."""
    listed = parts_by_list(folder, LISTS)
    for image in glob_files(folder / TILES, '*.jpg'):
        yield Row(image.stem, ((image,),), existing(image.with_name(f'{image.stem}_m.png')), listed.get(image.stem, ''))


def fits(content: FolderContent) -> bool:
    """Whether a folder holds the lists and the orthophotos or tiles of the data set."""
    root = content.root
    has_lists = all((root / name).is_file() for name, _ in LISTS)
    return has_lists and ((root / TILES).is_dir() or (root / 'split.py').is_file())


LANDCOVER_AI = Published(
    'LandCover.ai',
    'train.txt, val.txt, test.txt and output/ with NAME.jpg and NAME_m.png for each tile, which the split.py of the '
    'data set cuts from images/ and masks/: run it first',
    Task.PIXELS,
    color_classes(
        [
            (0, 'other', (150, 150, 150)),
            (1, 'building', (200, 40, 40)),
            (2, 'woodland', (30, 110, 50)),
            (3, 'water', (50, 110, 220)),
            (4, 'road', (90, 90, 90)),
        ]
    ),
    find_rows,
    bands=('Red', 'Green', 'Blue'),
)
