"""Journals of long runs: what is finished, in a file beside the result, to resume from."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakKeyDictionary

import numpy as np

from geolearn import errors, extras
from geolearn.files import file_states, lock_file
from geolearn.inference.merging import TileDetections
from geolearn.inference.options import ReadOptions
from geolearn.inference.source import Source
from geolearn.networks.spec import ModelSpec
from geolearn.raster.area import CroppedRaster
from geolearn.raster.identity import digest_of_samples
from geolearn.raster.remote import is_remote
from geolearn.tiling import TileGrid

if TYPE_CHECKING:
    import torch  # loaded where it is needed: graphs map rasters too
    from torch import nn

log = logging.getLogger('geolearn')

FORMAT = 1


class JournalInUseError(errors.CheckpointError):
    """Another process writes the journal."""


class Journal:
    """A file of text that grows by a line for each step that is finished.

    The first line identifies the run, the others are steps, as JSON. A last line that is incomplete, after a kill, is
    ignored. While a journal is open, no other process opens it.

    Args:
        path: The file.
        run: What must be equal for a run to be resumed, as JSON.
        resume: Continue with the file, instead of starting another.
        free: Names in `run` of which the file's values are taken, whatever they are now; see `facts`.
        instead: What to do where the file cannot be resumed from.

    Raises:
        JournalInUseError: If another process writes the file.
        CheckpointError: If the file cannot be written; or cannot be resumed from: absent, broken, or of another run.
    """

    def __init__(
        self,
        path: Path,
        run: Mapping[str, Any],
        *,
        resume: bool,
        free: Sequence[str] = (),
        instead: str = 'run without resume=True',
    ) -> None:
        self.path, self._free, self._instead = path, free, instead
        self.steps: list[dict[str, Any]] = []
        self.facts: dict[str, Any] = json.loads(json.dumps({'geolearn': FORMAT, **run}))
        """What identifies the run, as its first line has it."""
        if resume and not path.is_file():
            raise errors.CheckpointError(f'there is no {path} to resume; {instead}')
        try:
            # opened before it is emptied: another process may be writing it
            self._file = path.open('a', encoding='ascii')
        except OSError as error:
            raise errors.CheckpointError(
                f'{path}, which keeps the finished tiles, cannot be opened: {error}'
            ) from error
        try:
            self._lock()
            if resume:
                self._read()
            else:
                self._file.truncate(0)
                self._write(self.facts)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        # what a full disk did not take is tried once more here, and `add` has said why it was not taken
        with suppress(OSError):
            self._file.close()

    def add(self, step: Mapping[str, Any]) -> None:
        """Append a step.

        Raises:
            CheckpointError: If it cannot be written, such as on a full disk.
        """
        self._write(step)

    def remove(self) -> None:
        """Delete the file, once the result is written."""
        self.close()
        self.path.unlink(missing_ok=True)

    def broken(self) -> errors.CheckpointError:
        """Return the error to raise where a step cannot be understood."""
        return errors.CheckpointError(f'{self.path} is broken, or was not written by geolearn; {self._instead}')

    def _lock(self) -> None:
        if not lock_file(self._file):
            raise JournalInUseError(f'another process writes {self.path}; wait for it, or write to another file')

    def _write(self, row: Mapping[str, Any]) -> None:
        try:
            self._file.write(json.dumps(row) + '\n')
            self._file.flush()
        except OSError as error:
            raise errors.CheckpointError(
                f'{self.path}, which keeps the finished tiles, cannot be written: {error}'
            ) from error

    def _read(self) -> None:
        """Read the finished steps, and cut off an incomplete last line."""
        whole = 0
        with self.path.open('rb') as file:
            for line in file:
                if not line.endswith(b'\n'):
                    break
                row = self._parse(line)
                if whole:
                    self.steps.append(row)
                else:
                    self.facts |= {name: row.get(name) for name in self._free}
                    _check_same(self.path, row, self.facts, self._instead)
                whole += len(line)
        if not whole:
            raise errors.CheckpointError(f'{self.path} holds nothing to resume; {self._instead}')
        self._file.truncate(whole)

    def _parse(self, line: bytes) -> dict[str, Any]:
        try:
            row = json.loads(line)
        except ValueError as error:
            raise self.broken() from error
        if not isinstance(row, dict):
            raise self.broken()
        return row


def read_facts(target: Path) -> dict[str, Any]:
    """Return what identifies the unfinished run of a map or layer; nothing where there is none that can be read.

    Args:
        target: The map, or the layer.
    """
    path = target.with_name(f'{target.name}.part')
    try:
        with (path / 'journal' if path.is_dir() else path).open('rb') as file:
            facts = json.loads(file.readline())
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


class RunCheckpoint:
    """The objects of finished tiles of a detection run.

    Outlines are kept as well-known binary in hex, numbers in full.

    Args:
        journal: That keeps them.

    Raises:
        CheckpointError: If it holds what geolearn did not write.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.detections: list[TileDetections] = []
        self.tiles_done = 0
        try:
            for step in journal.steps:
                self._take(step)
        except BaseException:
            journal.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._journal.close()

    def add(self, detections: TileDetections, tiles_done: int) -> None:
        """Append the detections of a batch.

        Args:
            detections: Of its tiles.
            tiles_done: How many tiles of the raster, counted row by row, are done with it.

        Raises:
            CheckpointError: If it cannot be written, such as on a full disk.
        """
        self._journal.add({'tiles_done': tiles_done, **_as_json(detections)})
        self.tiles_done = tiles_done

    def finish(self, tiles: int) -> None:
        """Note that all tiles are done, of which the last ones had no data.

        Args:
            tiles: How many there are.
        """
        if self.tiles_done < tiles:
            self.add(TileDetections.concatenate([]), tiles)

    def remove(self) -> None:
        """Delete the file, once the result is written."""
        self._journal.remove()

    def _take(self, row: Mapping[str, Any]) -> None:
        try:
            detections, done = _from_json(row), int(row['tiles_done'])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise self._journal.broken() from error
        if done <= self.tiles_done:
            raise self._journal.broken()
        self.detections.append(detections)
        self.tiles_done = done


