"""What the networks of all methods of pretraining share."""

from typing import NamedTuple

from torch import Tensor, nn

from geolearn.backbones import TokenBackbone
from geolearn.backbones.trunk import Trunk
from geolearn.networks.network import Normalize


class Representations(NamedTuple):
    """What a network makes of validation images, for the measures of collapse.

    Args:
        features: (N, D) float32, one vector for each image.
        probabilities: (N, prototypes) float32 of the teacher's head; None where the method has no such head.
    """

    features: Tensor
    probabilities: Tensor | None = None


class PretrainingNetwork(nn.Module):
    """A network that computes its own loss from images in stored units.

    Called in training it returns ``(None, loss)``, in evaluation `Representations` and the loss. Whatever follows the
    images is ignored: labels take no part.

    Args:
        normalize: Takes the images first.
    """

    def __init__(self, normalize: Normalize) -> None:
        super().__init__()
        self.normalize = normalize

    @property
    def class_token_is_trained(self) -> bool:
        """Whether the class token learns to describe the image."""
        return False

    @property
    def result(self) -> Trunk:
        """The encoder whose weights are the result."""
        raise NotImplementedError

    def begin_epoch(self, epoch: int) -> None:
        """Get ready for an epoch, counted from 0."""

    def begin_step(self) -> None:
        """Change gradients before they are used."""

    def finish_step(self, progress: float) -> None:
        """Take in a step of the optimizer; `progress` is the share of all steps that were taken, 0..1."""


class LastOutput(nn.Module):
    """The loss of a network that computes it itself: the last part of its output."""

    def forward(self, output: tuple[Representations | None, Tensor]) -> Tensor:
        """Return the loss."""
        return output[-1]


def describe_images(backbone: TokenBackbone, tokens: Tensor, *, class_token: bool) -> Tensor:
    """Return a vector (N, D) for each image of its tokens (N, prefix + n, D): the class token, or the others' mean."""
    return tokens[:, 0] if class_token and backbone.prefix else tokens[:, backbone.prefix :].mean(1)
