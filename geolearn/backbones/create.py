"""Build and list backbones by name."""

import logging
import math
from collections.abc import Sequence
from datetime import date
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from geolearn.backbones import (  # noqa: F401 - families register their names
    anysat,
    catalog,
    clay,
    copernicusfm,
    croma,
    custom,
    dofa,
    galileo,
    olmoearth,
    panopticon,
    plain_cnn,
    plain_vit,
    presto,
    prithvi,
    satlas,
    scalemae,
    spectralgpt,
    ssl4eo,
    terrafm,
    terramind,
    tessera,
    thor,
    timm,
    torchvision,
)
from geolearn.backbones.backbone import BUILDERS, STRIDES, Backbone, BackboneOptions, Form, Registration
from geolearn.backbones.describe import ANY_CHANNELS, describe_backbone
from geolearn.backbones.pixel_series import PixelBackbone, check_location
from geolearn.backbones.temporal import Temporal, TemporalBackbone, count_dates
from geolearn.backbones.trunk import Trunk
from geolearn.bands import Band, get_bands, list_sensors, resolve_bands
from geolearn.errors import BackboneError, BandError, UnknownNameError

log = logging.getLogger('geolearn')

if TYPE_CHECKING:
    import pandas as pd


def create_backbone(
    name: str,
    bands: str | Sequence[Band | str],
    *,
    sensor: str | None = None,
    pretrained: bool = True,
    weights: str | Path | None = None,
    form: Form = 'pyramid',
    window: int | None = None,
    drop_path: float = 0.0,
    strides: Sequence[int] | None = STRIDES,
    layers: Sequence[int] | None = None,
    relative_positions: bool = False,
    checkpointing: bool = False,
    resolution_m: float | None = None,
    dates: int | Sequence[date] = 1,
    temporal: Temporal = 'mean',
    location: tuple[float, float] | None = None,
    patch: int | None = None,
) -> Backbone:
    """Build a backbone for images with these bands.

    Args:
        name: One of `list_backbones()` or an alias of one (`describe_backbone` shows them), or a model of timm, or
            else of torchvision; ``'timm:...'`` and ``'torchvision:...'`` say which. Or the path of a .safetensors file
            that `geolearn.pretrain` wrote, or of a .dlpk: its backbone, with its weights.
        bands: The images' bands, in order: a sensor, such as ``'sentinel2_l2a'``, for all its bands; names, such as
            ``['B04', 'B03', 'B02']`` with `sensor`, or ``['red', 'green', 'blue']``; or `Band` objects, for any others.
            Backbones that need wavelengths refuse bands without one.
        sensor: Whose names `bands` are, one of `geolearn.bands.list_sensors()`.
        pretrained: Whether to fill the trunk with pretrained weights.
        weights: A file, a folder that holds a published one, or a .dlpk of geolearn whose backbone to take, to load
            instead of fetching; implies `pretrained`.
        form: ``'pyramid'`` for feature maps at strides 4 to 32; ``'layers'`` for such maps of a transformer from four
            of its layers, as UperNet takes them, and a convolutional network's own; ``'tokens'`` for a transformer's
            native tokens.
        window: Side of a transformer's attention windows, in tokens: None to choose per image, 0 for global attention.
        drop_path: Rate of stochastic depth at the last block.
        strides: Of the maps, finest first: some of 4, 8, 16, 32, or None for all that the network has, which may begin
            at 2 (see the result's `strides`). A convolutional network's last map is its coarsest: where 16 is the
            coarsest asked for, its last stage is dilated to stay there; one that cannot be dilated gives stride 32.
        layers: Blocks of a transformer, counted from 0: four for the form ``'layers'`` (None spaces them evenly); any
            for ``'tokens'``, which then returns a list of their outputs before the final norm.
        relative_positions: Whether a transformer's maps also see relative positions, learned from zero.
        checkpointing: Whether training computes activations again instead of keeping them: less memory, more time.
        resolution_m: Of the images, in meters per pixel, for ScaleMAE, Clay, Galileo, OlmoEarth, THOR and
            Copernicus-FM, which compute with it; None leaves that of their pretraining.
        dates: Number of dates of each image, or when each was taken; with several the backbone takes images (N, dates,
            bands, H, W), and returns maps as for one. AnySat, OlmoEarth and Prithvi see all dates at once, others one
            after the other; Presto and TESSERA read the series of each pixel, and have to know when each date was.
        temporal: How the maps of several dates become one: ``'mean'``; ``'concat'``, a learned mixture of the dates in
            their order; ``'ltae'``, attention over the dates and when they were taken (see `TemporalBackbone`).
        location: Latitude and longitude of about the middle of the images in degrees, which Presto has to know
            and Copernicus-FM may know.
        patch: Side of the patches in pixels, for networks that take several (AnySat and OlmoEarth 1 to 8, THOR 4 to 32,
            Copernicus-FM from 4); smaller ones are better and slower. Maps need 1, 2, 4, 8 or 16. None takes that of
            pretraining.

    Raises:
        UnknownNameError: If no registry holds `name`.
        BackboneError: If the model cannot serve as a backbone, or has no maps at the strides asked for, or is known and
            not there (AlphaEarth).
        BandError: If bands are unknown, or lack a wavelength that the backbone needs.
        ValueError: If another argument is not valid.
        WeightsError: If weights cannot be had or do not fit.
    """
    if not isinstance(name, str):
        raise BackboneError(
            f"name must be that of a backbone, such as 'dofa_base' (see list_backbones()), got {type(name).__name__}"
        )
    if custom.is_file_name(name):
        if weights is not None:
            raise BackboneError(f'name is the file {name}, whose weights are taken; leave weights out, got {weights}')
        name, weights = custom.backbone_in(name), name
    bands, count = _as_bands(name, bands, sensor), count_dates(dates)
    options = BackboneOptions(
        pretrained,
        weights,
        form,
        window,
        drop_path,
        tuple(strides) if isinstance(strides, Sequence) else strides,
        tuple(layers) if isinstance(layers, Sequence) else layers,
        relative_positions,
        checkpointing,
        patch,
    )
    entry, bare = _find(name)
    if custom.is_stored(weights):
        backbone = custom.build_stored(bare, bands, options, build=entry.build, same_name=lambda n: _find(n)[1])
    else:
        backbone = entry.build(bare, bands, options)
    if checkpointing:
        backbone.enable_checkpointing()
    if resolution_m is not None:
        _set_resolution(backbone, resolution_m)
    if isinstance(backbone, PixelBackbone):
        if patch is not None or temporal != 'mean':
            raise BackboneError(
                f'{backbone.name} reads the series of each pixel at once; leave patch and temporal out, '
                f'got patch={patch!r}, temporal={temporal!r}'
            )
        if location is not None and not backbone.trunk.needs_location:
            raise BackboneError(f'{backbone.name} knows no places; leave location out')
        backbone.set_dates(dates)
        backbone.set_location(location)
        return backbone
    if location is not None:
        if not (isinstance(backbone.trunk, Trunk) and backbone.trunk.knows_location):
            raise BackboneError(f'{backbone.name} knows no places; leave location out')
        backbone.trunk.location = check_location(location)
    if not isinstance(dates, int) and isinstance(backbone.trunk, Trunk) and backbone.trunk.knows_dates:
        backbone.trunk.acquired = tuple(dates)
    elif count == 1 and isinstance(backbone.trunk, Trunk) and backbone.trunk.assumes_june:
        _say_default_month(backbone.name)
    if patch is not None and not (isinstance(backbone.trunk, Trunk) and backbone.trunk.patch == patch):
        raise BackboneError(f'{backbone.name} takes patches of one size; leave patch out')
    return backbone if count == 1 else TemporalBackbone(backbone, dates, temporal)


