"""The .dlpk: a stored zip of JSON and safetensors, safe by construction. No pickle, no code is read from it.

It may carry a Python file for ArcGIS Pro and a program of torch.export, which are written and never read, and an ONNX
graph, which is handed to onnxruntime as data. ArcGIS Pro unpacks bundles before it runs that file, so an unpacked
bundle, the .emd beside its weights, is read as well. Without the weights, reading takes no torch.
"""

import json
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, get_args

from safetensors import SafetensorError

from geolearn import errors, files, notebook

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
"""Number of the manifest's format; readers take every number up to their own."""

SUFFIX = '.dlpk'
MAX_MEMBERS = 10_000
MAX_MANIFEST_BYTES = 8 * 2**20
"""Of the .emd; JSON takes twenty times its size once it is parsed."""
MAX_BYTES = 16 * 2**30
"""Of all members together, unpacked."""
FIGURES = 'ModelCharacteristics/'
"""Folder of the figures, as Esri calls it."""
REPORT = 'model_metrics.html'
"""The report, as Esri calls it."""
MAX_FIGURE_BYTES = 64 * 2**20
"""Of all figures and the report together."""
Export = Literal['onnx', 'torch', 'onnx-int8']
"""Graphs that a bundle may hold beside the weights: ONNX, a program of torch.export, and ONNX in 8 bits."""

EXPORT_FILES: Mapping[Export, str] = {'onnx': 'model.onnx', 'torch': 'model.pt2', 'onnx-int8': 'model.int8.onnx'}
"""Their names in the bundle. The program is never read back: it may hold pickled objects."""

GraphOutput = Literal['classes', 'values', 'chip classes', 'objects']
"""What a graph gives: logits of classes or a value at each pixel, logits of classes of the image, or boxes and scores.

Of objects these are (N, places, 4 + classes): left, top, right and bottom in pixels (of oriented boxes five numbers: x,
y, width, height and angle), and the score of each class, at every place of every level.
"""

Candidates = Literal['level', 'level and image', 'class']
"""What the highest scores are taken of before overlapping boxes are dropped: each level, then all, or each class."""

MAX_LEVELS, MAX_PLACE_BOXES, MAX_OBJECTS = 8, 64, 100_000

MAX_MULTIPLE, MAX_GRAPH_SIDE = 1024, 16_384
"""Pixels: of a network's coarsest stride, and of the sides of images that a graph takes."""

OTHER_FILES = re.compile(rb'(?:\x0a|\x8a\x80*\x00)(?:\x08|\x88\x80*\x00)location')
"""How ONNX begins a reference to a file of weights beside it, with numbers as short as they can be or longer;
geolearn writes none."""

MAX_RATIO = 10
"""A member that unpacks to more than this times its packed size is a decompression bomb: weights hardly shrink."""
MAX_SMALL_BYTES = 2**20
"""Members up to here are no danger, however well they are packed."""

# what zipfile raises, by where the damage is met
_BROKEN_ZIP = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    struct.error,
    NotImplementedError,
    EOFError,
    OSError,
)


@dataclass(frozen=True)
class Bundle:
    """What a .dlpk holds.

    Args:
        emd: The model definition, strict JSON: Esri's keys, and geolearn's manifest under ``'geolearn'``.
        weights: Parameters and buffers of the network by name.
        extras: Other members by their name in the bundle; only `REPORT` and figures, PNGs in
            `FIGURES`, are read back. Neither is trusted for it.
    """

    emd: Mapping[str, Any]
    weights: 'Mapping[str, Tensor]'
    extras: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def manifest(self) -> Mapping[str, Any]:
        """The ``'geolearn'`` block."""
        return self.emd['geolearn']

    def __repr__(self) -> str:
        return '\n'.join([self._title, *(f'  {label:<8} {text}' for label, text in self._rows if text)])

    def _repr_html_(self) -> str:
        return notebook.table_as_html(self._title, self._rows)

    @property
    def _title(self) -> str:
        return f'Bundle of a {self.manifest.get("model", "model")}'

    @property
    def _rows(self) -> list[tuple[str, str]]:
        found = self.manifest
        names = {
            key: [str(row.get('name', '')) for row in found.get(key) or () if isinstance(row, dict)]
            for key in ('bands', 'class_infos')
        }
        numbers = sum(tensor.numel() for tensor in self.weights.values())
        return [
            ('backbone', str(found.get('backbone') or '')),
            ('bands', ', '.join(names['bands'])),
            ('classes', ', '.join(names['class_infos'])),
            ('weights', f'{len(self.weights)} tensors of {numbers:,} numbers'),
            ('files', ', '.join(sorted(self.extras))),
        ]

    def with_graphs(self, members: Mapping[str, bytes], manifest: Mapping[str, Any]) -> 'Bundle':
        """Return the bundle with graphs of its network.

        Args:
            members: Files by name.
            manifest: What is known of them, as plain JSON.
        """
        emd = {**self.emd, 'geolearn': {**self.manifest, 'exports': manifest}}
        return replace(self, emd=emd, extras={**self.extras, **members})


