"""The only door to raster files: pixels travel with their place (GeoBox) and their mask."""

from geolearn.raster.geobox import GeoBox
from geolearn.raster.mosaic import mosaic
from geolearn.raster.reading import (
    find_band_indexes,
    open_raster,
    raster_bands,
    raster_geobox,
    read_image,
    read_label,
    read_window,
    sample_pixels,
    tag_wavelengths_um,
)
from geolearn.raster.writing import RasterWriter, replacing, write_raster

__all__ = [
    'GeoBox',
    'RasterWriter',
    'find_band_indexes',
    'mosaic',
    'open_raster',
    'raster_bands',
    'raster_geobox',
    'read_image',
    'read_label',
    'read_window',
    'replacing',
    'sample_pixels',
    'tag_wavelengths_um',
    'write_raster',
]
