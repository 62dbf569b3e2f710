"""PASTIS: 18 kinds of crops of parcels in France in time series of Sentinel-2, 128 x 128 px of 10 m.

Patches have 33 to 61 dates, and models one number of them: of each patch the image nearest to the middle of each month
of the season is read.
"""

from collections.abc import Iterator
from datetime import date, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine

from geolearn.chips.emd import read_json
from geolearn.chips.formats.content import FolderContent
from geolearn.chips.formats.published.rows import Published, Row, existing, find_root
from geolearn.chips.label import Label, Task
from geolearn.classes import color_classes
from geolearn.errors import ChipFolderError
from geolearn.raster import GeoBox

FACTS = 'metadata.geojson'

MONTHS = tuple(date(2018 + (month > 12), (month - 1) % 12 + 1, 15) for month in range(10, 22))
"""October 2018 to September 2019."""

FOLDS = {1: 'train', 2: 'train', 3: 'train', 4: 'valid', 5: 'test'}
"""The first of the authors' five divisions."""

VOID = 19

_NAMES = (
    'Background; Meadow; Soft winter wheat; Corn; Winter barley; Winter rapeseed; Spring barley; Sunflower; Grapevine; '
    'Beet; Winter triticale; Winter durum wheat; Fruits, vegetables, flowers; Potatoes; Leguminous fodder; Soybeans; '
    'Orchard; Mixed cereal; Sorghum'
).split('; ')


def find_rows(folder: Path) -> Iterator[Row]:
    """Find the patches that ``metadata.geojson`` lists.

    Raises:
        ChipFolderError: If the list cannot be read, or says no dates of a patch.
    """
    root = find_root(folder, FACTS)
    if not (root / FACTS).is_file():
        return
    features = read_json(root / FACTS).get('features')
    for feature in features if isinstance(features, list) else []:
        facts: Any = feature.get('properties') if isinstance(feature, dict) else None
        if not isinstance(facts, dict) or 'ID_PATCH' not in facts:
            continue
        name = str(facts['ID_PATCH'])
        image = root / 'DATA_S2' / f'S2_{name}.npy'
        label = existing(root / 'ANNOTATIONS' / f'TARGET_{name}.npy')
        if not image.is_file():
            yield Row(name, ((image,),), label, fault=f'there is no {image.name}')
            continue
        chosen = choose_dates(facts.get('dates-S2'), f'{root / FACTS}, patch {name}')
        part = FOLDS.get(facts['Fold'], '') if isinstance(facts.get('Fold'), int) else ''
        reader = None if label is None else partial(read_target, label)
        series, taken = partial(read_series, image, chosen), ','.join(map(str, chosen))
        yield Row(name, ((image,),), label, part, reader, series, len(chosen), taken)


def choose_dates(stated: Any, shown: str) -> tuple[int, ...]:
    """Return the position of the image that is nearest to each of `MONTHS`.

    Args:
        stated: Dates by position, such as ``{'0': 20180917}``.
        shown: Name of the patch in messages.

    Raises:
        ChipFolderError: If it says no dates.
    """
    try:
        days = {int(position): datetime.strptime(str(day), '%Y%m%d').date() for position, day in stated.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise ChipFolderError(f'{shown} states no dates-S2 such as {{"0": 20180917}}: {error}') from error
    if not days:
        raise ChipFolderError(f'{shown} states no dates-S2')
    return tuple(min(days, key=lambda position: (abs((days[position] - month).days), position)) for month in MONTHS)


def read_series(path: Path, chosen: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray | None, GeoBox]:
    """Read the images of some dates as (dates * bands, height, width), all bands of a date together, without a place.

    Raises:
        ChipFolderError: If the file is no series of these dates.
    """
    stored = _load(path)
    if stored.ndim != 4 or max(chosen) >= len(stored):
        raise ChipFolderError(f'{path} holds {stored.shape}; needed is (dates, bands, height, width) of its dates')
    pixels = np.concatenate([np.asarray(stored[position]) for position in chosen])
    return pixels, None, GeoBox(pixels.shape[1:], Affine.identity(), None)


def read_target(path: Path, shape: tuple[int, int], unlabelled: tuple[float, ...] = ()) -> Label:
    """Read the classes of a patch.

    Raises:
        ChipFolderError: If the file holds no classes of this shape.
    """
    stored = _load(path)
    if stored.ndim != 3 or stored.shape[1:] != shape or stored.dtype.kind not in 'iu':
        raise ChipFolderError(f'{path} holds {stored.dtype} {stored.shape}; needed are classes (3, *{shape})')
    values = np.asarray(stored[0])
    void = np.isin(values, unlabelled)
    return Label(raster=values.astype(np.uint8), unlabelled=void if void.any() else None)


def _load(path: Path) -> np.ndarray:
    try:
        found: np.ndarray = np.load(path, mmap_mode='r', allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ChipFolderError(f'cannot read {path}: {error}') from error
    return found


def fits(content: FolderContent) -> bool:
    """Whether a folder is the data set, or the one above it."""
    root = find_root(content.root, FACTS)
    return (root / FACTS).is_file() and (root / 'DATA_S2').is_dir() and (root / 'ANNOTATIONS').is_dir()


PASTIS = Published(
    'PASTIS',
    'metadata.geojson, DATA_S2/S2_NUMBER.npy and ANNOTATIONS/TARGET_NUMBER.npy for each patch',
    Task.PIXELS,
    color_classes([(value, name, None) for value, name in enumerate(_NAMES)]),
    find_rows,
    bands=('B2', 'B3', 'B4', 'B5', 'B6', 'B7', 'B8', 'B8A', 'B11', 'B12'),
    sensor='Sentinel-2 L2A',
    unlabelled=(VOID,),
    acquired=MONTHS,
)