PADDED_MULTIPLE = 32
"""Detectors and their graphs fill the sides of zoomed images up to multiples of this, in pixels."""

SMALLEST_SIDE = 0.5
"""Detected boxes narrower than this, in pixels, show nothing."""


@dataclass(frozen=True)
class DetectionFacts:
    """How objects are made of what a graph gives for each place.

    Args:
        strides: Of the levels in pixels, finest first.
        boxes_per_place: Boxes at each place of a level, or of each window.
        oriented: Whether boxes are oriented.
        score_thresh: Lower scores are no objects.
        nms_thresh: Intersection over union above which the lower-scoring of two boxes of one class is dropped.
        candidates: What the highest scores are taken of.
        most_candidates: So many of each.
        most: Objects of an image, or of a window.
        typical_side: Pixels that nearly no object exceeds; tiles overlap by as much.
        zoom: By which the graph resamples images; its boxes are in zoomed pixels.
        window: Side in zoomed pixels of the windows through which it sees images, which `tiling.spread_windows` spreads
            and of which each counts as a level; 0 where it sees them whole.
    """

    strides: tuple[int, ...]
    boxes_per_place: int
    oriented: bool
    score_thresh: float
    nms_thresh: float
    candidates: Candidates
    most_candidates: int
    most: int
    typical_side: float
    zoom: float = 1.0
    window: int = 0

    def __post_init__(self) -> None:
        if not 1 <= len(self.strides) <= MAX_LEVELS or not all(
            1 <= stride <= MAX_GRAPH_SIDE for stride in self.strides
        ):
            raise ValueError(f'levels of the strides {self.strides} are none that a detector has')
        most = MAX_OBJECTS if self.window else MAX_PLACE_BOXES
        if not 1 <= self.boxes_per_place <= most:
            raise ValueError(f'a place or window has 1 to {most} boxes, got {self.boxes_per_place}')
        if not all(1 <= count <= MAX_OBJECTS for count in (self.most, self.most_candidates)):
            raise ValueError(f'objects and candidates are 1 to {MAX_OBJECTS}, got {self.most}, {self.most_candidates}')
        if not 0 <= self.score_thresh <= 1 or not 0 <= self.nms_thresh <= 1:
            raise ValueError(f'thresholds are in 0..1, got {self.score_thresh} and {self.nms_thresh}')
        if not 0 < self.typical_side <= MAX_GRAPH_SIDE or not 1 / 64 <= self.zoom <= 64:
            raise ValueError(f'objects of {self.typical_side} pixels, zoomed by {self.zoom}, are none')
        if not 0 <= self.window <= MAX_GRAPH_SIDE or self.window % self.strides[-1]:
            raise ValueError(f'windows of {self.window} pixels are no multiples of {self.strides[-1]}')

    @property
    def numbers(self) -> int:
        """How many numbers a box has."""
        return 5 if self.oriented else 4


