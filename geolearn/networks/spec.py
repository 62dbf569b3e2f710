"""What a model is, as data: enough to rebuild it, to check a raster against it, and to write its .emd."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from typing import Any, get_args

from geolearn.backbones.adapt import DEFAULT_ADAPTATION, Adaptation
from geolearn.backbones.temporal import Temporal
from geolearn.bands import Band
from geolearn.classes import MAX_CLASSES, ClassInfo, is_unlabelled
from geolearn.errors import BundleError
from geolearn.normalize import Normalization
from geolearn.statistics import BandStatistics

MAX_CHIP_SIZE = 65_536
"""Larger ones are no training chips; tiles take their size from them."""


@dataclass(frozen=True)
class ModelSpec:
    """The description of a model that its bundle carries.

    Args:
        model: Name of the class, such as ``'DeepLab'``.
        backbone: Name of the backbone.
        bands: Bands of the input, in order.
        class_infos: Classes; position is the output channel.
        ignored_values: Label values that were left out.
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
        resolution_m: Of the images in metres per pixel, for backbones whose positions depend on it; None leaves that of
            their pretraining.
        temperature: Logits are divided by it to say how sure the model is; 1 until it is calibrated.
        options: What else the class of model was told, as plain JSON; the class reads and checks it.
    """

    model: str
    backbone: str
    bands: tuple[Band, ...]
    class_infos: tuple[ClassInfo, ...]
    ignored_values: tuple[int, ...]
    chip_size: int
    statistics: BandStatistics
    normalization: Normalization
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

    def __post_init__(self) -> None:
        object.__setattr__(self, 'band_indexes', self.band_indexes or tuple(range(len(self.bands))))

    def to_manifest(self) -> dict[str, Any]:
        """Return the spec as plain JSON."""
        return asdict(self) | {'cell_size': dict(self.cell_size or {}) or None}

    @classmethod
    def from_manifest(cls, manifest: Mapping[str, Any]) -> 'ModelSpec':
        """Rebuild a spec from a bundle's manifest, checking every field.

        Raises:
            BundleError: If a field is missing or cannot be what it should be.
        """
        try:
            spec = cls(
                model=_typed(manifest['model'], str),
                backbone=_typed(manifest['backbone'], str),
                bands=tuple(_band(row) for row in manifest['bands']),
                class_infos=tuple(_class_info(row) for row in manifest['class_infos']),
                ignored_values=tuple(_typed(value, int) for value in manifest['ignored_values']),
                chip_size=_typed(manifest['chip_size'], int),
                statistics=_statistics(manifest['statistics']),
                normalization=_normalization(manifest.get('normalization'), manifest['statistics']),
                dtype=_typed(manifest['dtype'], str),
                cell_size=_optional(manifest.get('cell_size'), dict) or None,
                band_indexes=tuple(_typed(index, int) for index in manifest.get('band_indexes', ())),
                image_space=_typed(manifest.get('image_space', 'MAP_SPACE'), str),
                pretrained=bool(manifest.get('pretrained', False)),
                class_balancing=bool(manifest.get('class_balancing', False)),
                adaptation=_adaptation(manifest.get('adaptation')),
                dates=_typed(manifest.get('dates', 1), int),
                acquired=tuple(date.fromisoformat(day).isoformat() for day in manifest.get('acquired', ())),
                temporal=manifest.get('temporal', 'mean'),
                resolution_m=_positive('resolution_m', manifest.get('resolution_m')),
                temperature=_positive('temperature', manifest.get('temperature')) or 1.0,
                options=_typed(manifest.get('options', {}), dict),
            )
        except KeyError as error:
            raise BundleError(f'the manifest lacks {error}; the bundle is broken') from error
        except (TypeError, ValueError, OverflowError) as error:
            raise BundleError(f'the manifest is broken: {error}') from error
        spec._check()
        return spec

    def _check(self) -> None:
        bands, values = len(self.bands), [info.value for info in self.class_infos]
        measured, normalised = len(self.statistics.mean), len(self.normalization.mean)
        if not bands or measured != bands or normalised != bands:
            raise BundleError(
                f'the manifest is broken: {bands} bands with statistics of {measured} and normalisation of {normalised}'
            )
        if len(self.band_indexes) != bands or min(self.band_indexes) < 0:
            raise BundleError(f'the manifest is broken: {bands} bands at the positions {self.band_indexes}')
        if not len(set(values)) == len(values) <= MAX_CLASSES or not all(0 <= value < 65536 for value in values):
            raise BundleError(
                f'the manifest is broken: class values {values} must be up to 255 different ones in 0..65535'
            )
        if self.dates < 1 or len(self.acquired) not in (0, self.dates) or self.temporal not in get_args(Temporal):
            raise BundleError(f'the manifest is broken: {self.dates} dates {self.acquired} of {self.temporal!r}')
        if not 1 <= self.chip_size <= MAX_CHIP_SIZE:
            raise BundleError(f'the manifest is broken: chip_size {self.chip_size} must lie in 1..{MAX_CHIP_SIZE}')

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
                if not is_unlabelled(info)
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


def _typed(value: Any, kind: type) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f'found {value!r} where a {kind.__name__} is needed')
    return value


def _optional(value: Any, kind: type) -> Any:
    return None if value is None else _typed(value, kind)


def _positive(name: str, value: Any) -> float | None:
    if value is None:
        return None
    if not (math.isfinite(float(value)) and float(value) > 0):
        raise ValueError(f'{name} {value!r} must be above 0')
    return float(value)


def _band(row: Mapping[str, Any]) -> Band:
    wavelength = row['wavelength_um']
    return Band(
        _typed(row['name'], str),
        None if wavelength is None else float(wavelength),
        _optional(row['common_name'], str),
        bool(row['is_radar']),
    )


def _class_info(row: Mapping[str, Any]) -> ClassInfo:
    color = tuple(_typed(part, int) for part in row['color'])
    if len(color) != 3 or not all(0 <= part <= 255 for part in color):
        raise ValueError(f'class color {color} must have three parts in 0..255')
    return ClassInfo(_typed(row['value'], int), _typed(row['name'], str), (color[0], color[1], color[2]))


def _statistics(row: Mapping[str, Any]) -> BandStatistics:
    columns = [_floats(row[name]) for name in ('minimum', 'maximum', 'mean', 'std')]
    if len({len(column) for column in columns}) != 1:
        raise ValueError('statistics have columns of different lengths')
    return BandStatistics(*columns)


def _normalization(row: Mapping[str, Any] | None, statistics: Mapping[str, Any]) -> Normalization:
    if row is None:  # bundles from before there was a choice: mean and std of the chips, a constant band as it is
        found = _statistics(statistics)
        return Normalization(
            found.mean, tuple(std if std > 0 else 1.0 for std in found.std), 'mean and std of the chips'
        )
    return Normalization(_floats(row['mean']), _floats(row['std']), _typed(row['source'], str))


def _adaptation(row: Mapping[str, Any] | None) -> Adaptation:
    # bundles from before there was a choice trained everything at one rate
    return DEFAULT_ADAPTATION if row is None else Adaptation(**_typed(row, dict))


def _floats(values: Sequence[Any]) -> tuple[float, ...]:
    numbers = tuple(float(value) for value in values)
    if not all(math.isfinite(number) for number in numbers):
        raise ValueError(f'statistics must be finite, found {numbers}')
    return numbers
