"""How a network's outputs become a map's pixels: class values with names and colors, or a regressed quantity."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from geolearn.classes import ClassInfo


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

    def encode(self, outputs: Tensor) -> np.ndarray:
        """Turn outputs (N, C, H, W) into pixels (N, H, W) of `dtype`."""


class ClassEncoding:
    """The most likely class of each pixel, as its value.

    Args:
        classes: Position is the network's output channel.
    """

    def __init__(self, classes: Sequence[ClassInfo]) -> None:
        self.dtype, self.nodata = output_encoding(classes)
        self.colors = {info.value: info.color for info in classes}
        self.class_names = {info.value: info.name for info in classes}
        self._values = np.array([info.value for info in classes], self.dtype)

    def encode(self, outputs: Tensor) -> np.ndarray:
        """Turn logits (N, classes, H, W) into class values (N, H, W)."""
        # argmax on channels-first logits takes eight times as long as max
        return self._values[outputs.max(1).indices.byte().cpu().numpy()]


@dataclass(frozen=True)
class RegressionEncoding:
    """The regressed quantity of each pixel; NaN where there is no data."""

    dtype: str = 'float32'
    nodata: float = float('nan')
    colors: None = None
    class_names: None = None

    def encode(self, outputs: Tensor) -> np.ndarray:
        """Turn outputs (N, 1, H, W) into (N, H, W) float32."""
        return outputs[:, 0].float().cpu().numpy()


def output_encoding(classes: Sequence[ClassInfo]) -> tuple[str, int]:
    """Choose the map's dtype and NoData value: 0 unless a class has it, else the largest value that no class has.

    Every class here was trained and can be predicted, whatever its name: also value 0 of labels that name no classes.
    """
    values = {info.value for info in classes}
    dtype, limit = ('uint8', 255) if max(values) <= 255 else ('uint16', 65535)
    return dtype, 0 if 0 not in values else max(set(range(limit + 1)) - values)
