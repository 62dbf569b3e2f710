"""Draw what a classifier makes of validation chips."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from geolearn.data import ChipData
from geolearn.errors import UnknownNameError
from geolearn.models.classification._outputs import ChipOutputs, case_matrices, count_confusion
from geolearn.models.classification.explain import heat_map
from geolearn.models.classification.network import ChipNetwork
from geolearn.plotting import describe_chip, show_confusion_matrix
from geolearn.plotting.classification import Verdict, show_cases, show_explained, show_verdicts

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def choose_class(network: ChipNetwork, pixels: Tensor, class_names: Sequence[str], class_name: str | None) -> int:
    """Return the index of a class, or of the likeliest one in an image (bands, H, W)."""
    if class_name is None:
        with torch.inference_mode():
            return int(network(pixels[None]).argmax())
    if class_name not in class_names:
        raise UnknownNameError('class', class_name, class_names)
    return list(class_names).index(class_name)


def draw_confusion(outputs: ChipOutputs, class_names: Sequence[str]) -> 'Figure':
    """Draw the confusion matrix, or that of each class where chips may hold several."""
    if outputs.multi_label:
        return show_cases(case_matrices(outputs), class_names)
    return show_confusion_matrix(count_confusion(outputs).counts, class_names, unit='chips')


def draw_hard_examples(outputs: ChipOutputs, data: ChipData, count: int) -> 'Figure':
    """Draw the validation chips of the highest loss, the highest first."""
    if count < 1:
        raise ValueError(f'num_examples must be at least 1, got {count}')
    return draw_chips(outputs, data, outputs.losses.argsort(descending=True)[:count].tolist())


def draw_chips(outputs: ChipOutputs, data: ChipData, positions: Sequence[int]) -> 'Figure':
    """Draw validation chips with truth, prediction, name and loss.

    Args:
        outputs: Of all validation chips.
        data: Whose validation chips they are.
        positions: Of the chips among these, at least one.
    """
    names = [data.table.names[data.valid_ds.positions[position]] for position in positions]
    verdicts = [
        verdict._replace(text=f'{verdict.text}\n{describe_chip(name, loss=loss)}')
        for name, loss, verdict in zip(
            names, outputs.losses[positions].tolist(), _verdicts(outputs, data.classes, positions)
        )
    ]
    return show_verdicts(_images(data, positions), verdicts, data.bands)


def draw_results(outputs: ChipOutputs, data: ChipData, rows: int, *, network: ChipNetwork | None) -> 'Figure':
    """Draw the first validation chips; with a network, where it looks for the likeliest class."""
    if rows < 1:
        raise ValueError(f'rows must be at least 1, got {rows}')
    shown = list(range(min(rows, len(outputs.truth))))
    verdicts = _verdicts(outputs, data.classes, shown)
    if network is None:
        return show_verdicts(_images(data, shown), verdicts, data.bands)
    device = next(network.parameters()).device
    heats = [
        heat_map(network.eval(), data.valid_ds[position][0].to(device), int(outputs.logits[position].argmax()))
        for position in shown
    ]
    return show_explained(_images(data, shown), heats, verdicts, data.bands)


def _images(data: ChipData, positions: Sequence[int]) -> Tensor:
    images = torch.stack([data.valid_ds[position][0] for position in positions])
    return images[:, -1] if images.dim() == 5 else images  # of several dates the last is shown


def _verdicts(outputs: ChipOutputs, class_names: Sequence[str], positions: Sequence[int]) -> list[Verdict]:
    found, there, probabilities = outputs.found, outputs.there, outputs.probabilities
    verdicts = []
    for position in positions:
        truth = _names(there[position], class_names)
        guess = _names(found[position], class_names)
        if not outputs.multi_label:
            guess += f' ({probabilities[position].max():.0%})'
        verdicts.append(Verdict(f'truth: {truth}\nmodel: {guess}', bool((found[position] == there[position]).all())))
    return verdicts


def _names(present: Tensor, class_names: Sequence[str]) -> str:
    return ', '.join(name for name, there in zip(class_names, present.tolist()) if there) or 'no class'
