"""Describe a model: as the spec of a new one for some data, and in words."""

import logging
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import NamedTuple, TypeVar, get_args

from torch import Tensor, nn

from geolearn import errors, normalize, notebook
from geolearn.adaptation import DEFAULT_ADAPTATION, Adaptation, Temporal
from geolearn.backbones import catalog, custom, olmoearth_bands, pretrained, torchvision
from geolearn.backbones.catalog import InputStatistics
from geolearn.backbones.timm import import_timm, is_timm_model
from geolearn.bands import Band, match_bands, parse_wavelengths
from geolearn.chips.label import Task
from geolearn.data import ChipData
from geolearn.history import Evaluation, History
from geolearn.losses import PixelLossOptions, RegressionLossOptions
from geolearn.losses.options import as_loss_module
from geolearn.metrics import name_metric
from geolearn.networks.network import Network
from geolearn.networks.spec import ModelSpec
from geolearn.statistics import Percentiles
from geolearn.units import RadarScale, radar_scale, reflectance_scale

_LABELS = {
    Task.PIXELS: 'one class per pixel',
    Task.CHANGE: 'pairs of images with what changed between them',
    Task.REGRESSION: 'one value per pixel',
    Task.OBJECTS: 'boxes',
    Task.INSTANCES: 'outlined objects',
    Task.ORIENTED: 'oriented boxes',
    Task.PANOPTIC: 'pixels and outlined objects',
    Task.LABEL: 'one class per chip',
    Task.LABELS: 'any number of classes per chip',
    Task.UNLABELLED: 'images without labels',
}

_EXPORTS = {
    Task.PIXELS: 'Classified_Tiles',
    Task.CHANGE: 'Classified_Tiles of two dates',
    Task.OBJECTS: 'PASCAL_VOC_rectangles',
    Task.INSTANCES: 'RCNN_Masks',
    Task.ORIENTED: 'DOTA',
    Task.PANOPTIC: 'Panoptic_Segmentation',
    Task.LABEL: 'Labeled_Tiles',
    Task.LABELS: 'MultiLabeled_Tiles',
    Task.REGRESSION: 'Classified_Tiles of float labels',
    Task.UNLABELLED: 'images',
}


L = TypeVar('L', PixelLossOptions, RegressionLossOptions)


@dataclass(frozen=True)
class BackboneConfig:
    """The backbone of a new model, and how it is trained.

    Args:
        name: Such as ``'dofa_base'``, or a module of the user's own with its facts. The path of a file of
            `geolearn.pretrain`, or of a .dlpk, stands for the backbone that it holds, with its weights.
        pretrained: Whether to fill it with its published weights.
        weights: A file or folder with its weights, or a .dlpk, instead of fetching them.
        wavelengths: Replace those of the bands, in micrometers; None for radar.
        adapt: What of it is trained, how fast, and with low-rank updates or in full.
        temporal: How the maps of several dates become one.
        resolution_m: Of the images in meters per pixel, for backbones whose positions depend on it.
        acquired: When the images of each date were taken, instead of what the chips say.
        location: Latitude and longitude of about the middle of the images, for backbones that know places; it stays
            with the model. None takes that of the chips for those that have to know it.
    """

    name: str | custom.ModuleBackbone
    pretrained: bool = True
    weights: str | Path | None = None
    wavelengths: Sequence[float | None] | None = None
    adapt: Adaptation = DEFAULT_ADAPTATION
    temporal: Temporal = 'mean'
    resolution_m: float | None = None
    acquired: Sequence[date] = ()
    location: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.temporal not in get_args(Temporal):
            raise errors.UnknownNameError('temporal head', str(self.temporal), get_args(Temporal))
        if isinstance(self.name, str | Path) and custom.is_file_name(self.name):
            if self.weights is not None:
                raise errors.BackboneError(
                    f'backbone is the file {self.name}, whose weights are taken; leave weights out, got {self.weights}'
                )
            if not self.pretrained:
                raise errors.BackboneError(
                    f'backbone is the file {self.name} and pretrained=False says to take no weights; pass '
                    f'backbone={custom.backbone_in(self.name)!r} to start from random ones'
                )
            object.__setattr__(self, 'weights', self.name)
            object.__setattr__(self, 'name', custom.backbone_in(self.name))


