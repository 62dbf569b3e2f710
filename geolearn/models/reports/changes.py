"""What a change detector has to say of itself in its report: what pixel classifiers say, in its own words."""

from dataclasses import replace

from geolearn.losses import PixelLossOptions
from geolearn.models.reports.report import Findings
from geolearn.networks.siamese import ChangeOptions


def find_in_changes(found: Findings, options: ChangeOptions) -> Findings:
    """Return the findings of a pixel classifier as those of a change detector, whose constructor takes other arguments.

    Args:
        found: Of the model as a pixel classifier.
        options: Those in its spec, read.
    """
    pixels = options.pixels
    arguments: dict[str, object] = {}
    if options.fusion != 'difference':
        arguments['fusion'] = options.fusion
    if pixels.decoder != 'unet':
        arguments['decoder'] = pixels.decoder
    if pixels.loss != PixelLossOptions():
        arguments['loss'] = pixels.loss
    if pixels.auxiliary_head:
        arguments['auxiliary_head'] = True
    if pixels.decoder_options:
        arguments['decoder_options'] = dict(pixels.decoder_options)
    settings = {'fusion of the dates': options.fusion} | dict(found.settings)
    return replace(found, task='change detection', settings=settings, arguments=arguments)
