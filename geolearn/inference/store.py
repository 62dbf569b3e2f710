"""The finished pieces of a map, in a folder: the map is made of them at the end, and a killed run resumed from them."""

import hashlib
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from rasterio.errors import RasterioError
from rasterio.windows import Window

from geolearn import files
from geolearn.errors import CheckpointError, RasterError
from geolearn.inference.layers import Layer
from geolearn.inference.plan import Part, Share
from geolearn.inference.resume import Journal, require_same_run
from geolearn.raster import GeoBox
from geolearn.raster.arrays import is_zarr
from geolearn.raster.pieces import PIECE, FileStage, PieceFile, PlacedPiece, Watch, join_pieces, open_pieces
from geolearn.raster.qml import style_name
from geolearn.raster.tally import BandTally, merge_tallies
from geolearn.raster.writing import BLOCK_SIZE, SIDECARS
from geolearn.raster.zarr_maps import write_zarr

log = logging.getLogger('geolearn')

PIECE_SECONDS = 20.0
"""Pieces grow until one takes about this long: so much work a kill costs at most, and a map is of few pieces."""


class PieceStore:
    """Writes the rows of a map as pieces, which a later run can begin from.

    Args:
        target: The map.
        folder: For the pieces; made if it is not there.
        box: Place of the raster that is mapped.
        window: What of it the map holds.
        layers: Its files.
        parts: What it is computed in.
        journal: Of the pieces that are finished; None for a run that nobody can resume.
        share: That the parts are, while other processes write pieces of other shares into the folder.

    Raises:
        CheckpointError: If the journal holds what geolearn did not write.
    """

    def __init__(
        self,
        target: Path,
        folder: Path,
        box: GeoBox,
        window: Window,
        layers: Sequence[Layer],
        parts: Sequence[Part],
        journal: Journal | None = None,
        share: Share | None = None,
    ) -> None:
        self.target, self._folder = target, folder
        self._top, self._left = int(window.row_off), int(window.col_off)
        self._box = box.crop(self._top, self._left, (int(window.height), int(window.width)))
        self._layers, self._parts, self._journal, self._share = layers, parts, journal, share
        self.next_rows = [part.top for part in parts]
        """Of each part the first row that is not in a finished piece."""
        self._finished: list[list[PlacedPiece]] = [[] for _ in layers]
        self._tallies: list[list[list[BandTally]]] = [[] for _ in layers]
        self._open: list[PieceFile] = []
        self._opened, self._part, self._first, self._rows = 0.0, 0, 0, 0
        self._piece_rows = BLOCK_SIZE
        self._counting: list[list[BandTally]] = []
        with self._reported():
            folder.mkdir(exist_ok=True)
        for step in () if journal is None else journal.steps:
            self._take(step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        for piece in self._open:
            piece.abandon()
        self._open = []
        if self._journal is not None:
            self._journal.close()
            # who interrupts a run is told to resume it
            if not any(self._finished) and not self.is_complete and not isinstance(error, KeyboardInterrupt):
                self.remove()

    @property
    def is_complete(self) -> bool:
        """Whether all rows of all parts are in finished pieces."""
        return all(row == part.bottom for row, part in zip(self.next_rows, self._parts))

    def remove(self) -> None:
        """Delete the pieces, and the folder, unless other shares are in it."""
        if self._share is None:
            shutil.rmtree(self._folder, ignore_errors=True)
            return
        assert self._journal is not None
        self._journal.remove()
        with suppress(OSError):  # others are in it
            self._folder.rmdir()
            self._folder.parent.rmdir()

    def take_over(self, other: 'PieceStore') -> None:
        """Take the finished pieces of a share of this map, to join them."""
        for number, (pieces, tallies) in enumerate(zip(other._finished, other._tallies)):
            self._finished[number] += pieces
            self._tallies[number] += tallies

    def write(self, part: int, row: int, pixels: Sequence[np.ndarray]) -> None:
        """Take rows of a part: (bands, rows, columns of the part) of each layer; `row` follows on what is written.

        Raises:
            RasterError: If they cannot be written.
            CheckpointError: If the journal cannot be.
        """
        bottom = self._parts[part].bottom
        done, count = 0, pixels[0].shape[1]
        while done < count:
            if not self._open:
                self._begin(part, row + done)
            taken = min(count - done, self._rows - (row + done - self._first))
            with self._reported():
                for layer, piece, tallies, values in zip(self._layers, self._open, self._counting, pixels):
                    block = values[:, done : done + taken]
                    piece.write(row + done - self._first, block)
                    for tally, band in zip(tallies, block):
                        for start in range(0, taken, BLOCK_SIZE):
                            tally.add(band[start : start + BLOCK_SIZE], layer.nodata)
            done += taken
            if row + done - self._first == self._rows or row + done == bottom:
                self._finish()

    def join(self, folder: Path, *, cog: bool, watch: Watch | None = None) -> None:
        """Make the files of the map, in a folder that is empty but for this.

        Args:
            folder: For the files.
            cog: Whether GeoTIFFs are cloud-optimized.
            watch: Called with how far all files together are.

        Raises:
            RasterError: If one cannot be written.
        """
        log.info('making %s of its pieces', self.target)
        whole = sum(layer.content.pixel_bytes for layer in self._layers)
        before = 0.0
        with self._reported():
            for layer, pieces, parts in zip(self._layers, self._finished, self._tallies):
                part = layer.content.pixel_bytes / whole
                watch_layer = None if watch is None else _watch_part(watch, before, part)
                before += part
                tallies = merge_tallies(parts, layer.content.count)
                if not any(tally.counts or tally.blocks for tally in tallies):
                    log.warning(
                        '%s holds NoData alone: no pixel of the raster holds data in all bands', layer.path(self.target)
                    )
                content = replace(layer.content, tallies=tuple(tallies))
                path = layer.path(self.target)
                if is_zarr(path):
                    with open_pieces(pieces, folder / f'{path.name}.pieces.vrt', self._box, content) as src:
                        write_zarr(src, folder / path.name, self._box, content, watch=watch_layer)
                else:
                    style = style_name(path)
                    join_pieces(pieces, folder / path.name, self._box, content, cog=cog, style=style, watch=watch_layer)
                if watch is not None:
                    watch('joining', round(before, 9))

    def _begin(self, part: int, row: int) -> None:
        self._part, self._first = part, row
        self._rows = min(self._piece_rows, self._parts[part].bottom - row)
        self._opened = time.monotonic()
        self._counting = [[BandTally() for _ in range(layer.content.count)] for layer in self._layers]
        with self._reported():
            for number, layer in enumerate(self._layers):
                share = '' if self._share is None else f'{self._share.number}-'
                path = self._folder / f'{share}{part}-{row}-{number}{PIECE}'
                width = int(self._parts[part].core.width)
                self._open.append(PieceFile(path, (self._rows, width), layer.content))

    def _finish(self) -> None:
        """Close the pieces, and write down that they are whole."""
        with self._reported():
            for piece in self._open:
                piece.close()
                if self._journal is not None:
                    files.flush_to_disk(piece.path)
            names = [piece.path.name for piece in self._open]
            digests = [_digest(piece.path) for piece in self._open] if self._journal is not None else []
        step = {
            'part': self._part,
            'first': self._first,
            'rows': self._rows,
            'files': names,
            'digests': digests,
            'tallies': [[tally.to_json() for tally in tallies] for tallies in self._counting],
        }
        if self._journal is not None:
            self._journal.add(step)
        self._open = []
        self._place(names, self._counting)
        if time.monotonic() - self._opened < PIECE_SECONDS / 2:
            self._piece_rows *= 2

    def _place(self, names: Sequence[str], tallies: Sequence[list[BandTally]]) -> None:
        core = self._parts[self._part].core
        window = Window(core.col_off - self._left, self._first - self._top, core.width, self._rows)
        for number, (name, counted) in enumerate(zip(names, tallies)):
            self._finished[number].append(PlacedPiece(self._folder / name, window))
            self._tallies[number].append(counted)
        self.next_rows[self._part] = self._first + self._rows

    def _take(self, step: Mapping[str, Any]) -> None:
        """Take a piece of an earlier run; one whose file is damaged is computed again, and all after it."""
        assert self._journal is not None
        try:
            self._part, self._first, self._rows = (int(step[name]) for name in ('part', 'first', 'rows'))
            names, digests = ([str(text) for text in step[name]] for name in ('files', 'digests'))
            tallies = [[BandTally.from_json(band) for band in layer] for layer in step['tallies']]
            fits = len(names) == len(digests) == len(tallies) == len(self._layers) and all(
                len(layer) == known.content.count for layer, known in zip(tallies, self._layers)
            )
            inside = 0 <= self._part < len(self._parts) and self._rows > 0 and not any('/' in name for name in names)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise self._journal.broken() from error
        if not (fits and inside):
            raise self._journal.broken()
        if self._first != self.next_rows[self._part]:  # behind a piece that is damaged, or was computed again
            return
        for name, digest in zip(names, digests):
            if not (self._folder / name).is_file() or _digest(self._folder / name) != digest:
                log.warning('%s is damaged; it is computed again', self._folder / name)
                return
        self._place(names, tallies)

    def _reported(self) -> '_Reported':
        return _Reported(self.target, self._folder if self._journal is not None else None)


def _watch_part(watch: Watch, before: float, part: float) -> Watch:
    """Return what takes the share of one file, and passes on that of all."""

    def watch_part(stage: FileStage, share: float) -> None:
        watch(stage, before + share * part)

    return watch_part


class _Reported:
    """Says of the map what goes wrong with its pieces.

    Args:
        target: The map.
        kept: Folder of what is done, if it stays.
    """

    def __init__(self, target: Path, kept: Path | None) -> None:
        self._target, self._kept = target, kept

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if not isinstance(error, RasterioError | OSError) or isinstance(error, RasterError | CheckpointError):
            return
        kept = 'Nothing was left behind'
        if self._kept is not None:
            kept = f'What is done is kept in {self._kept}; pass resume=True to continue'
        reason = error.__cause__ or error
        raise RasterError(f'cannot write {self._target}: {reason}. Is the disk full? {kept}') from error


def open_journal(target: Path, facts: Mapping[str, Any], *, resume: bool, free: Sequence[str] = ()) -> Journal:
    """Open the journal of a map, in a folder that is named after it, with ``.part`` behind.

    Args:
        target: The map.
        facts: What must be equal for a run to be resumed, as JSON.
        resume: Continue an unfinished run, instead of starting another.
        free: Names of facts that are taken from the unfinished run.

    Raises:
        CheckpointError: If there is nothing to resume, it is of another run, or the folder cannot be written to.
    """
    folder = parts_folder(target)
    path = folder / JOURNAL
    if (count := count_shares(target)) is not None:
        raise CheckpointError(
            f'{folder} holds parts of a map that is computed in {count} parts; compute the others and pass '
            'merge_parts=True, or delete the folder'
        )
    if resume and not path.is_file():
        raise CheckpointError(f'there is no {folder} to resume; run without resume=True')
    make_folder(target)
    unfinished = not resume and path.exists() and path.stat().st_size > 0
    journal = Journal(path, facts, resume=resume, free=free)
    if unfinished:
        log.warning('%s of an unfinished run is replaced; pass resume=True to continue it', folder)
    if not resume:
        for old in folder.glob(f'*{PIECE}'):
            with suppress(OSError):
                old.unlink()
    return journal


def open_share_journal(target: Path, facts: Mapping[str, Any], share: Share, *, free: Sequence[str] = ()) -> Journal:
    """Open the journal of a share of a map, in the folder of `open_journal`; what is finished is never begun anew.

    Args:
        target: The map.
        facts: What must be equal for all shares, as JSON.
        share: Of the map.
        free: Names of facts that are taken from what is finished.

    Raises:
        JournalInUseError: If another process computes this share.
        CheckpointError: If the folder holds another run, or cannot be written to.
    """
    for tries_left in reversed(range(SHARE_TRIES)):
        try:
            return _open_share(target, facts, share, free)
        except (FileNotFoundError, CheckpointError) as error:
            # another share that came to nothing has removed its journal, or the empty folder, meanwhile
            gone = isinstance(error.__cause__ or error, FileNotFoundError | FileExistsError)
            if not tries_left or not gone:
                raise
    raise AssertionError('the last try returns or raises')


SHARE_TRIES = 20
"""How often a folder is made anew that other shares, which fail at the same time, remove."""


def _open_share(target: Path, facts: Mapping[str, Any], share: Share, free: Sequence[str]) -> Journal:
    refuse_other_runs(target, share)
    path = make_folder(target, share) / f'{share.number}.{JOURNAL}'
    # a process that was killed at once leaves no whole line
    begun_here = path.is_file() and b'\n' in path.read_bytes()
    facts = {**facts, 'part': [share.number, share.count]}
    if not begun_here:
        for other in find_journals(target, share.count)[:1]:
            require_same_run(other, facts, free=('part', *free), instead=_delete(target))
    return Journal(path, facts, resume=begun_here, free=free, instead=_delete(target))


def find_journals(target: Path, count: int) -> list[Path]:
    """Return the journals of those shares of a map that are begun: each of them was checked against the raster.

    Args:
        target: The map.
        count: Of shares.
    """
    found = []
    # shares that came to nothing remove their journals, and the last one the folder
    with suppress(FileNotFoundError):
        for path in _folder_of(target, Share(1, count)).glob(f'*.{JOURNAL}'):
            with suppress(FileNotFoundError):
                if path.stat().st_size:
                    found.append(path)
    return sorted(found)


def refuse_other_runs(target: Path, share: Share) -> None:
    """Refuse to compute a share of a map that another run computes in other parts.

    Raises:
        CheckpointError: If there is what another run has finished.
    """
    whole, begun = parts_folder(target), count_shares(target)
    if begun not in (None, share.count) or (whole / JOURNAL).is_file():
        found = f'a map in {begun} parts' if begun else 'a run that is not in parts'
        raise CheckpointError(
            f'{whole} holds {found}, and part {share} is of another; continue that, or {_delete(target)}'
        )


def _delete(target: Path) -> str:
    return f'delete {parts_folder(target)} to begin anew'


JOURNAL = 'journal'


def parts_folder(target: Path) -> Path:
    """Return the folder of what is finished of a map."""
    return target.with_name(f'{target.name}.part')


def count_shares(target: Path) -> int | None:
    """Return in how many shares a map is being computed; None where it is not, or was not begun."""
    counts = [int(path.name[3:]) for path in parts_folder(target).glob('of-*') if path.name[3:].isdecimal()]
    return max(counts, default=None)


def has_share(target: Path, share: Share) -> bool:
    """Whether a share of a map was begun."""
    return (_folder_of(target, share) / f'{share.number}.{JOURNAL}').is_file()


def _folder_of(target: Path, share: Share | None) -> Path:
    return parts_folder(target) / ('' if share is None else f'of-{share.count}')


def make_folder(target: Path, share: Share | None = None) -> Path:
    """Make the folder of what is finished of a map, or of its shares, and return it.

    Raises:
        RasterError: If the folder of the map does not exist.
        CheckpointError: If it cannot be made.
    """
    folder = _folder_of(target, share)
    if not target.parent.is_dir():
        raise RasterError(f'cannot write {target}: the folder {target.parent} does not exist; create it first')
    try:
        folder.mkdir(exist_ok=True, parents=True)
    except OSError as error:
        raise CheckpointError(f'{folder}, which keeps the finished tiles, cannot be made: {error}') from error
    return folder


def sidecars(layers: Sequence[Layer], target: Path) -> list[str]:
    """Return the names of files beside a map that would pass for those of the new one."""
    return [f'{layer.path(target).name}{suffix}' for layer in layers for suffix in SIDECARS]


def _digest(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with path.open('rb') as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