def _as_bands(name: str, bands: object, sensor: str | None) -> tuple[Band, ...]:
    """Return the bands that `bands` and `sensor` of `create_backbone` stand for."""
    if isinstance(bands, str) and sensor is None:
        return get_bands(bands)
    given = (bands,) if isinstance(bands, str | Band) else bands
    if not isinstance(given, Sequence) or not all(isinstance(band, Band | str) for band in given):
        found = f'{bands!r}' if isinstance(bands, int | float | None) else type(bands).__name__
        raise BandError(
            f"bands must be a sensor such as 'sentinel2_l2a', a list of band names, or a list of Band objects such as "
            f"[Band('red', 0.665)], got {found}"
        )
    if not given:
        raise BandError(f'{name} needs at least one band, got none')
    names = [band for band in given if isinstance(band, str)]
    if sensor is not None:
        if len(names) < len(given):
            raise BandError('sensor goes with the names of bands; Band objects say themselves what they are')
        return get_bands(sensor, names)
    known = dict(zip(names, resolve_bands(names)))
    named = list_quantities()
    if unknown := [n for n, b in known.items() if b.wavelength_um is None and not b.is_radar and n not in named]:
        raise BandError(
            f'the names {unknown} do not say which bands they are; pass sensor= (one of {", ".join(list_sensors())}), '
            f'or Band objects: Band({unknown[0]!r}, <wavelength in micrometers>)'
        )
    return tuple(known[band] if isinstance(band, str) else band for band in given)


