"""Small folders of every format, written by hand: fields with a square house and a round pond on each chip."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from affine import Affine

from geolearn.chips.emd import EMD_NAME
from geolearn.chips.formats.bigearthnet import BANDS

SIDE = 32
HOUSE, POND = 3, 7
NAMES = {HOUSE: 'Häuser am See', POND: 'pond'}
COLORS = {HOUSE: [220, 60, 40], POND: [40, 90, 220]}
BAND_NAMES = ['Blue', 'Green', 'Red', 'NearInfrared']
LEVELS = {0: (400, 800, 500, 3000), HOUSE: (2000, 2100, 2400, 2600), POND: (500, 400, 250, 100)}
"""Reflectance x 10000 of fields, houses and ponds."""


@pytest.fixture(scope='session')
def write_folder(save) -> Callable[..., Path]:
    """Write a folder of one dataset_type: `write_folder(folder, kind, count=6)`."""

    def write(folder: Path, kind: str, count: int = 6) -> Path:
        _WRITERS[kind](folder, count, save)
        return folder

    return write


@pytest.fixture(scope='session')
def fields() -> SimpleNamespace:
    """What is on the chips: boxes, masks, label and image by number of the chip, and what classes are called."""
    known = {'HOUSE': HOUSE, 'POND': POND, 'NAMES': NAMES, 'SIDE': SIDE}
    return SimpleNamespace(boxes=boxes, masks=masks, label=label, image=image, **known)


def boxes(index: int) -> dict[int, tuple[int, int, int, int]]:
    """Left, top, right, bottom of house and pond on a chip; every third chip has no pond."""
    left = 2 + index % 5
    both = {HOUSE: (left, 3, left + 8, 11), POND: (left + 6, 14, left + 18, 26)}
    return both if index % 3 else {HOUSE: both[HOUSE]}


def label(index: int) -> np.ndarray:
    """Class values (SIDE, SIDE) of a chip."""
    values = np.zeros((SIDE, SIDE), np.uint8)
    for value, mask in masks(index).items():
        values[mask] = value
    return values


def masks(index: int) -> dict[int, np.ndarray]:
    """Where house and pond are."""
    rows, cols = np.mgrid[:SIDE, :SIDE] + 0.5
    found = {}
    for value, (left, top, right, bottom) in boxes(index).items():
        inside = (cols > left) & (cols < right) & (rows > top) & (rows < bottom)
        if value == POND:
            inside &= np.hypot(cols - (left + right) / 2, rows - (top + bottom) / 2) < (right - left) / 2
        found[value] = inside
    return found


def image(index: int) -> np.ndarray:
    """Reflectances x 10000 (4, SIDE, SIDE) of a chip."""
    values, rng = label(index), np.random.default_rng(index)
    levels = np.zeros((256, 4))
    for value, level in LEVELS.items():
        levels[value] = level
    return (
        (levels[values].transpose(2, 0, 1) + rng.normal(0, 40, (4, SIDE, SIDE)) + 10 * index).clip(1).astype(np.uint16)
    )


def _place(index: int) -> dict[str, Affine]:
    return {'transform': Affine(10, 0, 500_000 + 10 * SIDE * index, 0, -10, 5_400_000)}


def _emd(folder: Path, mode: str, **keys: object) -> None:
    content = {
        'MetaDataMode': mode,
        'ImageSpaceUsed': 'MAP_SPACE',
        'Classes': [{'Value': value, 'Name': name, 'Color': COLORS[value]} for value, name in NAMES.items()],
        'InputRastersProps': {'RasterCount': 1, 'SensorName': 'Sentinel-2', 'BandNames': BAND_NAMES},
    }
    (folder / EMD_NAME).write_text(json.dumps(content | keys, ensure_ascii=False), encoding='utf-8')


def _images(folder: Path, count: int, save: Callable[..., Path], part: str = 'images') -> None:
    (folder / part).mkdir(parents=True)
    for index in range(count):
        save(folder / part / f'{index:09d}.tif', image(index), **_place(index))


def _write_classified(folder: Path, count: int, save: Callable[..., Path]) -> None:
    _images(folder, count, save)
    _labels(folder, count, save)
    _emd(folder, 'Classified_Tiles')


def _labels(folder: Path, count: int, save: Callable[..., Path]) -> None:
    (folder / 'labels').mkdir()
    for index in range(count):
        save(folder / 'labels' / f'{index:09d}.tif', label(index), **_place(index))


def _write_change(folder: Path, count: int, save: Callable[..., Path]) -> None:
    """The second date has the pond, the first has fields there."""
    _images(folder, count, save, 'images2')
    (folder / 'images').mkdir()
    (folder / 'labels').mkdir()
    for index in range(count):
        before, changed = image(index), label(index) == POND
        before[:, changed] = np.array(LEVELS[0], np.uint16)[:, None]
        save(folder / 'images' / f'{index:09d}.tif', before, **_place(index))
        save(folder / 'labels' / f'{index:09d}.tif', changed.astype(np.uint8) * 255, **_place(index))
    _emd(folder, 'Classified_Tiles', Classes=[{'Value': 255, 'Name': 'Change', 'Color': [255, 0, 0]}])


def _write_voc(folder: Path, count: int, save: Callable[..., Path]) -> None:
    _texts(folder, count, save, 'PASCAL_VOC_rectangles', '.xml', _voc_text)


def _write_kitti(folder: Path, count: int, save: Callable[..., Path]) -> None:
    def text(index: int) -> str:
        rows = (' '.join(f'{n:.2f}' for n in box) for box in boxes(index).values())
        return ''.join(f'{value} 0 0 0 {row} 0 0 0 0 0 0 0\n' for value, row in zip(boxes(index), rows))

    _texts(folder, count, save, 'KITTI_rectangles', '.txt', text)


def _write_labeled(folder: Path, count: int, save: Callable[..., Path]) -> None:
    def text(index: int) -> str:
        value = HOUSE if index % 2 else POND
        return f'<annotation><object><name>{value}</name></object></annotation>'

    _texts(folder, count, save, 'Labeled_Tiles', '.xml', text)


def _write_multilabeled(folder: Path, count: int, save: Callable[..., Path]) -> None:
    _texts(folder, count, save, 'MultiLabeled_Tiles', '.xml', _voc_text)


def _write_yolo(folder: Path, count: int, save: Callable[..., Path]) -> None:
    def text(index: int) -> str:
        rows = []
        for value, (left, top, right, bottom) in boxes(index).items():
            numbers = (left + right) / 2, (top + bottom) / 2, right - left, bottom - top
            rows.append(f'{int(value == POND)} ' + ' '.join(f'{number / SIDE:.6f}' for number in numbers))
        return '\n'.join(rows)

    _texts(folder, count, save, None, '.txt', text)
    (folder / 'classes.txt').write_text('\n'.join(NAMES.values()), encoding='utf-8')


def _voc_text(index: int) -> str:
    rows = []
    for value, box in boxes(index).items():
        edges = ''.join(f'<{edge}>{n}</{edge}>' for edge, n in zip(('xmin', 'ymin', 'xmax', 'ymax'), box))
        rows.append(f'<object><name>{value}</name><bndbox>{edges}</bndbox></object>')
    return f'<annotation>{"".join(rows)}</annotation>'


def _texts(
    folder: Path, count: int, save: Callable[..., Path], mode: str | None, suffix: str, text: Callable[[int], str]
) -> None:
    _images(folder, count, save)
    (folder / 'labels').mkdir()
    for index in range(count):
        (folder / 'labels' / f'{index:09d}{suffix}').write_text(text(index))
    if mode:
        _emd(folder, mode)


def _write_rcnn(folder: Path, count: int, save: Callable[..., Path]) -> None:
    _images(folder, count, save)
    _objects(folder / 'labels', count, save)
    _emd(folder, 'RCNN_Masks')


def _write_panoptic(folder: Path, count: int, save: Callable[..., Path]) -> None:
    _images(folder, count, save)
    _labels(folder, count, save)
    _objects(folder / 'labels2', count, save, {HOUSE: NAMES[HOUSE]})
    countable = [{'Value': HOUSE, 'Name': NAMES[HOUSE]}]
    _emd(folder, 'Panoptic_Segmentation', Panoptic_Segmentation_Instance_Classes=countable)


def _objects(base: Path, count: int, save: Callable[..., Path], names: dict[int, str] = NAMES) -> None:
    for value, name in names.items():
        (base / name).mkdir(parents=True)
        for index in range(count):
            if value in boxes(index):
                save(base / name / f'{index:09d}.tif', masks(index)[value].astype(np.uint8), **_place(index))


def _write_imagenet(folder: Path, count: int, save: Callable[..., Path]) -> None:
    for value, name in NAMES.items():
        (folder / 'images' / name).mkdir(parents=True)
        for index in range(value, count * 10, 10):
            save(folder / 'images' / name / f'{index:09d}.tif', image(index), **_place(index))
    _emd(folder, 'Imagenet')


def _write_tiles(folder: Path, count: int, save: Callable[..., Path]) -> None:
    _images(folder, count, save)
    _emd(folder, 'Export_Tiles', Classes=[])


def _write_coco(folder: Path, count: int, save: Callable[..., Path]) -> None:
    _images(folder, count, save)
    rows = []
    for index in range(count):
        for value, (left, top, right, bottom) in boxes(index).items():
            box = [left, top, right - left, bottom - top]
            rows.append({'id': len(rows) + 1, 'image_id': index, 'category_id': value, 'bbox': box, 'iscrowd': 0})
    content = {
        'images': [{'id': i, 'file_name': f'{i:09d}.tif', 'width': SIDE, 'height': SIDE} for i in range(count)],
        'categories': [{'id': value, 'name': name} for value, name in NAMES.items()],
        'annotations': rows,
    }
    (folder / 'labels.json').write_text(json.dumps(content))


def _write_bigearthnet(folder: Path, count: int, save: Callable[..., Path]) -> None:
    kinds = (['Pastures', 'Water bodies'], ['Discontinuous urban fabric'], ['Coniferous forest', 'Peatbogs'])
    for index in range(count):
        name = f'S2A_MSIL2A_20170617T113321_{index}_85'
        (folder / name).mkdir(parents=True)
        for number, band in enumerate(BANDS['Sentinel-2']):
            size = 12 if band in ('B02', 'B03', 'B04', 'B08') else 2 if band in ('B01', 'B09') else 6
            rng = np.random.default_rng((index, number))
            pixels = rng.integers(100 * number + 50, 100 * number + 500, (size, size)).astype(np.uint16)
            place = Affine(120 / size, 0, 500_000 + 120 * index, 0, -120 / size, 5_400_000)
            save(folder / name / f'{name}_{band}.tif', pixels, transform=place)
        labels = {'labels': kinds[index % 3], 'projection': 'EPSG:32633'}
        (folder / name / f'{name}_labels_metadata.json').write_text(json.dumps(labels))


_WRITERS = {
    'Classified_Tiles': _write_classified,
    'ChangeDetection': _write_change,
    'PASCAL_VOC_rectangles': _write_voc,
    'KITTI_rectangles': _write_kitti,
    'RCNN_Masks': _write_rcnn,
    'Labeled_Tiles': _write_labeled,
    'MultiLabeled_Tiles': _write_multilabeled,
    'Imagenet': _write_imagenet,
    'Export_Tiles': _write_tiles,
    'Panoptic_Segmentation': _write_panoptic,
    'COCO_rectangles': _write_coco,
    'YOLO_rectangles': _write_yolo,
    'BigEarthNet': _write_bigearthnet,
}