def open_checkpoint(target: Path, run: Mapping[str, Any], *, resume: bool) -> RunCheckpoint:
    """Open what keeps the objects of finished tiles, in a file that is named after the result, with ``.part`` behind.

    Args:
        target: Result of the run.
        run: What must be equal for a run to be resumed, as JSON.
        resume: Continue with the file, instead of starting another.

    Raises:
        CheckpointError: See `Journal`; or there are parts of a run on several machines.
    """
    path = target.with_name(f'{target.name}.part')
    if any(path.glob('of-*')):
        raise errors.CheckpointError(
            f'{path} holds parts of a run; compute the others and pass merge_parts=True, or delete the folder'
        )
    if not resume and path.exists():
        log.warning('%s of an unfinished run is replaced; pass resume=True to continue it', path)
    checkpoint = RunCheckpoint(Journal(path, run, resume=resume))
    if resume:
        log.info('resumed after %s tiles', checkpoint.tiles_done)
    return checkpoint


def raster_file_states(files: Sequence[str]) -> list[tuple[str, int, int]]:
    """Return name, size and time of the files of a raster that lie on this machine, without their sidecars."""
    # sidecars are written by any program that opens a raster
    return file_states(name for name in files if Path(name).suffix.lower() not in ('.xml', '.ovr'))


def source_facts(source: Source) -> dict[str, Any]:
    """Return what identifies a raster, as JSON: its files' names, sizes and times, its place and bands."""
    src = source.dataset
    states = raster_file_states(src.files)
    # arrays and remote files have no time, and what an item states of its files has none either
    sampled = not states or src.rescaled or any(is_remote(name) for name in src.files)
    samples = {'samples': digest_of_samples(src), 'names': list(src.files)} if sampled else {}
    box = source.box
    place = [*box.shape, *box.transform[:6], box.crs]
    area = {'area': src.area.digest()} if isinstance(src, CroppedRaster) else {}
    return {'files': states or src.name, 'place': place, 'bands': source.indexes, **samples, **area}


def run_facts(
    spec: ModelSpec, weights: str, sources: Sequence[Source], grid: TileGrid, read: ReadOptions
) -> dict[str, Any]:
    """Return what must be equal for any run over tiles to be resumed, as JSON.

    Args:
        spec: Of the model.
        weights: Their hash.
        sources: One for each date.
        grid: How the raster is cut.
        read: How the raster is read.
    """
    return {
        'model': spec.model,
        'options of the model': spec.options,
        'weights': weights,
        'raster': [source_facts(source) for source in sources],
        'tiles': [grid.tile_shape, grid.rows, grid.cols],
        'scale': 'db' if read.scale == 'db' else float(read.factor),
        'offset': float(read.offset),
    }


