"""Images from images: several bands for each pixel, of the same size or finer by a whole number."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from geolearn.backbones.vit import pad_to_multiple
from geolearn.errors import BundleError
from geolearn.networks.segmentation import PixelOptions, Segmenter, build_segmenter, enlarge
from geolearn.networks.spec import ModelSpec, decode

MOST_TIMES, MOST_BANDS = 16, 4096


@dataclass(frozen=True)
class ImageTarget:
    """The image that is predicted.

    Args:
        mean: Of each band, in stored units.
        std: Of each band.
        names: Of the bands.
        times: Pixels for each of the input, down and across.
        span: From the lowest to the highest number of the training chips: the range of PSNR and SSIM.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    names: tuple[str, ...]
    times: int
    span: float

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON."""
        return asdict(self) | {name: list(getattr(self, name)) for name in ('mean', 'std', 'names')}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> 'ImageTarget':
        """Read what a spec carries.

        Raises:
            BundleError: If it is not what `to_json` returns.
        """
        target = decode(cls, dict(row), 'the image that is predicted')
        bands = len(target.mean)
        wrong = {
            'bands that differ in number': {bands, len(target.std), len(target.names)} != {bands},
            f'{bands} bands': not 1 <= bands <= MOST_BANDS,
            f'{target.times} times finer pixels': not 1 <= target.times <= MOST_TIMES,
            f'std {target.std[:9]}': not all(0 < value < math.inf for value in target.std),
            f'span {target.span}': not 0 < target.span < math.inf,
        }
        if found := next((text for text, is_wrong in wrong.items() if is_wrong), None):
            raise BundleError(f'the manifest is broken: the image that is predicted has {found}')
        return target


class ImageSegmenter(Segmenter):
    """Images in stored units, NaN where there is no data, to images of other bands, or of finer pixels.

    The decoder's outputs, as many for each pixel as it has finer ones, are added to a mixture of the input's own bands,
    enlarged bicubically: it learns what the input lacks.

    Args:
        segmenter: Its parts are taken over; its outputs are bands x times x times.
        target: What is predicted.
        bands: Of the input.
    """

    def __init__(self, segmenter: Segmenter, target: ImageTarget, bands: int) -> None:
        super().__init__(segmenter.normalize, segmenter.backbone, segmenter.decoder)
        self.finer = target.times
        self.mix = nn.Conv2d(bands, len(target.mean), 1)
        nn.init.zeros_(self.mix.bias)  # type: ignore[arg-type]
        if bands == len(target.mean):
            nn.init.dirac_(self.mix.weight)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer('mean', torch.tensor(target.mean, dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer('std', torch.tensor(target.std, dtype=torch.float32).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Compute bands (N, C, times * H, times * W) in units of the target of images (N, [dates,] bands, H, W)."""
        size = x.shape[-2:]
        x = self.normalize(x)
        padded = pad_to_multiple(x, 32)
        outputs = enlarge(self.decoder(self.backbone(padded)), padded, size).float()
        own = self.mix(x[:, -1] if x.dim() == 5 else x).float()
        if self.finer > 1:
            outputs = functional.pixel_shuffle(outputs, self.finer)
            own = functional.interpolate(own, scale_factor=self.finer, mode='bicubic', align_corners=False)
        return (outputs + own) * self.std + self.mean


def build_image_segmenter(
    spec: ModelSpec, options: PixelOptions, target: ImageTarget, *, pretrained: bool, weights: str | Path | None
) -> ImageSegmenter:
    """Build the network that a spec describes; see `build_segmenter`."""
    count = len(target.mean) * target.times**2
    segmenter = build_segmenter(spec, options, count, pretrained=pretrained, weights=weights)
    return ImageSegmenter(segmenter, target, len(spec.bands))


class EveryNth(nn.Module):
    """Let a network whose outputs are finer take images in which each pixel is repeated as often.

    Args:
        network: Takes every `times`-th pixel, down and across.
        times: Pixels of the output for each of the network's input.
    """

    def __init__(self, network: nn.Module, times: int) -> None:
        super().__init__()
        self.network, self.times = network, times

    def forward(self, x: Tensor) -> Tensor:
        """Compute outputs (N, C, H, W) of images (N, [dates,] bands, H, W)."""
        outputs: Tensor = self.network(x[..., :: self.times, :: self.times])
        return outputs


def band_columns(values: Sequence[float]) -> Tensor:
    """Return a number for each band as (bands, 1, 1)."""
    return torch.tensor(list(values), dtype=torch.float32).view(-1, 1, 1)
