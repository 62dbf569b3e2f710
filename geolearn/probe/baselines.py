"""What a frozen backbone is compared with: statistics of the bands, and random convolutions that nobody trained.

Where these reach the scores of the embeddings, the backbone adds nothing to this task.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from geolearn.errors import RasterError
from geolearn.raster import read_image

QUANTILES = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)

BAND_STATISTICS, RANDOM_CONVOLUTIONS = 'band statistics', 'random convolutions'

BASELINES = (BAND_STATISTICS, RANDOM_CONVOLUTIONS)

FEATURES = 512
"""Of the random convolutions."""

KERNEL = 3
"""Side of a random convolution, in pixels."""

_AT_ONCE = 64
"""Images of one size that are convolved at once."""

_FITTED = 256
"""Images that the kernels are cut from; more would not make them any different."""


class Images:
    """Images of any size with the same bands, each read when it is its turn.

    Args:
        given: (items, bands, height, width); a sequence of arrays (bands, height, width) of any sizes; or a sequence of
            paths of rasters. NaN, and NoData of rasters, is missing.
        items: Positions of those to take; None for all.

    Raises:
        ValueError: If they are something else, or not of the same bands.
    """

    def __init__(self, given: Any, items: np.ndarray | None = None) -> None:
        if isinstance(given, str | Path):
            raise ValueError(f'images must be a sequence with one image for each item, got the path {given}')
        self._given, self._items = given, np.arange(len(given)) if items is None else items
        if not len(self._items):
            raise ValueError('there are no images')
        self.bands = len(self._read(0))

    def __len__(self) -> int:
        return len(self._items)

    def _read(self, position: int) -> np.ndarray:
        item = self._given[int(self._items[position])]
        if isinstance(item, str | Path):
            pixels, mask, _ = read_image(item)
            pixels = pixels.astype(np.float32)
            if mask is not None:
                pixels[np.broadcast_to(~mask, pixels.shape)] = np.nan
        else:
            pixels = np.asarray(item, np.float32)
        if pixels.ndim != 3:
            raise ValueError(f'an image is (bands, height, width); number {position} has the shape {pixels.shape}')
        return np.where(np.isfinite(pixels), pixels, np.float32(np.nan))

    def take(self, items: np.ndarray) -> 'Images':
        """Return the images at some positions."""
        return Images(self._given, self._items[items])

    def __getitem__(self, position: int) -> np.ndarray:
        """Return an image (bands, height, width) as float32, NaN where there is no data."""
        image = self._read(position)
        if len(image) != self.bands:
            raise ValueError(f'image number {position} has {len(image)} bands, the first has {self.bands}')
        return image

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[position] for position in range(len(self)))


def find_images(names: Sequence[str]) -> Images | None:
    """Return the images that items are named after, where all of them are rasters that can be read."""
    if not names or not all(Path(name).is_file() for name in names):
        return None
    try:
        return Images(list(names))
    except (RasterError, ValueError):
        return None


def compute_baselines(images: Images, *, seed: int = 0) -> dict[str, np.ndarray]:
    """Return the vectors of both baselines by name, (items, features) float32 each."""
    return {
        BAND_STATISTICS: band_statistics(images),
        RANDOM_CONVOLUTIONS: random_convolutions(images, seed=seed),
    }


def band_statistics(images: Images | Sequence[Any] | np.ndarray) -> np.ndarray:
    """Describe each image by mean, standard deviation and quantiles of each band.

    Args:
        images: (items, bands, height, width), or a sequence of arrays or paths; see `Images`.

    Returns:
        (items, bands x 9) float32; a band without data in an image gets the mean of the other images.
    """
    source = images if isinstance(images, Images) else Images(images)
    found = np.full((len(source), source.bands, 2 + len(QUANTILES)), np.nan, np.float32)
    for row, image in zip(found, source):
        for values, band in zip(row, image):
            known = band[np.isfinite(band)]
            if known.size:
                # of large values squares would overflow float32
                values[:2] = known.mean(dtype=np.float64), known.std(dtype=np.float64)
                values[2:] = np.quantile(known, QUANTILES)
    flat = found.reshape(len(source), -1)
    missing = np.isnan(flat)
    if missing.any():
        counts = (~missing).sum(axis=0)
        means = np.where(missing, 0, flat).sum(axis=0, dtype=np.float64) / np.maximum(counts, 1)
        flat = np.where(missing, means, flat).astype(np.float32)
    return flat


def random_convolutions(
    images: Images | Sequence[Any] | np.ndarray, *, features: int = FEATURES, kernel: int = KERNEL, seed: int = 0
) -> np.ndarray:
    """Describe each image by the mean response to random kernels that are cut from the images themselves.

    As in MOSAIKS (Rolf et al. 2021, Nature Communications 12:4392): patches at random places, whitened; half of the
    features are the positive part of the response to a patch, half that of its negative. No labels are used.

    Args:
        images: (items, bands, height, width), or a sequence of arrays or paths; see `Images`.
        features: Length of a vector, an even number.
        kernel: Side of a kernel in pixels; smaller where an image that kernels are cut from is.
        seed: Of the places.

    Returns:
        (items, features) float32.

    Raises:
        ValueError: If `features` is odd.
    """
    if features < 2 or features % 2:
        raise ValueError(f'features must be an even number, got {features}')
    source = images if isinstance(images, Images) else Images(images)
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.permutation(len(source))[:_FITTED])
    fitted = [source[position] for position in chosen.tolist()]
    side = min(kernel, *(min(image.shape[1:]) for image in fitted))
    mean, std = _moments(fitted)
    kernels = _cut_kernels([_normalized(image, mean, std) for image in fitted], features // 2, side, rng)
    found = np.empty((len(source), features), np.float32)
    waiting: list[tuple[int, np.ndarray]] = []
    for position, image in enumerate(source):
        if waiting and (len(waiting) == _AT_ONCE or waiting[0][1].shape != image.shape):
            _convolve(waiting, kernels, found)
            waiting = []
        waiting.append((position, _normalized(image, mean, std)))
    _convolve(waiting, kernels, found)
    return found


def _moments(images: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of each band, as (bands, 1, 1) float32."""
    bands = [
        np.concatenate([image[band][np.isfinite(image[band])] for image in images]) for band in range(len(images[0]))
    ]
    mean = np.array([band.mean(dtype=np.float64) if band.size else 0 for band in bands])
    std = np.array([band.std(dtype=np.float64) if band.size else 0 for band in bands])
    std[std == 0] = 1
    return mean.astype(np.float32).reshape(-1, 1, 1), std.astype(np.float32).reshape(-1, 1, 1)


