"""Describe a new model for some data: its spec."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from geolearn.backbones.temporal import Temporal
from geolearn.bands import Band, parse_wavelengths
from geolearn.chips.label import Task
from geolearn.data import ChipData
from geolearn.errors import BackboneError, BandError, ChipFolderError
from geolearn.models._pretraining import pretraining_normalization
from geolearn.models.spec import ModelSpec

_HELD = {
    Task.CHANGE: 'pairs of images with what changed between them',
    Task.OBJECTS: 'boxes',
    Task.INSTANCES: 'outlined objects',
    Task.PANOPTIC: 'pixels and outlined objects',
    Task.LABEL: 'one class per chip',
    Task.LABELS: 'any number of classes per chip',
    Task.UNLABELLED: 'images without labels',
}


def require_pixels(data: ChipData, model: str) -> None:
    """Refuse chips whose labels are not one class per pixel.

    Raises:
        ChipFolderError: If their task is another one; the message says which.
    """
    if data.task != Task.PIXELS:
        raise ChipFolderError(
            f'{model} learns one class per pixel, but {data.path} ({data.dataset_type}) holds {_HELD[data.task]}; '
            'export Classified_Tiles'
        )


def spec_from_data(
    data: ChipData,
    *,
    model: str,
    backbone: str,
    wavelengths: Sequence[float | None] | None = None,
    weights: str | Path | None = None,
    temporal: Temporal = 'mean',
) -> ModelSpec:
    """Describe a model for this data.

    Args:
        data: To train on.
        model: Name of the class.
        backbone: Name of the backbone.
        wavelengths: Replace those of the bands.
        weights: The user's own for the backbone, where given; for ``normalize='pretraining'``.
        temporal: How the maps of several dates become one.

    Raises:
        ChipFolderError: If the labels are not one class per pixel.
        UnknownNameError: If pretraining's statistics are asked for and there is no such backbone.
        BackboneError: If the backbone is no name, or those statistics do not fit the data.
        BandError: If the wavelengths are of another number, in mixed units or out of range, or pretraining's
            statistics are asked for and lack a band.
    """
    require_pixels(data, model)
    if not isinstance(backbone, str):
        raise BackboneError(f"backbone must be a name such as 'dofa_base', got {backbone!r}")
    bands = data.bands if wavelengths is None else _with_wavelengths(data.bands, wavelengths)
    return ModelSpec(
        model=model,
        backbone=backbone,
        bands=bands,
        class_infos=data.class_infos,
        ignored_values=data.ignored_values,
        chip_size=data.chip_size,
        statistics=data.statistics,
        normalization=data.normalization or pretraining_normalization(data, bands, backbone, weights=weights),
        dtype=data.dtype,
        cell_size=data.cell_size,
        band_indexes=data.band_indexes,
        image_space=data.image_space,
        dates=data.table.dates,
        acquired=tuple(day.isoformat() for day in data.acquired),
        temporal=temporal,
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
