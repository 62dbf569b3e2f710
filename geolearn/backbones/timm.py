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
from geolearn.errors import BackboneError, WeightsError

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
        raise BackboneError(f'{name} is a convolutional network without tokens; form must be pyramid')
    layout = _lay_out(name, options)
    net = _create(name, layout, in_chans=len(bands))
    report = None
    if options.pretrained or options.weights is not None:
        donor = _create_pretrained(name, layout, options)
        report = _transplant(name, donor, net, bands, layout, options)
    return ConvBackbone(
        name,
        net,
        channels=net.feature_info.channels(),
        strides=net.feature_info.reduction(),
        load_report=report,
    )


def _create(name: str, layout: dict[str, Any], **arguments: Any) -> Any:
    try:
        return timm.create_model(name, features_only=True, **{'pretrained': False, **layout, **arguments})
    except (TypeError, AssertionError, NotImplementedError, ValueError) as error:
        raise BackboneError(f'timm cannot build {name} for feature maps with {layout}: {error}') from error


def _lay_out(name: str, options: BackboneOptions) -> dict[str, Any]:
    """Choose dilation and which of the model's maps to take, without allocating it."""
    layout: dict[str, Any] = {'drop_path_rate': options.drop_path} if options.drop_path else {}
    if options.strides[-1] == 16 and _can_dilate(name):
        layout['output_stride'] = 16
    with torch.device('meta'):
        net = _create(name, layout, in_chans=3)
    info = net.feature_info
    last = dict(zip(info.reduction(), info.out_indices))
    if not {4, 8, 16} <= set(last) or max(last) > 32:
        raise BackboneError(f'{name} offers maps at strides {info.reduction()}, needed 4 to 32; take another model')
    if net.pretrained_cfg.get('fixed_input_size') or str(getattr(net, 'output_fmt', 'NCHW')).endswith('NHWC'):
        raise BackboneError(f'{name} takes images of one size only; a backbone must take any, so choose another model')
    coarsest = max(last) if options.strides[-1] >= 16 else options.strides[-1]
    return layout | {'out_indices': [last[stride] for stride in (*options.strides[:-1], coarsest)]}


def _can_dilate(name: str) -> bool:
    """Whether the model's last stage can be dilated to stay at stride 16."""
    try:
        with torch.device('meta'):
            _create(name, {'output_stride': 16}, in_chans=3)
    except BackboneError:
        return False
    return True


def _create_pretrained(name: str, layout: dict[str, Any], options: BackboneOptions) -> nn.Module:
    overlay = None
    if options.weights is not None:
        state, _ = unwrap(load_weights_file(options.weights), wrappers=('state_dict', 'model'), prefixes=('module.',))
        overlay = {'state_dict': state}
    try:
        return _create(name, layout, in_chans=3, pretrained=True, pretrained_cfg_overlay=overlay)
    except _LOAD_ERRORS as error:
        reason = f'{type(error).__name__}: {" ".join(str(error).split())[:300]}'
        if options.weights is not None:
            raise WeightsError(
                f'weights {options.weights} do not fit {name} ({reason}); they must be an RGB model'
            ) from error
        advice = "pass weights='<file>' or pretrained=False"
        raise WeightsError(f'pretrained weights of {name} could not be had ({reason}); {advice}') from error


def _transplant(
    name: str,
    donor: nn.Module,
    net: nn.Module,
    bands: tuple[Band, ...],
    layout: dict[str, Any],
    options: BackboneOptions,
) -> LoadReport:
    """Load the donor's RGB weights into `net`, with the kernels that see the bands adapted to them."""
    state: dict[str, Tensor] = dict(donor.state_dict())
    notes = []
    for key in _stem_keys(name, layout):
        if state[key].dim() != 4 or state[key].shape[1] != len(RGB):
            raise WeightsError(f'{key} of {name} cannot be adapted to other bands; pass pretrained=False')
        state[key], how = adapt_input_kernel(state[key], RGB, bands)
        notes.append(f'{key}: {how}')
    source = Path(options.weights).name if options.weights is not None else f'timm {name}'
    return load_strict(net, state, resized=_stem_keys(name, layout), source=f'{source} ({"; ".join(notes)})')


def _stem_keys(name: str, layout: dict[str, Any]) -> list[str]:
    """Name the weights whose shape depends on the number of bands."""
    with torch.device('meta'):
        three, four = (_create(name, layout, in_chans=n).state_dict() for n in (3, 4))
    return [key for key, value in three.items() if value.shape != four[key].shape]
