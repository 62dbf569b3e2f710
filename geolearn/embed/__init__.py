"""Turn imagery into embeddings: vectors that describe an image, a polygon, or each token of a raster."""

from importlib import import_module
from typing import TYPE_CHECKING

_HOMES = {
    'AttentionMaps': 'attention',
    'EmbeddingSource': 'embeddings',
    'Embeddings': 'embeddings',
    'PixelTimeSeries': 'pixels',
    'attention_maps': 'attention',
    'embed': 'imagery',
    'embed_many': 'many',
    'embed_pixels': 'pixels',
    'embed_raster': 'grids',
}

__all__ = [
    'AttentionMaps',
    'EmbeddingSource',
    'Embeddings',
    'PixelTimeSeries',
    'attention_maps',
    'embed',
    'embed_many',
    'embed_pixels',
    'embed_raster',
]

if TYPE_CHECKING:
    from geolearn.embed.attention import AttentionMaps, attention_maps
    from geolearn.embed.embeddings import Embeddings, EmbeddingSource
    from geolearn.embed.grids import embed_raster
    from geolearn.embed.imagery import embed
    from geolearn.embed.many import embed_many
    from geolearn.embed.pixels import PixelTimeSeries, embed_pixels


def __getattr__(name: str) -> object:
    """Load a name on first use: embeddings are read without torch."""
    if name not in _HOMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'geolearn.embed.{_HOMES[name]}'), name)