_digests: 'WeakKeyDictionary[nn.Module, tuple[list[tuple[int, int, float, float]], str]]' = WeakKeyDictionary()
"""Of networks, with marks of their weights: on small scenes, hashing takes as long as the network."""


def weights_digest(network: 'nn.Module') -> str:
    """Return a hash, in hex, of all weights."""
    import torch

    tensors = network.state_dict()
    # the version counts changes in place, which `tensor.data` escapes; sums see those, and sums of every seventh see a
    # kernel that is flipped or moved
    flat = {name: tensor.detach().reshape(-1) for name, tensor in tensors.items()}
    marks = [
        (tensor.data_ptr(), _version(tensors[name]), float(tensor.sum()), float(tensor[::7].sum()))
        for name, tensor in flat.items()
    ]
    known, text = _digests.get(network, ([], ''))
    if text and known == marks:
        return text
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in tensors.items():
        digest.update(f'{name} {tensor.dtype} {tuple(tensor.shape)}'.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    _digests[network] = marks, digest.hexdigest()
    return digest.hexdigest()


def _version(tensor: 'torch.Tensor') -> int:
    return 0 if tensor.is_inference() else tensor._version


def _as_json(detections: TileDetections) -> dict[str, Any]:
    row = {name: getattr(detections, name).tolist() for name in ('boxes', 'labels', 'scores', 'tiles')}
    if detections.turned is not None:
        row['turned'] = detections.turned.tolist()
    if detections.outlines is None:
        return row
    shapely = extras.require('shapely', extra='vector', to='keep outlines')
    return row | {'outlines': shapely.to_wkb(detections.outlines, hex=True).tolist()}


def _from_json(row: Mapping[str, Any]) -> TileDetections:
    """Undo `_as_json`; ValueError where the numbers are not those of objects."""
    boxes = np.array(row['boxes'], np.float64).reshape(-1, 4)
    labels, tiles = (np.array(row[name], np.int64) for name in ('labels', 'tiles'))
    scores = np.array(row['scores'], np.float64)
    outlines = None
    if 'outlines' in row:
        shapely = extras.require('shapely', extra='vector', to='keep outlines')
        outlines = np.array(shapely.from_wkb(np.array(row['outlines'], object), on_invalid='ignore'), object)
        if shapely.is_missing(outlines).any():
            raise ValueError('an outline is not well-known binary')
    columns = [labels, tiles, scores] + ([] if outlines is None else [outlines])
    if any(column.shape != (len(boxes),) for column in columns) or not np.isfinite(boxes).all():
        raise ValueError(f'{len(boxes)} boxes with columns of {[column.shape for column in columns]}')
    turned = np.array(row['turned'], np.float64).reshape(-1, 5) if 'turned' in row else None
    if turned is not None and (len(turned) != len(boxes) or not np.isfinite(turned).all()):
        raise ValueError(f'{len(boxes)} boxes with {len(turned)} oriented ones, or these are not finite')
    return TileDetections(boxes, labels, scores, tiles, outlines, turned)


def require_same_run(path: Path, facts: Mapping[str, Any], *, free: Sequence[str], instead: str) -> None:
    """Refuse a run that differs from that of another journal, which some process may be writing.

    Args:
        path: The journal.
        facts: Of the run, as JSON.
        free: Names of facts that may differ.
        instead: What to do.

    Raises:
        CheckpointError: If it differs.
    """
    try:
        with path.open('rb') as file:
            written = json.loads(file.readline())
    except (OSError, ValueError):  # it is being begun, or removed
        return
    if isinstance(written, dict):
        ours = json.loads(json.dumps({name: value for name, value in facts.items() if name not in free}))
        _check_same(path, written, ours, instead)


def _check_same(path: Path, written: Mapping[str, Any], ours: Mapping[str, Any], instead: str) -> None:
    # as texts: NaN, which may be a NoData value, equals itself
    differing = [name for name in ours if _text(written.get(name)) != _text(ours[name])]
    if differing:
        texts = [_difference(name, written.get(name), ours[name]) for name in differing]
        raise errors.CheckpointError(
            f'{path} is of another run; what differs: {", ".join(texts)}. Resume with the same raster, model and '
            f'options, or {instead}'
        )


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _difference(name: str, then: Any, now: Any) -> str:
    short = all(isinstance(value, str | int | float | None) for value in (then, now))
    return f'{name} (then {then}, now {now})' if short else name
