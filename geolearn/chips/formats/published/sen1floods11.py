"""Sen1Floods11: water in 446 chips of Sentinel-1 and Sentinel-2 that people labelled, 512 x 512 px of 10 m."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from geolearn.chips.formats.content import FolderContent
from geolearn.chips.formats.published.rows import Published, Row, existing, find_root, glob_files, parts_by_list
from geolearn.chips.label import Task
from geolearn.classes import color_classes

HAND = Path('data', 'flood_events', 'HandLabeled')
SPLITS = Path('splits', 'flood_handlabeled')

LISTS = (
    ('flood_train_data.csv', 'train'),
    ('flood_valid_data.csv', 'valid'),
    ('flood_test_data.csv', 'test'),
)
"""The list of Bolivia, a test on an event of its own, is no part."""


def find_rows(folder: Path, images: str) -> Iterator[Row]:
    """Find the chips of one sensor, whose folder is called ``S1Hand`` or ``S2Hand``."""
    root = find_root(folder, str(HAND))
    hand = root / HAND if (root / HAND).is_dir() else root
    listed = {name.rpartition('_')[0]: part for name, part in parts_by_list(root / SPLITS, LISTS).items()}
    for image in glob_files(hand / images, f'*_{images}.tif'):
        name = image.name.removesuffix(f'_{images}.tif')
        yield Row(name, ((image,),), existing(hand / 'LabelHand' / f'{name}_LabelHand.tif'), listed.get(name, ''))


def fits(content: FolderContent) -> bool:
    """Whether a folder is the data set, the one above it, or that of the chips that people labelled."""
    root = find_root(content.root, str(HAND))
    return (root / HAND / 'LabelHand').is_dir() or (content.root / 'LabelHand').is_dir()


_LAYOUT = (
    'data/flood_events/HandLabeled/ with {0}/NAME_{0}.tif and LabelHand/NAME_LabelHand.tif for each chip, and the '
    'lists splits/flood_handlabeled/flood_train_data.csv, flood_valid_data.csv and flood_test_data.csv'
)

_CLASSES = color_classes([(0, 'no water', (150, 160, 110)), (1, 'water', (50, 110, 220))])

SEN1FLOODS11 = Published(
    'Sen1Floods11',
    _LAYOUT.format('S2Hand'),
    Task.PIXELS,
    _CLASSES,
    partial(find_rows, images='S2Hand'),
    bands=('B1', 'B2', 'B3', 'B4', 'B5', 'B6', 'B7', 'B8', 'B8A', 'B9', 'B10', 'B11', 'B12'),
    sensor='Sentinel-2 L1C',
    unlabelled=(-1,),
)

SEN1FLOODS11_S1 = Published(
    'Sen1Floods11 (Sentinel-1)',
    _LAYOUT.format('S1Hand'),
    Task.PIXELS,
    _CLASSES,
    partial(find_rows, images='S1Hand'),
    bands=('VV', 'VH'),
    sensor='Sentinel-1',
    unlabelled=(-1,),
)
