"""What training has been through, kept by the model and in its bundle."""

from dataclasses import dataclass, field


@dataclass
class History:
    """What training has been through, over all calls of `fit`.

    Args:
        batch_losses: Smoothed training loss after each batch.
        epochs: One row per epoch: epoch, train_loss, valid_loss, accuracy, miou, seconds.
        learning_rate: Highest learning rate of the last fit.
        loaded: How many of the rows came with the bundle, without their batches' losses.
    """

    batch_losses: list[float] = field(default_factory=list)
    epochs: list[dict[str, float]] = field(default_factory=list)
    learning_rate: float | None = None
    loaded: int = 0
