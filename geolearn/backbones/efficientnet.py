"""EfficientNets under the names of EfficientNet-PyTorch, which many ports of TensorFlow's weights have.

Blocks are numbered through (``_blocks.3._expand_conv``), where timm counts them by stage (``blocks.2.0.conv_pw``). The
names are those of the packages efficientnet_pytorch, efficientnet-lite-pytorch and of the encoders of
segmentation_models_pytorch.
"""

import re
from collections.abc import Collection, Mapping
from typing import TypeVar

from geolearn.errors import WeightsError

STEM = '_conv_stem.weight'
"""A name by which the layout is known."""

_OUTSIDE = {'_conv_stem': 'conv_stem', '_bn0': 'bn1', '_conv_head': 'conv_head', '_bn1': 'bn2', '_fc': 'classifier'}

_EXPANDING = {
    '_expand_conv': 'conv_pw',
    '_bn0': 'bn1',
    '_depthwise_conv': 'conv_dw',
    '_bn1': 'bn2',
    '_se_reduce': 'se.conv_reduce',
    '_se_expand': 'se.conv_expand',
    '_project_conv': 'conv_pwl',
    '_bn2': 'bn3',
}

_PLAIN = _EXPANDING | {'_project_conv': 'conv_pw', '_bn1': 'bn1', '_bn2': 'bn2'}
"""Of blocks that do not expand, which have two norms."""

Value = TypeVar('Value')


def has_published_names(names: Collection[str]) -> bool:
    """Whether names of tensors are in this layout."""
    return STEM in names


def rename(state: Mapping[str, Value], needed: Collection[str], model: str, source: str) -> dict[str, Value]:
    """Return tensors under the names that timm has for them; names that the layout does not know stay as they are.

    Args:
        state: Tensors by their names in the file.
        needed: Names of the tensors of timm's network.
        model: Name of that network.
        source: The file, for errors.

    Raises:
        WeightsError: If the network is none of those with TensorFlow's padding and norms, for which these weights were
            trained.
    """
    blocks = sorted(
        {(int(found[1]), int(found[2])) for name in needed if (found := re.match(r'blocks\.(\d+)\.(\d+)\.', name))}
    )
    if not model.startswith('tf_efficientnet') or not blocks:
        advice = f'tf_{model}' if model.startswith('efficientnet') else 'tf_efficientnet_b0 or tf_efficientnet_lite0'
        raise WeightsError(
            f'{source} holds an EfficientNet under the names of EfficientNet-PyTorch, whose convolutions pad as '
            f"TensorFlow's do, which {model} does not; take the backbone {advice}"
        )
    return {_rename(name, blocks, needed): value for name, value in state.items()}


def _rename(name: str, blocks: list[tuple[int, int]], needed: Collection[str]) -> str:
    inside = re.fullmatch(r'_blocks\.(\d+)\.(\w+)\.(\w+)', name)
    if inside is None:
        layer, _, kind = name.partition('.')
        return f'{_OUTSIDE[layer]}.{kind}' if layer in _OUTSIDE else name
    number = int(inside[1])
    if number >= len(blocks):
        return name
    block = 'blocks.{}.{}'.format(*blocks[number])
    layers = _EXPANDING if f'{block}.conv_pwl.weight' in needed else _PLAIN
    return f'{block}.{layers[inside[2]]}.{inside[3]}' if inside[2] in layers else name
