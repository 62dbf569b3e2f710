"""Find the folder that holds chips, at or near the path that was given, and what its .emd says about the format."""

import mmap
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn

from geolearn.chips.emd import EMD_NAME, STATS_NAME, ExportMetadata, read_json
from geolearn.chips.formats.bigearthnet import is_bigearthnet
from geolearn.chips.formats.coco import JSON_FOLDERS, JSON_NAMES
from geolearn.chips.formats.files import IMAGE_SUFFIXES
from geolearn.chips.formats.tiles import LEGACY_DATES
from geolearn.chips.formats.voc import ANNOTATIONS
from geolearn.errors import ChipFolderError

# folders that people name after what is in them, or after what it is for, never after a class
_NO_CLASSES = frozenset(
    'a b after annotations before chips data gt ground_truth image images images2 img imgs label labels labels2 mask '
    'masks models test tiles train training val valid validation'.split()
)

_KINDS = dict.fromkeys(IMAGE_SUFFIXES, 'raster') | {'.xml': 'xml', '.txt': 'txt', '.json': 'json'}

_NO_LABELS = frozenset({'classes.txt', 'labels.txt', 'data.yaml'})

_LABEL_FILES = 50

_Counts = Counter[tuple[str, int]]
"""Files by kind and by how deep they lie."""

_NUMBER = re.compile(r'[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?', re.ASCII)


def recognise(folder: Path) -> str | None:
    """Return the dataset_type of what lies in a folder, or None where that is nothing known or could be several."""
    if (folder / 'images').is_dir():
        return _recognise_images(folder)
    if has_coco(folder):
        return 'COCO_rectangles'
    if all((folder / name).is_dir() for name in (*LEGACY_DATES, 'labels')):
        return 'ChangeDetection'
    if is_bigearthnet(folder):
        return 'BigEarthNet'
    return 'Imagenet' if _are_class_folders(folder) else None


def _recognise_images(folder: Path) -> str | None:
    images, labels = _kinds(folder / 'images'), _kinds(folder / 'labels')
    kinds = {kind for kind, _ in labels} - {'json'}
    found = {_by_labels(folder, images, labels)} if kinds else set()
    if has_coco(folder):
        found.add('COCO_rectangles')
    annotations = next((path for name in ANNOTATIONS if (path := folder / name).is_dir()), None)
    if not labels and annotations and {kind for kind, _ in _files(annotations)} == {'xml'}:
        found.add('PASCAL_VOC_rectangles')
    if found:
        return found.pop() if len(found) == 1 else None
    if (folder / 'labels').is_dir():  # it was meant to hold something
        return None
    classes = _are_class_folders(folder / 'images')
    if ('raster', 0) in images:
        lost = _coco_files(folder) or annotations  # labels that no reader knows
        return None if classes or lost else 'Export_Tiles'
    return 'Imagenet' if classes else None


def _by_labels(folder: Path, images: _Counts, labels: _Counts) -> str | None:
    """Tell by the one kind of file that labels/ holds; with several kinds none is told."""
    kinds = {kind for kind, _ in labels}
    if kinds == {'xml'}:
        return 'PASCAL_VOC_rectangles'
    if kinds == {'txt'}:
        return _by_lines(folder / 'labels')
    if kinds != {'raster'}:
        return None
    image_depths = {depth for kind, depth in images if kind == 'raster'}
    depths = {depth for _, depth in labels}
    if image_depths == {0} and depths == {1}:
        return 'RCNN_Masks'
    if depths != image_depths:
        return None
    if (folder / 'labels2').is_dir():
        return 'Panoptic_Segmentation'
    if has_images(folder / 'images2') and has_images(folder / 'images3'):
        return 'MultiTemporal_Tiles'
    return 'ChangeDetection' if has_images(folder / 'images2') else 'Classified_Tiles'


def _by_lines(labels: Path) -> str | None:
    """Tell KITTI (pixels) from YOLO (shares of the image) by the first lines of some files.

    Lines of neither count as broken while they are not the most: reading the chip tells what is wrong.
    """
    found = Counter(_by_columns(line) for _, line in _first_lines(labels))
    broken = found.pop(None, 0)
    return next(iter(found)) if len(found) == 1 and broken <= found.total() else None