def require_task(data: ChipData, model: str, tasks: Sequence[Task]) -> None:
    """Check that a model can be trained on the labels of chips.

    Args:
        data: The chips.
        model: Name of the class of model.
        tasks: Those that it can be trained on.

    Raises:
        ChipFolderError: If their task is another one; the message says which.
    """
    if data.task not in tasks:
        wanted = ' or '.join(_LABELS[task] for task in tasks)
        raise errors.ChipFolderError(
            f'{model} needs {wanted}, but {data.path} ({data.dataset_type}) holds {_LABELS[data.task]}; '
            f'export {" or ".join(_EXPORTS[task] for task in tasks)}'
        )


def spec_from_data(data: ChipData, choice: BackboneConfig, *, model: str) -> ModelSpec:
    """Describe a model for this data.

    Args:
        data: To train on.
        choice: The backbone, and how it is trained.
        model: Name of the class.

    Raises:
        UnknownNameError: If pretraining's statistics are asked for and there is no such backbone.
        BackboneError: If the backbone is not a name, or those statistics do not fit the data.
        BandError: If the wavelengths are of another number, in mixed units or out of range, or pretraining's
            statistics are asked for and lack a band.
    """
    name = custom.name_backbone(choice.name)
    own = {'backbone': type(choice.name.trunk).__qualname__} if isinstance(choice.name, custom.ModuleBackbone) else {}
    bands = data.bands if choice.wavelengths is None else with_wavelengths(data.bands, choice.wavelengths)
    normalization, record = data.normalization, catalog.find_record(name)
    if catalog.needs_own_scaling(name):
        try:
            normalization = pretraining_normalization(data, bands, name, weights=choice.weights)
        except NoStatisticsError as error:
            raise errors.BackboneError(
                f'{name} computes with values in the units of its pretraining, but {error.reason}; give it bands that '
                f'it knows, in these units (see describe_backbone({name!r}))'
            ) from error
    elif record is not None and record.unknown_scaling and (choice.pretrained or choice.weights is not None):
        _require_given(normalization, data, record)
    if normalization is None:
        normalization = pretraining_normalization(data, bands, name, weights=choice.weights)
    return ModelSpec(
        model=model,
        backbone=name,
        bands=bands,
        class_infos=data.class_infos,
        ignored_values=data.ignored_values,
        chip_size=data.chip_size,
        statistics=data.statistics,
        normalization=normalization,
        dtype=data.dtype,
        cell_size=data.cell_size,
        band_indexes=data.band_indexes,
        image_space=data.image_space,
        adaptation=choice.adapt,
        dates=data.table.dates,
        acquired=tuple(day.isoformat() for day in choice.acquired or data.acquired),
        temporal=choice.temporal,
        resolution_m=choice.resolution_m,
        location=choice.location or (data.table.location() if catalog.needs_places(name) else None),
        custom=own,
        product=data.product,
    )


def _require_given(
    normalization: normalize.Normalization | None, data: ChipData, record: catalog.WeightsRecord
) -> None:
    """Ask for the scaling of weights whose authors publish none.

    Raises:
        BackboneError: If the user of the chips did not give it.
    """
    if normalization is None or normalization.source != normalize.GIVEN:
        s = data.statistics
        row = f'{tuple(round(v, 4) for v in s.mean)}, {tuple(round(v, 4) for v in s.std)}'
        raise errors.BackboneError(
            f'it is published nowhere how the inputs of {record.name} were scaled in pretraining, and its features '
            f'depend on it: pass prepare_data(normalize=(means, stds)), one of each per band. Those of these chips are '
            f'({row}); pass pretrained=False to train it from scratch'
        )


def with_wavelengths(bands: Sequence[Band], wavelengths: Sequence[float | None]) -> tuple[Band, ...]:
    """Move optical bands to other wavelengths; one that moves far loses its common name."""
    if len(wavelengths) != len(bands):
        raise errors.BandError(
            f'found {len(wavelengths)} wavelengths, needed {len(bands)}; give one per selected band, in band order'
        )
    given = [
        math.nan if wavelength is None else wavelength
        for band, wavelength in zip(bands, wavelengths)
        if not band.is_radar
    ]
    parsed = iter(parse_wavelengths(given, len(given)))
    return tuple(band if band.is_radar else _moved(band, next(parsed)) for band in bands)


