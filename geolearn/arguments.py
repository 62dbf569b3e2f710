"""Arguments of calls: checked by name and type, and kept as JSON, so that a report can print the call again."""

import inspect
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set, Sized
from dataclasses import MISSING, Field, fields, is_dataclass
from difflib import get_close_matches
from functools import cache, wraps
from numbers import Integral, Number, Real
from pathlib import Path, PurePath
from types import FunctionType, NoneType, SimpleNamespace, UnionType
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from geolearn.errors import ArgumentError

_SEGMENTATION = '`UPerNet`, `SegFormer`, `FCN` and others are classes of their own; Prithvi is a backbone'

_NOTHING = 'there is no such thing in geolearn'

_HERE = 'it runs here'

PUBLIC = {
    'estimate_batch_size': '`model.estimate_batch_size()`; on CPUs too',
    'MMSegmentation': _SEGMENTATION,
    'TinyUNetClassifier': "`UnetClassifier(data, 'plain_unet', pretrained=False)` is a U-Net without a backbone",
    'YOLOv3': '`FCOS` finds objects in one stage too, on any backbone',
    'AutoDL': '`compare` trains several classes and backbones under one budget, and returns a table and the best model',
    'DETReg': '`RTDetr` is of the same family',
    'RTDetrV2': '`RTDetr` is RT-DETR on any backbone, of the first version',
    'MMDetection': '`FasterRCNN`, `RetinaNet`, `FCOS`, `SingleShotDetector`, `RTDetr` and `MaskRCNN` are the detectors',
    'SamLoRA': (
        '`UNet(data, backbone, adapt=Adaptation(lora_rank=8))`; low-rank updates work on every transformer, such as '
        'samvit_base_patch16, which is SAM'
    ),
    'SiamMask': 'no video and no tracking',
    'ModelExtension': '`register_backbone` adds a network, a subclass of `Model` a task',
    'PSETAE': 'several dates per chip are read from folders or by bands, see `prepare_data`',
    'MaXDeepLab': '`PanopticFPN` reads and writes the same chips, on any backbone',
    **dict.fromkeys(
        ('MultiTaskRoadExtractor', 'ConnectNet'),
        '`UNet(data, loss=PixelLossOptions(cldice_fraction=0.3))` keeps roads connected, and `predict_lines` writes '
        'them as lines',
    ),
    **dict.fromkeys(
        ('HEDEdgeDetector', 'BDCNEdgeDetector'),
        '`UNet(data, loss=PixelLossOptions(cldice_fraction=0.3))` with labels of 3 pixels, and `predict_lines` writes '
        'edges as lines',
    ),
    'SuperResolution': "`PixelRegressor` on data of `prepare_data(path, target='images', downsample=4)`",
    'Pix2Pix': "`PixelRegressor` on data of `prepare_data(path, dataset_type='Pix2Pix', target='images')`",
    **dict.fromkeys(('CycleGAN', 'ImageCaptioner'), _NOTHING),
    'classify_pixels': f'`UnetClassifier.predict_raster`: {_HERE}, on a raster of any size, and writes a GeoTIFF',
    'detect_objects': f'`FasterRCNN.detect_objects`: {_HERE}, and writes GeoPackage, GeoJSON, GeoParquet or Shapefile',
    'detect_change': f'`ChangeDetector.predict_raster`: {_HERE}, and writes a GeoTIFF',
    'classify_objects': f'`FeatureClassifier.classify_objects`: {_HERE}',
}
"""Names of the module."""

PREPARE_DATA = {
    'stratify': "`split='stratified'`",
    'imagery_type': "`bands='sentinel2_l2a'`, and only where the export does not name its bands",
    'do_normalize': "`normalize='minmax'` and others; training and prediction always do the same",
    'resize_to': 'chips keep their pixel size, larger ones are cropped; detectors take `resize_to=` themselves',
    'rgb_bands': 'display finds red, green and blue by wavelength',
    'norm_pct': 'statistics come from all chips',
    'collate_fn': _NOTHING,
}
"""Arguments of `prepare_data`."""

DATA = {
    'class_weight': '`class_weights`, counted from the label pixels of the training chips',
    'num_pixels_per_class': '`value_counts`, by label value',
}
"""Attributes of the data."""

_HEAD = '`head=RCNNOptions({name}=...)`; the other `rpn_` and `box_` numbers likewise, by the same names'

