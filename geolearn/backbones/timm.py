"""Convolutional trunks from timm: every model that offers feature maps at strides 4, 8, 16 and 32."""

from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from geolearn.backbones._backbone import Backbone, BackboneOptions, ConvBackbone
from geolearn.backbones.kernels import RGB, adapt_input_kernel
from geolearn.backbones.weights import DOWNLOAD_ERRORS, LoadReport, load_strict, load_weights_file, unwrap
from geolearn.bands import Band
from geolearn.errors import WeightsError

STRIDES = {None: (4, 8, 16, 32), 32: (4, 8, 16, 32), 16: (4, 8, 16, 16)}
"""Strides of the maps by `output_stride`; 16 dilates the last stage instead of striding it."""

_LOAD_ERRORS: tuple[type[Exception], ...] = (*DOWNLOAD_ERRORS, RuntimeError)


def is_timm_model(name: str) -> bool:
    """Whether timm has an architecture of that name, with or without a tag of weights (``'resnet50.a1_in1k'``)."""
    return bool(timm.is_model(name))


def list_timm_models() -> list[str]:
    """List timm's architectures, whether they offer maps at strides 4 to 32 or not."""
    return list(timm.list_models())


def build_timm(name: str, bands: tuple[Band, ...], options: BackboneOptions) -> Backbone:
    """Build a timm model as a backbone; pretrained RGB stems are carried over band by band (see `kernels.py`)."""
    if options.form != 'pyramid':
        raise ValueError(f'{name} is a convolutional network without tokens; form must be pyramid')
    indices = _map_indices(name, options)
    net = _create(name, options, in_chans=len(bands), out_indices=indices)
    report = None
    if options.pretrained or options.weights is not None:
        donor = _create_pretrained(name, options, indices)
        report = _transplant(name, donor, net, bands, options)
    return ConvBackbone(
        name,
        net,
        channels=net.feature_info.channels(),
        strides=net.feature_info.reduction(),
        load_report=report,
    )


def _create(name: str, options: BackboneOptions, **arguments: Any) -> Any:
    if options.output_stride == 16:
        arguments['output_stride'] = 16
    if options.drop_path:
        arguments['drop_path_rate'] = options.drop_path
    arguments.setdefault('pretrained', False)
    try:
        return timm.create_model(name, features_only=True, **arguments)
    except (TypeError, AssertionError, NotImplementedError, ValueError) as error:
        given = f'output_stride={options.output_stride} and drop_path={options.drop_path}'
        raise ValueError(f'timm cannot build {name} for feature maps with {given}: {error}') from error


def _map_indices(name: str, options: BackboneOptions) -> list[int]:
    """Find which of the model's maps to take, without allocating it."""
    with torch.device('meta'):
        net = _create(name, options, in_chans=3)
    info, needed = net.feature_info, STRIDES[options.output_stride]
    kept = [(i, r) for i, r in zip(info.out_indices, info.reduction()) if r >= 4]
    if tuple(r for _, r in kept) != needed:
        raise ValueError(f'{name} offers maps at strides {info.reduction()}, needed {list(needed)}; take another model')
    if net.pretrained_cfg.get('fixed_input_size') or str(getattr(net, 'output_fmt', 'NCHW')).endswith('NHWC'):
        raise ValueError(f'{name} takes images of one size only; a backbone must take any, so choose another model')
    return [i for i, _ in kept]


def _create_pretrained(name: str, options: BackboneOptions, indices: list[int]) -> nn.Module:
    overlay = None
    if options.weights is not None:
        state, _ = unwrap(load_weights_file(options.weights), wrappers=('state_dict', 'model'), prefixes=('module.',))
        overlay = {'state_dict': state}
    try:
        return _create(name, options, in_chans=3, out_indices=indices, pretrained=True, pretrained_cfg_overlay=overlay)
    except _LOAD_ERRORS as error:
        reason = f'{type(error).__name__}: {" ".join(str(error).split())[:300]}'
        if options.weights is not None:
            raise WeightsError(
                f'weights {options.weights} do not fit {name} ({reason}); they must be an RGB model'
            ) from error
        advice = "pass weights='<file>' or pretrained=False"
        raise WeightsError(f'pretrained weights of {name} could not be had ({reason}); {advice}') from error


def _transplant(
    name: str, donor: nn.Module, net: nn.Module, bands: tuple[Band, ...], options: BackboneOptions
) -> LoadReport:
    """Load the donor's RGB weights into `net`, with the kernels that see the bands adapted to them."""
    state: dict[str, Tensor] = dict(donor.state_dict())
    notes = []
    for key in _stem_keys(name, options):
        if state[key].dim() != 4 or state[key].shape[1] != len(RGB):
            raise WeightsError(f'{key} of {name} cannot be adapted to other bands; pass pretrained=False')
        state[key], how = adapt_input_kernel(state[key], RGB, bands)
        notes.append(f'{key}: {how}')
    source = Path(options.weights).name if options.weights is not None else f'timm {name}'
    return load_strict(net, state, resized=_stem_keys(name, options), source=f'{source} ({"; ".join(notes)})')


def _stem_keys(name: str, options: BackboneOptions) -> list[str]:
    """Name the weights whose shape depends on the number of bands."""
    with torch.device('meta'):
        three, four = (_create(name, options, in_chans=n).state_dict() for n in (3, 4))
    return [key for key, value in three.items() if value.shape != four[key].shape]
