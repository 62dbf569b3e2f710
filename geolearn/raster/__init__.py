"""The only door to raster files: pixels travel with their place (GeoBox) and their mask."""

from geolearn.raster.aligned import AlignedRaster
from geolearn.raster.embeddings import Dequantize, EmbeddingProduct, find_product
from geolearn.raster.geobox import GeoBox, crs_name, require_same_grid, same_grid
from geolearn.raster.kept import KeptRasters
from geolearn.raster.opening import many_files
from geolearn.raster.reading import (
    common_dtype,
    find_band_indexes,
    mosaic,
    open_raster,
    raster_bands,
    raster_geobox,
    read_image,
    read_label,
    read_stack,
    read_window,
    read_window_masks,
    require_place,
    sample_pixels,
    tag_wavelengths_um,
)
from geolearn.raster.writing import RasterWriter, write_raster

__all__ = [
    'AlignedRaster',
    'Dequantize',
    'EmbeddingProduct',
    'GeoBox',
    'KeptRasters',
    'RasterWriter',
    'common_dtype',
    'crs_name',
    'find_band_indexes',
    'find_product',
    'many_files',
    'mosaic',
    'open_raster',
    'raster_bands',
    'raster_geobox',
    'read_image',
    'read_label',
    'read_stack',
    'read_window',
    'read_window_masks',
    'require_place',
    'require_same_grid',
    'same_grid',
    'sample_pixels',
    'tag_wavelengths_um',
    'write_raster',
]