@dataclass(frozen=True)
class GraphFacts:
    """What a program that runs a graph needs to know besides the description of the model.

    Args:
        output: What the graph gives.
        dtype: Of the map's pixels.
        nodata: Of the map; None for NaN.
        tile_size: Side of the usual tiles in pixels, which `multiple` divides.
        halo: Half of what these share.
        multiple: Of which sides and starts of tiles are multiples: the network's coarsest stride.
        position_grid: Whether positions are embedded, so that tiles are of the size of the chips and fade into each
            other.
        every_date: Whether a pixel needs data at every date.
        size: The only (height, width) of images that the graph takes; None for any.
        dates: When images were taken, as ISO dates, which the graph holds as constants; empty where it reads none.
        location: Latitude and longitude of images, which it holds so; None where it reads none.
        resolution_m: Meters per pixel, which it holds so; None where it reads none.
        detection: How objects are made of its output; None for graphs of other outputs.
    """

    output: GraphOutput
    dtype: str
    nodata: int | None
    tile_size: int
    halo: int
    multiple: int
    position_grid: bool = False
    every_date: bool = False
    size: tuple[int, int] | None = None
    dates: tuple[str, ...] = ()
    location: tuple[float, float] | None = None
    resolution_m: float | None = None
    detection: DetectionFacts | None = None

    def __post_init__(self) -> None:
        sides = (self.tile_size, *(self.size or ()))
        if not 1 <= self.multiple <= MAX_MULTIPLE or not all(1 <= side <= MAX_GRAPH_SIDE for side in sides):
            raise ValueError(f'tiles of {sides} pixels, multiples of {self.multiple}, are none that a graph takes')
        if self.dtype not in ('uint8', 'uint16', 'float32'):
            raise ValueError(f'maps are uint8, uint16 or float32, got {self.dtype!r}')
        if (self.output == 'objects') != (self.detection is not None):
            raise ValueError(f'a graph of {self.output} {"lacks" if self.detection is None else "has"} detection')
        if not 0 <= 2 * self.halo < self.tile_size:
            raise ValueError(f'halo must be at least 0 and under half of the tile, got {self.halo}')


def write_bundle(path: str | Path, bundle: Bundle) -> Path:
    """Write a bundle; a crash half way leaves any older file as it was.

    Args:
        path: Target with suffix .dlpk; its stem names the .emd and the weights inside, with an underscore for every
            character that is no letter, digit, dot, dash, space or underscore.
        bundle: What to write; format number and ModelFile are filled in.

    Raises:
        BundleError: If `read_bundle` would refuse it.
        FileWriteError: If the folder does not exist or the disk is full.
    """
    from safetensors.torch import save as format_safetensors

    path = Path(path)
    stem = re.sub(r'[^\w. -]', '_', path.stem)
    weights_name = f'{stem}.safetensors'
    emd = dict(bundle.emd) | {'ModelFile': weights_name, 'geolearn': {**bundle.manifest, 'format': FORMAT}}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in bundle.weights.items()}
    with files.atomic_write(path) as part, zipfile.ZipFile(part, 'w', zipfile.ZIP_STORED) as archive:
        archive.writestr(f'{stem}.emd', json.dumps(emd, indent=2, allow_nan=False))
        archive.writestr(weights_name, format_safetensors(tensors))
        for name, content in bundle.extras.items():
            archive.writestr(name, content)
        _check_members(archive.infolist(), path, part.stat().st_size)
        _find_emd(archive.infolist(), path)
    return path


def find_bundle(path: str | Path) -> Path:
    """Return the .dlpk that `path` is, that lies beside the .emd it names, or that is alone in the folder it names.

    Where a folder holds no .dlpk, it is the .emd of an unpacked bundle.

    Raises:
        BundleError: If there is none, or several.
    """
    path = Path(path).expanduser()
    unpacked = [path] if path.is_file() and path.suffix == '.emd' else sorted(path.glob('*.emd'))
    if path in unpacked:
        path = path.parent
    if path.is_dir():
        found = sorted(path.glob(f'*{SUFFIX}')) or unpacked
        if len(found) != 1:
            names = ', '.join(p.name for p in found) or 'none'
            raise errors.BundleError(f'{path} must hold exactly one {SUFFIX} file, found {names}; pass the file itself')
        return found[0]
    if not path.is_file():
        raise errors.BundleError(f'{path} does not exist; pass the {SUFFIX} that model.save() wrote')
    return path


def read_bundle(path: str | Path) -> Bundle:
    """Read a bundle, packed or unpacked, trusting nothing in it.

    Raises:
        BundleError: If the file is no zip, is truncated, holds unsafe or duplicate names, unpacks to an absurd size,
            has no geolearn manifest, or was written by a newer geolearn.
    """
    path = find_bundle(path)
    with _readable(path):
        return _read_folder(path) if path.suffix == '.emd' else _read_zip(path)


