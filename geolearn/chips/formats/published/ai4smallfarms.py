"""AI4SmallFarms: boundaries of small fields in Vietnam and Cambodia, four bands of Sentinel-2 at 10 m."""

from collections.abc import Iterator
from pathlib import Path

from geolearn.chips.formats.content import FolderContent
from geolearn.chips.formats.files import pair_names
from geolearn.chips.formats.published.rows import PARTS, Published, Row, find_root, glob_files
from geolearn.chips.label import Task
from geolearn.classes import color_classes

HOME = 'sentinel-2-asia'


def find_rows(folder: Path) -> Iterator[Row]:
    """Find the tiles in ``train/``, ``validate/`` and ``test/``, whose images and masks pair by their names."""
    root = find_root(folder, f'{HOME}/train')
    home = root / HOME if (root / HOME).is_dir() else root
    for place, part in PARTS.items():
        images = {path.stem: path for path in glob_files(home / place / 'images', '*.tif')}
        masks = {path.stem: path for path in glob_files(home / place / 'masks', '*.tif')}
        pairs, _ = pair_names(images, masks)
        for name, image in images.items():
            label = masks[pairs[name]] if name in pairs else None
            yield Row(f'{place}/{name}', ((image,),), label, part)


def fits(content: FolderContent) -> bool:
    """Whether a folder is the data set, or the one above it."""
    return any((place / HOME / 'train' / 'masks').is_dir() for place in (content.root, find_root(content.root, HOME)))


AI4SMALLFARMS = Published(
    'AI4SmallFarms',
    'sentinel-2-asia/train/, validate/ and test/, each with images/ and masks/ of as many .tif',
    Task.PIXELS,
    color_classes([(0, 'field or other land', (170, 200, 110)), (255, 'field boundary', (90, 60, 30))]),
    find_rows,
    bands=('B2', 'B3', 'B4', 'B8'),
    sensor='Sentinel-2 L2A',
)
