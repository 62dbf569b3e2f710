"""EuroSAT: ten kinds of land use in patches of Sentinel-2, 64 x 64 px, all 13 bands or red, green and blue."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from geolearn.chips.formats.content import FolderContent
from geolearn.chips.formats.imagenet import read_chip_value
from geolearn.chips.formats.published.rows import Published, Row, glob_files, parts_by_list
from geolearn.chips.label import Task
from geolearn.classes import color_classes

CLASSES = (
    'AnnualCrop Forest HerbaceousVegetation Highway Industrial Pasture PermanentCrop Residential River SeaLake'
).split()

LISTS = (('eurosat-train.txt', 'train'), ('eurosat-val.txt', 'valid'), ('eurosat-test.txt', 'test'))
"""Of Neumann et al. 2019, In-domain representation learning for remote sensing, arXiv:1911.06721."""

ENOUGH = 8
"""Folders of classes that make a folder EuroSAT beyond doubt."""


def find_rows(folder: Path) -> Iterator[Row]:
    """Find the patches in the folders of the classes."""
    listed = parts_by_list(folder, LISTS) or parts_by_list(folder.parent, LISTS)
    by_stem = {Path(name).stem: part for name, part in listed.items()}
    for value, name in enumerate(CLASSES, 1):
        for suffix in ('tif', 'jpg'):
            for image in glob_files(folder / name, f'{name}_*.{suffix}'):
                read = partial(read_chip_value, value)
                yield Row(f'{name}/{image.stem}', ((image,),), image, by_stem.get(image.stem, ''), read)


def fits(content: FolderContent) -> bool:
    """Whether a folder holds the folders of the classes."""
    return sum((content.root / name).is_dir() for name in CLASSES) >= ENOUGH


EUROSAT = Published(
    'EuroSAT',
    'a folder for each of ten classes (AnnualCrop, Forest ...) with AnnualCrop_1.tif ... of 13 bands, or .jpg; and, '
    'for the published parts, eurosat-train.txt, eurosat-val.txt and eurosat-test.txt',
    Task.LABEL,
    color_classes([(value, name, None) for value, name in enumerate(CLASSES, 1)]),
    find_rows,
    bands=('B1', 'B2', 'B3', 'B4', 'B5', 'B6', 'B7', 'B8', 'B9', 'B10', 'B11', 'B12', 'B8A'),
    sensor='Sentinel-2 L1C',
)
