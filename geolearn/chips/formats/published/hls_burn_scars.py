"""HLS Burn Scars: 804 scenes of Harmonized Landsat and Sentinel-2 with burn scars, 512 x 512 px of 30 m."""

from collections.abc import Iterator
from pathlib import Path

from geolearn.chips.formats.content import FolderContent
from geolearn.chips.formats.published.rows import Published, Row, existing, glob_files, parts_by_list
from geolearn.chips.label import Task
from geolearn.classes import color_classes

IMAGE, MASK = '_merged.tif', '.mask.tif'

PLACES = ('training', 'validation', 'data', '.')

LISTS = (('train.txt', 'train'), ('val.txt', 'valid'), ('test.txt', 'test'))


def find_rows(folder: Path) -> Iterator[Row]:
    """Find the scenes in ``training/`` and ``validation/``, in ``data/`` with lists in ``splits/``, or here."""
    listed = parts_by_list(folder / 'splits', LISTS)
    # one of the two parts alone is divided by the user
    for place, part in (('training', 'train'), ('validation', 'valid'), ('data', ''), ('.', '')):
        for image in glob_files(folder / place, f'*{IMAGE}'):
            name = image.name.removesuffix(IMAGE)
            label = existing(folder / place / f'{name}{MASK}')
            yield Row(name, ((image,),), label, part or listed.get(name, listed.get(image.name, '')))


def fits(content: FolderContent) -> bool:
    """Whether a folder holds scenes and masks under the published names."""
    return any(next(glob_files(content.root / name, f'*{MASK}'), None) for name in PLACES)


HLS_BURN_SCARS = Published(
    'HLS Burn Scars',
    'training/ and validation/, or data/ with splits/train.txt, val.txt, test.txt, with NAME_merged.tif (six bands) '
    'and NAME.mask.tif for each scene',
    Task.PIXELS,
    color_classes([(0, 'not burned', (90, 130, 80)), (1, 'burn scar', (220, 70, 30))]),
    find_rows,
    bands=('B02', 'B03', 'B04', 'B8A', 'B11', 'B12'),
    sensor='HLS S30',
    nodata=(-9999,),
    unlabelled=(-1,),
)
