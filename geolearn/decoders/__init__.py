"""Decoders: networks that turn a backbone's feature maps into outputs per pixel, by name."""

from geolearn.decoders import deeplab, fcn, muster, smp  # noqa: F401 - each registers its names
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
    'Decoder',
    'Option',
    'create_decoder',
    'decoder_options',
    'get_decoder',
    'register_decoder',
]