def read_emd(path: str | Path, *, foreign: bool = False) -> dict[str, Any]:
    """Read the model definition of a bundle, packed or unpacked, and nothing else of it; takes no torch.

    Args:
        path: As `find_bundle` takes it.
        foreign: Whether definitions of other software, without a manifest of geolearn, are returned too.

    Raises:
        BundleError: As `read_bundle` does.
    """
    path = find_bundle(path)
    with _readable(path):
        if path.suffix == '.emd':
            return _read_emd_file(path, foreign=foreign)
        with zipfile.ZipFile(path) as archive:
            _check_members(archive.infolist(), path, path.stat().st_size)
            member = _find_emd(archive.infolist(), path)
            return _parse_emd(archive.read(member), f'{path}: {member.filename}', foreign=foreign)


def list_members(path: str | Path) -> dict[str, int]:
    """Return the files in a bundle, or beside the .emd of an unpacked one, with their sizes in bytes.

    Raises:
        BundleError: As `read_bundle` does.
    """
    path = find_bundle(path)
    with _readable(path):
        if path.suffix == '.emd':
            return {item.name: item.stat().st_size for item in sorted(path.parent.iterdir()) if item.is_file()}
        with zipfile.ZipFile(path) as archive:
            _check_members(archive.infolist(), path, path.stat().st_size)
            return {member.filename: member.file_size for member in archive.infolist() if not member.is_dir()}


def read_onnx(path: str | Path, kind: Export = 'onnx') -> bytes:
    """Read the ONNX graph of a bundle, packed or unpacked.

    Args:
        path: As `find_bundle` takes it.
        kind: Which of its ONNX graphs.

    Raises:
        BundleError: If it holds none, the graph refers to other files, or as `read_bundle` does.
    """
    path, name = find_bundle(path), EXPORT_FILES[kind]
    if name not in list_members(path):
        raise errors.BundleError(
            f'{path} holds no {"ONNX graph" if kind == "onnx" else f"graph of the kind {kind}"}; write one with torch: '
            f"load_model(path).save(path, export='{kind}')"
        )
    with _readable(path):
        if path.suffix == '.emd':
            graph = (path.parent / name).read_bytes()
        else:
            with zipfile.ZipFile(path) as archive:
                graph = archive.read(name)
    if OTHER_FILES.search(graph):
        raise errors.BundleError(f'{path}: {name} takes weights from other files; geolearn writes no such graphs')
    return graph