@cache
def _say_default_month(name: str) -> None:
    log.warning('%s: it is not said when images were taken, so June is assumed; pass dates=[date(2024, 5, 1)]', name)


@cache
def list_quantities() -> frozenset[str]:
    """Return the names of what some backbone takes by its name alone, without a wavelength, such as elevation."""
    entries = [entry for record in catalog.read_catalog().values() for entry in record.inputs]
    stated = [name for entry in entries if entry.sensor == catalog.PHYSICAL for name in entry.bands]
    return frozenset(stated) | frozenset(copernicusfm.VARIABLES)


def _set_resolution(backbone: Backbone, resolution_m: float) -> None:
    number = isinstance(resolution_m, int | float) and not isinstance(resolution_m, bool)
    if not (number and math.isfinite(resolution_m) and resolution_m > 0):
        raise ValueError(f'resolution_m must be above 0 meters per pixel, got {resolution_m!r}')
    trunk = backbone.trunk
    if not (isinstance(trunk, Trunk) and trunk.knows_resolution):
        raise BackboneError(f'{backbone.name} knows no ground resolution; leave resolution_m out')
    trunk.ground_resolution_m = resolution_m


def offers_tokens(name: str) -> bool:
    """Whether a backbone has the form ``'tokens'``: plain transformers do, networks of several resolutions do not.

    Raises:
        UnknownNameError: If no registry holds `name`.
    """
    entry, bare = _find(name)
    return entry.offers_tokens(bare)


def list_backbones(pattern: str = '*') -> list[str]:
    """List backbones whose names match a shell pattern, sorted: geolearn's own, else those of timm and torchvision.

    ``'timm:*'`` and ``'torchvision:*'`` list those of one library. Not all of them offer maps at strides 4 to 32;
    `create_backbone` says so where one does not.
    """
    for prefix, listed in (('timm:', timm.list_timm_models), ('torchvision:', torchvision.list_torchvision_models)):
        if pattern.startswith(prefix):
            return sorted(prefix + n for n in listed() if fnmatchcase(n, pattern.removeprefix(prefix)))
    own = sorted(n for n in BUILDERS if fnmatchcase(n, pattern))
    return own or sorted(
        n for n in {*timm.list_timm_models(), *torchvision.list_torchvision_models()} if fnmatchcase(n, pattern)
    )


def backbone_table(pattern: str = '*') -> 'pd.DataFrame':
    """Tabulate geolearn's own backbones whose names match a shell pattern.

    Returns:
        A row for each name: aliases, millions of parameters, bands, license, whether the weights are on this machine.
    """
    import pandas as pd  # late: with pyarrow it takes part of a second to import

    names = sorted(n for n in BUILDERS if n in catalog.read_catalog() and fnmatchcase(n, pattern))
    rows = []
    for info in map(describe_backbone, names):
        rows.append(
            {
                'name': info.name,
                'aliases': ', '.join(info.aliases),
                'parameters_m': round(info.parameters / 1e6, 1) if info.parameters else None,
                'bands': ' '.join(info.bands) or ANY_CHANNELS,
                'license': info.record.license + (f' ({info.restrictions})' if info.restrictions else ''),
                'weights': 'cached' if info.weights else 'published' if info.record.sources else 'none',
            }
        )
    columns = ['name', 'aliases', 'parameters_m', 'bands', 'license', 'weights']
    return pd.DataFrame(rows, columns=columns).set_index('name')


def _find(name: str) -> tuple[Registration, str]:
    """Find how a backbone is built, and its name within its library; a file stands for the backbone that it holds."""
    name = custom.backbone_in(name) if custom.is_file_name(name) else name
    library, _, bare = catalog.read_aliases().get(name, name).rpartition(':')
    if library == '' and bare in BUILDERS:
        return BUILDERS[bare], bare
    if library in ('', 'timm') and timm.is_timm_model(bare):
        return Registration(timm.build_timm, timm.is_plain_transformer), bare
    if library in ('', 'torchvision') and bare in torchvision.list_torchvision_models():
        return Registration(torchvision.build_torchvision, lambda _: False), bare
    catalog.refuse_absent(bare)
    raise UnknownNameError(
        'backbone',
        bare,
        {*BUILDERS, *catalog.read_aliases(), *timm.list_timm_models(), *torchvision.list_torchvision_models()},
    )
