"""ModelSpec: the description of a model, enough to rebuild it, to check a raster against it, and to write its .emd."""

import unicodedata
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from datetime import date
from typing import Any, TypeVar, get_args, get_type_hints

import msgspec
import numpy as np

from geolearn import classes, errors, normalize
from geolearn.adaptation import DEFAULT_ADAPTATION, Adaptation, Temporal
from geolearn.bands import Band
from geolearn.raster import EmbeddingProduct
from geolearn.statistics import BandStatistics

T = TypeVar('T')

MAX_DEPTH = 32
"""Of lists and objects in one another; geolearn writes six at most."""

MAX_WHOLE = 2**53
"""Beyond it JSON readers differ on whole numbers."""

MAX_NUMBER = float(np.finfo(np.float32).max)
"""Networks compute in float32, where larger numbers are infinite."""

UNPRINTABLE = ('Cc', 'Cs')
"""Unicode's categories of control characters and lone surrogates: neither logs, files nor figures can show these."""


def decode(kind: type[T], value: Any, what: str) -> T:
    """Decode JSON into a type, such as a dataclass of `geolearn`; nothing is converted but lists to tuples.

    Args:
        kind: What the value must be. Dataclasses check their own ranges.
        value: Of a bundle, as `json.loads` returns it.
        what: The value is, for the error.

    Raises:
        BundleError: If a field is missing or unknown, of another type, non-finite or out of its range.
    """
    try:
        check_json(value)
        _check_names(kind, value)
        return msgspec.convert(value, kind)
    except KeyError as error:
        raise errors.BundleError(f'the manifest lacks {error} ({what}); the bundle is broken') from error
    except (msgspec.ValidationError, errors.GeoLearnError, TypeError, ValueError, OverflowError) as error:
        raise errors.BundleError(f'the manifest is broken: {what}: {_brief(error)}') from error


