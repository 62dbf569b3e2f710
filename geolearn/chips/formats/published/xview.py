"""xView: 60 classes of objects in WorldView-3 images of 30 cm, boxes of all images in one GeoJSON file."""

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from geolearn.chips.emd import read_json
from geolearn.chips.formats.content import FolderContent
from geolearn.chips.formats.published.rows import Published, Row, find_root, glob_files
from geolearn.chips.label import Label, Task
from geolearn.classes import color_classes

LABELS = 'xView_train.geojson'

_NAMES = """
11 Fixed-wing Aircraft; 12 Small Aircraft; 13 Passenger/Cargo Plane; 15 Helicopter; 17 Passenger Vehicle; 18 Small Car;
19 Bus; 20 Pickup Truck; 21 Utility Truck; 23 Truck; 24 Cargo Truck; 25 Truck w/Box; 26 Truck Tractor; 27 Trailer;
28 Truck w/Flatbed; 29 Truck w/Liquid; 32 Crane Truck; 33 Railway Vehicle; 34 Passenger Car; 35 Cargo/Container Car;
36 Flat Car; 37 Tank car; 38 Locomotive; 40 Maritime Vessel; 41 Motorboat; 42 Sailboat; 44 Tugboat; 45 Barge;
47 Fishing Vessel; 49 Ferry; 50 Yacht; 51 Container Ship; 52 Oil Tanker; 53 Engineering Vehicle; 54 Tower crane;
55 Container Crane; 56 Reach Stacker; 57 Straddle Carrier; 59 Mobile Crane; 60 Dump Truck; 61 Haul Truck;
62 Scraper/Tractor; 63 Front loader/Bulldozer; 64 Excavator; 65 Cement Mixer; 66 Ground Grader; 71 Hut/Tent; 72 Shed;
73 Building; 74 Aircraft Hangar; 76 Damaged Building; 77 Facility; 79 Construction Site; 83 Vehicle Lot; 84 Helipad;
86 Storage Tank; 89 Shipping container lot; 91 Shipping Container; 93 Pylon; 94 Tower
"""

CLASSES = color_classes(
    [(int(number), name, None) for number, _, name in (e.strip().partition(' ') for e in _NAMES.split(';'))]
)

_KNOWN = frozenset(info.value for info in CLASSES)

Box = tuple[int, float, float, float, float]
"""Class, left, top, right, bottom in pixels."""


def find_rows(folder: Path) -> Iterator[Row]:
    """Find the images in ``train_images/`` with their boxes; ``val_images/`` have no published labels."""
    root = find_root(folder, LABELS, f'train_labels/{LABELS}')
    labels = next((p for p in (root / LABELS, root / 'train_labels' / LABELS) if p.is_file()), None)
    boxes = {} if labels is None else read_boxes(labels)
    for image in glob_files(root / 'train_images', '*.tif'):
        found = boxes.get(image.name)
        reader = partial(read_label, tuple(found or ()))
        yield Row(image.stem, ((image,),), labels if found else None, read_label=reader)


def read_boxes(path: Path) -> dict[str, list[Box]]:
    """Read the boxes of each image, by the name of its file; broken ones are NaN, see `read_label`.

    Raises:
        ChipFolderError: If the file is no JSON object.
    """
    found: dict[str, list[Box]] = {}
    features = read_json(path).get('features')
    for feature in features if isinstance(features, list) else []:
        facts: Any = feature.get('properties') if isinstance(feature, dict) else None
        if isinstance(facts, dict):
            found.setdefault(str(facts.get('image_id')), []).append(_read_box(facts))
    return found


def _read_box(facts: dict[str, Any]) -> Box:
    try:
        left, top, right, bottom = (float(number) for number in str(facts['bounds_imcoords']).split(','))
        return int(facts['type_id']), left, top, right, bottom
    except (KeyError, TypeError, ValueError, OverflowError):
        return -1, math.nan, math.nan, math.nan, math.nan


def read_label(boxes: tuple[Box, ...], shape: tuple[int, int]) -> Label:
    """Return the boxes of an image, cut at its edges; those that are left out are counted with the reason.

    The published file has boxes of the classes 75 and 82, which xView does not list.
    """
    height, width = shape
    table = np.array(boxes, np.float64).reshape(-1, 5)
    whole = np.isfinite(table).all(1)
    known = np.isin(table[:, 0], [*_KNOWN])
    cut = np.clip(table[:, 1:], 0, [width, height, width, height])
    inside = (cut[:, 2] > cut[:, 0]) & (cut[:, 3] > cut[:, 1])
    kept = whole & known & inside
    skipped = (
        *('box without a class or four corners',) * int((~whole).sum()),
        *('box of a class that xView does not list',) * int((whole & ~known).sum()),
        *('box outside the chip or without area',) * int((whole & known & ~inside).sum()),
    )
    return Label(class_ids=table[kept, 0].astype(np.int64), boxes=cut[kept].astype(np.float32), skipped=skipped)


def fits(content: FolderContent) -> bool:
    """Whether a folder is the data set, or the one above it."""
    root = find_root(content.root, LABELS, f'train_labels/{LABELS}')
    return (root / 'train_images').is_dir() and any(
        (root / place).is_file() for place in (LABELS, f'train_labels/{LABELS}')
    )


XVIEW = Published(
    'xView',
    'train_images/NUMBER.tif and xView_train.geojson beside it or in train_labels/',
    Task.OBJECTS,
    CLASSES,
    find_rows,
    bands=('Red', 'Green', 'Blue'),
)
