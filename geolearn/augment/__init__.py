"""Change whole batches at random, on their device: images, masks, values, boxes, outlines and labels together.

Every change takes a batch and a generator on the CPU and returns a changed batch. All randomness comes from the
generator, so a seed repeats exactly. Where images have several dates, all of them move together.
"""

from geolearn.augment.augmentation import Augmentation, OneOf
from geolearn.augment.geometry import Dihedral, ScaleCrop
from geolearn.augment.mixing import CutMix, Mixup
from geolearn.augment.radiometry import BandDropout, Clouds, Noise, Radiometry, cloud_brightness
from geolearn.augment.step import BatchTransform, Chain, PixelStep

__all__ = [
    'Augmentation',
    'BandDropout',
    'BatchTransform',
    'Chain',
    'Clouds',
    'CutMix',
    'Dihedral',
    'Mixup',
    'Noise',
    'OneOf',
    'PixelStep',
    'Radiometry',
    'ScaleCrop',
    'cloud_brightness',
]
