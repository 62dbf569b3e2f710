"""Carry a first convolution over to other bands, matched by what the bands are and never by their position."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from geolearn.bands import Band, match_bands
from geolearn.errors import BandError

RGB = (Band('red', 0.665, 'red'), Band('green', 0.56, 'green'), Band('blue', 0.49, 'blue'))
"""The bands of ImageNet's weights, in their order."""


@dataclass(frozen=True, slots=True)
class KernelReport:
    """How each band got its kernel.

    Args:
        origins: For each target band: the band, and the source band whose kernel it took (None: the mean of all).
        exact: Names of the target bands that the source names too.
        unused: Names of the source bands that no target band took.
        scale: Factor on all kernels, which keeps the response to a flat image: source over target bands.
        unchanged: Whether the kernels are the source's own, in its order.
    """

    origins: tuple[tuple[str, str | None], ...]
    exact: tuple[str, ...]
    unused: tuple[str, ...]
    scale: float
    unchanged: bool = False

    def __str__(self) -> str:
        """Say it in a line for the reader of a log."""
        parts = []
        for band, origin in self.origins:
            how = '' if band in self.exact else ' (nearest wavelength)' if origin else ' (wavelength unknown)'
            parts.append(f'{band} <- {origin or "mean of all"}{how}')
        unused = f'; unused: {", ".join(self.unused)}' if self.unused else ''
        return f'{", ".join(parts)}{unused}; kernels x {self.scale:.3g}'


def adapt_input_kernel(weight: Tensor, source: Sequence[Band], target: Sequence[Band]) -> tuple[Tensor, KernelReport]:
    """Make the kernel for `target` bands from the one for `source` bands.

    A band takes the kernel of the same band by common name or name; else that of the band nearest in wavelength; else,
    for radar and where no wavelength is known, the mean kernel. All are scaled by source over target bands.

    Args:
        weight: Kernel (O, C, kh, kw) or (O, C, t, kh, kw), C source bands.
        source: Bands that the kernel was trained for.
        target: Bands that it is wanted for.

    Returns:
        Kernel of the same dtype with the target bands in place of the C, and how it was made.
    """
    if weight.dim() not in (4, 5) or weight.shape[1] != len(source):
        raise BandError(f'a kernel of shape {tuple(weight.shape)} does not fit {len(source)} source bands')
    if not target:
        raise BandError('no target bands were given; a backbone needs at least one band')
    exact = [_same(source, band) for band in target]
    origins = [_nearest(source, band) if same is None else same for same, band in zip(exact, target)]
    mean, scale = weight.mean(dim=1), len(source) / len(target)
    kernel = torch.stack([mean if i is None else weight[:, i] for i in origins], dim=1)
    report = KernelReport(
        origins=tuple((b.name, None if i is None else source[i].name) for b, i in zip(target, origins)),
        exact=tuple(b.name for b, same in zip(target, exact) if same is not None),
        unused=tuple(b.name for i, b in enumerate(source) if i not in origins),
        scale=scale,
        unchanged=origins == list(range(len(source))),
    )
    return kernel if scale == 1 else kernel * scale, report


def resample_kernel(weight: Tensor, side: int) -> Tensor:
    """Resample a patch kernel (..., k, k) to (..., side, side), bicubic without antialiasing; itself if k is side.

    Values are kept, as in the published conversions of patch 14 to 16, so that sums grow with the area.
    """
    if weight.shape[-1] == side:
        return weight
    square = weight.float().flatten(0, -4)
    resized = F.interpolate(square, size=(side, side), mode='bicubic', align_corners=False)
    return resized.reshape(*weight.shape[:-2], side, side).to(weight.dtype)


def _same(source: Sequence[Band], band: Band) -> int | None:
    try:
        return match_bands(source, [band])[0]
    except BandError:
        return None


def _nearest(source: Sequence[Band], band: Band) -> int | None:
    w = band.wavelength_um
    gaps = {i: abs(b.wavelength_um - w) for i, b in enumerate(source) if b.wavelength_um is not None and w is not None}
    return None if band.is_radar else min(gaps, key=gaps.__getitem__, default=None)
