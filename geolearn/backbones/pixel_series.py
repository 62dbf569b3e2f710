"""Backbones that read the time series of one pixel after the other, without spatial context."""

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import date

import torch
from torch import Tensor, nn

from geolearn.backbones import backbone
from geolearn.backbones.calendar import Calendar
from geolearn.backbones.loading import LoadReport
from geolearn.backbones.trunk import Trunk
from geolearn.errors import BackboneError

CHUNK = 256
"""Pixels that are computed at once where no gradient is needed, so that what lies between layers stays in the cache."""

Location = tuple[float, float]
"""Latitude and longitude in degrees."""


class PixelTrunk(Trunk):
    """A network that turns the time series of a pixel into a vector; subclasses write `encode` and `stages`."""

    patch = 1
    takes_missing = True
    needs_location = False
    """Whether it has to be known where pixels lie."""

    def encode(self, series: Tensor, calendar: Calendar, location: Tensor | None) -> Tensor:
        """Encode pixels.

        Args:
            series: (n, T, bands), normalized as in pretraining; NaN where a value is missing.
            calendar: When the T dates were.
            location: Latitude and longitude of each pixel in degrees, (n, 2) or (1, 2) for all of them; None where it
                is not known.

        Returns:
            (n, D).

        Raises:
            BackboneError: If the network cannot take these dates, or has to know the location.
        """
        raise NotImplementedError

    def check_calendar(self, calendar: Calendar) -> None:
        """Refuse dates that the network cannot take.

        Raises:
            BackboneError: With what it takes.
        """
        raise NotImplementedError

    def like(self, state: Mapping[str, Tensor]) -> 'PixelTrunk':
        """Return a network of the same bands with the shape that weights have, which may be other than the catalog's.

        Args:
            state: Weights of the network by name.
        """
        return self

    def encode_all(self, series: Tensor, calendar: Calendar, location: Tensor | None) -> Tensor:
        """Do as `encode`, some pixels at a time where no gradient is needed."""
        if torch.is_grad_enabled() or torch.compiler.is_exporting() or torch.jit.is_tracing() or len(series) <= CHUNK:
            return self.encode(series, calendar, location)
        several = location is not None and len(location) == len(series)
        places = location.split(CHUNK) if several and location is not None else [location] * -(-len(series) // CHUNK)
        return torch.cat([self.encode(part, calendar, at) for part, at in zip(series.split(CHUNK), places)])

    def native_parameters(self) -> Iterable[nn.Parameter]:
        """Return none: every parameter takes part."""
        return ()


class PixelBackbone(backbone.Backbone):
    """A network over time series as a backbone: one map, of stride 1, each vector of which is of one pixel.

    Images are (N, T, bands, H, W), or (N, bands, H, W) of one date; NaN stands for missing values.

    Args:
        name: As given to `create_backbone`.
        trunk: The network.
        load_report: What loading the weights did; None for random ones.
    """

    trunk: PixelTrunk

    def __init__(self, name: str, trunk: PixelTrunk, *, load_report: LoadReport | None = None) -> None:
        super().__init__(name, trunk, channels=(trunk.dim,), strides=(1,), load_report=load_report)
        self.calendar: Calendar | None = None
        self.location: Location | None = None
        self.dates = 1

    def set_dates(self, dates: int | Sequence[date]) -> None:
        """Say how many dates images have, or when each was taken.

        Raises:
            ValueError: If dates are repeated or out of order.
            BackboneError: If the network cannot take them.
        """
        if isinstance(dates, int):
            self.dates, self.calendar = dates, None
            return
        calendar = Calendar.of(dates)
        self.trunk.check_calendar(calendar)
        self.dates, self.calendar = len(calendar), calendar

    def set_location(self, location: Location | None) -> None:
        """Say where images lie: latitude and longitude of about their middle.

        Raises:
            ValueError: If they are no latitude in -90..90 and longitude in -180..180.
        """
        self.location = None if location is None else check_location(location)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Compute a map (N, D, H, W) from images (N, T, bands, H, W), or (N, bands, H, W) of one date.

        Raises:
            ValueError: If images have another number of dates.
            BackboneError: If it has not been said when they were taken or, for networks that need it, where.
        """
        if self.calendar is None:
            raise BackboneError(
                f'{self.name} has to know when images were taken: pass dates=[date(2024, 5, 1), ...], one for each'
            )
        images = x[:, None] if x.dim() == 4 else x
        if images.dim() != 5 or images.shape[1] != len(self.calendar):
            raise ValueError(f'{self.name} needs images (N, {len(self.calendar)}, bands, H, W), got {tuple(x.shape)}')
        if self.location is None and self.trunk.needs_location:
            raise BackboneError(
                f'{self.name} has to know where images lie: pass location=(latitude, longitude) in degrees'
            )
        place = None if self.location is None else images.new_tensor([self.location], dtype=torch.float32)
        n, _, _, h, w = images.shape
        series = images.permute(0, 3, 4, 1, 2).flatten(0, 2)
        return [self.trunk.encode_all(series, self.calendar, place).view(n, h, w, -1).permute(0, 3, 1, 2)]


def check_location(location: object) -> Location:
    """Return a latitude and a longitude as floats.

    Raises:
        ValueError: If they are not a latitude in -90..90 and a longitude in -180..180.
    """
    if isinstance(location, Sequence) and len(location) == 2 and not isinstance(location, str):
        lat, lon = location
        if all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in (lat, lon)) and (
            -90 <= lat <= 90 and -180 <= lon <= 180
        ):
            return float(lat), float(lon)
    raise ValueError(f'location must be (latitude, longitude) in degrees, -90..90 and -180..180, got {location!r}')


def finish_pixel_backbone(
    name: str, trunk: PixelTrunk, options: backbone.BackboneOptions, *, load_report: LoadReport | None = None
) -> PixelBackbone:
    """Put a network over time series into its one form, the map of stride 1.

    Raises:
        BackboneError: If options ask for what it does not have.
    """
    if options.form == 'tokens' or options.layers is not None or options.window or options.relative_positions:
        raise BackboneError(
            f"{name} reads single pixels; form='tokens', layers, window and relative_positions do not apply"
        )
    backbone.choose_strides(name, options.strides, (1,))
    return PixelBackbone(name, trunk, load_report=load_report)
