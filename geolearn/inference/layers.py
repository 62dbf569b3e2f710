"""The files of a map, and what makes their pixels of outputs, which are tensors of torch or arrays of NumPy."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from geolearn._version import __version__
from geolearn.networks.spec import ModelSpec
from geolearn.raster.pieces import RasterContent


class Encoding(Protocol):
    """How a network's outputs become a map's pixels."""

    @property
    def dtype(self) -> str:
        """Of the map."""

    @property
    def nodata(self) -> float:
        """Value of pixels without data."""

    @property
    def colors(self) -> Mapping[int, tuple[int, int, int]] | None:
        """Color of each pixel value, where they are classes."""

    @property
    def class_names(self) -> Mapping[int, str] | None:
        """Name of each pixel value, where they are classes."""

    def encode(self, outputs: Any) -> np.ndarray:
        """Turn outputs (N, C, H, W) into pixels (N, H, W) of `dtype`."""


@dataclass(frozen=True, eq=False)
class Layer:
    """One file of a map.

    Args:
        suffix: Behind the name of the map; empty for the map itself.
        content: What the file holds.
        encode: Turns outputs (C, H, W) into pixels (bands, H, W) of the type of `content`.
    """

    suffix: str
    content: RasterContent
    encode: Callable[[Any], np.ndarray]

    def path(self, target: Path) -> Path:
        """Return the file of this layer of a map."""
        return target.with_name(f'{target.stem}{self.suffix}{target.suffix}') if self.suffix else target

    def tagged(self, tags: Mapping[str, str]) -> 'Layer':
        """Return this layer with more metadata."""
        return replace(self, content=replace(self.content, tags={**self.content.tags, **tags}))

    @property
    def nodata(self) -> float:
        """Value of pixels without data."""
        assert self.content.nodata is not None
        return self.content.nodata


def map_tags(spec: ModelSpec) -> dict[str, str]:
    """Return the metadata of all files of a model's maps."""
    return {'MODEL': spec.model, 'BACKBONE': spec.backbone, 'SOFTWARE': f'geolearn {__version__}'}


def plain_layer(encoding: Encoding, tags: Mapping[str, str]) -> Layer:
    """Return the file of the one value that an encoding gives each pixel."""
    content = RasterContent(
        encoding.dtype,
        encoding.nodata,
        ('prediction' if encoding.class_names is None else 'class',),
        colors=encoding.colors or {},
        class_names=encoding.class_names or {},
        tags=tags,
    )
    return Layer('', content, lambda outputs: encoding.encode(outputs[None]))
