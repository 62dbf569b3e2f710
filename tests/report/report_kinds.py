"""The kinds of models that have a report of their own, small."""

from collections.abc import Mapping
from typing import NamedTuple

from geolearn.networks.detection.architecture import RCNNOptions, SingleStageOptions


class Kind(NamedTuple):
    """A class of models, the format of its chips, and what it and `prepare_data` are told."""

    model: str
    export: str | None = None
    options: Mapping[str, object] = {}
    chips: Mapping[str, object] = {}


KINDS = {
    'DeepLab': Kind('DeepLab', options={'focal_loss': True}, chips={'ignore_classes': [0]}),
    'PixelRegressor': Kind('PixelRegressor', options={'decoder': 'fpn'}, chips={'target': 'values'}),
    'ChangeDetector': Kind('ChangeDetector', options={'fusion': 'concat'}),
    'FeatureClassifier': Kind('FeatureClassifier', 'Labeled_Tiles', {'pooling': 'mean'}),
    'several labels': Kind('FeatureClassifier', 'MultiLabeled_Tiles', {'mixup': True}),
    'FasterRCNN': Kind('FasterRCNN', 'PASCAL_VOC_rectangles', {'scales': [1.0]}),
    'FCOS': Kind('FCOS', 'PASCAL_VOC_rectangles', {'head': SingleStageOptions(detections_per_img=9)}),
    'MaskRCNN': Kind(
        'MaskRCNN', 'RCNN_Masks', {'head': RCNNOptions(box_detections_per_img=5, box_batch_size_per_image=8)}
    ),
}
"""Every kind of model that has a report of its own."""
