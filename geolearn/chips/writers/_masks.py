"""Write outlined objects: for each class a folder of rasters that number them, in several bands where they overlap."""

from collections.abc import Sequence

import numpy as np

from geolearn.chips.label import Label
from geolearn.chips.writers._format import ChipFile, FormatWriter
from geolearn.errors import ChipFolderError


def write_masks(writer: FormatWriter, folder: str, chip: ChipFile, label: Label) -> tuple[str, ...]:
    """Write a raster for each class that occurs; objects are numbered 1, 2, 3, ... through all bands."""
    if label.masks is None and len(label.values):
        raise ChipFolderError(f'label of chip {chip.stem} has no masks, which this format is made of')
    groups: dict[int, list[np.ndarray]] = {}
    for value, mask in zip(label.values.tolist(), label.masks or ()):
        groups.setdefault(value, []).append(mask)
    written = []
    for value, masks in sorted(groups.items()):
        name = f'{folder}/{writer.names[value]}'
        writer.make(name)
        written.append(writer.write_raster(f'{name}/{chip.stem}.tif', number_objects(masks, chip.shape), chip))
    return tuple(written)


def number_objects(masks: Sequence[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Return (bands, height, width) with 1, 2, 3, ... where each object is; objects of one band do not overlap."""
    dtype = np.uint8 if len(masks) < 256 else np.uint16 if len(masks) < 65536 else np.uint32
    bands: list[np.ndarray] = [np.zeros(shape, dtype)]
    for number, mask in enumerate(masks, 1):
        if not mask.any():
            raise ChipFolderError(f'object {number} of a label covers no pixel; leave it out')
        free = next((band for band in bands if not band[mask].any()), None)
        if free is None:
            free = np.zeros(shape, dtype)
            bands.append(free)
        free[mask] = number
    return np.stack(bands)
