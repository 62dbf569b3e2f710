"""Describe a model: as the spec of a new one for some data, and in words."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from geolearn.backbones.adapt import DEFAULT_ADAPTATION, Adaptation
from geolearn.backbones.temporal import Temporal
from geolearn.bands import Band, parse_wavelengths
from geolearn.chips.label import Task
from geolearn.data import ChipData
from geolearn.errors import BackboneError, BandError, ChipFolderError
from geolearn.models._pretraining import pretraining_normalization
from geolearn.models.network import Network
from geolearn.models.spec import ModelSpec

_HELD = {
    Task.PIXELS: 'one class per pixel',
    Task.CHANGE: 'pairs of images with what changed between them',
    Task.VALUES: 'a number per pixel',
    Task.OBJECTS: 'boxes',
    Task.INSTANCES: 'outlined objects',
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
    Task.PANOPTIC: 'Panoptic_Segmentation',
    Task.LABEL: 'Labeled_Tiles',
    Task.LABELS: 'MultiLabeled_Tiles',
    Task.VALUES: 'Classified_Tiles of float labels',
    Task.UNLABELLED: 'images',
}


@dataclass(frozen=True)
class BackboneChoice:
    """The backbone of a new model, and how it is trained.

    Args:
        name: Such as ``'dofa_base'``.
        pretrained: Whether to fill it with its published weights.
        weights: A file or folder with its weights, or a .dlpk, instead of fetching them.
        wavelengths: Replace those of the bands, in micrometres; None for radar.
        adapt: What of it learns, how fast, and with low-rank updates or in full.
        temporal: How the maps of several dates become one.
        resolution_m: Of the images in metres per pixel, for backbones whose positions depend on it.
    """

    name: str
    pretrained: bool = True
    weights: str | Path | None = None
    wavelengths: Sequence[float | None] | None = None
    adapt: Adaptation = DEFAULT_ADAPTATION
    temporal: Temporal = 'mean'
    resolution_m: float | None = None


def require_task(data: ChipData, model: str, tasks: Sequence[Task]) -> None:
    """Refuse chips whose labels teach something else.

    Args:
        data: The chips.
        model: Name of the class of model.
        tasks: What it can learn.

    Raises:
        ChipFolderError: If their task is another one; the message says which.
    """
    if data.task not in tasks:
        wanted = ' or '.join(_HELD[task] for task in tasks)
        raise ChipFolderError(
            f'{model} learns {wanted}, but {data.path} ({data.dataset_type}) holds {_HELD[data.task]}; '
            f'export {" or ".join(_EXPORTS[task] for task in tasks)}'
        )


def spec_from_data(data: ChipData, choice: BackboneChoice, *, model: str) -> ModelSpec:
    """Describe a model for this data.

    Args:
        data: To train on.
        choice: The backbone, and how it is trained.
        model: Name of the class.

    Raises:
        UnknownNameError: If pretraining's statistics are asked for and there is no such backbone.
        BackboneError: If the backbone is no name, or those statistics do not fit the data.
        BandError: If the wavelengths are of another number, in mixed units or out of range, or pretraining's
            statistics are asked for and lack a band.
    """
    if not isinstance(choice.name, str):
        raise BackboneError(f"backbone must be a name such as 'dofa_base', got {choice.name!r}")
    bands = data.bands if choice.wavelengths is None else _with_wavelengths(data.bands, choice.wavelengths)
    normalization = data.normalization or pretraining_normalization(data, bands, choice.name, weights=choice.weights)
    return ModelSpec(
        model=model,
        backbone=choice.name,
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
        acquired=tuple(day.isoformat() for day in data.acquired),
        temporal=choice.temporal,
        resolution_m=choice.resolution_m,
    )


def _with_wavelengths(bands: Sequence[Band], wavelengths: Sequence[float | None]) -> tuple[Band, ...]:
    """Move optical bands to other wavelengths; one that moves far is no longer what it was called."""
    if len(wavelengths) != len(bands):
        raise BandError(
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
    """Lay out in lines what a model is.

    Args:
        spec: Of the model.
        network: Of the model.
        epochs: Number of epochs trained.
        trains: Whether there is data to train on, so that it matters which parameters learn.
    """
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in network.parameters()]
    counts = f'{sum(size for size, _ in sizes) / 1e6:.1f} M parameters'
    if trains and spec.adaptation != DEFAULT_ADAPTATION:
        counts += f' ({sum(size for size, learns in sizes if learns) / 1e6:.2f} M of them learn)'
    report = network.backbone.load_report
    lines = [
        f'{spec.model} on {spec.backbone}: {counts}, {epochs} epochs trained',
        f'  bands    {", ".join(band.name for band in spec.bands)}',
        f'  classes  {", ".join(info.name for info in spec.class_infos)}',
    ]
    return '\n'.join(lines + ([f'  weights  {report}'] if report else []))
