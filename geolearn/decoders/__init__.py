"""Decoders: networks that turn a backbone's feature maps into outputs per pixel, by name."""

from geolearn.decoders import (  # noqa: F401 - each registers its names
    deeplab,
    fcn,
    fpn,
    muster,
    pspnet,
    segformer,
    unet,
    upernet,
)
from geolearn.decoders.attention_input import AttentionInput
from geolearn.decoders.decoder import (
    DECODERS,
    Decoder,
    Option,
    create_decoder,
    decoder_options,
    get_decoder,
    register_decoder,
)

__all__ = [
    'DECODERS',
    'AttentionInput',
    'Decoder',
    'Option',
    'create_decoder',
    'decoder_options',
    'get_decoder',
    'register_decoder',
]