def _first_lines(labels: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield the words of the first line of some text files, without those that begin with none."""
    paths = (path for path in sorted(labels.rglob('*.txt')) if path.name.lower() not in _NO_LABELS)
    for _, path in zip(range(_LABEL_FILES), paths):
        with path.open('rb') as file:
            line = file.readline(2**16).decode('utf-8', errors='replace').split()
        if line:
            yield path, line


def find_fault(folder: Path) -> str | None:
    """Say which file of a folder looks like labels and is none, or None where nothing does."""
    for path in _coco_files(folder):
        if not _is_coco(path):
            return f'{path} is no COCO file, which needs "images", "annotations" and "categories"'
    for path, line in _first_lines(folder / 'labels'):
        if _by_columns(line) is None:
            return f'{path} begins with {" ".join(line)[:60]!r}, which is a line of neither YOLO nor KITTI'
    return None


def _by_columns(columns: list[str]) -> str | None:
    numbers = [float(text) for text in columns if _NUMBER.fullmatch(text)]
    count = len(columns)
    if len(numbers) == count and count >= 5 and count % 2 and all(0 <= number <= 1 for number in numbers[1:]):
        return 'YOLO_rectangles'
    return 'KITTI_rectangles' if count >= 15 and len(numbers) >= 14 else None


def has_coco(folder: Path) -> bool:
    """Whether a file that COCO's reader would find names what every COCO file has."""
    return any(_is_coco(path) for path in _coco_files(folder))


def _coco_files(folder: Path) -> list[Path]:
    """Return the files that COCO's reader would find."""
    return [path for place in JSON_FOLDERS for name in JSON_NAMES for path in sorted((folder / place).glob(name))]


def _is_coco(path: Path) -> bool:
    """Search a file for COCO's keys; it is not parsed, since some are huge."""
    try:
        with path.open('rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return all(content.find(key) >= 0 for key in (b'"images"', b'"annotations"', b'"categories"'))
    except (OSError, ValueError):  # an empty file cannot be mapped
        return False


def has_images(folder: Path) -> bool:
    """Whether a raster lies anywhere below a folder, which need not exist."""
    return any(kind == 'raster' for kind, _ in _files(folder))


def _are_class_folders(folder: Path) -> bool:
    """Whether there are two or more folders with images in them, none with a name that speaks against a class."""
    counts: Counter[str] = Counter()
    for path in _visible_folders(folder):
        with os.scandir(path) as entries:
            if any(_suffix(entry.name) in IMAGE_SUFFIXES for entry in entries):
                counts[path.name.lower()] += 1
    return len(counts) > 1 and not counts.keys() & _NO_CLASSES


def _visible_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith('.'))


def _kinds(folder: Path) -> _Counts:
    """Count files below a folder by kind and depth."""
    return Counter(_files(folder))


def _files(folder: Path) -> Iterator[tuple[str, int]]:
    """Yield kind (raster, xml, txt or json) and depth of the files below a folder."""
    for here, _, files in os.walk(folder):
        depth = len(Path(here).relative_to(folder).parts)
        for name in files:
            kind = _KINDS.get(_suffix(name))
            if kind and not name.startswith('.') and name.lower() not in _NO_LABELS:
                yield kind, depth


def _suffix(name: str) -> str:
    """Return the suffix in lower case, none for sidecar files such as 1.tif.aux.xml and 1.tif.xml."""
    stem, suffix = os.path.splitext(name.lower())
    return '' if suffix == '.xml' and os.path.splitext(stem)[1] in (*IMAGE_SUFFIXES, '.aux') else suffix


_PARTS = ('images', 'images2', 'labels', 'labels2')


class Found(NamedTuple):
    """A folder of chips: where it is, what its content looks like if it has no .emd, and how it was found."""

    folder: Path
    recognised: str | None
    notes: tuple[str, ...]


def find_folder(path: str | Path, wanted: str | None, known: Iterable[str]) -> Found:
    """Find chips in `path` itself, in its parent if `path` is its images, or one level down.

    Args:
        path: What the user gave.
        wanted: dataset_type if the user gave one; then a folder without .emd need not look like anything known.
        known: Names of dataset_type, for messages.

    Raises:
        ChipFolderError: If there is no such folder, or several; the message lists what was found.
    """
    folder = Path(path)
    try:
        folder = folder.expanduser()
        if not folder.is_dir():
            raise ChipFolderError(f'{folder} is no folder; pass the folder that holds {EMD_NAME} or images/')
        return _with_emd(folder) or _without_emd(folder, wanted) or _refuse(folder, known)
    except RuntimeError as error:  # ~name of somebody who has no home
        raise ChipFolderError(f'{folder} is no folder: {error}') from error
    except OSError as error:
        raise ChipFolderError(f'cannot list {error.filename or folder}: {error.strerror}') from error


def _with_emd(folder: Path) -> Found | None:
    if (folder / EMD_NAME).is_file():
        return Found(folder, None, ())
    if folder.name in _PARTS and (folder.parent / EMD_NAME).is_file():
        return _moved(folder, folder.parent, None)
    below = [child for child in _children(folder) if (child / EMD_NAME).is_file()]
    return _moved(folder, _only(folder, below), None) if below else None


def _without_emd(folder: Path, wanted: str | None) -> Found | None:
    if folder.name in _PARTS and (folder.parent / 'images').is_dir() and (kind := wanted or recognise(folder.parent)):
        return _moved(folder, folder.parent, kind)
    if kind := recognise(folder):
        return Found(folder, kind, ())
    if wanted and (folder / 'images').is_dir():
        return Found(folder, None, ())
    children = [child for child in _children(folder) if child.name not in _PARTS]
    below = {child: kind for child in children if (kind := recognise(child))}
    if not below and wanted:
        below = {child: '' for child in children if (child / 'images').is_dir()}
        if not below:
            return Found(folder, None, ())
    return _moved(folder, child := _only(folder, list(below)), below[child] or None) if below else None


def _moved(given: Path, folder: Path, recognised: str | None) -> Found:
    return Found(folder, recognised, (f'{given} itself is no export; reading {folder}',))


def _only(folder: Path, below: list[Path]) -> Path:
    if len(below) > 1:
        names = ', '.join(child.name for child in below[:8]) + (', ...' if len(below) > 8 else '')
        raise ChipFolderError(f'{folder} holds {len(below)} exports ({names}); pass one of them')
    return below[0]


def _children(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith('.'))


def _refuse(folder: Path, known: Iterable[str]) -> NoReturn:
    faults = [fault for place in (folder, *_children(folder)) if (fault := find_fault(place))]
    raise ChipFolderError(
        f'{folder} is no export of training data: no {EMD_NAME} in it or one level down; it holds {_describe(folder)}, '
        f'which is nothing known or could be several things{f" ({faults[0]})" if faults else ""}. Pass the folder that '
        '"Export Training Data For Deep Learning" or export_training_data wrote, or name the format: '
        f'dataset_type={" | ".join(known)}'
    )


def _describe(folder: Path) -> str:
    """List what lies in a folder, and in its labels/."""
    shown = _entries(folder)
    if (folder / 'labels').is_dir():
        shown += f' (labels/ holds {_entries(folder / "labels")})'
    return shown


def _entries(folder: Path) -> str:
    entries = sorted(child.name + '/' * child.is_dir() for child in folder.iterdir())
    return ', '.join(entries[:8]) + (', ...' if len(entries) > 8 else '') if entries else 'nothing'


def emd_type(folder: Path, metadata: ExportMetadata) -> str | None:
    """Return the dataset_type that an export's own word amounts to, or None where it says nothing."""
    if metadata.metadata_mode == 'Classified_Tiles' and has_images(folder / 'images2'):
        return 'MultiTemporal_Tiles' if metadata.dates or has_images(folder / 'images3') else 'ChangeDetection'
    return metadata.metadata_mode or recognise(folder)


def refuse_what_is_not_read(folder: Path, dataset_type: str) -> None:
    """Refuse exports whose chips or labels are of a kind that geolearn has no task for.

    Raises:
        ChipFolderError: If chips are time series, or labels are captions.
    """
    emd = read_json(folder / EMD_NAME)
    stats = read_json(folder / STATS_NAME) if (folder / STATS_NAME).is_file() else {}
    if emd.get('IsMultidimensional') is True or stats.get('IsMultidimensional') is True:
        raise ChipFolderError(
            f'{folder / EMD_NAME} says IsMultidimensional: its chips are time series, which are not read; '
            'export single dates'
        )
    if emd.get('SingleLabelFieldFound') == 'Caption' and dataset_type != 'Export_Tiles':
        raise ChipFolderError(
            f'{folder / EMD_NAME} says that labels are captions, which are not read; '
            "pass dataset_type='Export_Tiles' to read the images alone"
        )