def _moved(band: Band, wavelength_um: float) -> Band:
    old = band.wavelength_um
    same = old is None or abs(old - wavelength_um) <= 0.1 * max(old, wavelength_um)
    return replace(band, wavelength_um=wavelength_um, common_name=band.common_name if same else None)


def describe_model(spec: ModelSpec, network: Network, *, epochs: int, trains: bool) -> str:
    """Describe a model in a few lines.

    Args:
        spec: Of the model.
        network: Of the model.
        epochs: Number of epochs trained.
        trains: Whether there is data to train on, so that the number of trained parameters matters.
    """
    report = network.backbone.load_report
    lines = [
        f'{spec.model} on {spec.backbone}: {_count_parameters(spec, network, trains=trains)}, {epochs} epochs trained',
        f'  bands    {", ".join(band.name for band in spec.bands)}',
    ]
    if spec.class_infos:
        lines.append(f'  classes  {", ".join(info.name for info in spec.class_infos)}')
    if spec.pretrained and (record := catalog.find_record(spec.backbone)) is not None and record.terms:
        lines.append(f'  terms    {record.license}: {record.terms}')
    return '\n'.join(lines + ([f'  weights  {report}'] if report else []))


def _count_parameters(spec: ModelSpec, network: Network, *, trains: bool) -> str:
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in network.parameters()]
    text = f'{sum(size for size, _ in sizes) / 1e6:.1f} M parameters'
    if trains and spec.adaptation != DEFAULT_ADAPTATION:
        text += f' ({sum(size for size, is_trained in sizes if is_trained) / 1e6:.2f} M of them are trained)'
    return text


def describe_as_html(spec: ModelSpec, network: Network, history: History, evaluation: Evaluation | None) -> str:
    """Lay out a model as a table, for notebooks.

    Args:
        spec: Of the model.
        network: Of the model.
        history: Of its training.
        evaluation: The last one, if there is one; nothing is computed.
    """
    metrics = evaluation.metrics.items() if evaluation else ()
    numbers = [f'{name_metric(name)} {value:.4g}' for name, value in metrics if isinstance(value, int | float)]
    report = network.backbone.load_report
    return notebook.table_as_html(
        spec.model,
        [
            ('backbone', spec.backbone),
            ('parameters', _count_parameters(spec, network, trains=True)),
            ('bands', ', '.join(band.name for band in spec.bands)),
            ('classes', [notebook.Swatch(info.name, info.color) for info in spec.class_infos]),
            ('chips', f'{spec.chip_size} pixels' + (f', {spec.dates} dates' if spec.dates > 1 else '')),
            ('epochs', str(len(history.epochs))),
            ('validation', ', '.join(numbers)),
            ('weights', str(report) if report else ''),
        ],
    )


log = logging.getLogger('geolearn')


class _Units(NamedTuple):
    """What the chips are stored in; None where it was not recognized."""

    white: int | None
    """Value that stands for reflectance 1; 255 for 8-bit images."""
    radar: RadarScale | None
    eight_bit: bool
    digital: bool = False
    """May be digital numbers of Landsat: whole numbers of 16 bits that are no reflectance x 10000."""


class _Fit(NamedTuple):
    """Statistics of pretraining that serve a group of bands, and the values that stood for white there and here."""

    inputs: InputStatistics
    trained_white: float
    white: float


def pretraining_normalization(
    data: ChipData, bands: Sequence[Band], backbone: str, *, weights: str | Path | None = None
) -> normalize.Normalization:
    """Choose mean and std of each band of chips by the statistics of a backbone's weights; see `weights_normalization`.

    Raises:
        UnknownNameError: If there is no such backbone.
        BackboneError: If the weights state no mean and std for a band, or not in units that fit the chips'.
    """
    percentiles = data.table.percentiles(data.band_indexes)
    return weights_normalization(percentiles, data.dtype, bands, backbone, weights=weights)