MODEL_ARGUMENTS = {
    'pyramid_sizes': "`decoder_options={'pyramid_sizes': (1, 2, 3, 6)}`",
    'unet_aux_loss': '`auxiliary_head=True`, for every class',
    'use_unet': (
        '`PSPNetClassifier` is the network of the paper, without a U-Net behind it; for that there is `UnetClassifier`'
    ),
    'pointrend': _NOTHING,
    'keep_dilation': 'DeepLab always has its dilated stride 16 where the backbone can be dilated',
    'mixup': ("`prepare_data(transforms={'cutmix_alpha': 1.0})`; blending two maps of classes gives no map of classes"),
    'pretrained_path': '`UnetClassifier.from_model(path, data)`',
    'attention_type': "`fusion='attention'`",
    'grids': '`anchor_sizes`: sizes of anchors in pixels; None takes them from the training boxes',
    'zooms': "`scales`: factors of each level's own size",
    'wd': '`weight_decay=`',
    'show_progress': _NOTHING,
    'framework': _NOTHING,
    'publish': 'upload the .dlpk yourself',
    'save_optimizer': 'checkpoints hold the optimizer, and `fit(resume=True)` continues',
    'thresh': '`threshold=`',
}
"""Arguments of models and their methods."""

MODEL_ATTRIBUTES = {
    'learn': "`model.learner`, which is fastai 2's Learner",
    'predict': (
        '`predict_raster` maps a raster; `FasterRCNN`, `FeatureClassifier` and `ChangeDetector` have `predict` too'
    ),
    'predict_video': 'no video and no tracking',
    'classify_features': '`FeatureClassifier.classify_objects`; rasters and layers are files',
    'predict_folder_and_create_layer': 'call `predict` for each file',
}
"""Attributes and methods of models."""


def explain_argument(call: str, name: str) -> str | None:
    """Return what to use instead of an argument that only arcgis.learn has.

    Args:
        call: Name of the function or method, or of the class.
        name: Of the argument.
    """
    if call == 'prepare_data':
        return PREPARE_DATA.get(name)
    if name.startswith(('rpn_', 'box_')):
        return _HEAD.format(name=name)
    return MODEL_ARGUMENTS.get(name)


CLASS = 'class'
"""Key of the JSON objects that stand for what JSON has no word for."""

_HOME = re.compile(r'geolearn(\.[a-z]\w*)+\.[A-Z]\w*')
"""The dotted name of a class of geolearn."""


def record_arguments(call: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the optional arguments of a call that differ from their defaults, as JSON.

    Args:
        call: A function or a class.
        values: What it was called with by name, such as its ``locals()``; names that it does not take are ignored.
    """
    return {
        name: encode(values[name])
        for name, parameter in inspect.signature(call).parameters.items()
        if name in values and parameter.default is not parameter.empty and not _same(values[name], parameter.default)
    }


def encode(value: Any) -> Any:
    """Return a value as JSON.

    Options of geolearn keep their class and the fields that differ from their defaults, mappings whose keys are no
    texts their pairs, and whatever else there may be its class and its `repr`. Of absolute paths
    the last part is kept.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str) and os.path.isabs(value):
        return encode(PurePath(value).name)  # folders of a machine are nobody else's business
    if isinstance(value, int | float | str):
        return value if _is_plain(value) else {CLASS: f'builtins.{type(value).__name__}', 'text': ascii(value)}
    if isinstance(value, slice):
        return {CLASS: 'builtins.slice', 'text': f'slice({value.start!r}, {value.stop!r})'}
    if isinstance(value, PurePath):
        return encode(str(value))
    if isinstance(value, np.generic | np.ndarray):
        return encode(value.tolist())
    if is_dataclass(value) and not isinstance(value, type):
        changed = {f.name: encode(getattr(value, f.name)) for f in fields(value) if f.init and _changed(value, f)}
        return {CLASS: _name(type(value)), 'arguments': changed}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and key != CLASS for key in value):
            return {key: encode(item) for key, item in value.items()}
        return {CLASS: 'dict', 'items': [[encode(key), encode(item)] for key, item in value.items()]}
    if isinstance(value, Sequence | Set) and not isinstance(value, bytes):
        return [encode(item) for item in value]
    return {CLASS: _name(value if isinstance(value, type) else type(value)), 'text': _one_line(repr(value))}


