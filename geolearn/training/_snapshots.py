"""Tensors and facts in one file that is whole or not there: safetensors, with JSON in its header."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from geolearn.errors import CheckpointError

FORMAT = 1
_KEY = 'geolearn'


class Snapshot(NamedTuple):
    """What a file held.

    Args:
        tensors: By name, on the CPU.
        facts: The rest, as JSON.
    """

    tensors: dict[str, Tensor]
    facts: dict[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors under a name, by what follows it."""
        start = f'{prefix}/'
        return {name.removeprefix(start): tensor for name, tensor in self.tensors.items() if name.startswith(start)}


def write_snapshot(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write a snapshot; a crash half way leaves any older one as it was.

    Raises:
        CheckpointError: If it cannot be written, such as on a full disk.
    """
    header = {_KEY: json.dumps({'format': FORMAT, **facts})}
    partial = path.with_name(f'{path.name}.part')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(_unshared(tensors), partial, metadata=header)
        with partial.open('rb') as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True) if path.parent.is_dir() else None
        kept = 'the one before it is whole' if path.is_file() else 'there is none before it'
        raise CheckpointError(
            f'the checkpoint {path} cannot be written ({error}); {kept}. Make room in {path.parent}, or pass '
            'checkpoint=False'
        ) from error


def read_snapshot(path: Path) -> Snapshot:
    """Read a snapshot.

    Raises:
        CheckpointError: If it is not there, broken, or of a newer geolearn.
    """
    if not path.is_file():
        raise CheckpointError(f'there is no checkpoint {path} to resume; call fit with checkpoint=True first')
    try:
        with safe_open(path, framework='pt') as file:
            facts = json.loads((file.metadata() or {})[_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f'{path} is not a checkpoint of geolearn, or broken: {error}') from error
    if facts.get('format') != FORMAT:
        raise CheckpointError(
            f'{path} has format {facts.get("format")} and this geolearn reads {FORMAT}; train anew, or use the '
            'geolearn that wrote it'
        )
    return Snapshot(tensors, facts)


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring tensors to the CPU; those that share memory are copied, for the format knows no sharing."""
    seen: set[int] = set()
    ready = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        place = tensor.untyped_storage().data_ptr()
        ready[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return ready
