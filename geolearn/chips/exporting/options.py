"""Options of an export, checked when made."""

from dataclasses import dataclass

from geolearn.chips.label import Task
from geolearn.errors import ChipFolderError, UnknownNameError

CROP_MODES = ('fixed', 'bounding_box')
PROCESSING_MODES = ('mosaic', 'collection')
REFERENCE_SYSTEMS = ('MAP_SPACE', 'PIXEL_SPACE')


@dataclass(frozen=True)
class ExportOptions:
    """How chips are cut; the arguments of `export_training_data` by the same names.

    Args:
        task: What the labels of the format teach.
        per_feature: Whether each feature gets a chip of its own instead of a grid of chips.
    """

    task: Task
    tile_size: int
    stride: int
    per_feature: bool = False
    output_nofeature_tiles: bool = False
    rotation_angle: float = 0.0
    min_polygon_overlap_ratio: float = 0.0
    min_labelled: float = 0.0
    crop_mode: str = 'fixed'
    blacken_around_feature: bool = False
    reference_system: str = 'MAP_SPACE'
    image_format: str = 'TIFF'
    compress: str = 'none'
    start_index: int = 0

    def __post_init__(self) -> None:
        for name, lowest in (('tile_size', 1), ('stride', 1), ('start_index', 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < lowest:
                raise ChipFolderError(f'{name} is {value!r}; a whole number of at least {lowest} is needed')
        for name in ('min_polygon_overlap_ratio', 'min_labelled'):
            if not 0 <= getattr(self, name) <= 1:
                raise ChipFolderError(f'{name} is {getattr(self, name)!r}; a share from 0 to 1 is needed')
        if not 0 <= self.rotation_angle < 360:
            raise ChipFolderError(f'rotation_angle is {self.rotation_angle!r}; degrees from 0 to under 360 are needed')
        if self.crop_mode not in CROP_MODES:
            raise UnknownNameError('crop mode', self.crop_mode, CROP_MODES)
        if self.reference_system not in REFERENCE_SYSTEMS:
            raise UnknownNameError('reference system', self.reference_system, REFERENCE_SYSTEMS)
        self._check_together()

    def _check_together(self) -> None:
        if self.min_labelled and self.task not in (Task.PIXELS, Task.REGRESSION, Task.PANOPTIC):
            raise ChipFolderError('min_labelled needs a format with a class per pixel: Classified_Tiles or Panoptic')
        if not self.per_feature:
            for name, plain in (('crop_mode', 'fixed'), ('blacken_around_feature', False)):
                if getattr(self, name) != plain:
                    raise ChipFolderError(
                        f'{name}={getattr(self, name)!r} needs chips that each show one feature: vector labels and '
                        'Labeled_Tiles or Imagenet'
                    )
        if self.crop_mode == 'bounding_box' and self.rotation_angle:
            raise ChipFolderError("rotation_angle cannot be combined with crop_mode='bounding_box'; leave one out")

    @property
    def angles(self) -> tuple[float, ...]:
        """0 and the multiples of `rotation_angle` below 360, in degrees."""
        if not self.rotation_angle:
            return (0.0,)
        count = int(360 / self.rotation_angle - 1e-9) + 1
        return tuple(index * self.rotation_angle for index in range(count))
