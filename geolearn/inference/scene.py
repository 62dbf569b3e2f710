"""Let a network know when and where the raster is of that it maps, instead of the chips that it was trained on."""

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import date

from torch import nn

from geolearn import errors
from geolearn.backbones.scene import Scene, in_scene, scene_of
from geolearn.inference.images import LoadedImage
from geolearn.inference.options import ReadOptions, TilingOptions
from geolearn.inference.source import Source
from geolearn.networks.network import Network
from geolearn.networks.spec import ModelSpec
from geolearn.raster import GeoBox
from geolearn.raster.acquisition import FAR_KM, acquisition_date, distance_km, middle_of
from geolearn.raster.ground import other_resolution

log = logging.getLogger('geolearn')


def enter_scene(
    stack: ExitStack, spec: ModelSpec, network: Network, sources: Sequence[Source], read: ReadOptions
) -> Scene:
    """Let a network know of open rasters until `stack` ends, as far as it reads when and where its images are.

    Args:
        stack: At its end the network knows of its training chips again.
        spec: What it was trained on.
        network: The network.
        sources: The raster, one for each date.
        read: Its dates, where the files do not state them.

    Returns:
        What the network now knows; all empty where it reads nothing of it.

    Raises:
        RasterError: If it has to be known when or where the raster is, and that is not known.
        ValueError: If there is another number of dates, or they are repeated or out of order.
    """
    trained = scene_of(_backbone_of(network))
    dates = _choose_dates(spec, trained, read, [_stated(source, sources) for source in sources], _shown(sources[0]))
    location = None if trained.location is None else _middle(spec, sources[0].box, _shown(sources[0]))
    resolution = None
    if spec.resolution_m is not None and trained.resolution_m is not None:
        resolution = other_resolution(sources[0].box, trained.resolution_m)
    return _enter(stack, network, trained, Scene(dates, location, resolution))


def enter_image(stack: ExitStack, spec: ModelSpec, network: Network, image: LoadedImage, read: ReadOptions) -> Scene:
    """Do as `enter_scene` for an image that is in memory.

    Args:
        stack: At its end the network knows of its training chips again.
        spec: What it was trained on.
        network: The network.
        image: What it is to see.
        read: Its dates, where the files do not state them.

    Raises:
        RasterError: If it has to be known when or where they are, and that is not known.
        ValueError: If there is another number of dates, or they are repeated or out of order.
    """
    trained = scene_of(_backbone_of(network))
    dates = _choose_dates(spec, trained, read, image.acquired, 'the image')
    location = None if trained.location is None else _middle(spec, image.place, 'the image')
    return _enter(stack, network, trained, Scene(dates, location))


def torch_only(scene: Scene, tiling: TilingOptions, spec: ModelSpec) -> TilingOptions:
    """Return options of a map whose network knows of its scene, which graphs hold as constants of the training.

    Raises:
        ValueError: If another engine than torch is asked for.
    """
    if scene == Scene():
        return tiling
    if tiling.engine not in ('torch', 'auto'):
        raise ValueError(
            f'{spec.backbone} reads when, where or how large images are, which its graph holds as constants; pass '
            f"engine='torch', got {tiling.engine!r}"
        )
    return replace(tiling, engine='torch')


def scene_facts(scene: Scene) -> dict[str, object]:
    """Return what must be equal for a run to be resumed, as JSON; empty where the network reads nothing of it."""
    facts: dict[str, object] = {}
    if scene.dates:
        facts['dates'] = [day.isoformat() for day in scene.dates]
    if scene.location is not None:
        facts['location'] = list(scene.location)
    if scene.resolution_m is not None:
        facts['resolution_m'] = scene.resolution_m
    return facts


def _enter(stack: ExitStack, network: Network, trained: Scene, scene: Scene) -> Scene:
    if scene_facts(scene) or scene_facts(trained):
        stack.enter_context(in_scene(network.backbone, scene))
    if scene_facts(scene):
        log.info('%s takes images of %s', network.backbone.name, scene_facts(scene))
    return scene


def _choose_dates(
    spec: ModelSpec, trained: Scene, read: ReadOptions, stated: Sequence[date | None], shown: str
) -> tuple[date, ...]:
    days = read.days
    if not trained.dates:
        if days is not None:
            raise ValueError(
                f'this model on {spec.backbone} does not read when images were taken; leave dates out, got '
                f'{_listed(days)}'
            )
        return ()
    if days is not None:
        if len(days) != len(trained.dates):
            raise ValueError(f'this model takes images of {len(trained.dates)} dates, got dates={_listed(days)}')
        return days
    known = [day for day in stated if day is not None]
    if len(known) < len(trained.dates):
        each = 'one for each date' if len(trained.dates) > 1 else 'its day'
        raise errors.RasterError(
            f'{spec.backbone} reads when images were taken, and the metadata of {shown} do not say it; pass '
            f'dates=[{", ".join(map(repr, _example(trained.dates)))}], {each} (those of the training chips were '
            f'{_listed(trained.dates)})'
        )
    return tuple(known)


def _example(days: Sequence[date]) -> list[str]:
    """Return the first dates as a caller may write them."""
    return [day.isoformat() for day in days[:2]] + (['...'] if len(days) > 2 else [])


def _listed(days: Sequence[date]) -> str:
    listed = [day.isoformat() for day in days]
    return ', '.join(listed if len(listed) <= 4 else [*listed[:2], '...', listed[-1]])


def _stated(source: Source, sources: Sequence[Source]) -> date | None:
    """Return when a file says that it was taken; one file of several dates cannot say it of each."""
    if len(sources) > 1 and all(other.dataset is sources[0].dataset for other in sources):
        return None
    return acquisition_date(source.dataset)


def _shown(source: Source) -> str:
    return str(source.dataset.name)


def _middle(spec: ModelSpec, box: GeoBox | None, shown: str) -> tuple[float, float]:
    """Return latitude and longitude of the middle of a raster, and warn where it reaches far from there."""
    found = None if box is None else middle_of(box)
    if found is None:
        raise errors.RasterError(
            f'{spec.backbone} reads where images lie, and {shown} has no CRS; give it one, with gdal_edit.py -a_srs '
            'or rio edit-info --crs'
        )
    location, away = found
    if spec.location is not None and (apart := distance_km(location, spec.location)) > FAR_KM:
        log.warning(
            '%s lies %.0f km from the place %.2f, %.2f (latitude, longitude) that the model was trained with; %s is '
            'given its own place, and may know less of it: train on chips of this region too',
            shown,
            apart,
            *spec.location,
            spec.backbone,
        )
    if away > FAR_KM:
        log.warning(
            '%s reads where images lie and is given the middle of %s, %.2f, %.2f (latitude, longitude), whose corners '
            'are %.0f km away; map it in parts by bbox=',
            spec.backbone,
            shown,
            *location,
            away,
        )
    return location


def _backbone_of(network: nn.Module) -> object:
    """Return the backbone of a network; None for one that geolearn did not build."""
    return network.backbone if isinstance(network, Network) else None
