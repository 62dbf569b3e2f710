"""What a model keeps of its training and of its evaluation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class History:
    """The course of training, over all calls of `fit`.

    Args:
        batch_losses: Smoothed training loss after each batch.
        epochs: One row per epoch: epoch, train_loss, valid_loss, the task's metrics, parts of the loss if it has some,
            learning_rate, seconds. Of chips larger than `chip_size` the middle is scored.
        learning_rate: Highest learning rate of the last fit.
        loaded: How many of the rows came with the bundle, without their batches' losses.
        fits: The arguments of each call of `fit` that differ from their defaults; see `geolearn.arguments`.
        trained_on: Which chips were trained on, by the fingerprint of all chips; see `geolearn.models.bundling`.
    """

    batch_losses: list[float] = field(default_factory=list)
    epochs: list[dict[str, float]] = field(default_factory=list)
    learning_rate: float | None = None
    loaded: int = 0
    fits: list[dict[str, Any]] = field(default_factory=list)
    trained_on: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False, kw_only=True)
class Evaluation:
    """Validation results of a model. Tasks extend it by what their figures are drawn from.

    Args:
        metrics: By name, such as ``'accuracy'`` and ``'miou'``; NaN or None where undefined.
        per_class: A row for each class, where there are classes; None in a loaded bundle.
        per_chip: A score or a loss of each validation chip, in their order, by which chips are ranked.
        esri: The keys of Esri's model definition that hold metrics, such as ``'accuracy'`` as text.
        figures: PNGs and the report, by their name in a bundle.
        loaded: Whether it was read from a bundle, and not computed.
    """

    metrics: Mapping[str, Any]
    per_class: 'pd.DataFrame | None' = None
    per_chip: Sequence[float] = ()
    esri: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, bytes] = field(default_factory=dict)
    loaded: bool = False
