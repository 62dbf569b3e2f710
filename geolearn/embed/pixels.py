"""PixelTimeSeries, a value: the series of single pixels, from a table or from images; and their embeddings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from geolearn import errors, notebook
from geolearn.backbones import catalog, create_backbone
from geolearn.backbones.calendar import Calendar
from geolearn.backbones.pixel_series import PixelBackbone
from geolearn.bands import Band
from geolearn.device import choose_device
from geolearn.embed import scaling
from geolearn.embed.embeddings import Embeddings, EmbeddingSource
from geolearn.inference.resume import weights_digest
from geolearn.networks.network import Normalize


@dataclass(frozen=True, eq=False, repr=False)
class PixelTimeSeries:
    """The bands of single pixels on several dates.

    Args:
        values: (n, T, bands) float32 in stored units; NaN where a value is missing.
        bands: Of the values, in order: a sensor's key, names or `Band` objects.
        calendar: When the T dates were.
        locations: Latitude and longitude of each pixel in degrees, (n, 2); None where they are not known.
        names: Of the pixels, one each; their numbers where none are given.

    Raises:
        ValueError: If the numbers of values, bands, dates, locations and names do not fit together.
    """

    values: np.ndarray
    bands: tuple[Band, ...]
    calendar: Calendar
    locations: np.ndarray | None = None
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        values = np.ascontiguousarray(self.values, np.float32)
        object.__setattr__(self, 'values', values)
        object.__setattr__(self, 'bands', tuple(self.bands))
        names = tuple(map(str, self.names)) or tuple(str(number) for number in range(len(values)))
        object.__setattr__(self, 'names', names)
        if values.ndim != 3 or values.shape[1:] != (len(self.calendar), len(self.bands)):
            raise ValueError(
                f'values must be (pixels, {len(self.calendar)} dates, {len(self.bands)} bands), got {values.shape}'
            )
        if len(names) != len(values):
            raise ValueError(f'{len(values)} pixels need one name each, got {len(names)}')
        if self.locations is not None:
            places = np.ascontiguousarray(self.locations, np.float64)
            object.__setattr__(self, 'locations', places)
            if places.shape != (len(values), 2):
                raise ValueError(f'{len(values)} pixels need a latitude and a longitude each, got {places.shape}')
            if not (np.abs(places) <= (90, 180)).all():
                raise ValueError(
                    'locations must be latitudes in -90..90 and longitudes in -180..180; are they swapped?'
                )

    def __len__(self) -> int:
        """Return the number of pixels."""
        return len(self.values)

    def __repr__(self) -> str:
        n, t, _ = self.values.shape
        missing = float(np.isnan(self.values).mean()) if self.values.size else 0.0
        return (
            f'PixelTimeSeries: {n} pixels, {t} dates, bands {", ".join(band.name for band in self.bands)}; '
            f'{missing:.1%} missing'
        )

    def _repr_html_(self) -> str:
        return notebook.table_as_html(repr(self), ())

    @classmethod
    def from_images(
        cls,
        images: np.ndarray,
        bands: str | Sequence[Band | str],
        *,
        dates: Sequence[date],
        sensor: str | None = None,
        location: tuple[float, float] | None = None,
    ) -> 'PixelTimeSeries':
        """Take every pixel of images (T, bands, H, W) of some dates, row by row.

        Args:
            images: In stored units, NaN where there is no data.
            bands: A sensor's key, names, or `Band` objects.
            dates: When each was taken, in order.
            sensor: Whose names `bands` are.
            location: Latitude and longitude of about their middle.
        """
        if images.ndim != 4:
            raise ValueError(f'images must be (dates, bands, rows, columns), got {images.shape}')
        known = scaling.name_bands(images.shape[1], bands, sensor=sensor)
        values = np.moveaxis(images.reshape(*images.shape[:2], -1), 2, 0)
        places = None if location is None else np.tile(np.asarray(location, np.float64), (len(values), 1))
        return cls(values, known, Calendar.of(dates), places)

    @classmethod
    def from_table(
        cls,
        table: pd.DataFrame,
        bands: Mapping[str, Band | str] | Sequence[str],
        *,
        sensor: str | None = None,
        pixel: str = 'pixel',
        when: str = 'date',
        latitude: str | None = 'latitude',
        longitude: str | None = 'longitude',
    ) -> 'PixelTimeSeries':
        """Take a table with a row for each pixel and date; dates that a pixel lacks are missing.

        Args:
            table: With columns for the pixel, the date or month, and each band.
            bands: Columns of bands, by names that say what they are, with `sensor`; or a mapping of columns to bands.
            sensor: Whose names the columns are.
            pixel: Column that says of which pixel a row is.
            when: Column of dates, or of months from 1 to 12 (whole numbers), all of one year.
            latitude: Column of latitudes in degrees; None where they are not known.
            longitude: Column of longitudes.

        Raises:
            ValueError: If a column is not there, a pixel has two rows of one date or two places, or months are counted
                from 0.
        """
        columns = list(bands)
        places = [column for column in (latitude, longitude) if column is not None]
        if lacking := [name for name in (pixel, when, *columns, *places) if name not in table.columns]:
            raise ValueError(
                f'the table has no column {lacking[0]!r}, found {list(table.columns)[:20]}; name it in pixel=, when=, '
                'latitude= or longitude= (None where places are not known)'
            )
        given = list(bands.values()) if isinstance(bands, Mapping) else columns
        known = scaling.name_bands(len(columns), given, sensor=sensor)
        moments = _read_moments(table[when])
        calendar = moments if isinstance(moments, Calendar) else Calendar.of(sorted(set(moments)))
        labels: list[Any] = list(calendar.days or calendar.months)
        own = table[when].astype(int) if not calendar.days else pd.Series(moments, index=table.index)
        if (twice := pd.MultiIndex.from_arrays([table[pixel], own]).duplicated()).any():
            row = table[twice].iloc[0]
            raise ValueError(
                f'pixel {row[pixel]!r} has several rows of {when} {row[when]}; take their mean, or drop all but one'
            )
        names = list(dict.fromkeys(table[pixel]))
        rows, dates = {n: i for i, n in enumerate(names)}, {moment: i for i, moment in enumerate(labels)}
        values = np.full((len(names), len(labels), len(columns)), np.nan, np.float32)
        values[table[pixel].map(rows), own.map(dates)] = table[columns].to_numpy(np.float32)
        locations = None
        if len(places) == 2:
            found = table.groupby(pixel, sort=False)[places].agg(['min', 'max'])
            if (moved := (found.xs('max', axis=1, level=1) - found.xs('min', axis=1, level=1)).to_numpy() > 1e-3).any():
                raise ValueError(f'pixel {names[int(moved.any(axis=1).argmax())]!r} has several places; give it one')
            locations = found.xs('min', axis=1, level=1).to_numpy(np.float64)
        return cls(values, known, calendar, locations, tuple(map(str, names)))


def _read_moments(column: pd.Series) -> Calendar | list[date]:
    """Read a column of dates as a list, or one of months as the calendar of a year."""
    if pd.api.types.is_integer_dtype(column) and column.between(0, 99).all():
        return Calendar(tuple(sorted({int(month) for month in column})))
    try:
        # whole numbers such as 20240501; pandas takes them for nanoseconds
        style = '%Y%m%d' if pd.api.types.is_numeric_dtype(column) else None
        return [moment.date() for moment in pd.to_datetime(column.astype(str) if style else column, format=style)]
    except (ValueError, TypeError) as error:
        raise ValueError(f'the column {column.name!r} holds neither dates nor months 1 to 12: {error}') from error


def embed_pixels(
    series: PixelTimeSeries,
    backbone: str = 'presto',
    *,
    normalize: scaling.Normalize = 'pretraining',
    pretrained: bool = True,
    weights: str | Path | None = None,
    device: str | None = None,
) -> Embeddings:
    """Turn the time series of pixels into vectors.

    Args:
        series: Of the pixels.
        backbone: A network over time series, such as ``'presto'`` or ``'tessera_v2'``.
        normalize: What values are normalized by; (means, stds) where their units cannot be recognized, such as
            ``([0] * 10, [10_000] * 10)`` for Presto on reflectance x 10000.
        pretrained: Whether to fill it with its published weights.
        weights: A file or folder with them instead of fetching them.
        device: Torch device; None means CUDA where there is one.

    Returns:
        A vector for each pixel; NaN where it has no value in any band at any date.

    Raises:
        ArgumentError: If the backbone scales values by itself, and another normalization is named.
        BackboneError: If the backbone is not one of single pixels, cannot take the dates, or has to know places.
        BandError: If it does not know the bands.
        RasterError: If no pixel has data, or values look normalized already.
        WeightsError: If weights cannot be had or do not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = create_backbone(backbone, series.bands, pretrained=pretrained, weights=weights, strides=None)
    if not isinstance(net, PixelBackbone):
        raise errors.BackboneError(f"{backbone} sees more than one pixel; take 'presto' or 'tessera_v2', or call embed")
    if isinstance(normalize, str) and normalize not in ('pretraining', 'none') and catalog.needs_own_scaling(backbone):
        raise errors.ArgumentError(
            f'{backbone} computes with values in the units of its pretraining, which normalize={normalize!r} takes '
            "away; leave normalize='pretraining', or pass (means, stds) that bring values to these units"
        )
    trunk: Any = net.trunk
    if trunk.needs_location and series.locations is None:
        raise errors.BackboneError(f'{backbone} has to know where pixels lie; give PixelTimeSeries their locations')
    trunk.check_calendar(series.calendar)
    sample = _sample_bands(series)
    normalization, _ = scaling.choose_normalization(
        normalize, sample, series.bands, backbone, dtype='float32', pretrained=True, weights=weights
    )
    where = choose_device(device)
    first = Normalize(normalization.mean, normalization.std).to(where)
    first.keeps_missing = True
    net = net.to(where).eval()
    found = []
    with torch.inference_mode():
        for start in range(0, len(series), CHUNK):
            part = slice(start, start + CHUNK)
            values = torch.from_numpy(series.values[part]).to(where)
            normalized = first(values[..., None, None])[..., 0, 0]
            places = None if series.locations is None else torch.from_numpy(series.locations[part]).float().to(where)
            vectors = trunk.encode_all(normalized, series.calendar, places).cpu().numpy()
            vectors[~np.isfinite(series.values[part]).any(axis=(1, 2))] = np.nan  # place and date alone make no vector
            found.append(vectors)
    report = net.load_report
    source = EmbeddingSource(
        backbone=net.name,
        weights='random' if report is None else report.source,
        weights_hash=weights_digest(net),
        bands=tuple(band.name for band in series.bands),
        wavelengths_um=tuple(band.wavelength_um for band in series.bands),
        scaling=normalization.source,
        mean=normalization.mean,
        std=normalization.std,
        stride=1,
    )
    vectors = np.concatenate(found) if found else np.zeros((0, trunk.dim), np.float32)
    return Embeddings(vectors, source, series.names)


def _sample_bands(series: PixelTimeSeries) -> np.ndarray:
    """Return values (bands, n) that each band has, whatever dates others have: two sensors need share no day.

    Raises:
        RasterError: If a band has no value at all.
    """
    flat = series.values.reshape(-1, len(series.bands))
    flat = flat[(np.nan_to_num(flat) != 0).any(axis=1)]  # rows of zeros are untagged borders
    columns = [column[np.isfinite(column)] for column in flat.T]
    if empty := [band.name for band, column in zip(series.bands, columns) if not len(column)]:
        raise errors.RasterError(f'{", ".join(empty)}: no pixel holds data at any date; leave these bands out')
    count = min(scaling.SAMPLE, max(map(len, columns)))
    return np.stack([column[np.linspace(0, len(column) - 1, count).astype(int)] for column in columns])


CHUNK = 2**14
"""Pixels that are brought to the device together."""
