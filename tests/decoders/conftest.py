"""Feature maps of no backbone, for decoders alone."""

from collections.abc import Callable

import pytest
import torch

from geolearn.decoders import Decoder, create_decoder, get_decoder

# what keeps a decoder fast here
SMALL = {
    'pspnet': {'width': 16},
    'upernet': {'width': 16},
    'segformer': {'width': 16},
    'fcn': {'width': 16},
    'muster': {'width': 32, 'window': 4},
}


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    """Networks this small are faster on one thread."""


@pytest.fixture
def make_maps() -> Callable[..., list[torch.Tensor]]:
    """Make random maps of an image: 8 channels at the finest stride, 8 more at each next one."""

    def make(strides, size=(64, 96), batch=2):
        torch.manual_seed(1)
        return [torch.randn(batch, 8 + 8 * i, size[0] // s, size[1] // s) for i, s in enumerate(strides)]

    return make


@pytest.fixture
def make_decoder() -> Callable[..., Decoder]:
    """Build a small decoder of three outputs for the maps of `make_maps`."""

    def make(name, strides=None, **options):
        torch.manual_seed(0)
        strides = strides or get_decoder(name).strides or (2, 4, 8, 16, 32)
        channels = [8 + 8 * i for i in range(len(strides))]
        return create_decoder(name, channels, strides, 3, options=SMALL.get(name, {}) | options)

    return make
