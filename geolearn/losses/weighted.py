"""What losses of classes have in common."""

from torch import Tensor, nn


class ClassWeighted(nn.Module):
    """A loss that may weigh classes; the weights move with it to a device, and are not part of its state.

    Args:
        class_weights: (classes,) weight of each class, or None.
    """

    class_weights: Tensor | None

    def __init__(self, class_weights: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer('class_weights', class_weights, persistent=False)
