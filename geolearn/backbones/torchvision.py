"""Convolutional trunks from torchvision, for names that timm lacks: models that run their layers in one chain."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.error import URLError
from urllib.parse import urlsplit

import torch
from torch import Tensor, nn

from geolearn.backbones import backbone, building, loading
from geolearn.backbones.weights import connection_fault
from geolearn.bands import Band
from geolearn.errors import BackboneError, WeightsError


class FeatureChain(nn.Module):
    """Run layers in a chain and collect the outputs of some of them.

    Args:
        layers: The chain.
        taken: Layers whose outputs are wanted, counted from 0; those after the last of them are left out.
    """

    def __init__(self, layers: nn.Sequential, taken: Sequence[int]) -> None:
        super().__init__()
        self.taken = frozenset(taken)
        self.features = layers[: max(taken) + 1]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Compute maps (N, channels[i], H/s, W/s) from images (N, bands, H, W), sides multiples of 32."""
        maps = []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in self.taken:
                maps.append(x)
        return maps


def list_torchvision_models() -> list[str]:
    """List torchvision's classification models."""
    import torchvision

    return list(torchvision.models.list_models(module=torchvision.models))


def build_torchvision(name: str, bands: tuple[Band, ...], options: backbone.BackboneOptions) -> backbone.Backbone:
    """Build a torchvision model as a backbone; pretrained RGB stems are carried over band by band."""
    import torchvision

    backbone.refuse_transformer_options(name, options)
    if options.drop_path:
        raise BackboneError(f'{name} comes from torchvision; drop_path cannot be changed')
    net = torchvision.models.get_model(name, weights=None)
    layers = _chain(net)
    report = _load(name, net, layers, options) if options.pretrained or options.weights is not None else None
    _set_input(layers, bands, adapt=report is not None)
    maps = _last_at_stride(layers, len(bands))
    # these chains cannot be dilated: the coarsest map is the last one
    strides = backbone.end_at_coarsest(backbone.choose_strides(name, options.strides, tuple(maps)), tuple(maps))
    trunk = FeatureChain(layers, [maps[stride].layer for stride in strides])
    channels = [maps[stride].channels for stride in strides]
    return backbone.ConvBackbone(name, trunk, channels=channels, strides=strides, load_report=report)


def _chain(net: nn.Module) -> nn.Sequential:
    """List the layers up to the pooling or the classifier; torchvision registers them in the order they run."""
    layers: list[nn.Module] = []
    for name, child in net.named_children():
        if isinstance(child, nn.AdaptiveAvgPool2d | nn.Linear) or name.startswith(('classifier', 'aux', 'head')):
            break
        layers.extend(child if type(child) is nn.Sequential else [child])
    return nn.Sequential(*layers)


def _load(name: str, net: nn.Module, layers: nn.Sequential, options: backbone.BackboneOptions) -> loading.LoadReport:
    if options.weights is not None:
        return _load_file(net, layers, str(options.weights))
    import torchvision

    weights = torchvision.models.get_model_weights(name).DEFAULT
    cached = Path(torch.hub.get_dir(), 'checkpoints', Path(urlsplit(weights.url).path).name)
    fault = None if cached.is_file() else connection_fault(weights.url)
    if fault:
        advice = "pass weights='<file>' or pretrained=False"
        raise WeightsError(f'weights of {name} could not be downloaded from {weights.url} ({fault}); {advice}')
    try:
        state = weights.get_state_dict(progress=False, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        advice = "pass weights='<file>' or pretrained=False"
        raise WeightsError(
            f'weights of {name} could not be downloaded from {weights.url} ({error}); {advice}'
        ) from error
    return loading.load_strict(net, state, source=f'torchvision {weights}')


def _load_file(net: nn.Module, layers: nn.Sequential, path: str) -> loading.LoadReport:
    """Load a user's file into the layers that the backbone takes; its classifier may be missing or another one."""
    needed = net.state_dict()
    taken = {id(value) for value in layers.state_dict(keep_vars=True).values()}
    rest = [name for name, value in net.state_dict(keep_vars=True).items() if id(value) not in taken]
    found = loading.find_state(loading.load_weights_file(path), needed, path)
    loading.refuse_small(found.state, needed, path)
    unused = [name for name in found.state if name in rest or (name not in needed and loading.is_head(name))]
    state = {name: value for name, value in found.state.items() if name not in unused}
    source = f'{path} ({found.note})' if found.note else path
    optional = (*rest, '*.num_batches_tracked')  # files of old have no counts of batches, which nothing reads
    return loading.load_strict(net, state, may_be_missing=optional, dropped=(*found.ignored, *unused), source=source)


def _set_input(layers: nn.Sequential, bands: tuple[Band, ...], *, adapt: bool) -> None:
    """Make the first convolution take `bands`: trained kernels carried over band by band with `adapt`, else random."""
    stem = next(module for module in layers.modules() if isinstance(module, nn.Conv2d))
    trained = stem.weight.detach()
    stem.in_channels = len(bands)
    if adapt:
        stem.weight = nn.Parameter(building.adapt_input_kernel(trained, building.RGB, bands)[0])
    else:
        stem.weight = nn.Parameter(trained.new_empty(trained.shape[0], len(bands), *trained.shape[2:]))
        nn.init.kaiming_normal_(stem.weight, mode='fan_out', nonlinearity='relu')


class _Map(NamedTuple):
    layer: int
    channels: int


def _last_at_stride(layers: nn.Sequential, bands: int) -> dict[int, _Map]:
    """Find the last layer at each stride up to 32, finest first, by watching a blank image shrink."""
    last: dict[int, _Map] = {}
    side, training = 128, layers.training
    x = torch.zeros(1, bands, side, side)
    layers.eval()
    try:
        with torch.no_grad():
            for i, layer in enumerate(layers):
                x = layer(x)
                if x.dim() == 4 and x.shape[2] == x.shape[3] and side % x.shape[2] == 0:
                    last[side // x.shape[2]] = _Map(i, x.shape[1])
    except (RuntimeError, AssertionError) as error:
        raise BackboneError(f'the model does not run its layers in one chain ({error}); take another model') from error
    layers.train(training)
    if not set(backbone.STRIDES) <= set(last):
        raise BackboneError(
            f'the chain has maps at strides {sorted(last)}, needed {list(backbone.STRIDES)}; take another model'
        )
    return {stride: last[stride] for stride in sorted(last) if stride <= max(backbone.STRIDES)}
