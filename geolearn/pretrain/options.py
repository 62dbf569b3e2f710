"""How each method of pretraining works: DINO and masked autoencoding, with presets."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, cast, get_args

from geolearn.errors import ArgumentError, UnknownNameError

Method = Literal['dino', 'mae']

Preset = Literal['sar', 'optical']

REFERENCE_BATCH = 256
"""Images per step that `base_rate` is stated for; the learning rate grows in proportion to the batch."""


def check_number(name: str, value: Any, low: float, high: float) -> None:
    """Raise ArgumentError unless a value is a number in low..high."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not (number and low <= cast(float, value) <= high):
        raise ArgumentError(f'{name} must be a number in {low:g}..{high:g}, got {value!r}')


def check_whole(name: str, value: Any, least: int) -> None:
    """Raise ArgumentError unless a value is a whole number from `least` on."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ArgumentError(f'{name} must be a whole number from {least}, got {value!r}')


def check_scale(name: str, value: Any) -> None:
    """Raise ArgumentError unless a value is a pair of shares, the smaller one first."""
    if not isinstance(value, tuple) or len(value) != 2:
        raise ArgumentError(f'{name} must be a pair of shares, such as (0.4, 1.0), got {value!r}')
    for part in value:
        check_number(name, part, 0.01, 1)
    if value[0] > value[1]:
        raise ArgumentError(f'{name} must name the smaller share first, got {value!r}')


def _check_training(rate: float, decay: float, clip: float) -> None:
    check_number('base_rate', rate, 1e-9, 1)
    check_number('weight_decay', decay, 0, 10)
    check_number('clip', clip, 1e-6, 1e6)


@dataclass(frozen=True, kw_only=True)
class ViewOptions:
    """How views of an image are changed, beside their crop.

    Args:
        flips: Whether views are flipped left-right and up-down at random.
        gain: Each band of each view is multiplied by 1 ± gain; 0 leaves values as they are, as for SAR.
        offset: Each band of each view is moved by ± offset standard deviations.

    Raises:
        ArgumentError: If a value is not valid.
    """

    flips: bool = True
    gain: float = 0.0
    offset: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.flips, bool):
            raise ArgumentError(f'flips must be True or False, got {self.flips!r}')
        check_number('gain', self.gain, 0, 1)
        check_number('offset', self.offset, 0, 10)


@dataclass(frozen=True, kw_only=True)
class DinoOptions(ViewOptions):
    """Self-distillation without labels (Caron et al. 2021, arXiv:2104.14294); defaults are those of its ViT-S.

    Args:
        prototypes: Outputs of the head. The paper has 65,536 for a million images; fewer serve fewer images.
        hidden: Width of the head's hidden layers.
        bottleneck: Width of the vectors that are compared with the prototypes.
        global_scale: Least and greatest share of an image that a global crop covers; there are two of these.
        local_crops: Small crops of each image, which only the student sees.
        local_scale: Least and greatest share of an image that a local crop covers.
        local_size: Side of local crops over that of global ones: 96 / 224 in the paper.
        student_temperature: Divides the student's outputs.
        teacher_temperature: Divides the teacher's outputs; lower is sharper. Too high, outputs become uniform.
        momentum: Share of the teacher that each step keeps, rising to 1 at the end.
        centering: Whether the mean output is subtracted from the teacher's, so that no prototype takes all images.
        center_momentum: Share of that mean that each step keeps.
        freeze_last_epochs: First epochs in which the last layer of the head does not learn.
        base_rate: Learning rate for batches of 256 images.
        weight_decay: Of AdamW.
        clip: Longest norm of the gradient.

    Raises:
        ArgumentError: If a value is not valid.
    """

    prototypes: int = 4096
    hidden: int = 2048
    bottleneck: int = 256
    global_scale: tuple[float, float] = (0.4, 1.0)
    local_crops: int = 6
    local_scale: tuple[float, float] = (0.05, 0.4)
    local_size: float = 96 / 224
    student_temperature: float = 0.1
    teacher_temperature: float = 0.04
    momentum: float = 0.996
    centering: bool = True
    center_momentum: float = 0.9
    freeze_last_epochs: int = 1
    base_rate: float = 5e-4
    weight_decay: float = 0.04
    clip: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in {
            'prototypes': 2,
            'hidden': 1,
            'bottleneck': 1,
            'local_crops': 0,
            'freeze_last_epochs': 0,
        }.items():
            check_whole(name, getattr(self, name), least)
        check_scale('global_scale', self.global_scale)
        check_scale('local_scale', self.local_scale)
        check_number('local_size', self.local_size, 0.05, 1)
        for name in ('student_temperature', 'teacher_temperature'):
            check_number(name, getattr(self, name), 1e-3, 10)
        for name in ('momentum', 'center_momentum'):
            check_number(name, getattr(self, name), 0, 1)
        if not isinstance(self.centering, bool):
            raise ArgumentError(f'centering must be True or False, got {self.centering!r}')
        _check_training(self.base_rate, self.weight_decay, self.clip)


@dataclass(frozen=True, kw_only=True)
class MaeOptions(ViewOptions):
    """Masked autoencoding (He et al. 2022, arXiv:2111.06377), for any bands.

    Args:
        mask: Share of the patches that are hidden.
        crop_scale: Least and greatest share of an image that its crop covers.
        decoder_dim: Width of the decoder, a multiple of its heads.
        decoder_depth: Blocks of the decoder.
        decoder_heads: Attention heads of the decoder.
        normalize_patches: Whether each patch is predicted after its own mean and spread are taken off.
        base_rate: Learning rate for batches of 256 images.
        weight_decay: Of AdamW.
        clip: Longest norm of the gradient.

    Raises:
        ArgumentError: If a value is not valid.
    """

    mask: float = 0.75
    crop_scale: tuple[float, float] = (0.2, 1.0)
    decoder_dim: int = 256
    decoder_depth: int = 4
    decoder_heads: int = 8
    normalize_patches: bool = True
    base_rate: float = 1.5e-4
    weight_decay: float = 0.05
    clip: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number('mask', self.mask, 0.05, 0.95)
        check_scale('crop_scale', self.crop_scale)
        for name in ('decoder_dim', 'decoder_depth', 'decoder_heads'):
            check_whole(name, getattr(self, name), 1)
        if self.decoder_dim % self.decoder_heads or self.decoder_dim % 4:
            raise ArgumentError(
                f'decoder_dim must be a multiple of 4 and of its {self.decoder_heads} heads, got {self.decoder_dim}'
            )
        if not isinstance(self.normalize_patches, bool):
            raise ArgumentError(f'normalize_patches must be True or False, got {self.normalize_patches!r}')
        _check_training(self.base_rate, self.weight_decay, self.clip)


Options = DinoOptions | MaeOptions

CHIP_SIZES: Mapping[str, int] = {'sar': 448, 'optical': 224}
"""Side of the images by preset; that of the SAR study, and that of the papers of the methods."""

PRESETS: Mapping[tuple[str, str], Options] = {
    # Gallego-Mejia et al. 2023, arXiv:2310.03513: images of 448 px in patches of 16, changed by flips and crops alone,
    # because jitter of colors means nothing for backscatter. It names no other setting: the rest is that of DINO's
    # paper for ViT-S, but for fewer prototypes (4,096) and crops (6), which serve fewer images
    ('dino', 'sar'): DinoOptions(),
    ('dino', 'optical'): DinoOptions(gain=0.1, offset=0.1),
    # under speckle, pixels cannot be predicted but the mean and the spread of a patch can: they stay in the target
    # (chosen by the loss curves of one seed on generated scenes)
    ('mae', 'sar'): MaeOptions(normalize_patches=False),
    ('mae', 'optical'): MaeOptions(),
}


def choose_options(method: str, preset: str, options: object) -> Options:
    """Return the options given, or those of a preset, with the changes of a mapping.

    Raises:
        UnknownNameError: If there is no such method, preset or option.
        ArgumentError: If options are those of another method.
    """
    if method not in get_args(Method):
        raise UnknownNameError('method of pretraining', str(method), get_args(Method))
    if preset not in get_args(Preset):
        raise UnknownNameError('preset', str(preset), get_args(Preset))
    needed: type[Options] = DinoOptions if method == 'dino' else MaeOptions
    if options is None:
        return PRESETS[method, preset]
    if isinstance(options, Mapping):
        known = [item.name for item in fields(needed)]
        for name in options:
            if name not in known:
                raise UnknownNameError(f'option of {method}', str(name), known)
        return replace(PRESETS[method, preset], **options)
    if not isinstance(options, needed):
        raise ArgumentError(f'method={method!r} takes options={needed.__name__}(...), got {options!r}')
    return options
