"""Read one chip: the images of all its dates, their mask and the label, together."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np

from geolearn.chips.label import ChipSource, Label
from geolearn.chips.meaning.values import named_nodata
from geolearn.chips.packing.table import ChipTable
from geolearn.errors import ChipFolderError
from geolearn.oriented.geometry import mask_rectangle
from geolearn.raster import GeoBox
from geolearn.raster.geobox import ELSEWHERE_PX, corner_shift
from geolearn.raster.nodata import valid_in_all_bands
from geolearn.raster.reading import read_stated_stack
from geolearn.raster.scaling import ADVICE, Scaling, scaling_difference
from geolearn.statistics import RunningStatistics, count_values


class Chip(NamedTuple):
    """A training image with its label.

    `pixels` is (channels, height, width) in the stored dtype, where a channel is a band of one date and channels of one
    date lie together; `mask` is (channels, height, width) or (1, height, width), True where valid, or None where
    everything is; `dates` is their number, and `scaling` what the files of the first date state of their values.
    """

    pixels: np.ndarray
    mask: np.ndarray | None
    label: Label
    geobox: GeoBox
    dates: int = 1
    scaling: Scaling = ()


def read_chip(source: ChipSource) -> Chip:
    """Read one chip.

    Raises:
        RasterError: If a file cannot be read.
        ChipFolderError: If dates, or image and label, do not fit together, or a label makes no sense.
    """
    if source.read_image is None:
        images = [read_stated_stack(files, dequantize=source.dequantize) for files in source.dates]
    else:
        images = [(*source.read_image(), ())]
    pixels, mask, geobox, scaling = images[0]
    if len(pixels) % source.dates_in_file:
        raise ChipFolderError(
            f'{source.image} holds {len(pixels)} bands, which cannot be those of {source.dates_in_file} dates; '
            'every date needs the same bands'
        )
    if pixels.dtype.kind == 'c':
        raise ChipFolderError(f'{source.image} holds {pixels.dtype} numbers; export amplitude, or power in dB')
    for (other, _, place, stated), files in zip(images[1:], source.dates[1:]):
        if other.dtype != pixels.dtype:
            raise ChipFolderError(
                f'{files[0]} holds {other.dtype} pixels but {source.image} {pixels.dtype}; '
                'all dates of a chip must be in the same units'
            )
        if other.shape != pixels.shape:
            raise ChipFolderError(
                f'{files[0]} is {_shape_text(other)} but {source.image} is {_shape_text(pixels)}; '
                'all dates of a chip must have the same bands and size'
            )
        if (shift := corner_shift(geobox, place)) > ELSEWHERE_PX:
            raise ChipFolderError(
                f'{files[0]} lies {shift:.4g} pixels from {source.image}; all dates of a chip must show the same '
                'ground: warp them to one grid (gdalwarp -t_srs -te -tr), or correct the place that one of them states'
            )
        if apart := scaling_difference(scaling, stated):
            raise ChipFolderError(
                f'{source.image} and {files[0]} hold values of different units: they state {apart}; {ADVICE}'
            )
    if len(images) > 1:
        pixels, mask = np.concatenate([image[0] for image in images]), _join_masks(images)
    if source.nodata:
        bands = len(pixels) // (len(source.dates) * source.dates_in_file)
        mask = named_nodata(pixels, [] if mask is None else [mask], source.nodata, bands, str(source.image))
    label = source.read_label(geobox.shape)
    if label.place is not None and (shift := corner_shift(geobox, label.place)) > ELSEWHERE_PX:
        raise ChipFolderError(
            f'{source.labels[0] if source.labels else "the label"} lies {shift:.4g} pixels from its image '
            f'{source.image}: {label.place.transform[:6]} and {geobox.transform[:6]}; warp it to the grid of the image '
            '(gdalwarp -r near -t_srs -te -tr), or correct the place that one of them states (gdal_edit.py -a_ullr)'
        )
    if label.raster is not None:
        label = replace(label, raster=_storable(label.raster, source, geobox.shape))
    elif label.masks is not None and label.turned is None:
        rectangles = [mask_rectangle(mask) for mask in label.masks]
        label = replace(label, turned=np.array(rectangles, np.float32).reshape(-1, 5))
    return Chip(pixels, mask, label, geobox, len(images) * source.dates_in_file, scaling)


def _shape_text(pixels: np.ndarray) -> str:
    bands, height, width = pixels.shape
    return f'{width}x{height} pixels of {bands} bands'


def _join_masks(images: list[tuple[np.ndarray, np.ndarray | None, GeoBox, Scaling]]) -> np.ndarray | None:
    if all(image[1] is None for image in images):
        return None
    return np.concatenate(
        [np.broadcast_to(True if mask is None else mask, pixels.shape) for pixels, mask, *_ in images]
    )


def _storable(raster: np.ndarray, source: ChipSource, shape: tuple[int, int]) -> np.ndarray:
    """Check a label raster and return class values in 8 or 16 bits; numbers stay float32."""
    name = source.labels[0] if source.labels else source.image
    if raster.ndim == 3:  # an image, whose reader checked its size
        return raster
    if raster.shape != shape:
        raise ChipFolderError(
            f'{name} is {raster.shape[1]}x{raster.shape[0]} pixels but its image is {shape[1]}x{shape[0]}; '
            'export both with one tile size'
        )
    if raster.dtype == np.float32:
        return raster
    low, high = (int(raster.min()), int(raster.max())) if raster.size else (0, 0)
    if low < 0 or high > 65535:
        raise ChipFolderError(f'{name} holds values from {low} to {high}; class values lie in 0..65535')
    return raster.astype(np.uint8 if high < 256 else np.uint16, copy=False)


SAMPLED_PIXELS = 200_000
"""About how many pixels of a folder are kept in `ChipTable.sample`."""


@dataclass(frozen=True, slots=True)
class ChipStatistics:
    """The row of one chip, found while it was read; it holds on to nothing large.

    Args:
        geobox: Where the chip lies.
        dtype: Stored dtype of its pixels.
        channels: Number of channels.
        dates: Number of dates.
        nodata_varies: Whether what is valid differs from channel to channel.
        statistics: Of each channel, over pixels that are valid in all of them.
        target: Statistics of the numbers in the label raster, over the same pixels; None where it holds classes.
        pixels_by_value: How often each value of the label raster occurs, over the same pixels.
        sample: (k, channels) float32 pixels.
        class_ids: Class values of objects, or of the chip.
        boxes: Of the objects, or None.
        turned: Oriented boxes of the objects, or None.
        ignored: Which objects are ignored, or None.
        skipped: Why something in the label was left out.
        target_bands: Bands of the numbers in the label raster.
        target_times: Pixels of them for each of the chip, down and across.
        scaling: What the files of the image state of their values.
        target_scaling: What the label raster states of its numbers.
    """

    geobox: GeoBox
    dtype: str
    channels: int
    dates: int
    nodata_varies: bool
    statistics: RunningStatistics
    target: RunningStatistics | None
    pixels_by_value: Mapping[int, int]
    sample: np.ndarray
    class_ids: np.ndarray
    boxes: np.ndarray | None
    turned: np.ndarray | None
    ignored: np.ndarray | None
    skipped: tuple[str, ...]
    target_bands: int = 1
    target_times: int = 1
    scaling: Scaling = ()
    target_scaling: Scaling = ()


def measure_chip(chip: Chip, *, sampled: int) -> ChipStatistics:
    """Gather the facts of one chip; `sampled` is how many of its pixels to keep."""
    raster = chip.label.raster
    valid = valid_in_all_bands(chip.mask)
    counted: Mapping[int, int] = {}
    target = None
    planes = raster if raster is not None and raster.ndim == 3 else None
    times = 1 if planes is None else planes.shape[1] // chip.pixels.shape[1]
    if planes is not None:
        seen = None if valid is None else np.repeat(np.repeat(valid, times, 0), times, 1)
        by_band = [RunningStatistics() for _ in planes]
        for running, plane in zip(by_band, planes):
            known = ~np.isnan(plane)
            running.add(plane[None], known if seen is None else known & seen)
        target = _join_bands(by_band)
    elif raster is not None and raster.dtype.kind == 'f':
        target = RunningStatistics()
        known = ~np.isnan(raster)
        target.add(raster[None], known if valid is None else known & valid)
    elif raster is not None:
        labelled = valid
        if chip.label.unlabelled is not None:
            labelled = ~chip.label.unlabelled if valid is None else valid & ~chip.label.unlabelled
        counted = count_values(raster if labelled is None else raster[labelled])
    running = RunningStatistics()
    running.add(chip.pixels, valid)
    return ChipStatistics(
        GeoBox(chip.pixels.shape[1:], chip.geobox.transform, chip.geobox.crs),
        str(chip.pixels.dtype),
        len(chip.pixels),
        chip.dates,
        chip.mask is not None and len(chip.mask) > 1,
        running,
        target,
        counted,
        _sample(chip, valid, sampled),
        chip.label.class_ids,
        chip.label.boxes,
        chip.label.turned,
        chip.label.ignored,
        chip.label.skipped,
        1 if planes is None else len(planes),
        times,
        chip.scaling,
        chip.label.scaling,
    )


def _join_bands(by_band: Sequence[RunningStatistics]) -> RunningStatistics:
    """Return statistics of single bands as those of all of them."""
    joined = RunningStatistics()
    for _, name, nothing in _STATISTICS:
        parts = [getattr(running, name) if len(running.count) else np.array([nothing]) for running in by_band]
        setattr(joined, name, np.concatenate(parts).astype(np.float64))
    return joined


def _sample(chip: Chip, valid: np.ndarray | None, size: int) -> np.ndarray:
    """Take pixels evenly from those that are valid in all channels: (k, channels) float32."""
    flat = chip.pixels.reshape(len(chip.pixels), -1)
    places = None if valid is None else np.flatnonzero(valid)
    count = flat.shape[1] if places is None else len(places)
    if not count:
        return np.zeros((0, len(flat)), np.float32)
    picked = np.linspace(0, count - 1, min(size, count)).astype(np.int64)
    return flat[:, picked if places is None else places[picked]].T.astype(np.float32)


class ChipStore(Protocol):
    """Chips by position, with the table of all of them."""

    @property
    def table(self) -> ChipTable:
        """Facts about every chip."""

    def chip(self, position: int) -> Chip:
        """Return one chip."""


def recount(store: ChipStore, channels: Sequence[int]) -> ChipTable:
    """Return the table of a store as if chips had only some channels: NoData of others does not count.

    Args:
        store: Chips with their table.
        channels: 0-based channels that are used.

    Returns:
        A table whose label counts, and whose statistics of these channels, are over pixels that are valid in them.
    """
    table = store.table
    varying = np.flatnonzero(table.nodata_varies).tolist() if len(channels) < table.channels else []
    if not varying:
        return table
    used = list(channels)
    columns = {name: getattr(table, name).copy() for name, _, _ in _STATISTICS}
    bounds = table.value_offsets[1:-1]
    values, pixels = np.split(table.label_values, bounds), np.split(table.label_pixels, bounds)
    targets, samples = table.label_statistics.copy(), [table.sample]
    for position in varying:
        chip = store.chip(position)
        mask = None if chip.mask is None else chip.mask[used]
        facts = measure_chip(chip._replace(pixels=chip.pixels[used], mask=mask), sampled=samples_of(len(table)))
        known = len(facts.statistics.count) > 0
        for name, short, fill in _STATISTICS:
            columns[name][position, used] = getattr(facts.statistics, short) if known else fill
        values[position] = np.array(list(facts.pixels_by_value), np.int64)
        pixels[position] = np.array(list(facts.pixels_by_value.values()), np.int64)
        if len(targets):
            targets[position] = (
                _label_statistics([facts.target], table.target_bands)[0] if facts.target is not None else np.nan
            )
        if not len(table.sample):
            samples.append(np.full((len(facts.sample), table.channels), np.nan, np.float32))
            samples[-1][:, used] = facts.sample
    return replace(
        table,
        **columns,
        value_offsets=np.cumsum([0, *map(len, values)]),
        label_values=np.concatenate(values),
        label_pixels=np.concatenate(pixels),
        label_statistics=targets,
        sample=np.concatenate(samples),
    )


def samples_of(chips: int) -> int:
    """Return how many pixels of each chip are kept in `ChipTable.sample`."""
    return max(1, min(256, SAMPLED_PIXELS // max(chips, 1)))


_STATISTICS = (
    ('counts', 'count', 0.0),
    ('means', 'mean', 0.0),
    ('m2s', 'm2', 0.0),
    ('minimums', 'minimum', np.inf),
    ('maximums', 'maximum', -np.inf),
)


class TableBuilder:
    """Collect chips and their facts, in order, into a table."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._facts: list[ChipStatistics] = []

    def __len__(self) -> int:
        return len(self._names)

    def add(self, name: str, facts: ChipStatistics) -> None:
        """Take in one chip; all are of one dtype and number of channels and dates."""
        self._names.append(name)
        self._facts.append(facts)

    def result(self, unreadable: Sequence[str]) -> ChipTable:
        """Return the table of what was collected."""
        first, boxes = self._facts[0], [facts.geobox for facts in self._facts]
        crs = tuple(dict.fromkeys(box.crs for box in boxes))
        found = [facts.statistics for facts in self._facts]
        # chips without a valid pixel have no statistics; they count for nothing
        none = np.zeros(first.channels)
        columns = {
            name: np.stack([getattr(running, short) if len(running.count) else none + fill for running in found])
            for name, short, fill in _STATISTICS
        }
        counted = [facts.pixels_by_value for facts in self._facts]
        framed = [facts.boxes for facts in self._facts if facts.boxes is not None]
        turned = [facts.turned for facts in self._facts if facts.turned is not None]
        marked = any(facts.ignored is not None and facts.ignored.any() for facts in self._facts)
        ignored = [
            np.zeros(len(facts.class_ids), bool) if facts.ignored is None else facts.ignored for facts in self._facts
        ]
        return ChipTable(
            names=tuple(self._names),
            shapes=np.array([box.shape for box in boxes], np.int64),
            transforms=np.array([tuple(box.transform)[:6] for box in boxes], np.float64),
            crs=crs,
            crs_indexes=np.array([crs.index(box.crs) for box in boxes], np.int64),
            dtype=first.dtype,
            dates=first.dates,
            nodata_varies=np.array([facts.nodata_varies for facts in self._facts], bool),
            **columns,
            value_offsets=np.cumsum([0, *map(len, counted)]),
            label_values=np.array([value for counts in counted for value in counts], np.int64),
            label_statistics=_label_statistics([facts.target for facts in self._facts], first.target_bands),
            label_pixels=np.array([pixels for counts in counted for pixels in counts.values()], np.int64),
            object_offsets=np.cumsum([0, *(len(facts.class_ids) for facts in self._facts)]),
            object_values=np.concatenate([facts.class_ids for facts in self._facts]).astype(np.int64),
            boxes=np.concatenate(framed).astype(np.float32) if framed else np.zeros((0, 4), np.float32),
            turned=np.concatenate(turned).astype(np.float32) if turned else np.zeros((0, 5), np.float32),
            ignored=np.concatenate(ignored) if marked else np.zeros(0, bool),
            sample=np.concatenate([facts.sample for facts in self._facts]),
            skipped=dict(Counter(text for facts in self._facts for text in facts.skipped)),
            unreadable=tuple(unreadable),
            target_bands=first.target_bands,
            target_times=first.target_times,
        )


def _label_statistics(targets: Sequence[RunningStatistics | None], bands: int) -> np.ndarray:
    """Return the rows of `ChipTable.label_statistics`."""
    if all(target is None for target in targets):
        return np.zeros((0, 5))
    nothing = np.repeat([default for _, _, default in _STATISTICS], bands)
    return np.array(
        [
            np.concatenate([getattr(target, name) for _, name, _ in _STATISTICS])
            if target and len(target.count)
            else nothing
            for target in targets
        ],
        np.float64,
    )
