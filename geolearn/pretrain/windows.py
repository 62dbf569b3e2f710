"""Random windows straight from rasters, as chips without labels."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from affine import Affine
from rasterio.windows import Window

from geolearn import raster_windows, sources, units
from geolearn.bands import Band, get_bands, resolve_bands
from geolearn.chips.batches.loader import ChipLoader
from geolearn.chips.exporting.labels import shown_name
from geolearn.chips.label import ChipSource, Label, Listing, Task
from geolearn.chips.meaning.bands import BandChoice, bad_bands, choose_bands
from geolearn.chips.meaning.values import numbers_of
from geolearn.data import ChipData
from geolearn.errors import ChipFolderError
from geolearn.inference.resume import raster_file_states
from geolearn.normalize import Normalize
from geolearn.raster import GeoBox, KeptRasters, open_raster, raster_bands, read_window, require_place
from geolearn.raster.raster import Raster
from geolearn.raster.reading import RasterPath
from geolearn.raster.scaling import check_same_scaling

LEAST_VALID = 0.5
"""Share of valid pixels that a window should have."""

CELL = 2
"""Side of the cells that windows are drawn from, over that of the windows; cells begin one window apart."""


BLOCK = 4
"""Side of the blocks that are validated on, over that of the windows."""

LEAST_BLOCKED = 16
"""Windows along the shorter side of a raster from which on it is divided by blocks."""


@dataclass(frozen=True, kw_only=True)
class WindowOptions:
    """Which windows of rasters are taken, and how their values are read.

    Args:
        windows: Cells of land that one random window each is drawn from in an epoch, at most; chosen at random.
        min_valid: Share of valid pixels that a window should have; cells with less are left out.
        scale: Factor of the stored values, or ``'db'`` for 10 * log10 of radar bands that are linear power.
        offset: Added after scaling.
        nodata: Value that means NoData, beside what the files declare.

    Raises:
        ValueError: If a value is not valid.
    """

    windows: int = 10_000
    min_valid: float = LEAST_VALID
    scale: float | Literal['db'] | None = None
    offset: float = 0.0
    nodata: float | Sequence[float] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.windows, int) or isinstance(self.windows, bool) or self.windows < 2:
            raise ValueError(f'windows must be a whole number from 2, got {self.windows!r}')
        if not 0 <= self.min_valid <= 1:
            raise ValueError(f'min_valid must lie in 0..1, got {self.min_valid!r}')
        if isinstance(self.scale, str):
            if self.scale != 'db':
                raise ValueError(f"scale must be a number, or 'db' for radar bands, got {self.scale!r}")
        elif self.scale is not None and not (np.isfinite(self.scale) and self.scale != 0):
            raise ValueError(f'scale must be a finite number other than 0, got {self.scale!r}')
        if not np.isfinite(self.offset):
            raise ValueError(f'offset must be a finite number, got {self.offset!r}')

    @property
    def changes_values(self) -> bool:
        """Whether values are scaled or moved."""
        return self.scale is not None or self.offset != 0


def window_data(
    rasters: Sequence[RasterPath],
    options: WindowOptions,
    *,
    chip_size: int,
    bands: BandChoice,
    extract_bands: Sequence[str | int] | None,
    normalize: Normalize,
    val_split_pct: float,
    batch_size: int,
    seed: int,
    working_dir: str | Path | None,
) -> ChipData:
    """Prepare random windows of rasters; no chip is written to disk.

    Each chip is a cell of land, of twice the side of the windows, and each epoch draws another window from it, which
    follows from the seed and the epoch. Cells overlap, so that a window can lie anywhere.

    Args:
        rasters: Each one file, or the files of one scene or mosaic.
        options: Which windows, and how they are read.
        chip_size: Side of the windows in pixels.
        bands: Names of the bands, or a sensor; None takes what the rasters say.
        extract_bands: Bands to use, by name or 0-based index.
        normalize: As in `prepare_data`.
        val_split_pct: Share of the cells to validate on.
        batch_size: Windows per batch.
        seed: Fixes which cells are taken, the split, the order and the windows.
        working_dir: Models go to ``<working_dir>/models``; None means the folder of the first raster.

    Raises:
        ChipFolderError: If the rasters hold other bands than one another, or no cell has enough data.
        RasterError: If a raster cannot be read.
        ValueError: If ``scale='db'`` is given and no band is radar.
    """
    named = _names(bands)
    kept, rng = KeptRasters(), np.random.default_rng(seed)
    cells: list[tuple[int, Window]] = []
    opened: list[tuple[Raster, tuple[Band, ...], frozenset[int]]] = []
    indexes: list[tuple[int, ...]] = []
    for number, path in enumerate(rasters):
        with open_raster(path, bands=named) as src:
            require_place(src)
            found, bad = raster_bands(src), bad_bands(src)
            opened.append((src, found, bad))
            indexes.append(
                raster_windows.order_bands((rasters[0], path), (opened[0][1], found), named=bands is not None)
            )
            check_same_scaling(opened[0][0], src, indexes[-1])
            cells += [(number, cell) for cell in _cells(src.shape, chip_size)]
    radar = _radar_bands(_name_bands(bands, opened[0][1]), options)
    order = rng.permutation(len(cells))
    chosen = _choose(rasters, [cells[i] for i in order], options, kept, named, [each[0] for each in indexes])
    if len(chosen) < 2:
        raise ChipFolderError(
            f'{len(chosen)} cells of {CELL * chip_size} pixels of {shown_name(rasters[0])} have data in at least '
            f'{options.min_valid:.0%} of their pixels, needed are 2; pass a smaller chip_size or min_valid'
        )
    # cells overlap, so those of one block are validated on together; land of few windows has no blocks, and there the
    # windows to validate on may lie on land that is trained on, which the measures of collapse do not mind
    box = opened[0][0].geobox
    blocks = min(box.shape) >= LEAST_BLOCKED * chip_size
    chips = tuple(
        ChipSource(
            name=f'{number}_r{int(cell.row_off):06d}_c{int(cell.col_off):06d}',
            dates=((Path(opened[number][0].files[0]),),),
            labels=(),
            read_label=_no_label,
            nodata=() if options.changes_values else numbers_of('nodata', options.nodata),
            read_image=partial(
                _read, kept, rasters[number], named, cell, options, radar, placed=blocks, indexes=indexes[number]
            ),
        )
        for number, cell in sorted(chosen, key=lambda item: (item[0], item[1].row_off, item[1].col_off))
    )
    place = Path(opened[0][0].files[0])
    data = sources.prepare_listing(
        place, 'from_rasters', [], {}, Listing(Task.UNLABELLED, chips, None),
        bad_bands=opened[0][2], bands=bands or opened[0][1], extract_bands=extract_bands, normalize=normalize,
        val_split_pct=val_split_pct, seed=seed, chip_size=chip_size, batch_size=batch_size, transforms=False,
        split='blocks' if blocks else 'random', block_size=BLOCK * chip_size * max(box.resolution) if blocks else None,
        working_dir=working_dir or place.parent,
    )  # fmt: skip
    files = [raster_file_states(src.files) for src, _, _ in opened]
    return avoiding_nodata(replace(data, arguments={'files': files}), options.min_valid)


def avoiding_nodata(data: ChipData, share: float) -> ChipData:
    """Return the same chips, with random crops that hold at least this share of valid pixels where they can."""

    def avoiding(loader: ChipLoader) -> ChipLoader:
        return loader.with_config(replace(loader.dataset.config, min_valid=share))

    return replace(data, train_dl=avoiding(data.train_dl))


def _cells(shape: tuple[int, int], chip: int) -> list[Window]:
    """Return cells of `CELL` windows a side, one window apart, so that every window lies in one of them."""
    starts = [range(0, max(length - chip, 0) + 1, chip) for length in shape]
    return [
        Window(col, row, min(CELL * chip, shape[1] - col), min(CELL * chip, shape[0] - row))
        for row in starts[0]
        for col in starts[1]
    ]


def _choose(
    rasters: Sequence[RasterPath],
    cells: Sequence[tuple[int, Window]],
    options: WindowOptions,
    kept: KeptRasters,
    named: tuple[str, ...] | None,
    first: Sequence[int],
) -> list[tuple[int, Window]]:
    """Take the first cells with enough data, as many as are asked for; of each its first band is read."""
    missing = numbers_of('nodata', options.nodata)
    chosen: list[tuple[int, Window]] = []
    for number, cell in cells:
        with kept.open(rasters[number], bands=named) as src:
            pixels, valid = read_window(src, cell, [first[number]])
        sound = np.isfinite(pixels[0]) if valid is None else valid.reshape(pixels[0].shape) & np.isfinite(pixels[0])
        if missing:
            sound = sound & (pixels[0] != missing[0])
        if sound.mean() >= max(options.min_valid, 1e-9):
            chosen.append((number, cell))
            if len(chosen) == options.windows:
                break
    return chosen


def find_bands(
    raster: RasterPath, bands: BandChoice = None, extract_bands: Sequence[str | int] | None = None
) -> tuple[Band, ...]:
    """Return the bands that are taken of a raster.

    Args:
        raster: One file, or the files of one scene or mosaic.
        bands: Names of the bands, or a sensor; None takes what the raster says.
        extract_bands: Bands to use, by name or 0-based index.

    Raises:
        BandError: If one does not exist.
        RasterError: If the raster cannot be read.
    """
    with open_raster(raster, bands=_names(bands), quiet=True) as src:
        known = _name_bands(bands, raster_bands(src))
    return tuple(known[index] for index in choose_bands(known, extract_bands))


def _names(bands: BandChoice) -> tuple[str, ...] | None:
    if bands is None or isinstance(bands, str):
        return None
    return tuple(band if isinstance(band, str) else band.name for band in bands)


def _name_bands(bands: BandChoice, found: Sequence[Band]) -> Sequence[Band]:
    """Return the bands as the user names them, else as a raster does."""
    if bands is None:
        return found
    if isinstance(bands, str):
        return get_bands(bands)
    given = {band.name: band for band in bands if isinstance(band, Band)}
    return [given.get(band.name, band) for band in resolve_bands(_names(bands) or ())]


def _radar_bands(known: Sequence[Band], options: WindowOptions) -> tuple[bool, ...]:
    """Return whether each band is radar, for decibels."""
    radar = tuple(band.is_radar for band in known)
    if options.scale == 'db' and not any(radar):
        raise ValueError(
            f"scale='db' makes decibels of radar bands, and none of {[band.name for band in known]} is one; "
            "pass bands='sentinel1' or bands=['VV', 'VH']"
        )
    return radar


def _read(
    kept: KeptRasters,
    path: RasterPath,
    named: tuple[str, ...] | None,
    window: Window,
    options: WindowOptions,
    radar: tuple[bool, ...],
    *,
    placed: bool,
    indexes: Sequence[int],
) -> tuple[np.ndarray, np.ndarray | None, GeoBox]:
    pixels, valid, place = raster_windows.window_image(kept, path, named, window, indexes=indexes)
    place = place if placed else GeoBox(place.shape, Affine.identity(), None)
    if not options.changes_values:
        return pixels, valid, place
    if missing := numbers_of('nodata', options.nodata):  # in stored units, so before they are scaled
        known = ~np.any(pixels == np.reshape(missing, (-1, 1, 1)), axis=0, keepdims=True)
        valid = known if valid is None else valid & known
    values = pixels.astype(np.float32)
    if options.scale == 'db':
        rows = np.flatnonzero(radar)
        values[rows] = units.to_decibels(values[rows])
    elif options.scale is not None:
        values *= np.float32(options.scale)
    values += np.float32(options.offset)
    finite = np.all(np.isfinite(values), axis=0, keepdims=True)
    if not finite.all():
        valid = finite if valid is None else valid & finite
    return np.nan_to_num(values), valid, place


def _no_label(shape: Any) -> Label:
    return Label()
