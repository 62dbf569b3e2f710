"""What lies in a folder of chips: which part is which, whatever people call it, and what kinds of files are in it."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from rasterio.windows import Window

from geolearn.chips import emd, label
from geolearn.chips.formats.files import IMAGE_SUFFIXES, pair_names
from geolearn.chips.formats.writing import FormatWriter
from geolearn.errors import ChipFolderError, RasterError
from geolearn.raster import open_raster, read_window

_IMAGES = ('images', 'jpegimages', 'image', 'imgs', 'img')

_DATE_PAIRS = (
    ('images', 'images2'),
    ('images_before', 'images_after'),
    ('a', 'b'),
    ('pre', 'post'),
    ('before', 'after'),
    ('t1', 't2'),
    ('im1', 'im2'),
    ('time1', 'time2'),
    ('image1', 'image2'),
    ('pre_event', 'post_event'),
)

_LABELS = (
    'labels',
    'annotations',
    'label',
    'masks',
    'mask',
    'gt',
    'ground_truth',
    'segmentationclass',
    'annotation',
    'out',
    'change',
    'labeltxt',
)

_LABEL_WORDS = frozenset('mask masks label labels lbl gt seg annotation annotations groundtruth truth'.split())
"""Words in the names of label rasters that lie beside their images."""

PARTS = frozenset({*_IMAGES, *_LABELS, 'labels2', *(name for pair in _DATE_PAIRS for name in pair)})
"""Names of folders, in lower case, that hold a part of every chip."""

# folders that people name after what is in them, or after what it is for, never after a class
_NO_CLASSES = PARTS | frozenset('chips data models test tiles train training val valid validation'.split())

_KINDS = dict.fromkeys(IMAGE_SUFFIXES, 'raster') | {'.xml': 'xml', '.txt': 'txt', '.json': 'json'}

_NOT_LABELS = frozenset({'classes.txt', 'labels.txt', 'data.yaml'})

_LABEL_FILES = 50

_DOTA_LABELS = 'labeltxt'

_DOTA_HEADERS = (b'imagesource:', b'gsd:')

_NUMBER = re.compile(r'[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?', re.ASCII)


class FolderContent:
    """A folder that may hold chips; what is asked for is listed once.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @cached_property
    def _folders(self) -> dict[str, Path]:
        """Visible folders by their name in lower case; ``images`` goes before ``Images``."""
        return {path.name.lower(): path for path in visible_folders(self.root)[::-1]}

    @cached_property
    def dates(self) -> tuple[Path, ...]:
        """Folder of the images of each date, or of all images; ``images/`` where there is nothing of the kind."""
        for pair in _DATE_PAIRS:
            if self._folders.keys() >= set(pair):
                return tuple(self._folders[name] for name in pair)
        for name in _IMAGES:
            if name in self._folders:
                return (self._folders[name],)
        beside = {kind for kind, depth in _files(self.root, deepest=0)}
        return (self.root if 'raster' in beside and beside & {'xml', 'txt'} else self.root / 'images',)

    @property
    def images(self) -> Path:
        """Folder of the images, of the first date where there are several."""
        return self.dates[0]

    @cached_property
    def mixed(self) -> tuple[dict[str, Path], dict[str, Path]] | None:
        """Images and label rasters that lie in one folder, told apart by a word in the names of the labels.

        Such as ``1_sat.jpg`` and ``1_mask.png``; or by suffix and content, such as ``1.jpg`` and ``1.png``. None where
        the rasters of the folder are not of two kinds.
        """
        folder = self.images if self.images.is_dir() else self.root
        found: tuple[dict[str, Path], dict[str, Path]] = {}, {}
        by_suffix: dict[str, dict[str, Path]] = {}
        with suppress(OSError):
            for path in sorted(folder.iterdir()):
                if _suffix(path.name) in IMAGE_SUFFIXES and path.is_file() and not path.name.startswith('.'):
                    words = re.split(r'[^a-z]+', path.stem.lower())
                    found[not _LABEL_WORDS.isdisjoint(words)][path.stem] = path
                    by_suffix.setdefault(_suffix(path.name), {})[path.stem] = path
        if len(by_suffix) == 2 and not found[1]:
            return _labels_by_suffix(*by_suffix.values())
        if not all(found) or {path.stem for path in found[0].values()} & found[1].keys():
            return None
        pairs, _ = pair_names(*found)
        return found if 2 * len(pairs) > max(map(len, found)) else None

    @cached_property
    def labels(self) -> Path:
        """Folder of the labels: one of its own, else that of the images, else ``labels/``, which is not there."""
        for name in _LABELS:
            if name in self._folders:
                return self._folders[name]
        return self.images if self._beside else self.root / 'labels'

    @cached_property
    def _beside(self) -> set[str]:
        """Kinds of label files that lie beside the images."""
        return {kind for kind, _ in self._image_files} & {'xml', 'txt'}

    @cached_property
    def _image_files(self) -> Counter[tuple[str, int]]:
        return Counter(_files(self.images, deepest=0 if self.images == self.root else None))

    @cached_property
    def image_depths(self) -> set[int]:
        """How many folders below `images` the images lie."""
        return {depth for kind, depth in self._image_files if kind == 'raster'}

    @cached_property
    def _label_files(self) -> Counter[tuple[str, int]]:
        if self.labels == self.images:
            return Counter({key: count for key, count in self._image_files.items() if key[0] in self._beside})
        return Counter(_files(self.labels))

    @cached_property
    def dota_folders(self) -> tuple[Path, ...]:
        """Folders of labels that are called as DOTA's, such as labelTxt or labelTxt-v1.0.

        They lie here; or one level above, beside images that have no labels of their own.
        """
        if not self.images.is_dir():
            return ()
        own = _dota_folders(self.root)
        if own or self._beside or not self._folders.keys().isdisjoint(_LABELS) or self._has_json:
            return own
        return _dota_folders(self.root.parent)

    @property
    def dota_labels(self) -> Path | None:
        """The one of `dota_folders`, None where there is none.

        Raises:
            ChipFolderError: If there are several.
        """
        if len(self.dota_folders) > 1:
            names = ', '.join(path.name for path in self.dota_folders)
            raise ChipFolderError(
                f'{self.dota_folders[0].parent} has {len(self.dota_folders)} folders of labels: {names}; keep one of '
                'them beside images/'
            )
        return next(iter(self.dota_folders), None)

    @property
    def _has_json(self) -> bool:
        """Whether a JSON file lies here that may hold labels; ArcGIS's statistics do not."""
        return any(not path.name.startswith('esri_') for path in self.root.glob('*.json'))

    @cached_property
    def label_kinds(self) -> set[str]:
        """Kinds of files among the labels: raster, xml, txt, json."""
        return {kind for kind, _ in self._label_files}

    @cached_property
    def label_depths(self) -> set[int]:
        """How many folders below `labels` the labels lie."""
        return {depth for _, depth in self._label_files}

    @property
    def has_label_rasters(self) -> bool:
        """Whether each image may have a raster as its label: nothing else is among the labels, as deep as images."""
        return self.label_kinds == {'raster'} and self.label_depths == self.image_depths

    def has_date(self, number: int) -> bool:
        """Whether there are images of a second (2), third (3), ... date."""
        folder = self.dates[1] if number == 2 and len(self.dates) == 2 else self.root / f'images{number}'
        return has_images(folder)

    @cached_property
    def line_format(self) -> str | None:
        """``'YOLO'``, ``'KITTI'`` or ``'DOTA'`` where the labels are text, by the first lines of some files.

        Lines of neither count as broken while they are not the most: reading the chip says what is wrong.
        """
        if self.label_kinds != {'txt'}:
            return None
        found = Counter(_by_columns(line) for _, line in self.first_lines())
        broken = found.pop(None, 0)
        return next(iter(found)) if len(found) == 1 and broken <= found.total() else None

    def first_lines(self) -> Iterator[tuple[Path, list[str]]]:
        """Yield the words of the first line of some text files among the labels, if there are any."""
        paths = (path for path in sorted(self.labels.rglob('*.txt')) if path.name.lower() not in _NOT_LABELS)
        for _, path in zip(range(_LABEL_FILES), paths):
            with path.open('rb') as file:
                text = file.readline(2**16)
                while text.lower().startswith(_DOTA_HEADERS):
                    text = file.readline(2**16)
                line = text.decode('utf-8', errors='replace').split()
            if line:
                yield path, line

    def text_fault(self) -> str | None:
        """Say which text file among the labels is no label, or None where all seem to be."""
        for path, line in self.first_lines():
            if _by_columns(line) is None:
                return f'{path} begins with {" ".join(line)[:60]!r}, which is a line of neither YOLO nor KITTI nor DOTA'
        return None


