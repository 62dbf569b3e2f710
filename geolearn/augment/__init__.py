"""Change whole batches at random, on their device: images, masks, values, boxes, outlines and labels together.

Every change takes a batch and a generator on the CPU and returns a changed batch. All randomness comes from the
generator, so a seed repeats exactly; a `ChipGenerator` has one for each image. Where images have several dates, all of
them move together.
"""

from geolearn.augment.augmentation import Augmentation, CutMix, Mixup, OneOf
from geolearn.augment.transforms import (
    BandDropout,
    BatchTransform,
    Chain,
    ChipGenerator,
    Clouds,
    Dihedral,
    Noise,
    PixelStep,
    Radiometry,
    ScaleCrop,
    cloud_brightness,
)
from geolearn.augment.turning import Turn

__all__ = [
    'Augmentation',
    'BandDropout',
    'BatchTransform',
    'Chain',
    'ChipGenerator',
    'Clouds',
    'CutMix',
    'Dihedral',
    'Mixup',
    'Noise',
    'OneOf',
    'PixelStep',
    'Radiometry',
    'ScaleCrop',
    'Turn',
    'cloud_brightness',
]