def weights_normalization(
    percentiles: Percentiles | None,
    dtype: str,
    bands: Sequence[Band],
    backbone: str,
    *,
    weights: str | Path | None = None,
) -> normalize.Normalization:
    """Choose mean and std of each band by the statistics that belong to a backbone's weights.

    Optical and radar bands are served apart: each by the statistics of one pretraining sensor, that whose wavelengths
    are nearest. Reflectance is scaled between its stored forms; 8-bit images match 8-bit images, and radar in dB
    statistics in dB. Statistics of 8-bit images serve reflectance as if 255 stood for 1, which is logged. Other
    quantities, such as elevation, are taken by their names, in the units of the weights' record, which are logged.

    Args:
        percentiles: Of each band of the images, by which their units are recognized; None where they hold no data.
        dtype: Stored dtype of the images.
        bands: Of the images, in order.
        backbone: Name of the backbone, or a file of `geolearn.pretrain`.
        weights: The user's own, where given.

    Raises:
        UnknownNameError: If there is no such backbone.
        BackboneError: If the weights state no mean and std for a band, or not in units that fit the chips'.
    """
    weights = backbone if custom.is_file_name(backbone) else weights
    if weights is not None and pretrained.is_pretrained(weights):
        return _own_statistics(pretrained.read_facts(weights), _find_units(percentiles, dtype, bands), bands)
    if custom.is_bundle(weights):
        raise _refusal(f'{weights} is a model of geolearn, which was not trained with the statistics of {backbone}')
    inputs, units = _find_inputs(backbone), _find_units(percentiles, dtype, bands)
    mean, std, sources = [0.0] * len(bands), [1.0] * len(bands), list[str]()
    physical = {
        i: (entry, k)
        for i, band in enumerate(bands)
        for entry in inputs
        if entry.sensor == catalog.PHYSICAL and (k := _position(entry, band)) is not None
    }
    for i, (entry, k) in physical.items():
        mean[i], std[i] = entry.mean[k], entry.std[k]
    if physical:
        sources.append(f'{", ".join(bands[i].name for i in physical)} as {backbone} takes them')
        units_of_all = ', '.join(dict.fromkeys(entry.scale for entry, _ in physical.values()))
        log.info('%s: taken to be in the units of pretraining (%s)', sources[-1], units_of_all)
    for positions, stated in _divide(backbone, inputs, bands, [i for i in range(len(bands)) if i not in physical]):
        group = [bands[i] for i in positions]
        if len(stated) < len(inputs):  # of one sensor: others may be stored in other units
            own = None if percentiles is None else percentiles.select(positions)
            fit = _choose(backbone, stated, group, _find_units(own, dtype, group))
        else:
            fit = _choose(backbone, stated, group, units)
        found = normalize.match_pretraining(
            group,
            trained_bands=fit.inputs.get_bands(),
            mean=fit.inputs.mean,
            std=fit.inputs.std,
            trained_scale=fit.trained_white,
            full_scale=fit.white,
        )
        for position, center, spread in zip(positions, found.mean, found.std):
            mean[position], std[position] = center, spread
        sources.append(_describe(backbone, fit))
    return normalize.Normalization(tuple(mean), tuple(std), '; '.join(sources))


def _divide(
    backbone: str, inputs: Sequence[InputStatistics], bands: Sequence[Band], positions: Sequence[int]
) -> list[tuple[list[int], Sequence[InputStatistics]]]:
    """Divide bands into those that share statistics, and say which statistics may serve them.

    OlmoEarth assigns bands to sensors, each with kernels of its own, so that the statistics have to be that sensor's.
    """
    record = catalog.find_record(backbone)
    if record is None or record.family != 'olmoearth':
        parts = [[i for i in positions if bands[i].is_radar == is_radar] for is_radar in (False, True)]
        return [(part, inputs) for part in parts if part]
    try:
        sensors = [name for name, _ in olmoearth_bands.find_sensor([bands[i] for i in positions])]
    except errors.BandError as error:
        raise _refusal(str(error)) from error
    divided: list[tuple[list[int], Sequence[InputStatistics]]] = []
    for sensor, entry in zip(olmoearth_bands.SENSORS, inputs):
        part = [i for i, name in zip(positions, sensors) if name == sensor]
        if part:
            divided.append((part, [entry]))
    return divided


def _position(entry: InputStatistics, band: Band) -> int | None:
    """Return which of the quantities of an entry a band is, None for none of them."""
    try:
        return match_bands(entry.get_bands(), [band])[0]
    except errors.BandError:
        return None