@dataclass(frozen=True)
class ChipFormat:
    """One format of chip folders: a row of the table.

    Args:
        says: What it is, in a few words.
        layout: Which files it needs.
        read: Lists the chips of a folder.
        writer: Writes its labels; None for a format that is only read.
        fits: Whether the content of a folder is of this format beyond doubt; None where only an .emd can say so.
        generic: Whether other formats look like it too; it is recognized only where no other fits.
        published: Whether it is the layout of one published data set, which goes before formats that it looks like too.
    """

    says: str
    layout: str
    read: Callable[[Path, emd.ExportMetadata], label.Listing]
    writer: type[FormatWriter] | None = None
    fits: Callable[[FolderContent], bool] | None = None
    generic: bool = False
    published: bool = False


def has_class_folders(folder: Path) -> bool:
    """Whether a folder holds two or more folders with images in them, none with a name that is no class."""
    counts: Counter[str] = Counter()
    for path in visible_folders(folder):
        with os.scandir(path) as entries:
            if any(_suffix(entry.name) in IMAGE_SUFFIXES for entry in entries):
                counts[path.name.lower()] += 1
    return len(counts) > 1 and not counts.keys() & _NO_CLASSES


def has_images(folder: Path) -> bool:
    """Whether a raster lies anywhere below a folder, which need not exist."""
    return any(kind == 'raster' for kind, _ in _files(folder))


