"""Where a classifier looks: Grad-CAM, and attention rollout for plain transformers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from geolearn.backbones import TokenBackbone
from geolearn.errors import BackboneError
from geolearn.networks.classification import ChipNetwork

Explanation = Literal['auto', 'gradcam', 'rollout']
"""How a heat map is made."""


def heat_map(network: ChipNetwork, image: Tensor, class_index: int, method: Explanation = 'auto') -> Tensor:
    """Show which places speak for a class, or which places a transformer attends to.

    Args:
        network: In evaluation, on the device of the image.
        image: (bands, H, W) in stored units, or (dates, bands, H, W).
        class_index: Class that Grad-CAM is asked about; attention rollout knows no classes.
        method: ``'gradcam'``; ``'rollout'``; ``'auto'`` takes rollout where the backbone has it.

    Returns:
        (H, W) float32 on the CPU, 0..1; all 0 where nothing speaks for the class.

    Raises:
        ValueError: If there is no such method.
        BackboneError: If rollout is asked of a backbone that does not offer its attention.
    """
    if method not in get_args(Explanation):
        raise ValueError(f'method must be one of {", ".join(map(repr, get_args(Explanation)))}, got {method!r}')
    backbone = network.backbone
    able = isinstance(backbone, TokenBackbone) and backbone.trunk.offers_attention
    if method == 'rollout' and not able:
        raise BackboneError(
            f"{network.backbone.name} does not offer its attention; pass method='gradcam', or take a plain transformer "
            'such as dofa_base'
        )
    batch = image[None]
    if able and method != 'gradcam':
        places = _rollout(network, batch)
    elif isinstance(network.backbone, TokenBackbone):
        places = _token_gradcam(network, batch, class_index)
    else:
        places = _map_gradcam(network, batch, class_index)
    return _enlarged(places, network, image)


@torch.no_grad()
def _rollout(network: ChipNetwork, batch: Tensor) -> Tensor:
    """Multiply what tokens attend to through all blocks, half of each token staying where it is.

    Abnar & Zuidema 2020, "Quantifying Attention Flow in Transformers", arXiv:2005.00928.
    """
    trunk: Any = network.backbone.trunk
    tokens = trunk.first_tokens(network.normalize(batch))
    flow = torch.eye(tokens.shape[1], device=tokens.device)
    for block in trunk.stages:
        attention = trunk.attention_in(block, tokens)[0].mean(0)
        flow = (attention @ flow + flow) / 2
        tokens = block(tokens)
    looks = flow[0] if network.takes_class_token else flow[network.prefix :].mean(0)
    looks = looks[network.prefix :]
    spread = looks.max() - looks.min()
    return (looks - looks.min()) / spread if spread > 0 else torch.zeros_like(looks)


def _map_gradcam(network: ChipNetwork, batch: Tensor, class_index: int) -> Tensor:
    """Weigh the channels of the last map by how much they move a class's logit, and keep what speaks for it.

    Selvaraju et al. 2017, "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization",
    arXiv:1610.02391.
    """
    with torch.no_grad():
        found = network.encode(batch)
    with torch.enable_grad():
        found = found.detach().requires_grad_()
        (slope,) = torch.autograd.grad(network.classify(found)[0, class_index], found)
    return _scaled((slope.mean((2, 3), keepdim=True) * found.detach()).sum(1)[0])


def _token_gradcam(network: ChipNetwork, batch: Tensor, class_index: int) -> Tensor:
    """Grad-CAM on the tokens that go into the last block: after it a class token has taken all that it takes."""
    trunk: Any = network.backbone.trunk
    with torch.enable_grad(), _caught_input(trunk.stages[-1]) as caught:
        logit = network(batch)[0, class_index]
        if len(caught) != 1 or caught[0].dim() != 3:
            raise BackboneError(f'{network.backbone.name} runs no row of tokens through its last block')
        (slope,) = torch.autograd.grad(logit, caught[0])
    places, slopes = caught[0].detach()[0, network.prefix :], slope[0, network.prefix :]
    return _scaled((slopes.mean(0) * places).sum(1))


@contextmanager
def _caught_input(stage: torch.nn.Module) -> Iterator[list[Tensor]]:
    """Collect what a block is given, as the start of a graph of its own."""
    caught: list[Tensor] = []

    def catch(module: torch.nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        caught.append(given[0].detach().requires_grad_())
        return (caught[-1], *given[1:])

    handle = stage.register_forward_pre_hook(catch)
    try:
        yield caught
    finally:
        handle.remove()


def _scaled(places: Tensor) -> Tensor:
    """Keep what speaks for the class, the most as 1."""
    favour = places.clamp_min(0)
    return favour / favour.max() if favour.max() > 0 else favour


def _enlarged(places: Tensor, network: ChipNetwork, image: Tensor) -> Tensor:
    """Enlarge places in 0..1, (h, w) or (h * w) in rows, to the image."""
    height, width = image.shape[-2:]
    stride = network.backbone.strides[-1]
    rows, columns = -(-height // stride), -(-width // stride)
    if places.numel() != rows * columns:
        raise BackboneError(
            f'{network.backbone.name} has {places.numel()} tokens for {rows} x {columns} places, which make no map'
        )
    grid = places.float().reshape(1, 1, rows, columns)
    # padded images reach beyond the image, which is cut off after enlarging
    whole = functional.interpolate(grid, scale_factor=float(stride), mode='bilinear', align_corners=False)
    return whole[0, 0, :height, :width].clamp(0, 1).cpu()
