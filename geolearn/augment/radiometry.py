"""Change pixel values: brightness and contrast, noise, missing bands, clouds. Nothing moves, labels stay."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from geolearn.augment.step import PixelStep, check_between, per_band, per_image
from geolearn.bands import Band
from geolearn.errors import BandError
from geolearn.statistics import BandStatistics


@dataclass(frozen=True)
class Radiometry(PixelStep):
    """Contrast and brightness, drawn for each band of each image; all dates of an image take the same.

    Args:
        band_std: Standard deviation of each band in the units of the images.
        gain: Each band is multiplied by 1 ± gain.
        offset: Each band is moved by ± offset standard deviations.
    """

    band_std: Sequence[float]
    gain: float = 0.1
    offset: float = 0.1

    def __post_init__(self) -> None:
        check_between('gain', self.gain, 0, 1)
        check_between('offset', self.offset, 0)

    def change_(self, images: Tensor, generator: torch.Generator) -> None:
        """Change images in place."""
        std = per_band(self.band_std, images, 'band_std')
        shape = per_image(images, images.shape[-3])
        gain = 1 + self.gain * (2 * torch.rand(shape, generator=generator) - 1)
        offset = self.offset * std * (2 * torch.rand(shape, generator=generator) - 1)
        # two passes over an image that is in the cache by then are faster than addcmul over the batch
        for image, factor, term in zip(images, gain.to(images.device), offset.to(images.device)):
            image.mul_(factor).add_(term)


@dataclass(frozen=True)
class Noise(PixelStep):
    """Normal noise, of a strength drawn for each image.

    Drawing a number for every pixel would take longer than all other changes together. So a stock of about four
    planes is drawn for each batch, and each band takes a piece that starts anywhere in it.

    Args:
        band_std: Standard deviation of each band in the units of the images.
        strength: The noise has at most this share of the band's standard deviation.
    """

    band_std: Sequence[float]
    strength: float

    def __post_init__(self) -> None:
        check_between('strength', self.strength, 0)

    def change_(self, images: Tensor, generator: torch.Generator) -> None:
        """Change images in place."""
        std = per_band(self.band_std, images, 'band_std').view(-1, 1)
        planes = images.view(*images.shape[:-2], -1)
        size = planes.shape[-1]
        strength = self.strength * torch.rand(per_image(images)[:-1], generator=generator)
        stock = torch.randn(max(4 * size, 2**16), generator=generator)
        starts = torch.randint(len(stock) - size + 1, planes.shape[:-1], generator=generator)
        device, pieces = images.device, stock.to(images.device).unfold(0, size, 1)
        scales = (strength * std).to(device)
        for image, start, scale in zip(planes, starts.to(device), scales):
            image.add_(pieces[start].mul_(scale))


@dataclass(frozen=True)
class BandDropout(PixelStep):
    """Set bands to their mean, so that a network does not lean on one band; never all bands of an image.

    Args:
        band_mean: Mean of each band in the units of the images.
        probability: Of each band of each image; in all dates alike.
    """

    band_mean: Sequence[float]
    probability: float

    def __post_init__(self) -> None:
        check_between('probability', self.probability, 0, 1)

    def change_(self, images: Tensor, generator: torch.Generator) -> None:
        """Change images in place."""
        means = per_band(self.band_mean, images, 'band_mean').flatten().tolist()
        dropped = torch.rand((len(images), len(means)), generator=generator) < self.probability
        spared = torch.randint(len(means), (len(images), 1), generator=generator)
        dropped &= ~(dropped.all(1, keepdim=True) & (torch.arange(len(means)) == spared))
        for image, band in dropped.nonzero().tolist():
            # times zero, since NaN must stay
            images[image, ..., band, :, :].mul_(0).add_(means[band])


@dataclass(frozen=True)
class Clouds(PixelStep):
    """Lay haze or clouds over images; each date has its own sky.

    The label stays that of the ground, so what is under a thick cloud should still shine through a little.

    Args:
        brightness: Of an opaque cloud in each band, in the units of the images; None where clouds are not seen (radar,
            elevation, thermal). `cloud_brightness` gives it.
        probability: Of each image, and of each of its dates.
        cover: Least and largest share of the image that is clouded; 1 is haze all over.
        opacity: Least and largest opacity where the cloud is thickest, 0..1.
    """

    brightness: Sequence[float | None]
    probability: float
    cover: tuple[float, float] = (0.1, 0.8)
    opacity: tuple[float, float] = (0.2, 0.8)

    def __post_init__(self) -> None:
        check_between('probability', self.probability, 0, 1)
        for what, (low, high) in {'cover': self.cover, 'opacity': self.opacity}.items():
            if not 0 <= low <= high <= 1:
                raise ValueError(f'{what} must be (least, largest) in 0..1, got {(low, high)}')

    def change_(self, images: Tensor, generator: torch.Generator) -> None:
        """Change images in place."""
        targets = per_band([0.0 if v is None else v for v in self.brightness], images, 'brightness').to(images.device)
        seen = torch.tensor([float(v is not None) for v in self.brightness], device=images.device).view(-1, 1, 1)
        for image in images.view(-1, *images.shape[-3:]):
            clouded, cover, opacity = torch.rand(3, generator=generator).tolist()
            if clouded < self.probability:
                field = _field((image.shape[-2], image.shape[-1]), generator, image.device)
                image.lerp_(targets, self._thickness(field, cover, opacity) * seen)

    def _thickness(self, field: Tensor, cover: float, opacity: float) -> Tensor:
        cover, opacity = _between(self.cover, cover), _between(self.opacity, opacity)
        edge = field.flatten().kthvalue(1 + round((1 - cover) * (field.numel() - 1))).values
        return opacity * ((field - edge) / (field.max() - edge).clamp(min=1e-6)).clamp(0, 1).sqrt()


def _between(limits: tuple[float, float], share: float) -> float:
    low, high = limits
    return low + share * (high - low)


def _field(shape: tuple[int, int], generator: torch.Generator, device: torch.device) -> Tensor:
    """Draw smooth noise: grids that double in fineness and halve in strength, as clouds do."""
    total = torch.zeros(shape, device=device)
    for octave in range(5):
        grid = torch.randn((1, 1, 3 * 2**octave, 3 * 2**octave), generator=generator).to(device)
        total += 0.5**octave * interpolate(grid, shape, mode='bicubic', align_corners=True)[0, 0]
    return total


def cloud_brightness(bands: Sequence[Band], statistics: BandStatistics) -> tuple[float | None, ...]:
    """Say how bright clouds are in each band: three standard deviations over the mean, within what was seen.

    Args:
        bands: With wavelengths; clouds are seen at 0.3..3 micrometres.
        statistics: Of these bands.

    Returns:
        What `Clouds` takes; None for radar, thermal and other bands.

    Raises:
        BandError: If no band is known to see clouds.
    """
    found = tuple(
        min(high, mean + 3 * std) if band.wavelength_um is not None and band.wavelength_um <= 3 else None
        for band, high, mean, std in zip(bands, statistics.maximum, statistics.mean, statistics.std)
    )
    if all(value is None for value in found):
        names = ', '.join(repr(band.name) for band in bands)
        raise BandError(f'clouds need a band with a wavelength in 0.3..3 micrometres; found {names}; pass wavelengths')
    return found
