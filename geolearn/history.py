"""What training has been through, kept by the model and in its bundle."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class History:
    """What training has been through, over all calls of `fit`.

    Args:
        batch_losses: Smoothed training loss after each batch.
        epochs: One row per epoch: epoch, train_loss, valid_loss, the task's scores, parts of the loss if it has some,
            learning_rate, seconds.
        learning_rate: Highest learning rate of the last fit.
        loaded: How many of the rows came with the bundle, without their batches' losses.
    """

    batch_losses: list[float] = field(default_factory=list)
    epochs: list[dict[str, float]] = field(default_factory=list)
    learning_rate: float | None = None
    loaded: int = 0


@dataclass(frozen=True)
class Evaluation:
    """What a model came to on the validation chips when it was saved.

    Args:
        metrics: ``'accuracy'`` and ``'miou'``, None where undefined.
        esri: The same in Esri's words, such as ``'accuracy'`` and ``'per_class_metrics'`` as text.
        figures: PNGs by their name in the bundle.
    """

    metrics: Mapping[str, Any]
    esri: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, bytes] = field(default_factory=dict)
