"""The network of a classifier of chips: normalize, backbone, one vector per image, a linear layer."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor, nn
from torch.nn import functional

from geolearn.backbones import Backbone, TokenBackbone, offers_tokens
from geolearn.errors import BackboneError, UnknownNameError
from geolearn.networks.chip_decisions import THRESHOLD
from geolearn.networks.network import Network, Normalize, build_backbone, build_normalize
from geolearn.networks.spec import ModelSpec, decode

Crop = Literal['fixed', 'bounding_box']
"""What of the ground is seen: a chip around a polygon's middle, or what its bounding box holds."""

Pooling = Literal['auto', 'mean', 'cls']
"""What of a backbone's output stands for the image."""

USUAL_MIXUP = 0.4
"""Strength of mixup where it is only switched on, as in fastai."""


CHIP_LOSSES = {'cross_entropy': 0.0, 'focal': 2.0}
"""Losses of whole chips by name, and the gamma of each."""


@dataclass(frozen=True)
class ChipOptions:
    """Head, training and chips of a classifier of chips.

    Args:
        multi_label: Whether a chip may hold any number of classes instead of one.
        pooling: ``'cls'`` takes a transformer's class token, ``'mean'`` the mean over all places, ``'auto'`` whichever
            of them the transformer was pretrained with.
        dropout: Rate before the linear head.
        label_smoothing: Share of each target, 0..1, that is spread over all classes; for one class per chip.
        mixup: Strength of `geolearn.augment.Mixup`, 0 for none.
        oversample: Whether chips of rare classes are shown several times in an epoch.
        crop: What of the ground around a feature the training chips show.
        blackened: Whether pixels around the feature were set to 0 in them.
        loss: One of `CHIP_LOSSES`.

    Raises:
        ValueError: If a value makes no sense.
    """

    multi_label: bool
    pooling: Pooling = 'auto'
    dropout: float = 0.2
    label_smoothing: float = 0.0
    mixup: float = 0.0
    oversample: bool = False
    crop: Crop = 'fixed'
    blackened: bool = False
    loss: str = 'cross_entropy'

    def __post_init__(self) -> None:
        if self.pooling not in get_args(Pooling):
            raise ValueError(f'pooling must be one of {", ".join(map(repr, get_args(Pooling)))}, got {self.pooling!r}')
        for name in ('dropout', 'label_smoothing'):
            value = getattr(self, name)
            if not _is_number(value) or not 0 <= value < 1:
                raise ValueError(f'{name} must be a number of 0 or more and below 1, got {value!r}')
        if not _is_number(self.mixup) or not (self.mixup == 0 or 1e-3 <= self.mixup < math.inf):
            raise ValueError(f'mixup must be True, False or a strength such as 0.4, got {self.mixup!r}')
        if self.crop not in get_args(Crop):
            raise ValueError(f'crop must be one of {", ".join(map(repr, get_args(Crop)))}, got {self.crop!r}')
        for name in ('multi_label', 'oversample', 'blackened'):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f'{name} must be True or False, got {getattr(self, name)!r}')
        if self.loss not in CHIP_LOSSES:
            raise UnknownNameError('loss', self.loss, CHIP_LOSSES)
        if self.multi_label and self.label_smoothing:
            raise ValueError('label_smoothing is for chips of one class each; these hold any number of classes')

    def to_json(self) -> dict[str, Any]:
        """Return the options as plain JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> 'ChipOptions':
        """Read the options that a spec carries.

        Raises:
            BundleError: If they are not what `to_json` returns.
        """
        return decode(cls, row, 'options')


def mixup_strength(mixup: bool | float) -> float:
    """Return what a user's `mixup` means as a number; 0 for none."""
    return USUAL_MIXUP * mixup if isinstance(mixup, bool) else mixup


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


COARSEST = 32
"""Stride of the map that a convolutional network is classified by."""


class ChipNetwork(Network):
    """Images in stored units, NaN where there is no data, to class logits of the whole image.

    Args:
        normalize: Takes the images first.
        backbone: Gives tokens, or maps of which the last counts.
        class_count: Logits per image.
        pooling: What of the backbone's output stands for the image.
        dropout: Rate before the linear layer.

    Raises:
        BackboneError: If the class token is asked for and there is none.
    """

    def __init__(
        self, normalize: Normalize, backbone: Backbone, class_count: int, *, pooling: Pooling, dropout: float
    ) -> None:
        super().__init__(normalize, backbone)
        self.takes_class_token = _takes_class_token(backbone, pooling)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(backbone.channels[-1], class_count))

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits (N, classes) of images (N, bands, H, W) of any size."""
        return self.classify(self.encode(x))

    def encode(self, x: Tensor) -> Tensor:
        """Compute what the head pools: tokens (N, prefix + n, D) or the last map (N, C, h, w)."""
        found = self.backbone(self.normalize(x))
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
        build_normalize(spec),
        _build_backbone(spec, pretrained=pretrained, weights=weights),
        len(spec.class_infos),
        pooling=options.pooling,
        dropout=options.dropout,
    )


def _build_backbone(spec: ModelSpec, *, pretrained: bool, weights: str | Path | None) -> Backbone:
    if spec.dates == 1 and offers_tokens(spec.backbone):
        return build_backbone(spec, pretrained=pretrained, weights=weights, form='tokens')
    return build_backbone(spec, pretrained=pretrained, weights=weights, strides=(COARSEST,))


def _takes_class_token(backbone: Backbone, pooling: Pooling) -> bool:
    if isinstance(backbone, TokenBackbone) and backbone.prefix > 0:
        return pooling == 'cls' or (pooling == 'auto' and backbone.trunk.class_token_is_trained)
    if pooling == 'cls':
        raise BackboneError(f"{backbone.name} has no class token here; pooling must be 'auto' or 'mean'")
    return False


def class_probabilities(logits: Tensor, *, multi_label: bool) -> Tensor:
    """Turn logits (..., classes) into probabilities, which add up to 1 where a chip is of one class."""
    return logits.sigmoid() if multi_label else logits.softmax(-1)


def decide(probabilities: Tensor, *, multi_label: bool, threshold: float = THRESHOLD) -> Tensor:
    """Return which classes probabilities (n, classes) stand for, as bool: the likeliest, or all that are likely."""
    if multi_label:
        return probabilities >= threshold
    return one_hot(probabilities.argmax(1), probabilities.shape[1])


def one_hot(indexes: Tensor, count: int) -> Tensor:
    """Return (n, count) bool of class indices (n,)."""
    return functional.one_hot(indexes, count).bool()
