"""Options of decoders come from bundles too: whatever they hold, a decoder is built or the option is named."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geolearn.decoders import DECODERS, create_decoder, decoder_options
from geolearn.errors import UnknownNameError

OPTIONS = [(name, option) for name in sorted(DECODERS) for option in decoder_options(name)]
NUMBERS = st.one_of(st.booleans(), st.integers(-(2**70), 2**70), st.integers(1, 40), st.floats())
VALUES = st.one_of(
    st.none(), NUMBERS, st.text(max_size=5), st.lists(NUMBERS, max_size=9), st.dictionaries(NUMBERS, NUMBERS)
)


def create(name, output_count=2, **options):
    strides = DECODERS[name].strides or (2, 4, 8, 16, 32)
    with torch.device('meta'):
        return create_decoder(name, [16] * len(strides), strides, output_count, options=options)


@given(st.sampled_from(OPTIONS), VALUES)
@settings(max_examples=60)
def test_a_value_is_taken_or_the_option_is_named(which, value):
    name, option = which
    fault, size = '', 0
    try:
        size = sum(p.numel() for p in create(name, **{option: value}).parameters())
    except ValueError as error:
        fault = str(error)
    assert fault.startswith(option) if fault else size < 2**31


@pytest.mark.parametrize(('name', 'option'), OPTIONS)
def test_defaults_are_values_that_may_be_given(name, option):
    default = decoder_options(name)[option]
    as_json = list(default) if isinstance(default, tuple) else default
    said = create(name, **{option: as_json}).state_dict()
    assert {k: v.shape for k, v in said.items()} == {k: v.shape for k, v in create(name).state_dict().items()}


@pytest.mark.parametrize(
    ('name', 'options', 'message'),
    [
        ('deeplab', {'atrous_rates': [6, 12]}, r'atrous_rates must be a list of 3 whole numbers, got \[6, 12\]'),
        ('deeplab_v3', {'atrous_rates': [0, 6, 12]}, r'atrous_rates must be a whole number in 1..1024, got 0'),
        ('unet', {'widths': [64, 32]}, r'widths must be a list of 5 to 8 whole numbers, got \[64, 32\]'),
        ('pspnet', {'pyramid_sizes': []}, 'pyramid_sizes must be a list of 1 to 8 whole numbers'),
        ('pspnet', {'pyramid_sizes': '1236'}, 'pyramid_sizes must be a list'),
        ('upernet', {'width': True}, 'width must be a whole number in 1..4096, got True'),
        ('fpn', {'dropout': 1}, 'dropout must be a number of 0 or more and below 1, got 1'),
        ('fpn', {'dropout': float('nan')}, 'dropout must be a number'),
        ('muster', {'width': 48}, 'width must be a whole number in 32..1024, a multiple of 32, got 48'),
        ('linear', {'width': 48}, "decoder 'linear' takes no options, got 'width'"),
    ],
)
def test_what_an_option_cannot_be_is_said(name, options, message):
    with pytest.raises(ValueError, match=message):
        create(name, **options)


def test_unknown_options_name_the_nearest():
    with pytest.raises(UnknownNameError, match="unknown option of decoder 'deeplab': 'atrous_rate'; did you mean 'atr"):
        create('deeplab', atrous_rate=(1, 2, 3))


@pytest.mark.parametrize('count', [0, -1, 2.0, True])
def test_outputs_are_counted(count):
    with pytest.raises(ValueError, match='output_count must be a whole number'):
        create('linear', count)
