"""Choose mean and spread of each band, with which the network's first layer normalizes: (x - mean) / std."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from geolearn.bands import Band, match_bands
from geolearn.errors import BandError, UnknownNameError
from geolearn.statistics import SPREAD_98, BandStatistics, Percentiles

GIVEN = 'the means and stds given'
"""Source of a normalization that the user states in numbers."""

KINDS = ('dataset', 'pretraining', 'imagenet', 'minmax', 'robust')

Normalize = str | tuple[Sequence[float], Sequence[float]]
"""One of `KINDS`, or means and stds, one of each per band."""

IMAGENET = {'red': (0.485, 0.229), 'green': (0.456, 0.224), 'blue': (0.406, 0.225)}
"""Mean and std of each color over ImageNet, on the scale 0..1."""

_COLOR_RANGES = {'blue': (0.43, 0.52), 'green': (0.52, 0.6), 'red': (0.6, 0.7)}


@dataclass(frozen=True, slots=True)
class Normalization:
    """What the network's first layer does to pixels in stored units: (x - mean) / std.

    Args:
        mean: What becomes 0, per band.
        std: What becomes a distance of 1, per band; over 0.
        source: Where the numbers come from, for people.

    Raises:
        BandError: If the numbers cannot be used.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not self.mean:
            raise BandError(
                f'normalization by {self.source} has {len(self.mean)} means and {len(self.std)} stds; '
                'needed is one of each per band'
            )
        if not all(map(math.isfinite, (*self.mean, *self.std))) or not all(std > 0 for std in self.std):
            raise BandError(
                f'normalization by {self.source} has means {self.mean} and stds {self.std}; '
                'needed are finite numbers, and stds over 0'
            )


def check_normalize(kind: Normalize, count: int) -> None:
    """Refuse what `choose_normalization` would not know, before any chip is read.

    Args:
        kind: As given by the user.
        count: Number of bands.

    Raises:
        UnknownNameError: If a word is none of `KINDS`.
        BandError: If means and stds do not fit the bands or make no sense.
        TypeError: If it is neither a word nor a pair.
    """
    if isinstance(kind, str):
        if kind not in KINDS:
            raise UnknownNameError('normalization', kind, KINDS)
        return
    _given(kind, count)


def choose_normalization(
    kind: Normalize,
    statistics: BandStatistics,
    *,
    dtype: str,
    bands: Sequence[Band],
    percentiles: Percentiles | None = None,
    full_scale: float | None = None,
    pretraining: Normalization | None = None,
) -> Normalization:
    """Choose mean and std of each band.

    Args:
        kind: ``'dataset'``: mean and std of the chips. ``'minmax'``: minimum to 0 and maximum to 1. ``'robust'``:
            median, and the spread of percentiles 2 to 98 (so scaled that a normal distribution gets its std), which a
            few hot pixels do not change. ``'imagenet'``: red, green and blue as ImageNet's. ``'pretraining'``: the
            weights' own. Or (means, stds) in stored units.
        statistics: Of the chips, in stored units.
        dtype: Stored dtype of the chips.
        bands: In order.
        percentiles: Of the chips; for ``'robust'``.
        full_scale: Stored value that stands for white, for ``'imagenet'``; known for uint8, where it is 255.
        pretraining: From `match_pretraining`, for ``'pretraining'``.

    Raises:
        UnknownNameError: If a word is none of `KINDS`.
        BandError: If the bands have no such normalization, or one of them holds a single value.
    """
    check_normalize(kind, len(bands))
    if not isinstance(kind, str):
        return _given(kind, len(bands))
    if kind == 'pretraining':
        if pretraining is None:
            raise BandError(
                "normalize='pretraining' needs weights that state the mean and std of their inputs; "
                "pass normalize='dataset'"
            )
        return pretraining
    if kind == 'imagenet':
        return _imagenet(bands, dtype, full_scale)
    _refuse_constant(statistics, bands)
    choose: dict[str, Callable[[], Normalization]] = {
        'dataset': lambda: Normalization(statistics.mean, statistics.std, 'mean and std of the chips'),
        'minmax': lambda: _minmax(statistics),
        'robust': lambda: _robust(statistics, percentiles, bands),
    }
    return choose[kind]()


def zero_range_bands(statistics: BandStatistics) -> tuple[int, ...]:
    """Return the 0-based indexes of bands whose pixels all hold one value, from which nothing is learned."""
    return tuple(i for i, (low, high) in enumerate(zip(statistics.minimum, statistics.maximum)) if not high > low)


def zero_range_note(statistics: BandStatistics, bands: Sequence[Band]) -> str | None:
    """Say which bands hold one value and were left out; None where there is none."""
    found = [f'{bands[i].name!r} ({statistics.minimum[i]:g})' for i in zero_range_bands(statistics)]
    if not found:
        return None
    one = len(found) == 1
    return f'{"band" if one else "bands"} {", ".join(found)} hold{"s" if one else ""} one value in all chips; left out'


