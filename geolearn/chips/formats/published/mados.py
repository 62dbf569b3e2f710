"""MADOS: marine debris, oil spills and 13 more classes at sea in Sentinel-2, sparsely labelled, 240 x 240 px."""

import re
from collections.abc import Iterator
from pathlib import Path

from geolearn.chips.formats.content import FolderContent
from geolearn.chips.formats.published.rows import Published, Row, find_root, glob_files, parts_by_list
from geolearn.chips.label import Task
from geolearn.classes import color_classes

_NAMES = (
    'Marine Debris; Dense Sargassum; Sparse Floating Algae; Natural Organic Material; Ship; Oil Spill; Marine Water; '
    'Sediment-Laden Water; Foam; Turbid Water; Shallow Water; Waves & Wakes; Oil Platform; Jellyfish; Sea snot'
).split('; ')

BANDS = ('B1', 'B2', 'B3', 'B4', 'B5', 'B6', 'B7', 'B8', 'B8A', 'B11', 'B12')
"""In the order of the wavelengths that the files are called after, which differ by a few nm between 2A and 2B."""

LISTS = (('train_X.txt', 'train'), ('val_X.txt', 'valid'), ('test_X.txt', 'test'))

_BAND = re.compile(r'_L2R_rhorc_(\d+)_(\d+)\.tif$')


def find_rows(folder: Path) -> Iterator[Row]:
    """Find the crops of the scenes: a file for each band in ``10/``, ``20/`` and ``60/``, classes in ``10/``."""
    root = find_root(folder, 'splits/train_X.txt')
    listed = parts_by_list(root / 'splits', LISTS)
    for scene in sorted(path for path in root.glob('Scene_*') if path.is_dir()):
        crops: dict[str, list[tuple[int, Path]]] = {}
        for path in glob_files(scene, '*/*_L2R_rhorc_*.tif'):
            if found := _BAND.search(path.name):
                crops.setdefault(found[2], []).append((int(found[1]), path))
        for crop, bands in crops.items():
            label = scene / '10' / f'{scene.name}_L2R_cl_{crop}.tif'
            name = f'{scene.name}_{crop}'
            files = tuple(path for _, path in sorted(bands))
            fault = '' if len(files) == len(BANDS) else f'{len(files)} of {len(BANDS)} bands are there'
            yield Row(name, (files,), label if label.is_file() else None, listed.get(name, ''), fault=fault)


def fits(content: FolderContent) -> bool:
    """Whether scenes lie in a folder, or in one in it, under the published names."""
    root = find_root(content.root, 'splits/train_X.txt')
    return next(root.glob('Scene_*/10/*_L2R_cl_*.tif'), None) is not None


MADOS = Published(
    'MADOS',
    'Scene_N/10/, 20/ and 60/ with Scene_N_L2R_rhorc_WAVELENGTH_CROP.tif for each of 11 bands, '
    'Scene_N/10/Scene_N_L2R_cl_CROP.tif, and splits/train_X.txt, val_X.txt and test_X.txt',
    Task.PIXELS,
    color_classes([(value, name, None) for value, name in enumerate(_NAMES, 1)]),
    find_rows,
    bands=BANDS,
    sensor='Sentinel-2 L2A',
    unlabelled=(0,),
)