def check_exports(export: str | Sequence[str]) -> tuple[Export, ...]:
    """Return the graphs that a caller asks for, one name or several.

    Raises:
        UnknownNameError: If there is no such kind of graph.
    """
    names = (export,) if isinstance(export, str) else tuple(export)
    for name in names:
        if name not in get_args(Export):
            raise errors.UnknownNameError('export', str(name), get_args(Export))
    return tuple(kind for kind in get_args(Export) if kind in names)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what goes wrong while a bundle is read into the error that says so."""
    try:
        yield
    except _BROKEN_ZIP as error:
        raise errors.BundleError(
            f'{path} is no readable {SUFFIX}: {error}; it may be truncated, copy it again'
        ) from error
    except MemoryError as error:
        raise errors.BundleError(f'{path} needs more memory than there is') from error
    except (SafetensorError, ValueError, KeyError) as error:
        if isinstance(error, errors.BundleError):
            raise
        raise errors.BundleError(f'the weights in {path} are broken: {error}; copy the file again') from error


def _read_zip(path: Path) -> Bundle:
    with zipfile.ZipFile(path) as archive:
        _check_members(archive.infolist(), path, path.stat().st_size)
        member = _find_emd(archive.infolist(), path)
        emd = _parse_emd(archive.read(member), f'{path}: {member.filename}')
        weights = parse_weights(archive.read(_weights_name(emd, archive.namelist(), path)))
        figures = {member.filename: archive.read(member) for member in archive.infolist() if _is_figure(member)}
    return Bundle(emd, weights, figures)


def _read_emd_file(path: Path, *, foreign: bool = False) -> dict[str, Any]:
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise errors.BundleError(f'{path} is {path.stat().st_size} bytes; that is no model definition')
    return _parse_emd(path.read_bytes(), str(path), foreign=foreign)


def _read_folder(path: Path) -> Bundle:
    """Read the bundle whose .emd this is; figures are left where they are."""
    emd = _read_emd_file(path)
    # names of files in the folder, so that no name leads out of it
    weights = path.parent / _weights_name(emd, [item.name for item in path.parent.iterdir()], path)
    return Bundle(emd, parse_weights(weights.read_bytes()))


def parse_weights(content: bytes) -> 'dict[str, Tensor]':
    """Read safetensors; this alone takes torch."""
    from safetensors.torch import load as parse_safetensors

    return parse_safetensors(content)


def _check_members(members: list[zipfile.ZipInfo], path: Path, size: int) -> None:
    """Refuse what is unsafe or absurd by the sizes that a zip declares, before anything is unpacked."""
    if len(members) > MAX_MEMBERS:
        raise errors.BundleError(f'{path} holds {len(members)} members; at most {MAX_MEMBERS} are read')
    figures = [member for member in members if _is_figure(member)]
    for what, group, most in (('members', members, MAX_BYTES), ('figures', figures, MAX_FIGURE_BYTES)):
        if (total := sum(member.file_size for member in group)) > most:
            raise errors.BundleError(f'{path}: its {what} unpack to {total} bytes; at most {most} are read')
    if (packed := sum(member.compress_size for member in members)) > size:
        raise errors.BundleError(f'{path} claims {packed} bytes of packed members in a file of {size}; do not trust it')
    seen: set[str] = set()
    for member in members:
        name = member.filename
        parts = PurePosixPath(name).parts
        unsafe = not parts or name.startswith('/') or '..' in parts or '\\' in name or ':' in name or '\0' in name
        if unsafe or stat.S_ISLNK(member.external_attr >> 16):
            raise errors.BundleError(
                f'{path} holds the member {name!r}, which points out of the bundle; do not trust it'
            )
        folded = str(PurePosixPath(name)).casefold()
        if folded in seen:
            raise errors.BundleError(f'{path} holds the member {name!r} twice; do not trust it')
        seen.add(folded)
        if member.file_size > max(MAX_RATIO * member.compress_size, MAX_SMALL_BYTES):
            raise errors.BundleError(f'{path}: member {name!r} unpacks to {member.file_size} bytes; that is no model')
        if member.flag_bits & 0x1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise errors.BundleError(
                f'{path}: member {name!r} is encrypted or oddly packed; geolearn writes no such bundles'
            )


def _is_figure(member: zipfile.ZipInfo) -> bool:
    name = member.filename
    return name == REPORT or (name.startswith(FIGURES) and name.endswith('.png'))


def _find_emd(members: list[zipfile.ZipInfo], path: Path) -> zipfile.ZipInfo:
    found = [member for member in members if member.filename.endswith('.emd') and '/' not in member.filename]
    if len(found) != 1:
        raise errors.BundleError(f'{path} must hold exactly one .emd at its root, found {len(found)}')
    if found[0].file_size > MAX_MANIFEST_BYTES:
        raise errors.BundleError(
            f'{path}: {found[0].filename} is {found[0].file_size} bytes; that is no model definition'
        )
    return found[0]


def _parse_emd(content: bytes, name: str, *, foreign: bool = False) -> dict[str, Any]:
    try:
        emd = json.loads(content)
        # numbers beyond those of JSON, and halves of characters, which no file can hold
        json.dumps(emd, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise errors.BundleError(f'{name} is not valid JSON: {error}') from error
    manifest = emd.get('geolearn') if isinstance(emd, dict) else None
    if foreign and isinstance(emd, dict) and manifest is None:
        return emd
    if not isinstance(manifest, dict):
        raise errors.BundleError(
            f'{name} was not written by geolearn: it has no "geolearn" block. Weights of other software have '
            'other layers; train the model again with geolearn'
        )
    number = manifest.get('format')
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise errors.BundleError(f'{name}: the manifest has format {number!r}; a whole number from 1 is needed')
    if number > FORMAT:
        raise errors.BundleError(f'{name} has format {number} but this geolearn reads up to {FORMAT}; upgrade geolearn')
    return emd


def _weights_name(emd: Mapping[str, Any], names: list[str], path: Path) -> str:
    name = emd.get('ModelFile')
    if not isinstance(name, str) or not name.endswith('.safetensors') or name not in names:
        raise errors.BundleError(f'{path}: ModelFile is {name!r}; the name of a .safetensors member is needed')
    return name
