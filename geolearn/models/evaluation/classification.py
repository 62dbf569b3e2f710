"""Evaluation of classifiers of whole chips: outputs for the validation chips, metrics and figures from them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from geolearn import errors, history, plotting
from geolearn.chips.batches.loader import ChipLoader
from geolearn.data import ChipData
from geolearn.inference.explain import heat_map
from geolearn.metrics import ConfusionMatrix, MultiLabelScores
from geolearn.networks.classification import ChipNetwork, class_probabilities, decide, one_hot
from geolearn.training.nonfinite import predict_batches

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


_DECIDED = 20.0
"""A logit that is beyond any threshold, for decisions that are made already."""


class ChipOutputs(NamedTuple):
    """Logits and truth of some chips, in their order, on the CPU.

    Args:
        logits: (n, classes) float32.
        truth: (n,) class indices, or (n, classes) with 1 where a class is present.
    """

    logits: Tensor
    truth: Tensor

    @property
    def multi_label(self) -> bool:
        """Whether chips hold any number of classes."""
        return self.truth.dim() == 2

    @property
    def probabilities(self) -> Tensor:
        """(n, classes) float32: which class a chip is of, or of each class whether it is there."""
        return class_probabilities(self.logits, multi_label=self.multi_label)

    @property
    def predicted(self) -> Tensor:
        """(n, classes) bool: which classes are predicted."""
        return decide(self.probabilities, multi_label=self.multi_label)

    @property
    def present(self) -> Tensor:
        """(n, classes) bool: which classes are true."""
        return self.truth >= 0.5 if self.multi_label else one_hot(self.truth, self.logits.shape[1])

    @property
    def losses(self) -> Tensor:
        """(n,) float32 cross-entropy of each chip; the mean over the classes where it may hold several."""
        if self.multi_label:
            return functional.binary_cross_entropy_with_logits(self.logits, self.truth, reduction='none').mean(1)
        return functional.cross_entropy(self.logits, self.truth, reduction='none')


@dataclass(frozen=True, eq=False, kw_only=True)
class ChipEvaluation(history.Evaluation):
    """Validation results of a classifier of chips; `per_chip` is the cross-entropy of each chip.

    Args:
        outputs: Logits and truth of the chips.
    """

    outputs: ChipOutputs


def evaluate_chips(network: ChipNetwork, chips: ChipLoader, class_names: Sequence[str]) -> ChipEvaluation:
    """Evaluate a network on all chips of a loader, in their order, on its device."""
    outputs = collect_outputs(network, chips)
    metrics, per_class = score_chips(outputs), tabulate_classes(outputs, class_names)
    return ChipEvaluation(
        metrics=metrics,
        per_class=per_class,
        per_chip=outputs.losses.tolist(),
        esri={
            'accuracy': f'{metrics["accuracy"]:.4e}',
            'per_class_metrics': per_class.drop(columns=['f2', 'support']).rename(index=str).T.to_json(),
        },
        outputs=outputs,
    )


@torch.inference_mode()
def collect_outputs(network: ChipNetwork, chips: ChipLoader) -> ChipOutputs:
    """Compute all chips of a loader in their order, on its device."""
    network.to(chips.device).eval()
    rows = [(output.float().cpu(), labels.cpu()) for _, labels, output in predict_batches(network, chips)]
    logits, truth = zip(*rows)
    return ChipOutputs(torch.cat(logits), torch.cat(truth))


def count_confusion(outputs: ChipOutputs) -> ConfusionMatrix:
    """Count truth against prediction of chips that are of one class each."""
    matrix = ConfusionMatrix.empty(outputs.logits.shape[1])
    matrix.add(outputs.logits.argmax(1), outputs.truth, ignored=-1)
    return matrix


def count_matches(outputs: ChipOutputs) -> MultiLabelScores:
    """Count true positives, false positives and false negatives of each class."""
    scores = MultiLabelScores(outputs.logits.shape[1])
    scores.add(torch.where(outputs.predicted, _DECIDED, -_DECIDED), outputs.present.float())
    return scores


def binary_matrices(outputs: ChipOutputs) -> np.ndarray:
    """Return for each class the matrix (classes, 2, 2) of absent and present: truth (rows) against prediction."""
    tp, fp, fn, tn = count_matches(outputs).counts
    return torch.stack([tn, fp, fn, tp], dim=1).reshape(-1, 2, 2).numpy()


def score_chips(outputs: ChipOutputs) -> dict[str, float]:
    """Return the scores of all classes together by name; NaN where undefined."""
    right = (outputs.predicted == outputs.present).all(1).float().mean()
    return {'accuracy': float(right), **count_matches(outputs).values()}


def tabulate_classes(outputs: ChipOutputs, class_names: Sequence[str]) -> 'pd.DataFrame':
    """Make a table of precision, recall, F1, F2 and the number of chips that hold each class; NaN where undefined."""
    import pandas as pd  # late: with pyarrow it takes part of a second to import

    matches = count_matches(outputs)
    columns = {
        'precision': matches.precision.tolist(),
        'recall': matches.recall.tolist(),
        'f1': matches.f_score(1).tolist(),
        'f2': matches.f_score(2).tolist(),
        'support': outputs.present.sum(0).tolist(),
    }
    return pd.DataFrame(columns, index=pd.Index(list(class_names), name='class'))


def choose_class(network: ChipNetwork, pixels: Tensor, class_names: Sequence[str], class_name: str | None) -> int:
    """Return the index of a class, or of the likeliest one in an image (bands, H, W)."""
    if class_name is None:
        with torch.inference_mode():
            return int(network(pixels[None]).argmax())
    if class_name not in class_names:
        raise errors.UnknownNameError('class', class_name, class_names)
    return list(class_names).index(class_name)


def draw_confusion(outputs: ChipOutputs, class_names: Sequence[str]) -> 'Figure':
    """Draw the confusion matrix, or that of each class where chips may hold several."""
    if outputs.multi_label:
        return plotting.show_binary_matrices(binary_matrices(outputs), class_names)
    return plotting.show_confusion_matrix(count_confusion(outputs).counts, class_names, unit='chips')


def draw_hard_examples(outputs: ChipOutputs, data: ChipData, count: int) -> 'Figure':
    """Draw the validation chips of the highest loss, the highest first."""
    if count < 1:
        raise ValueError(f'num_examples must be at least 1, got {count}')
    return draw_classified_chips(outputs, data, outputs.losses.argsort(descending=True)[:count].tolist())


def draw_classified_chips(outputs: ChipOutputs, data: ChipData, positions: Sequence[int]) -> 'Figure':
    """Draw validation chips with truth, prediction, name and loss.

    Args:
        outputs: Of all validation chips.
        data: Whose validation chips they are.
        positions: Of the chips among these, at least one.
    """
    names = [data.table.names[data.valid_ds.positions[position]] for position in positions]
    verdicts = [
        verdict._replace(text=f'{verdict.text}\n{plotting.describe_chip(name, loss=loss)}')
        for name, loss, verdict in zip(
            names, outputs.losses[positions].tolist(), _verdicts(outputs, data.classes, positions)
        )
    ]
    return plotting.show_classified(_images(data, positions), verdicts, data.bands, stretch=data.display_stretch)


def draw_results(
    outputs: ChipOutputs, data: ChipData, shown: Sequence[int], *, network: ChipNetwork | None
) -> 'Figure':
    """Draw validation chips by their positions; with a network, also the heat map of the likeliest class."""
    verdicts = _verdicts(outputs, data.classes, shown)
    if network is None:
        return plotting.show_classified(_images(data, shown), verdicts, data.bands, stretch=data.display_stretch)
    device = next(network.parameters()).device
    heats = [
        heat_map(network.eval(), data.valid_ds[position][0].to(device), int(outputs.logits[position].argmax()))
        for position in shown
    ]
    return plotting.show_heat_maps(_images(data, shown), heats, verdicts, data.bands, stretch=data.display_stretch)


def _images(data: ChipData, positions: Sequence[int]) -> Tensor:
    images = torch.stack([data.valid_ds[position][0] for position in positions])
    return images[:, -1] if images.dim() == 5 else images  # of several dates the last is shown


def _verdicts(outputs: ChipOutputs, class_names: Sequence[str], positions: Sequence[int]) -> list[plotting.ChipTitle]:
    predicted, present, probabilities = outputs.predicted, outputs.present, outputs.probabilities
    verdicts = []
    for position in positions:
        truth = _names(present[position], class_names)
        guess = _names(predicted[position], class_names)
        if not outputs.multi_label:
            guess += f' ({probabilities[position].max():.0%})'
        verdicts.append(
            plotting.ChipTitle(
                f'truth: {truth}\nmodel: {guess}', bool((predicted[position] == present[position]).all())
            )
        )
    return verdicts


def _names(present: Tensor, class_names: Sequence[str]) -> str:
    return ', '.join(name for name, is_present in zip(class_names, present.tolist()) if is_present) or 'no class'