def _own_statistics(
    facts: pretrained.PretrainingFacts, units: _Units, bands: Sequence[Band]
) -> normalize.Normalization:
    """Return the statistics that a file of `pretrain` states, where the images are in the same units."""
    radar, then, now = {band.is_radar for band in bands}, facts.units, describe_units(units, bands)
    if then != now:
        white = [re.fullmatch(r'(?:reflectance x |0-)(\d+)', text) for text in (then, now)]
        if not all(white) or radar != {False}:
            raise _refusal(
                f'the weights were pretrained on pixels in {then or "unknown units"}, and these are in '
                f'{now or "unknown units"}'
            )
    scales = [float(found[1]) if (found := re.search(r'(\d+)$', text)) else 1.0 for text in (then, now)]
    return normalize.match_pretraining(
        bands,
        trained_bands=facts.bands,
        mean=facts.mean,
        std=facts.std,
        trained_scale=scales[0],
        full_scale=scales[1],
    )


def describe_units(units: _Units, bands: Sequence[Band]) -> str:
    """Name what pixels are in, such as ``'dB'`` or ``'reflectance x 10000'``; empty where that was not recognized."""
    if units.eight_bit:
        return '0-255'
    kinds = {band.is_radar for band in bands}
    if kinds == {True}:
        return units.radar or ''
    return f'reflectance x {units.white}' if kinds == {False} and units.white else ''


def units_of(data: ChipData) -> str:
    """Name what the pixels of chips are in; see `describe_units`."""
    percentiles = data.table.percentiles(data.band_indexes)
    return describe_units(_find_units(percentiles, data.dtype, data.bands), data.bands)


