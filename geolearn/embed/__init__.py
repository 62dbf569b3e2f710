"""Turn imagery into embeddings: vectors that describe an image, a polygon, or each token of a raster.

The package can be called as the function of its name: ``geolearn.embed(raster)`` is ``geolearn.embed.embed(raster)``.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

_HOMES = {
    'Embeddings': 'embeddings',
    'EmbeddingSource': 'embeddings',
    'attention_maps': 'attention',
    'embed': 'imagery',
    'embed_many': 'many',
    'embed_raster': 'grids',
}

__all__ = ['EmbeddingSource', 'Embeddings', 'attention_maps', 'embed', 'embed_many', 'embed_raster']


def __getattr__(name: str) -> object:
    """Load a name on first use: embeddings are read without torch."""
    if name not in _HOMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'geolearn.embed.{_HOMES[name]}'), name)


class _Package(ModuleType):
    """The package as a function; `geolearn.embed.imagery.embed` says what it takes."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        return import_module('geolearn.embed.imagery').embed(*args, **options)


sys.modules[__name__].__class__ = _Package