def format_call(name: str, first: Sequence[str], arguments: Mapping[str, Any]) -> str:
    """Return the Python text of a call.

    Args:
        name: What is called.
        first: Text of the arguments without a name.
        arguments: The others, as `record_arguments` returns them. Names that are none are ignored.
    """
    named = [f'{key}={format_value(value)}' for key, value in arguments.items() if key.isidentifier()]
    return f'{name}({", ".join([*first, *named])})'


def format_value(value: Any) -> str:
    """Return the Python text of a value that `encode` returned."""
    if isinstance(value, Mapping):
        kind, given = value.get(CLASS), value.get('arguments')
        if _is_option(kind) and isinstance(given, Mapping):
            return format_call(str(kind).rpartition('.')[2], [], given)
        if kind is not None and isinstance(value.get('text'), str):
            text = _one_line(value['text'])
            return (
                f'float({text!r})'
                if kind == 'builtins.float'
                else text
                if kind in ('builtins.str', 'builtins.int', 'builtins.slice')
                else '...'
            )
        pairs = value.get('items') if kind == 'dict' else [[key, item] for key, item in value.items()]
        rows = [row for row in pairs if isinstance(row, list) and len(row) == 2] if isinstance(pairs, list) else []
        return '{' + ', '.join(f'{format_value(key)}: {format_value(item)}' for key, item in rows) + '}'
    if isinstance(value, list | tuple):
        return '[' + ', '.join(map(format_value, value)) + ']'
    return repr(value)


