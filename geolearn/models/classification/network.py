"""The network of a classifier of chips: normalise, backbone, one vector per image, a linear layer."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from geolearn.backbones import Backbone
from geolearn.backbones._backbone import TokenBackbone
from geolearn.backbones.panopticon import BandAttentionEmbed
from geolearn.backbones.timm_transformer import TimmTransformer
from geolearn.backbones.trunk import ViT
from geolearn.errors import BackboneError
from geolearn.models.classification.options import ChipOptions, Pooling
from geolearn.models.network import Network, Normalise, build_backbone, build_normalise
from geolearn.models.spec import ModelSpec

COARSEST = 32
"""Stride of the map that a convolutional network is judged by."""


class ChipNetwork(Network):
    """Images in stored units, NaN where there is no data, to class logits of the whole image.

    Args:
        normalise: Takes the images first.
        backbone: Gives tokens, or maps of which the last counts.
        class_count: Logits per image.
        pooling: What of the backbone's output stands for the image.
        dropout: Rate before the linear layer.

    Raises:
        BackboneError: If the class token is asked for and there is none.
    """

    def __init__(
        self, normalise: Normalise, backbone: Backbone, class_count: int, *, pooling: Pooling, dropout: float
    ) -> None:
        super().__init__(normalise, backbone)
        self.takes_class_token = _takes_class_token(backbone, pooling)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(backbone.channels[-1], class_count))

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits (N, classes) of images (N, bands, H, W) of any size."""
        return self.classify(self.encode(x))

    def encode(self, x: Tensor) -> Tensor:
        """Compute what the head pools: tokens (N, prefix + n, D) or the last map (N, C, h, w)."""
        found = self.backbone(self.normalise(x))
        return found if isinstance(found, Tensor) else found[-1]

    def classify(self, encoded: Tensor) -> Tensor:
        """Compute logits (N, classes) of what `encode` returns."""
        return self.head(self.pool(encoded))

    def pool(self, encoded: Tensor) -> Tensor:
        """Reduce tokens (N, prefix + n, D) or a map (N, D, h, w) to one vector (N, D) per image."""
        if encoded.dim() == 4:
            return encoded.mean((2, 3))
        return encoded[:, 0] if self.takes_class_token else encoded[:, self.prefix :].mean(1)

    @property
    def prefix(self) -> int:
        """Tokens in front that belong to no place."""
        return self.backbone.prefix if isinstance(self.backbone, TokenBackbone) else 0


def build_chip_network(
    spec: ModelSpec, options: ChipOptions, *, pretrained: bool, weights: str | Path | None
) -> ChipNetwork:
    """Build the network that a spec describes.

    Plain transformers see images of one date in their native form, all blocks global. Of several dates, and of networks
    of several resolutions, the coarsest map counts.

    Raises:
        UnknownNameError: If there is no such backbone.
        BackboneError: If the backbone offers neither tokens nor maps of stride 32, or has no class token to take.
    """
    return ChipNetwork(
        build_normalise(spec),
        _build_backbone(spec, pretrained=pretrained, weights=weights),
        len(spec.class_infos),
        pooling=options.pooling,
        dropout=options.dropout,
    )


def _build_backbone(spec: ModelSpec, *, pretrained: bool, weights: str | Path | None) -> Backbone:
    if spec.dates == 1:
        try:
            return build_backbone(spec, pretrained=pretrained, weights=weights, form='tokens')
        except BackboneError:
            pass  # it has no tokens; whatever else is wrong with it is said below
    return build_backbone(spec, pretrained=pretrained, weights=weights, strides=(COARSEST,))


def _takes_class_token(backbone: Backbone, pooling: Pooling) -> bool:
    has_one = isinstance(backbone, TokenBackbone) and backbone.prefix > 0
    if pooling == 'cls' and not has_one:
        raise BackboneError(f"{backbone.name} has no class token here; pooling must be 'auto' or 'mean'")
    return has_one and (pooling == 'cls' or (pooling == 'auto' and _is_taught_by_class_token(backbone.trunk)))


def _is_taught_by_class_token(trunk: Any) -> bool:
    """Whether pretraining made the class token tell the image; masked autoencoders leave it to itself."""
    if isinstance(trunk, TimmTransformer):
        return getattr(trunk.net, 'global_pool', '') == 'token'
    # Panopticon learned as DINOv2 does
    return isinstance(trunk, ViT) and isinstance(trunk.patch_embed, BandAttentionEmbed)