def _dota_folders(place: Path) -> tuple[Path, ...]:
    return tuple(path for path in visible_folders(place) if path.name.lower().startswith(_DOTA_LABELS))


def visible_folders(folder: Path) -> list[Path]:
    """Return the folders in a folder, sorted by name, without hidden ones."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith('.'))


_LABEL_VALUES = 32
"""Most values of a raster that is taken for a label where nothing but its content says so: a gray picture has more."""


def _labels_by_suffix(*groups: dict[str, Path]) -> tuple[dict[str, Path], dict[str, Path]] | None:
    """Tell images from label rasters of the same names, of which those of one suffix look like masks."""
    shared = sorted(groups[0].keys() & groups[1].keys())
    if 2 * len(shared) <= max(map(len, groups)):
        return None
    looked = shared[:: max(1, len(shared) // 5)]
    masks = [all(_is_mask(group[stem]) for stem in looked) for group in groups]
    if masks[0] != masks[1]:
        return groups[masks[0]], groups[masks[1]]
    return None


def _is_mask(path: Path) -> bool:
    """Whether a raster may hold classes: few whole numbers in one band, or in three that are equal."""
    try:
        with open_raster(path, chip=True) as src:
            if src.count not in (1, 3) or np.dtype(src.dtypes[0]).kind not in 'iub':
                return False
            pixels, _ = read_window(src, Window(0, 0, src.width, src.height), src.indexes)
    except RasterError:
        return False
    return bool((pixels == pixels[:1]).all()) and len(np.unique(pixels[0])) <= _LABEL_VALUES


LOWEST, HIGHEST = -1.0, 2.0
"""Of fractions of an image: a little beyond its edge is rounding, or cropping."""


def _by_columns(columns: list[str]) -> str | None:
    numbers = [float(text) for text in columns if _NUMBER.fullmatch(text)]
    count = len(columns)
    fractions = all(LOWEST <= number <= HIGHEST for number in numbers[1:])
    if len(numbers) == count and count >= 5 and count % 2 and fractions and numbers[0] >= 0 and numbers[0] % 1 == 0:
        return 'YOLO'
    if 9 <= count <= 10 and all(_NUMBER.fullmatch(text) for text in columns[:8]):
        return 'DOTA'
    return 'KITTI' if count >= 15 and len(numbers) >= 14 else None


def _files(folder: Path, *, deepest: int | None = None) -> Iterator[tuple[str, int]]:
    """Yield kind (raster, xml, txt or json) and depth of the files below a folder."""
    for here, folders, files in os.walk(folder):
        depth = len(Path(here).relative_to(folder).parts)
        if depth == deepest:
            folders.clear()
        for name in files:
            kind = _KINDS.get(_suffix(name))
            if kind and not name.startswith('.') and name.lower() not in _NOT_LABELS:
                yield kind, depth


def _suffix(name: str) -> str:
    """Return the suffix in lower case, none for sidecar files such as 1.tif.aux.xml and 1.tif.xml."""
    stem, suffix = os.path.splitext(name.lower())
    return '' if suffix == '.xml' and os.path.splitext(stem)[1] in (*IMAGE_SUFFIXES, '.aux') else suffix
