"""Published data sets in the layout in which they are published: one file each; one table of all."""

from collections.abc import Mapping
from types import MappingProxyType

from geolearn.chips.formats.content import ChipFormat
from geolearn.chips.formats.published import (
    ai4smallfarms,
    eurosat,
    hls_burn_scars,
    landcover_ai,
    levir_cd,
    mados,
    pastis,
    sen1floods11,
    spacenet7,
    xview,
)
from geolearn.chips.formats.published.rows import Published

__all__ = ['PUBLISHED']


def _format(data_set: Published, fits: object, says: str) -> ChipFormat:
    return ChipFormat(says, data_set.layout, data_set.list, fits=fits, published=True)  # type: ignore[arg-type]


PUBLISHED: Mapping[str, ChipFormat] = MappingProxyType(
    {
        'HLS_Burn_Scars': _format(hls_burn_scars.HLS_BURN_SCARS, hls_burn_scars.fits, 'burn scars per pixel'),
        'Sen1Floods11': _format(sen1floods11.SEN1FLOODS11, sen1floods11.fits, 'water per pixel, Sentinel-2'),
        'Sen1Floods11-S1': _format(sen1floods11.SEN1FLOODS11_S1, None, 'water per pixel, Sentinel-1'),
        'MADOS': _format(mados.MADOS, mados.fits, '15 classes at sea per pixel'),
        'LandCover.ai': _format(landcover_ai.LANDCOVER_AI, landcover_ai.fits, 'land cover per pixel'),
        'AI4SmallFarms': _format(ai4smallfarms.AI4SMALLFARMS, ai4smallfarms.fits, 'field boundaries per pixel'),
        'LEVIR-CD': _format(levir_cd.LEVIR_CD, levir_cd.fits, 'change of buildings per pixel'),
        'EuroSAT': _format(eurosat.EUROSAT, eurosat.fits, 'one of ten classes for each chip'),
        'PASTIS': _format(pastis.PASTIS, pastis.fits, 'crops per pixel, twelve months'),
        'SpaceNet7': _format(spacenet7.SPACENET7, spacenet7.fits, 'buildings per pixel'),
        'xView': _format(xview.XVIEW, xview.fits, 'boxes of 60 classes'),
    }
)
"""Every data set by its dataset_type."""
