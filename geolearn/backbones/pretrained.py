"""Weights that `geolearn.pretrain` wrote: a safetensors file that says of which backbone, bands and data they are."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from geolearn import files
from geolearn.backbones import loading
from geolearn.bands import Band
from geolearn.errors import BandError, FileWriteError, WeightsError

SUFFIX = '.safetensors'

FORMAT = 1

_KEY = 'geolearn_pretrained'


@dataclass(frozen=True, slots=True)
class PretrainingFacts:
    """What is known of weights that were pretrained on imagery of one's own.

    Args:
        backbone: Name of the backbone.
        bands: Which it was pretrained on, in order.
        mean: Of each band, by which the images were normalized.
        std: The same.
        units: Of the pixels: ``'dB'``, ``'linear'``, ``'amplitude'``, ``'0-255'`` or such as ``'reflectance x 10000'``;
            empty where they were not recognized.
        method: ``'dino'`` or ``'mae'``.
        class_token: Whether the class token was trained to describe the image.
        chip_size: Side of the images in pixels.
        epochs: Passes over the images.
        steps: Updates of the weights.
        batch_size: Images per update.
        options: Of the method.
        data: Where the images came from, and how many there were.
        start: Which weights the pretraining started from; empty for random ones.
        measures: The last validation results by name.
    """

    backbone: str
    bands: tuple[Band, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    units: str
    method: str
    class_token: bool
    chip_size: int
    epochs: int
    steps: int
    batch_size: int
    options: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    start: str = ''
    measures: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count = len(self.bands)
        if not count or not count == len(self.mean) == len(self.std):
            raise ValueError(f'{count} bands with {len(self.mean)} means and {len(self.std)} stds')
        if not all(map(math.isfinite, (*self.mean, *self.std))) or not all(std > 0 for std in self.std):
            raise ValueError(f'means {self.mean} and stds {self.std} must be finite, and stds over 0')

    def __str__(self) -> str:
        """Say it in a line."""
        names = ', '.join(band.name for band in self.bands)
        return f'{self.backbone}, pretrained by {self.method} on {names} in {self.steps:,} steps'


def write_pretrained(path: Path, state: Mapping[str, Tensor], facts: PretrainingFacts) -> None:
    """Write weights and what is known of them; a crash half way leaves any older file as it was.

    Raises:
        FileWriteError: If the file cannot be written.
    """
    rows = asdict(facts) | {'format': FORMAT, 'measures': {n: v for n, v in facts.measures.items() if math.isfinite(v)}}
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    try:
        with files.atomic_write(path, make_folder=True) as part:
            save_file(tensors, part, metadata={_KEY: json.dumps(rows)})
    except SafetensorError as error:
        raise FileWriteError(f'{path} cannot be written ({error}); make room in {path.parent}') from error


def is_pretrained(path: str | Path | None) -> bool:
    """Whether a file holds weights that `geolearn.pretrain` wrote; only its header is read."""
    return path is not None and Path(path).suffix == SUFFIX and _header(Path(path).expanduser()) is not None


def read_facts(path: str | Path) -> PretrainingFacts:
    """Read what a file says of its weights, which takes no time.

    Raises:
        WeightsError: If there is no such file, or it is not one that `geolearn.pretrain` wrote, or broken.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise WeightsError(f'there is no file at {path}; pass the path that geolearn.pretrain returned')
    header = _header(path)
    if header is None:
        raise WeightsError(
            f'{path} does not say which backbone its weights are of, as files of geolearn.pretrain do; pass the name '
            "of the backbone, and the file as weights='...'"
        )
    try:
        rows = json.loads(header)
        version = rows.pop('format')
        facts = msgspec.convert(rows, PretrainingFacts) if version == FORMAT else None
    except (KeyError, AttributeError, TypeError, ValueError, BandError) as error:
        raise WeightsError(f'the description in {path} is broken ({str(error)[:300]}); pretrain again') from error
    if facts is None:
        raise WeightsError(f'{path} has format {version} and this geolearn reads {FORMAT}; update geolearn')
    return facts


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Read the weights.

    Raises:
        WeightsError: If the file is broken.
    """
    state: dict[str, Tensor] = loading.load_weights_file(path)
    return state


def _header(path: Path) -> str | None:
    try:
        with safe_open(path, framework='pt') as file:
            found: str | None = (file.metadata() or {}).get(_KEY)
            return found
    except (OSError, SafetensorError, ValueError):
        return None
