"""When the image of a raster was taken, as its metadata states it, and about where it lies."""

import re
from datetime import date

import numpy as np
from rasterio.crs import CRS

from geolearn.raster.geobox import GeoBox
from geolearn.raster.ground import Location, center_of, locate
from geolearn.raster.raster import Raster

TAG = 'ACQUISITIONDATETIME'
"""GDAL's name for it, in the domain IMAGERY."""

# of GDAL, Landsat's MTL, HLS, GDAL's driver of Sentinel-2 and STAC; TIFFTAG_DATETIME says when the file was written
_NAMES = (
    *(TAG, 'ACQUISITION_DATE', 'DATE_ACQUIRED', 'SENSING_TIME', 'SENSING_START', 'SENSING_DATE'),
    *('DATATAKE_1_DATATAKE_SENSING_START', 'PRODUCT_START_TIME', 'START_DATETIME', 'ACQUIRED'),
)

_DAY = re.compile(r'(\d{4})[-/](\d{2})[-/](\d{2})')


def acquisition_date(raster: Raster) -> date | None:
    """Return the day on which an image was taken; None where its metadata do not say, or state several days.

    Args:
        raster: Open; of a mosaic the first file counts.
    """
    tags = {key.upper(): text for ns in ('IMAGERY', None) for key, text in raster.tags(0, ns=ns).items()}
    for name in _NAMES:
        if days := {_day(*found) for found in _DAY.findall(str(tags.get(name, '')))}:
            return days.pop() if len(days) == 1 else None
    return None


def _day(year: str, month: str, day: str) -> date | None:
    try:
        return date(int(year), int(month), int(day))
    except ValueError:
        return None


FAR_KM = 500.0
"""What a network is told of a place is wrong farther away from it."""


def middle_of(box: GeoBox) -> tuple[Location, float] | None:
    """Return where the center of a raster lies, and how many km its corner is away; None where that is not known."""
    center = center_of(box)
    if center is None or box.crs is None:
        return None
    corner = locate(CRS.from_user_input(box.crs), box.bounds[0], box.bounds[1])
    return None if corner is None else (center, distance_km(center, corner))


def distance_km(one: Location, other: Location) -> float:
    """Return the length of the shortest way between two places on the ground."""
    here, there = np.deg2rad(one), np.deg2rad(other)
    half = np.sin((here - there) / 2) ** 2
    return float(2 * 6371.0 * np.arcsin(np.sqrt(half[0] + np.cos(here[0]) * np.cos(there[0]) * half[1])))
