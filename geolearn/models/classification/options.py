"""What a classifier of chips was told besides its backbone, and how its chips were cut, kept in its spec."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from geolearn.errors import BundleError
from geolearn.inference.polygons import Crop

Pooling = Literal['auto', 'mean', 'cls']
"""What of a backbone's output stands for the image."""

USUAL_MIXUP = 0.4
"""Strength of mixup where it is only switched on, as in fastai."""


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
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(map(str, row)) - known):
            raise BundleError(f'the manifest is broken: it has the option {unknown[0]!r}, which no classifier has')
        try:
            return cls(**row)
        except (TypeError, ValueError) as error:
            raise BundleError(f'the manifest is broken: options {dict(row)}: {error}') from error


def mixup_strength(mixup: bool | float) -> float:
    """Return what a user's `mixup` means as a number; 0 for none."""
    return USUAL_MIXUP * mixup if isinstance(mixup, bool) else mixup


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
