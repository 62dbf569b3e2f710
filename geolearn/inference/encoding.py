"""How the outputs of a network become the pixels of maps: classes, probabilities, confidence, or values."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from geolearn.classes import ClassInfo
from geolearn.inference.layers import Encoding, Layer, plain_layer
from geolearn.raster.pieces import RasterContent

Output = Literal['classes', 'probabilities', 'confidence']
"""What a map of a classifier may hold."""

OUTPUTS: tuple[Output, ...] = ('classes', 'probabilities', 'confidence')

ProbabilityType = Literal['uint8', 'float16', 'float32']
"""How probabilities are stored."""

PROBABILITY_STEPS = 250
"""Of uint8: a step is 0.004, which the file states as the scale of its bands, and 255 is NoData."""

UINT8_NODATA = 255


class ClassEncoding:
    """The most likely class of each pixel, as its value.

    Args:
        classes: Position is the network's output channel.
        temperature: Logits are divided by it before probabilities are computed; see `PixelClassifier.calibrate`.
    """

    def __init__(self, classes: Sequence[ClassInfo], temperature: float = 1.0) -> None:
        self.dtype, self.nodata = output_encoding(classes)
        self.colors = {info.value: info.color for info in classes}
        self.class_names = {info.value: info.name for info in classes}
        self.temperature = temperature
        self._values = np.array([info.value for info in classes], self.dtype)

    def encode(self, outputs: Tensor) -> np.ndarray:
        """Turn logits (N, classes, H, W) into class values (N, H, W)."""
        return self._values[find_largest(outputs)]


def find_largest(outputs: Tensor) -> np.ndarray:
    """Return the channel that is largest at each pixel of (N, C, H, W), the first of equal ones, as (N, H, W)."""
    channels = outputs.shape[1]
    if outputs.device.type != 'cpu' or outputs.dtype != torch.float32 or channels > 256:
        return outputs.max(1).indices.cpu().numpy()
    # a fifth of the time of torch's max and a thirtieth of that of its argmax, for six channels that lie one by one
    planes = outputs.numpy()
    largest = planes[:, 0].copy()
    index = np.zeros(largest.shape, np.uint8)
    above = np.empty(largest.shape, bool)
    marks = above.view(np.uint8)
    for channel in range(1, channels):
        np.greater(planes[:, channel], largest, out=above)
        np.multiply(marks, np.uint8(channel), out=marks)
        np.maximum(index, marks, out=index)
        np.maximum(largest, planes[:, channel], out=largest)
    if np.isnan(largest).any():  # torch takes NaN for the largest of all
        return outputs.max(1).indices.numpy()
    return index


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


@dataclass(frozen=True)
class VectorEncoding:
    """A vector for each pixel, of which each number is a band; NaN where there is no data.

    Args:
        names: Of the bands.
        dtype: ``'float32'``, or ``'float16'``, in which files hold half the bytes.
        tags: Metadata of the file.
    """

    names: tuple[str, ...]
    dtype: str = 'float32'
    tags: Mapping[str, str] = field(default_factory=dict)
    nodata: float = float('nan')
    colors: None = None
    class_names: None = None

    def encode(self, outputs: Tensor) -> np.ndarray:
        """Turn outputs (N, C, H, W) into float32 of the same shape, rounded as the file rounds them."""
        outputs = outputs.half() if self.dtype == 'float16' else outputs
        vectors: np.ndarray = outputs.float().cpu().numpy()
        return vectors


def output_encoding(classes: Sequence[ClassInfo]) -> tuple[str, int]:
    """Choose the map's dtype and NoData value: 0 unless a class has it, else the largest value that no class has.

    Every class here was trained and can be predicted, whatever its name: also value 0 of labels that name no classes.
    """
    values = {info.value for info in classes}
    dtype, limit = ('uint8', 255) if max(values) <= 255 else ('uint16', 65535)
    return dtype, 0 if 0 not in values else max(set(range(limit + 1)) - values)


def make_layers(
    encoding: Encoding,
    outputs: Sequence[Output] = ('classes',),
    *,
    dtype: ProbabilityType = 'uint8',
    bands: bool = False,
    tags: Mapping[str, str] | None = None,
) -> tuple[Layer, ...]:
    """Return the files of a map.

    Args:
        encoding: Of the network.
        outputs: What is written; the first goes into the map itself, others into files beside it.
        dtype: Of probabilities and confidence.
        bands: Whether all outputs are bands of one file.
        tags: Metadata of each file.

    Raises:
        ValueError: If the network has no such outputs, or one file cannot hold them.
    """
    tags = {} if tags is None else tags
    if not isinstance(encoding, ClassEncoding):
        if tuple(outputs) != ('classes',):
            raise ValueError(f"only classifiers have outputs such as 'probabilities'; got outputs={tuple(outputs)}")
        if isinstance(encoding, VectorEncoding):
            content = RasterContent(
                encoding.dtype, encoding.nodata, encoding.names, tags={**encoding.tags, **tags}, compression='none'
            )
            return (Layer('', content, lambda outputs: encoding.encode(outputs[None])[0]),)
        return (plain_layer(encoding, tags),)
    if bands and len(outputs) > 1:
        return (_stacked_layer(encoding, outputs, dtype, tags),)
    layers = []
    for number, output in enumerate(outputs):
        suffix = f'_{output}' if number else ''
        if output == 'classes':
            layer = plain_layer(encoding, tags)
            layers.append(Layer(suffix, layer.content, layer.encode))
        else:
            names, measure = _measure(encoding, output)
            nodata = UINT8_NODATA if dtype == 'uint8' else float('nan')
            content = RasterContent(dtype, nodata, names, scales=_scales(dtype, len(names)), tags=tags)
            layers.append(Layer(suffix, content, _stored(measure, dtype)))
    return tuple(layers)


def _stacked_layer(
    encoding: ClassEncoding, outputs: Sequence[Output], dtype: ProbabilityType, tags: Mapping[str, str]
) -> Layer:
    """Return one file of all outputs, classes first, which share a type and a NoData value."""
    largest = max(encoding.class_names)
    limit = {'uint8': UINT8_NODATA - 1, 'float16': 2048, 'float32': 2**24}[dtype]
    if 'classes' in outputs and largest > limit:
        raise ValueError(
            f'class value {largest} does not fit beside {dtype} probabilities in one file, which holds up to {limit}; '
            "pass layout='files'" + ('' if dtype == 'float32' else ", or probability_dtype='float32'")
        )
    names: list[str] = []
    scales: list[float] = []
    parts: list[Callable[[Tensor], np.ndarray]] = []
    stored = 'uint8' if dtype == 'uint8' else 'float32'
    for output in sorted(outputs, key=OUTPUTS.index):
        if output == 'classes':
            names.append('class')
            scales.append(1.0)
            parts.append(lambda logits: encoding.encode(logits[None]).astype(stored))
        else:
            bands, measure = _measure(encoding, output)
            names += bands
            scales += _scales(dtype, len(bands)) or (1.0,) * len(bands)
            parts.append(_stored(measure, dtype))
    content = RasterContent(
        dtype,
        UINT8_NODATA if dtype == 'uint8' else float('nan'),
        tuple(names),
        class_names=encoding.class_names if 'classes' in outputs else {},
        scales=tuple(scales),
        tags=tags,
    )
    return Layer('', content, lambda logits: np.concatenate([part(logits) for part in parts]))


def _scales(dtype: ProbabilityType, count: int) -> tuple[float, ...]:
    return (1 / PROBABILITY_STEPS,) * count if dtype == 'uint8' else ()


def _measure(encoding: ClassEncoding, output: Output) -> tuple[tuple[str, ...], Callable[[Tensor], Tensor]]:
    """Return the names of the bands of an output, and what makes it (bands, H, W), 0..1, of logits (C, H, W)."""

    def probabilities(logits: Tensor) -> Tensor:
        return (logits.float() / encoding.temperature).softmax(0)

    if output == 'probabilities':
        return tuple(f'probability of {name}' for name in encoding.class_names.values()), probabilities
    return ('confidence',), lambda logits: probabilities(logits).amax(0, keepdim=True)


def _stored(measure: Callable[[Tensor], Tensor], dtype: ProbabilityType) -> Callable[[Tensor], np.ndarray]:
    """Return the function that gives probabilities in the type that the file takes them in."""

    def encode(logits: Tensor) -> np.ndarray:
        shares = measure(logits)
        if dtype == 'uint8':
            stored: np.ndarray = (shares * PROBABILITY_STEPS).round_().byte().cpu().numpy()
            return stored
        # rounded here as the file rounds, so that no reader sees other values
        exact: np.ndarray = (shares.half().float() if dtype == 'float16' else shares).cpu().numpy()
        return exact

    return encode
