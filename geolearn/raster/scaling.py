"""What stored values mean, as scales and offsets state it; rasters that state different ones are not mixed."""

from collections.abc import Sequence
from typing import NamedTuple

from geolearn.errors import RasterError
from geolearn.raster.raster import Raster

Scaling = tuple[tuple[float, float], ...]
"""Scale and offset of each band; empty where nothing is known."""

ADVICE = (
    'bring the values to one scale and offset first; where stored values mean the same, state it in both '
    '(gdal_edit.py -scale SCALE -offset OFFSET FILE)'
)


def scaling_of(raster: Raster, indexes: Sequence[int] | None = None) -> Scaling:
    """Return what a raster states of its bands, or of some by their 1-based numbers."""
    pairs = tuple(zip(raster.scales, raster.offsets))
    return pairs if indexes is None else tuple(pairs[index - 1] for index in indexes)


def scaling_text(scaling: Scaling) -> str | None:
    """Return the first scale and offset that change values; None where none does."""
    found = [pair for pair in scaling if pair != (1.0, 0.0)]
    return f'scale {found[0][0]:g} and offset {found[0][1]:g}' if found else None


def scaling_difference(one: Scaling, other: Scaling) -> str | None:
    """Return the first scale and offset in which bands differ, of both; None where nothing says that they do."""
    if len(one) != len(other) or one == other:
        return None
    here, there = next(pair for pair in zip(one, other) if pair[0] != pair[1])
    return f'scale {here[0]:g} and offset {here[1]:g}, and scale {there[0]:g} and offset {there[1]:g}'


class Units(NamedTuple):
    """What is stated of the values of some bands of a raster, which may be closed again.

    Args:
        name: Of the raster.
        scaling: Of the bands, as the file states it.
        product_offset: See `Raster`.
        rescaled: See `Raster`.
    """

    name: str
    scaling: Scaling
    product_offset: float | None
    rescaled: bool

    @classmethod
    def of(cls, raster: Raster, indexes: Sequence[int] | None = None) -> 'Units':
        """Return what a raster states of its bands, or of some by their 1-based numbers."""
        return cls(raster.name, scaling_of(raster, indexes), raster.product_offset, raster.rescaled)


def product_difference(one: Raster | Units, other: Raster | Units) -> str | None:
    """Return what the products of two rasters, or their STAC items, state otherwise of the values; else None."""
    if one.rescaled != other.rescaled:
        stated, none = 'a scale and offset in the STAC item', 'none'
        return f'{stated}, and {none}' if one.rescaled else f'{none}, and {stated}'
    here, there = one.product_offset, other.product_offset
    return None if here is None or there is None or here == there else f'offsets {here:g} and {there:g}'


def check_same_scaling(one: Raster, other: Raster, indexes: Sequence[int] | None = None) -> None:
    """Refuse rasters whose stored values mean different things, such as Sentinel-2 before and after baseline 04.00.

    Args:
        one: A raster.
        other: Another one.
        indexes: 1-based numbers of the bands of the other in the order of those of the first; None for the same order.

    Raises:
        RasterError: If files or products state other scales or offsets.
    """
    check_same_units(Units.of(one), Units.of(other, indexes))


def check_same_units(one: Units, other: Units) -> None:
    """Refuse bands whose stored values mean different things; see `check_same_scaling`.

    Raises:
        RasterError: If files, products or STAC items state other scales or offsets.
    """
    apart = scaling_difference(one.scaling, other.scaling) or product_difference(one, other)
    if apart is not None:
        raise RasterError(f'{one.name} and {other.name} hold values of different units: they state {apart}; {ADVICE}')
