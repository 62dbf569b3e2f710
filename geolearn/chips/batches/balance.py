"""Help rare classes: weights in the loss, chips seen more often, crops that hold them."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np


def class_weights(counts: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return a weight for each class: total / count, scaled so that the classes that occur weigh 1 on average.

    Args:
        counts: Pixels, objects or chips of each class, in order of class index.

    Returns:
        (classes,) float64; 0 for a class that does not occur.

    Raises:
        ValueError: If a count is negative or none is positive.
    """
    found = np.asarray(counts, np.float64)
    if not (np.isfinite(found) & (found >= 0)).all() or not (found > 0).any():
        raise ValueError(f'counts must be at least 0, and one of them over 0, got {found.tolist()}')
    inverse = np.divide(1.0, found, out=np.zeros_like(found), where=found > 0)
    return inverse / inverse[found > 0].mean()


def repeat_factors(presence: np.ndarray, *, threshold: float = 0.1) -> np.ndarray:
    """Tell how often to show each chip in an epoch, so that rare classes are seen more (Gupta et al. 2019, LVIS).

    A class in a share f of the chips counts max(1, sqrt(threshold / f)), and a chip as much as its rarest class.

    Args:
        presence: (chips, classes) bool, True where a chip holds a class.
        threshold: Classes in a smaller share of the chips than this are repeated.

    Returns:
        (chips,) float64, at least 1.

    Raises:
        ValueError: If `threshold` is no share.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f'threshold must be over 0 and at most 1, got {threshold}')
    held = np.asarray(presence, bool)
    share = held.sum(axis=0) / max(len(held), 1)
    factor = np.ones(len(share))
    rare = (share > 0) & (share < threshold)
    factor[rare] = np.sqrt(threshold / share[rare])
    return np.where(held, factor, 1.0).max(axis=1, initial=1.0)


def oversample_order(factors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return positions of an epoch's chips, shuffled, each as often as its factor says.

    A fraction is a chance: a chip of factor 2.3 comes twice, and in three of ten epochs once more.

    Args:
        factors: (chips,) from `repeat_factors`.
        rng: Draws the chances and the order; give each epoch its own.
    """
    whole = np.floor(factors)
    times = whole + (rng.random(len(factors)) < factors - whole)
    return rng.permutation(np.repeat(np.arange(len(factors)), times.astype(np.int64)))


def rare_values(counts: Mapping[int, int], *, share: float = 0.05) -> tuple[int, ...]:
    """Return the class values that hold a smaller share of all counted pixels than `share`, but some; rarest first."""
    total = sum(counts.values())
    found = [value for value, count in counts.items() if 0 < count < share * total]
    return tuple(sorted(found, key=lambda value: (counts[value], value)))


def rare_class_corner(
    label: np.ndarray, values: Collection[int], size: tuple[int, int], rng: np.random.Generator
) -> tuple[int, int] | None:
    """Choose a crop that holds a pixel of a rare class: one of the classes, one of its pixels, one of the crops.

    Args:
        label: (height, width) class values.
        values: Class values to look for.
        size: Height and width of the crop; where the label is smaller, the crop begins at 0.
        rng: Draws class, pixel and crop, each evenly.

    Returns:
        Top row and left column, or None where the label holds none of the classes.
    """
    present = np.intersect1d(label, np.fromiter(values, np.int64, len(values)))
    if not len(present):
        return None
    rows, cols = np.nonzero(label == rng.choice(present))
    pixel = rng.integers(len(rows))
    return (
        _start(int(rows[pixel]), size[0], label.shape[0], rng),
        _start(int(cols[pixel]), size[1], label.shape[1], rng),
    )


def _start(pixel: int, size: int, length: int, rng: np.random.Generator) -> int:
    """Draw the beginning of a range of `size` that holds `pixel` and lies within `length`."""
    low, high = max(pixel - size + 1, 0), min(pixel, max(length - size, 0))
    return int(rng.integers(low, high + 1))