def _normalized(image: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Return an image of mean 0, where missing pixels are 0 too."""
    return np.nan_to_num((image - mean) / std, copy=False)


def _cut_kernels(images: Sequence[np.ndarray], count: int, side: int, rng: np.random.Generator) -> torch.Tensor:
    """Return whitened patches at random places as (count, bands, side, side), each of length 1."""
    # whitening needs more patches than a patch has values
    wanted = max(2 * count, 4 * len(images[0]) * side * side)
    patches = []
    for position in rng.integers(len(images), size=wanted).tolist():
        image = images[position]
        row, column = (int(rng.integers(extent - side + 1)) for extent in image.shape[1:])
        patches.append(image[:, row : row + side, column : column + side].ravel())
    table = np.stack(patches).astype(np.float64)
    table -= table.mean(axis=0)
    values, vectors = np.linalg.eigh(table.T @ table / len(table))
    white = table[:count] @ (vectors / np.sqrt(np.maximum(values, 0) + 0.1)) @ vectors.T
    white /= np.maximum(np.linalg.norm(white, axis=1, keepdims=True), 1e-12)
    return torch.from_numpy(white.reshape(count, -1, side, side).astype(np.float32))


@torch.inference_mode()
def _convolve(images: Sequence[tuple[int, np.ndarray]], kernels: torch.Tensor, found: np.ndarray) -> None:
    """Write the features of images of one size to their rows."""
    rows = [position for position, _ in images]
    batch = torch.from_numpy(np.stack([image for _, image in images]))
    # images that no kernel was cut from may be smaller than one: around them lies the mean
    missing = [max(0, kernels.shape[-1] - length) for length in batch.shape[-2:]]
    if any(missing):
        batch = torch.nn.functional.pad(batch, (0, missing[1], 0, missing[0]))
    response = torch.nn.functional.conv2d(batch, kernels)
    positive = response.clamp(min=0).mean((2, 3))
    # the positive part of the negated response
    found[rows] = torch.cat([positive, positive - response.mean((2, 3))], dim=1).numpy()