def match_pretraining(
    bands: Sequence[Band],
    *,
    trained_bands: Sequence[Band],
    mean: Sequence[float],
    std: Sequence[float],
    trained_scale: float,
    full_scale: float,
) -> Normalization:
    """Take the statistics of a network's pretraining to the stored units of other images, band by band.

    Args:
        bands: Of the images, in order; radar bands in dB cannot be scaled and need both scales 1.
        trained_bands: Bands that the statistics are of.
        mean: Of the pretraining inputs, per trained band.
        std: The same.
        trained_scale: Value that stood for reflectance 1 in pretraining, such as 255.
        full_scale: Stored value that stands for reflectance 1 in these images, such as 10000.

    Raises:
        BandError: If a band was not among the trained ones, or a scale is not over 0.
    """
    if not all(math.isfinite(scale) and scale > 0 for scale in (trained_scale, full_scale)):
        raise BandError(f'scales must be over 0, got {trained_scale} and {full_scale}')
    if not len(trained_bands) == len(mean) == len(std):
        raise BandError(f'found {len(mean)} means and {len(std)} stds of {len(trained_bands)} trained bands')
    index, factor = match_bands(trained_bands, bands), full_scale / trained_scale
    source = "the pretraining's mean and std" + ('' if factor == 1 else f' x {factor:g}')
    return Normalization(tuple(mean[i] * factor for i in index), tuple(std[i] * factor for i in index), source)


def _given(pair: tuple[Sequence[float], Sequence[float]], count: int) -> Normalization:
    try:
        means, stds = (tuple(float(value) for value in column) for column in pair)
    except (TypeError, ValueError) as error:
        raise TypeError(f'normalize must be one of {KINDS} or a pair (means, stds), got {pair!r}') from error
    if not len(means) == len(stds) == count:
        raise BandError(
            f'normalize has {len(means)} means and {len(stds)} stds, but there are {count} bands; '
            'give one of each per band'
        )
    return Normalization(means, stds, GIVEN)


def _minmax(statistics: BandStatistics) -> Normalization:
    span = tuple(high - low for low, high in zip(statistics.minimum, statistics.maximum))
    return Normalization(statistics.minimum, span, 'minimum and maximum of the chips')


def _robust(statistics: BandStatistics, percentiles: Percentiles | None, bands: Sequence[Band]) -> Normalization:
    if percentiles is None:
        raise BandError("normalize='robust' needs percentiles of the chips; pass normalize='dataset'")
    mean, std, flat = [], [], []
    for i, band in enumerate(bands):
        low, high = percentiles.low[i], percentiles.high[i]
        if high > low:
            mean.append(percentiles.median[i])
            std.append((high - low) / SPREAD_98)
        else:
            # nearly all pixels hold one value: the few others are all there is to see
            mean.append(statistics.mean[i])
            std.append(statistics.std[i])
            flat.append(repr(band.name))
    source = 'percentiles 2, 50 and 98 of the chips'
    if flat:
        source += f' (mean and std for {", ".join(flat)}, whose percentiles are equal)'
    return Normalization(tuple(mean), tuple(std), source)


def _imagenet(bands: Sequence[Band], dtype: str, full_scale: float | None) -> Normalization:
    colors = [_color(band) for band in bands]
    if sorted(filter(None, colors)) != ['blue', 'green', 'red'] or None in colors:
        raise BandError(
            f"normalize='imagenet' needs the bands red, green and blue, found {[band.name for band in bands]}; "
            "select them with extract_bands, name them with bands, or pass normalize='dataset'"
        )
    scale = 255.0 if full_scale is None and dtype == 'uint8' else full_scale
    if scale is None:
        row = ', '.join(f'{IMAGENET[color][0]} * s' for color in colors if color)
        spread = ', '.join(f'{IMAGENET[color][1]} * s' for color in colors if color)
        raise BandError(
            f"normalize='imagenet' needs to know which stored value is white, and {dtype} does not tell; "
            f'pass normalize=(({row}), ({spread})) with that value for s, such as 10000'
        )
    known = [IMAGENET[color] for color in colors if color]
    mean, std = (tuple(row[i] * scale for row in known) for i in (0, 1))
    return Normalization(mean, std, f'ImageNet, where {scale:g} is white')


def _color(band: Band) -> str | None:
    """Return which of ImageNet's colors a band is, by common name, else by wavelength."""
    if band.is_radar:
        return None
    if band.common_name:
        return band.common_name if band.common_name in IMAGENET else None
    wave = band.wavelength_um
    return next((name for name, (low, high) in _COLOR_RANGES.items() if wave and low <= wave < high), None)


def _refuse_constant(statistics: BandStatistics, bands: Sequence[Band]) -> None:
    if len(statistics.mean) != len(bands):
        raise BandError(f'found statistics of {len(statistics.mean)} bands, needed those of {len(bands)}')
    if constant := zero_range_bands(statistics):
        names = [bands[i].name for i in constant]
        raise BandError(
            f'bands {names} hold one value in all chips or images and cannot be normalized by them; leave them out, or '
            'pass normalize=(means, stds) in their units'
        )
