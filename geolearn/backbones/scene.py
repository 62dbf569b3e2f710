"""When and where images are of, for backbones that read it: what they were built with, and others for a while."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date

from geolearn.backbones.backbone import Backbone
from geolearn.backbones.pixel_series import PixelBackbone
from geolearn.backbones.temporal import TemporalBackbone
from geolearn.backbones.trunk import Trunk


@dataclass(frozen=True, slots=True)
class Scene:
    """What a backbone knows of its images besides their pixels.

    Args:
        dates: When each was taken; empty where it does not read that, or works without.
        location: Latitude and longitude of about their middle in degrees; None where it does not read that, or works
            without.
        resolution_m: Meters per pixel; None where it does not read that.
    """

    dates: tuple[date, ...] = ()
    location: tuple[float, float] | None = None
    resolution_m: float | None = None


def scene_of(backbone: object) -> Scene:
    """Return what a backbone was told of its images, as far as that changes what it computes."""
    if not isinstance(backbone, Backbone):  # of a network that is not built by geolearn
        return Scene()
    trunk = backbone.trunk
    if isinstance(backbone, PixelBackbone):
        return Scene(() if backbone.calendar is None else backbone.calendar.days, backbone.location)
    known = trunk if isinstance(trunk, Trunk) else None
    dates: tuple[date, ...] = ()
    if isinstance(backbone, TemporalBackbone):
        dates = backbone.acquired or () if backbone.reads_dates else ()
    elif known is not None and known.knows_dates:
        dates = known.acquired
    if known is None:
        return Scene(dates)
    return Scene(
        dates,
        known.location if known.knows_location else None,
        known.ground_resolution_m if known.knows_resolution else None,
    )


def set_scene(backbone: object, scene: Scene) -> None:
    """Let a backbone know of other images, of what `scene_of` returns for it.

    Raises:
        BackboneError: If the network cannot take these dates.
        ValueError: If there is another number of dates, they are repeated or out of order, or a place is none.
    """
    now = scene_of(backbone)
    if len(scene.dates) != len(now.dates):
        raise ValueError(f'this network takes {len(now.dates)} dates, got {len(scene.dates)}')
    if not isinstance(backbone, Backbone):
        return
    trunk = backbone.trunk
    if isinstance(backbone, PixelBackbone):
        if scene.dates:
            backbone.set_dates(scene.dates)
        backbone.set_location(scene.location)
        return
    if isinstance(backbone, TemporalBackbone) and scene.dates:
        backbone.set_dates(scene.dates)
    if not isinstance(trunk, Trunk):
        return
    if trunk.knows_dates and scene.dates:
        trunk.acquired = scene.dates
    if trunk.knows_location:
        trunk.location = scene.location
    if trunk.knows_resolution and scene.resolution_m is not None:
        trunk.ground_resolution_m = scene.resolution_m


@contextmanager
def in_scene(backbone: object, scene: Scene) -> Iterator[None]:
    """Let a backbone know of other images, and of the former ones again at the end."""
    before = scene_of(backbone)
    set_scene(backbone, scene)
    try:
        yield
    finally:
        set_scene(backbone, before)
