"""One writer for each metadata format of ArcGIS, and those that people bring from elsewhere."""

from geolearn.chips.formats.coco import CocoWriter
from geolearn.chips.formats.imagenet import ImagenetWriter
from geolearn.chips.formats.kitti import KittiWriter
from geolearn.chips.formats.labeled import LabeledWriter, MultiLabeledWriter
from geolearn.chips.formats.panoptic import PanopticWriter
from geolearn.chips.formats.rcnn import RcnnWriter
from geolearn.chips.formats.tiles import ClassifiedWriter, ExportTilesWriter
from geolearn.chips.formats.voc import VocWriter
from geolearn.chips.formats.writing import ChipFile, FormatWriter
from geolearn.chips.formats.yolo import YoloWriter
from geolearn.errors import UnknownNameError

FORMATS: dict[str, type[FormatWriter]] = {
    'Classified_Tiles': ClassifiedWriter,
    'PASCAL_VOC_rectangles': VocWriter,
    'KITTI_rectangles': KittiWriter,
    'RCNN_Masks': RcnnWriter,
    'Labeled_Tiles': LabeledWriter,
    'MultiLabeled_Tiles': MultiLabeledWriter,
    'Imagenet': ImagenetWriter,
    'Export_Tiles': ExportTilesWriter,
    'Panoptic_Segmentation': PanopticWriter,
    'COCO_rectangles': CocoWriter,
    'YOLO_rectangles': YoloWriter,
}


def find_writer(metadata_format: str) -> type[FormatWriter]:
    """Return the writer of a format.

    Raises:
        UnknownNameError: If there is none of that name.
    """
    if metadata_format not in FORMATS:
        raise UnknownNameError('metadata format', metadata_format, FORMATS)
    return FORMATS[metadata_format]


__all__ = ['FORMATS', 'ChipFile', 'FormatWriter', 'find_writer']