def check_json(value: Any, *, depth: int = 0) -> None:
    """Check that all numbers and texts in a JSON value are such as geolearn writes.

    Raises:
        ValueError: If a number is non-finite or too large, a text holds control characters or half a character, or
            lists lie too deep in one another.
    """
    if depth > MAX_DEPTH:
        raise ValueError(f'lists lie more than {MAX_DEPTH} deep in one another')
    if isinstance(value, str):
        check_text(value)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            check_text(key)
            check_json(item, depth=depth + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            check_json(item, depth=depth + 1)
    elif isinstance(value, int):
        if abs(value) > MAX_WHOLE:
            raise ValueError(f'a whole number of {len(str(abs(value) // 10**9)) + 9} digits is too large')
    elif isinstance(value, float) and not abs(value) <= MAX_NUMBER:
        raise ValueError(f'{value} is not a finite number of 32 bits')


def check_text(text: str) -> None:
    """Check that a text can be shown and written.

    Raises:
        ValueError: If it holds a control character or half of a surrogate pair.
    """
    for character in text:
        if unicodedata.category(character) in UNPRINTABLE:
            raise ValueError(f'the text {text[:60]!a} holds the character U+{ord(character):04X}, which is no text')


def replace_unprintable(text: str) -> str:
    """Return a text with U+FFFD in the place of what `check_text` refuses."""
    return ''.join('\N{REPLACEMENT CHARACTER}' if unicodedata.category(c) in UNPRINTABLE else c for c in text)


def _check_names(kind: Any, value: Any) -> None:
    """Check that objects have the fields that their dataclass needs, and no other, which would be passed over."""
    for part in get_args(kind):
        for inner in value if isinstance(value, list | tuple) else [value]:
            _check_names(part, inner)
    if not is_dataclass(kind) or not isinstance(value, Mapping):
        return
    hints, known = get_type_hints(kind), {item.name: item for item in fields(kind)}
    if unknown := sorted(set(map(str, value)) - known.keys()):
        raise ValueError(f'unknown field {unknown[0]!r}; known are {", ".join(sorted(known))}')
    for name, item in known.items():
        if name not in value and item.default is MISSING and item.default_factory is MISSING:
            raise KeyError(name)
    for name, inner in value.items():
        _check_names(hints[name], inner)


def _brief(error: Exception) -> str:
    return str(error)[:500]


MAX_CHIP_SIZE = 65_536
"""Larger ones are no training chips; tiles take their size from them."""

MAX_BANDS, MAX_DATES = 4096, 1024

RESOLUTIONS = (1e-3, 1e6)
"""Meters per pixel."""

TEMPERATURES = (1e-4, 1e4)


@dataclass(frozen=True)
class ModelSpec:
    """The description of a model that its bundle carries.

    Args:
        model: Name of the class, such as ``'DeepLab'``.
        backbone: Name of the backbone.
        bands: Bands of the input, in order.
        class_infos: Classes; position is the output channel.
        ignored_values: Label values that are ignored.
        chip_size: Side of the training images in pixels.
        statistics: Of the training chips, in the units that the network takes.
        normalization: What the network's first layer does to its input.
        dtype: Stored dtype of the training chips.
        cell_size: ArcGIS's MinCellSize object, or None.
        band_indexes: 0-based position of each band in the training raster; empty means 0, 1, 2, ...
        image_space: ArcGIS's ImageSpaceUsed.
        pretrained: Whether the backbone started from published weights, so that it is trained at a lower rate.
        class_balancing: Whether rare classes weigh more in the loss.
        adaptation: How the backbone is trained.
        dates: Dates of each image.
        acquired: When they were taken, as ISO dates, where that is known.
        temporal: How the maps of several dates become one: ``'mean'``, ``'concat'`` or ``'ltae'``.
        resolution_m: Of the images in meters per pixel, for backbones whose positions depend on it; None leaves that of
            their pretraining.
        location: Latitude and longitude of about the middle of the images, for backbones that know places; None where
            that is not known.
        temperature: Logits are divided by it before confidences are computed; 1 until the model is calibrated.
        options: Those of the class of model, as plain JSON; the class reads and checks it.
        arguments: What the constructor was given besides its defaults, as JSON (see `geolearn.arguments`), for the
            report; None in bundles from before it was kept.
        product: The precomputed embeddings that the bands are, which rasters must be too; None for other images.
        custom: Parts of the user's own that no bundle can hold, such as ``{'loss': 'mine.FocalTversky'}``.
    """

    model: str
    backbone: str
    bands: tuple[Band, ...]
    class_infos: tuple[classes.ClassInfo, ...]
    ignored_values: tuple[int, ...]
    chip_size: int
    statistics: BandStatistics
    normalization: normalize.Normalization
    dtype: str
    cell_size: Mapping[str, Any] | None = None
    band_indexes: tuple[int, ...] = ()
    image_space: str = 'MAP_SPACE'
    pretrained: bool = False
    class_balancing: bool = False
    adaptation: Adaptation = DEFAULT_ADAPTATION
    dates: int = 1
    acquired: tuple[str, ...] = ()
    temporal: Temporal = 'mean'
    resolution_m: float | None = None
    temperature: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, Any] | None = None
    custom: Mapping[str, str] = field(default_factory=dict)
    product: EmbeddingProduct | None = None
    location: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, 'band_indexes', self.band_indexes or tuple(range(len(self.bands))))

    @property
    def is_radar(self) -> tuple[bool, ...]:
        """Whether each band is radar."""
        return tuple(band.is_radar for band in self.bands)

    def to_manifest(self) -> dict[str, Any]:
        """Return the spec as plain JSON."""
        row = asdict(self) | {'cell_size': dict(self.cell_size or {}) or None}
        for name in ('product', 'location'):  # earlier versions know no such fields
            if row[name] is None:
                del row[name]
        return row

    @classmethod
    def from_manifest(cls, manifest: Mapping[str, Any]) -> 'ModelSpec':
        """Rebuild a spec from a bundle's manifest, checking every field.

        Raises:
            BundleError: If a field is missing, of another type or out of its range.
        """
        known = {item.name for item in fields(cls)}
        row = {name: value for name, value in manifest.items() if name in known}
        if not row.get('normalization') and 'statistics' in row:
            row['normalization'] = _normalization_of(row['statistics'])
        row['adaptation'] = row.get('adaptation') or {}  # bundles from before there was a choice have none
        bands = row.get('bands')
        for band in bands if isinstance(bands, list) else []:
            decode(dict[str, str | float | bool | None], band, 'a band')
            if missing := [item.name for item in fields(Band) if item.name not in band]:
                raise errors.BundleError(f'the manifest lacks {missing[0]!r} of a band; the bundle is broken')
        spec = decode(cls, row, 'the description of the model')
        spec._check()
        return replace(spec, cell_size=spec.cell_size or None)

    @property
    def model_classes(self) -> classes.ModelClasses:
        """Classes and ignored label values, for `geolearn.prepare_data`, which matches chips to them by name."""
        return classes.ModelClasses(self.class_infos, self.ignored_values)

    def _check(self) -> None:
        """Check what the fields must be to each other, and their ranges."""
        bands, values, s = len(self.bands), [info.value for info in self.class_infos], self.statistics
        measured = {len(column) for column in (s.minimum, s.maximum, s.mean, s.std)}
        days = [day for day in self.acquired if not _is_day(day)]
        colors = [part for info in self.class_infos for part in info.color if not 0 <= part <= 255]
        wrong = {
            'statistics have columns of different lengths': len(measured) != 1,
            f'{bands} bands with statistics of {len(s.mean)}': len(s.mean) != bands,
            f'{bands} bands with normalization of {len(self.normalization.mean)}': len(self.normalization.mean)
            != bands,
            f'{bands} bands at the positions {self.band_indexes[:20]}': len(self.band_indexes) != bands
            or not all(0 <= index <= MAX_BANDS for index in self.band_indexes),
            f'class values {values[:300]} must be up to {classes.MAX_CLASSES} different ones in 0..65535': not (
                len(set(values)) == len(values) <= classes.MAX_CLASSES and all(0 <= value < 65536 for value in values)
            ),
            f'class colors must have three parts in 0..255, got {colors[:3]}': bool(colors),
            f'{bands} bands; needed are 1 to {MAX_BANDS}': not 1 <= bands <= MAX_BANDS,
            f'{self.dates} dates; needed are 1 to {MAX_DATES}': not 1 <= self.dates <= MAX_DATES,
            f'{self.dates} dates with {len(self.acquired)} days': len(self.acquired) not in (0, self.dates),
            f'dates must be ISO dates, got {days[:3]}': bool(days),
            f'chip_size {self.chip_size} must lie in 1..{MAX_CHIP_SIZE}': not 1 <= self.chip_size <= MAX_CHIP_SIZE,
            f'resolution_m {self.resolution_m} must lie in {RESOLUTIONS}': self.resolution_m is not None
            and not RESOLUTIONS[0] <= self.resolution_m <= RESOLUTIONS[1],
            f'location {self.location} is no latitude and longitude': self.location is not None
            and not (abs(self.location[0]) <= 90 and abs(self.location[1]) <= 180),
            f'temperature {self.temperature} must lie in {TEMPERATURES}': not (
                TEMPERATURES[0] <= self.temperature <= TEMPERATURES[1]
            ),
        }
        if found := next((text for text, is_wrong in wrong.items() if is_wrong), None):
            raise errors.BundleError(f'the manifest is broken: {found}')

    def to_emd(self, *, chip_name: str) -> dict[str, Any]:
        """Return Esri's keys that every model has; `chip_name` is the model's name."""
        s = self.statistics
        spans = [high - low or 1.0 for low, high in zip(s.minimum, s.maximum)]
        scaled_mean = [(mean - low) / span for mean, low, span in zip(s.mean, s.minimum, spans)]
        scaled_std = [std / span for std, span in zip(s.std, spans)]
        return {
            'Framework': 'geolearn',
            'ModelName': self.model,
            'Name': chip_name,
            'ModelFormat': 'NCHW',
            # several dates are one raster for ArcGIS, whose number of bands at each date nobody knows
            'ExtractBands': list(self.band_indexes if self.dates == 1 else range(self.dates * len(self.bands))),
            'Classes': [
                {'Value': info.value, 'Name': info.name, 'Color': list(info.color)}
                for info in self.class_infos
                if not classes.is_unlabelled(info)
            ],
            'ImageHeight': self.chip_size,
            'ImageWidth': self.chip_size,
            'ImageSpaceUsed': self.image_space,
            'MinCellSize': self.cell_size,
            'MaxCellSize': self.cell_size,
            'ModelParameters': {
                'backbone': self.backbone,
                'backend': 'pytorch',
                'wavelengths': [band.wavelength_um for band in self.bands],
                'band_names': [band.name for band in self.bands],
            },
            'IsMultispectral': len(self.bands) != 3 or self.dtype != 'uint8',
            'IsImageNetNormalization': False,
            'Bands': [band.name for band in self.bands],
            'NormalizationStats': {
                'band_min_values': list(s.minimum),
                'band_max_values': list(s.maximum),
                'band_mean_values': list(s.mean),
                'band_std_values': list(s.std),
                'scaled_min_values': [0.0] * len(spans),
                'scaled_max_values': [1.0] * len(spans),
                'scaled_mean_values': scaled_mean,
                'scaled_std_values': scaled_std,
            },
            'DoNormalize': True,
            'resize_to': None,
        }


def _normalization_of(statistics: Any) -> dict[str, Any]:
    """Return what bundles from before there was a choice normalize by: mean and std, a constant band as it is."""
    found = decode(BandStatistics, statistics, 'statistics')
    std = [value if value > 0 else 1.0 for value in found.std]
    return {'mean': list(found.mean), 'std': std, 'source': 'mean and std of the chips'}


def _is_day(text: str) -> bool:
    try:
        return bool(date.fromisoformat(text))
    except ValueError:
        return False