def find_imports(value: Any) -> Iterator[str]:
    """Yield the import lines that the text of a value needs."""
    if isinstance(value, Mapping):
        kind = value.get(CLASS)
        if _is_option(kind) and isinstance(value.get('arguments'), Mapping):
            home, _, name = str(kind).rpartition('.')
            yield f'from {home} import {name}'
        for item in value.values():
            yield from find_imports(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from find_imports(item)


def _is_option(name: object) -> bool:
    return isinstance(name, str) and _HOME.fullmatch(name) is not None


def _is_plain(value: float | str) -> bool:
    """Tell whether a bundle's manifest can hold a value as it is."""
    return value.isprintable() if isinstance(value, str) else abs(value) < 2**53


def _one_line(text: str) -> str:
    return ' '.join(text.split())[:200]


def _name(kind: type) -> str:
    return f'{kind.__module__}.{kind.__qualname__}'


def _changed(value: Any, item: 'Field[Any]') -> bool:
    default = item.default_factory() if item.default_factory is not MISSING else item.default
    return default is MISSING or not _same(getattr(value, item.name), default)


def _same(value: Any, default: Any) -> bool:
    if value is default:
        return True
    return type(value) is type(default) and not isinstance(value, np.ndarray) and bool(value == default)


# -- checks of calls

P = ParamSpec('P')

R = TypeVar('R')

C = TypeVar('C', bound=type)

CHECK_THEMSELVES = set(
    'self cls backbone device loss metrics mixup head lr nodata resolution raster unlabelled target stride '
    'start_index min_labelled min_polygon_overlap_ratio rotation_angle'.split()
)
"""Parameters that take more than their annotation says, or are checked with words of their own."""


def check_names(function: Callable[P, R]) -> Callable[P, R]:
    """Answer arguments that a function has not: with the one that was meant, or with what arcgis.learn's is here.

    Args:
        function: Without an argument for all other names.
    """

    @wraps(function)
    def call(*args: P.args, **named: P.kwargs) -> R:
        _refuse_unknown(function, args, named)
        return function(*args, **named)

    return call


def check_call(function: Callable[P, R]) -> Callable[P, R]:
    """Check names and types of the arguments of each call against the signature; see `check_names`.

    Args:
        function: With annotations. Those that cannot be evaluated or checked are passed over.
    """

    @wraps(function)
    def call(*args: P.args, **named: P.kwargs) -> R:
        _refuse_unknown(function, args, named)
        try:
            given = _signature(function).bind_partial(*args, **named).arguments
        except TypeError:  # too many: Python says so itself
            given = {}
        for name, value in given.items():
            if isinstance(value, str | PurePath) and '\0' in str(value):
                raise ArgumentError(f'{name} holds a zero byte, which no text and no name of a file here has')
            hint = _hints(function).get(name, Any)
            if name not in CHECK_THEMSELVES and not _matches(value, hint):
                raise ArgumentError(f'{name} must be {_describe(hint)}, got {_show(value)}{_advice_on(hint)}')
        return function(*args, **named)

    return call


def check_methods(cls: C) -> C:
    """Check names and types of what the constructor and the public methods that a class defines are called with."""
    for name, member in list(vars(cls).items()):
        if isinstance(member, FunctionType) and (name == '__init__' or not name.startswith('_')):
            setattr(cls, name, check_call(member))
    return cls


_WORDS: dict[Any, str] = {
    bool: 'True or False',
    int: 'a whole number',
    float: 'a number',
    str: 'a text',
    Path: 'a path',
    NoneType: 'None',
}

_ADVICE: list[tuple[Any, str]] = []


def advise(hint: Any, text: str, *, name: str | None = None) -> None:
    """Say what to do where an argument with an annotation, alone or among others, is of another type.

    Args:
        hint: The annotation.
        text: What to do.
        name: Of the type in words, where it has no short one.
    """
    _ADVICE.append((hint, text))
    if name is not None:
        _WORDS[hint] = name


def _advice_on(hint: Any) -> str:
    texts = [text for known, text in _ADVICE if known == hint or known in get_args(hint)]
    return f'; {texts[0]}' if texts else ''


@cache
def _signature(function: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(function)


@cache
def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the annotations that can be evaluated, by parameter; names for type checkers alone cannot."""
    home = getattr(inspect.unwrap(function), '__globals__', {})
    hints: dict[str, Any] = {}
    for name, parameter in _signature(function).parameters.items():
        try:
            hints |= get_type_hints(SimpleNamespace(__annotations__={name: parameter.annotation}), home)
        except NameError:
            continue
    return hints


def _refuse_unknown(function: Callable[..., Any], args: tuple[Any, ...], named: Mapping[str, Any]) -> None:
    known = _signature(function).parameters
    for name in named:
        if name in known:
            continue
        own = function.__name__
        call = type(args[0]).__name__ if own == '__init__' and args else own
        near = get_close_matches(name, known, 1, 0.75)
        if other := explain_argument(call, name):
            answer = f'instead of that of arcgis.learn: {other}'
        elif near:
            answer = f'did you mean {near[0]!r}?'
        else:
            answer = f'it takes {", ".join(argument for argument in known if argument not in ("self", "cls"))}'
        raise ArgumentError(f'{call} has no argument {name!r}; {answer}')


def _matches(value: Any, hint: Any) -> bool:
    """Tell whether a value is of an annotated type; True where that cannot be told."""
    if hint is Any:
        return True
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        # beside other types, Any stands for objects of libraries that need not be installed: no arrays, no numbers
        others = Any in inner and not isinstance(value, np.ndarray | Number)
        return others or any(_matches(value, part) for part in inner if part is not Any)
    if origin is Literal:
        return any(isinstance(value, type(part)) for part in inner)
    if hint is None or hint is NoneType:
        return value is None
    if hint is bool:
        return isinstance(value, bool | np.bool_)
    if hint in (int, float):
        kind = Integral if hint is int else Real
        return isinstance(value, kind) and not isinstance(value, bool | np.bool_)
    if origin in (Sequence, list, tuple):
        if isinstance(value, str | bytes | Mapping) or not (isinstance(value, Sized) and isinstance(value, Iterable)):
            return False
        return len(inner) != 1 or all(_matches(item, inner[0]) for item in value)
    if origin is Mapping:
        return isinstance(value, Mapping)
    if isinstance(hint, type) and origin is None and not getattr(hint, '_is_protocol', False):
        return isinstance(value, hint)
    return True


def _describe(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if hint in _WORDS:
        return _WORDS[hint]
    if origin in (Union, UnionType):
        parts = [part for part in inner if not (part is str and Path in inner)]
        return ' or '.join(dict.fromkeys(_describe(part) for part in parts))
    if origin is Literal:
        return ' or '.join(map(repr, inner))
    if origin in (Sequence, list, tuple):
        return f'a list of which each is {_describe(inner[0])}' if inner else 'a list'
    if origin is Mapping:
        return 'a dict'
    return f'a {hint.__name__}' if isinstance(hint, type) else str(hint)


def _show(value: Any) -> str:
    shape = getattr(value, 'shape', None)
    if isinstance(shape, tuple):
        return f'an array of shape {tuple(shape)}'
    return f'{_one_line(repr(value))} ({type(value).__name__})'