class NoStatisticsError(errors.BackboneError):
    """The weights state no statistics that fit the images; `reason` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"normalize='pretraining' was asked for, but {reason}; pass normalize='dataset' to prepare_data"
        )
        self.reason = reason


def _refusal(reason: str) -> NoStatisticsError:
    return NoStatisticsError(reason)


def _find_inputs(backbone: str) -> tuple[InputStatistics, ...]:
    """Return the input statistics of pretraining: from the catalog for geolearn's own backbones, else timm's."""
    name = catalog.read_aliases().get(backbone, backbone)
    if name in catalog.read_catalog():
        return catalog.get_record(name).inputs
    library, _, bare = name.rpartition(':')
    colors = list(normalize.IMAGENET.values())
    mean, std = ([color[i] for color in colors] for i in (0, 1))
    if library in ('', 'timm') and is_timm_model(bare):
        known = import_timm().get_pretrained_cfg(bare)
        if known is None or len(known.mean) != len(known.std) or len(known.mean) != len(colors):
            return ()
        mean, std = list(known.mean), list(known.std)
    elif library not in ('', 'torchvision') or bare not in torchvision.list_torchvision_models():
        return ()  # building it raises
    white = 255.0
    names, center, spread = (
        ('Red', 'Green', 'Blue'),
        [white * value for value in mean],
        [white * value for value in std],
    )
    return (InputStatistics('naip', '0-255', names, tuple(center), tuple(spread)),)


def _find_units(percentiles: Percentiles | None, dtype: str, bands: Sequence[Band]) -> _Units:
    eight_bit = dtype == 'uint8'
    if percentiles is None:
        return _Units(255 if eight_bit else None, None, eight_bit)
    white = 255 if eight_bit else reflectance_scale(percentiles, bands, dtype=dtype)
    radar = radar_scale(percentiles, bands, dtype=dtype)
    digital = white is None and radar is None and min(percentiles.low) >= 0 and max(percentiles.high) > LEAST_DIGITAL
    return _Units(white, radar, eight_bit, digital)


LEAST_DIGITAL = 5000.0
"""Numbers of Landsat Level-1 begin there: 5000 stands for a reflectance of 0."""


def _choose(backbone: str, inputs: Sequence[InputStatistics], bands: Sequence[Band], units: _Units) -> _Fit:
    """Choose the statistics for optical bands, or for radar bands."""
    names = ', '.join(repr(band.name) for band in bands)
    optical = [entry for entry in inputs if entry.sensor != catalog.PHYSICAL]
    matched = [(distance, entry) for entry in optical if (distance := _distance(entry, bands)) is not None]
    if not matched:
        raise _refusal(f'the weights of {backbone} state no mean and std for {names} together')
    scaled = [(distance, scales, entry) for distance, entry in matched if (scales := _find_scales(entry, units, bands))]
    if not scaled:
        stated = ' or '.join(dict.fromkeys(entry.scale for _, entry in matched))
        raise _refusal(f'the weights of {backbone} state them in {stated}, and {names} {_describe_units(units, bands)}')
    # of equally near sensors, the one with no other bands: TerraMind embeds red, green and blue alone differently
    _, scales, entry = min(scaled, key=lambda row: (row[0], len(row[2].bands) != len(bands)))
    return _Fit(entry, *scales)


def _distance(entry: InputStatistics, bands: Sequence[Band]) -> float | None:
    """Return how far a sensor's wavelengths are from the bands', in micrometers; None where it cannot serve them."""
    if not entry.mean:
        return None
    trained = entry.get_bands()
    try:
        index = match_bands(trained, bands)
    except errors.BandError:
        return None
    if trained[0].is_radar:  # terrain-corrected backscatter is distinguished from ground-range by its bands' names
        return float(('RTC' in entry.scale) != any('gamma0' in b.name.lower().replace('_', '') for b in bands))
    pairs = [(trained[i].wavelength_um, band.wavelength_um) for i, band in zip(index, bands)]
    return round(sum(abs(a - b) for a, b in pairs if a and b) / len(pairs), 3)


def _find_scales(entry: InputStatistics, units: _Units, bands: Sequence[Band]) -> tuple[float, float] | None:
    """Return the values that stood for white in pretraining and stand for it here; None where units do not fit."""
    if bands[0].is_radar:
        same = entry.scale.startswith('dB') and units.radar == 'dB'
        return (1.0, 1.0) if same or (entry.scale == '0-255' and units.eight_bit) else None
    if entry.scale.startswith('digital numbers') and units.digital:
        log.warning(
            '%s: taken to be %s; those of Level-2 (surface reflectance) look alike, and would be wrong',
            ', '.join(band.name for band in bands),
            entry.scale,
        )
        return 1.0, 1.0
    if units.white is None:
        return None
    if found := re.fullmatch(r'reflectance x (\d+)', entry.scale):
        return (float(found[1]), float(units.white)) if units.white != 255 else None
    # a picture with a stretch of its own, such as Sentinel-2's true color, is no reflectance
    plain, picture = entry.scale == '0-255', re.fullmatch(r'0-255( \([^()]*\))?', entry.scale)
    return (255.0, float(units.white)) if plain or (picture and units.white == 255) else None


def _describe_units(units: _Units, bands: Sequence[Band]) -> str:
    if bands[0].is_radar:
        return f'are {"8-bit or " * units.eight_bit}{units.radar or "in units that were not recognized"}'
    if units.white is None:
        return 'are in units that were not recognized (neither 8-bit nor reflectance 0..1, x 1000 or x 10000)'
    return 'are 8-bit images' if units.white == 255 else f'are reflectance x {units.white}'


def _describe(backbone: str, fit: _Fit) -> str:
    text = f"{fit.inputs.sensor}'s mean and std of the pretraining of {backbone}"
    if fit.trained_white == 255 and fit.white != 255:
        note = 'its 8-bit images taken as if 255 were reflectance 1'
        log.warning('normalize=pretraining: %s, %s', text, note)
        return f'{text}, {note}'
    return text if fit.trained_white == fit.white else f'{text}, x {fit.white / fit.trained_white:g}'


def choose_loss(
    loss: 'L | str | nn.Module | Callable[..., Tensor] | None', options: type[L]
) -> tuple[L, nn.Module | None]:
    """Return the options of a loss given by its options or its name, or as a module or function, and the module.

    Args:
        loss: None for the default.
        options: The class of the options.

    Raises:
        UnknownNameError: If there is no loss of that name.
        ArgumentError: If it is none of these.
    """
    if callable(loss):
        return options(), as_loss_module(loss)
    if isinstance(loss, str):
        return options(loss=loss), None
    if loss is not None and not isinstance(loss, options):
        raise errors.ArgumentError(
            f'loss must be {options.__name__}, such as {options()}, a name, a module or a function, got {loss!r}'
        )
    return loss or options(), None
