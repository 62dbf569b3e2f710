"""The detectors by name: each is one of torchvision's heads, on any backbone. `ObjectDetector` has their arguments."""

from dataclasses import replace
from functools import partial
from pathlib import Path

from geolearn.chips.label import Task
from geolearn.models.base import register_model
from geolearn.models.object_detector import ObjectDetector
from geolearn.networks.detection.architecture import (
    DetectorArchitecture,
    RCNNOptions,
    SingleStageOptions,
    TransformerOptions,
    build_detector,
)
from geolearn.networks.detection.detector import Detector
from geolearn.networks.detection.rtdetr import STRIDES, RTDetrHead
from geolearn.networks.detection.single_stage import FCOSHead, RetinaNetHead, SSDHead
from geolearn.networks.detection.two_stage import TwoStageHead
from geolearn.networks.spec import ModelSpec

FINE, COARSE = (4, 8, 16, 32), (8, 16, 32)
"""Proposals come from P2 to P6; dense detectors begin at P3, which has a quarter as many places."""


@register_model
class FasterRCNN(ObjectDetector):
    """Faster R-CNN (Ren et al. 2015, arXiv:1506.01497) on P2 to P6; with a plain transformer it is ViTDet's.

    `head` takes `RCNNOptions`, of which ``style='vitdet'`` gives ViTDet's heads.
    """

    architecture = DetectorArchitecture(partial(TwoStageHead, masks=False), RCNNOptions, FINE, pooled=1, per_level=1)


@register_model
class MaskRCNN(ObjectDetector):
    """Mask R-CNN (He et al. 2017, arXiv:1703.06870): Faster R-CNN with an outline of each object."""

    tasks = (Task.INSTANCES,)
    architecture = DetectorArchitecture(
        partial(TwoStageHead, masks=True), RCNNOptions, FINE, pooled=1, per_level=1, masks=True
    )


@register_model
class RetinaNet(ObjectDetector):
    """RetinaNet (Lin et al. 2017, arXiv:1708.02002) on P3 to P7, three sizes of anchors on each."""

    architecture = DetectorArchitecture(RetinaNetHead, SingleStageOptions, COARSE, pooled=2, per_level=3)


@register_model
class FCOS(ObjectDetector):
    """FCOS (Tian et al. 2019, arXiv:1904.01355) on P3 to P7; it has no anchors."""

    architecture = DetectorArchitecture(FCOSHead, SingleStageOptions, COARSE, pooled=2, per_level=0)


@register_model
class SingleShotDetector(ObjectDetector):
    """SSD's heads and training (Liu et al. 2016, arXiv:1512.02325) on P3 to P7.

    ArcGIS's `grids` and `zooms` have no counterpart: levels are those of the backbone, and `anchor_sizes` or `scales`
    say how large anchors are on each.
    """

    default_backbone = 'resnet34'
    architecture = DetectorArchitecture(SSDHead, SingleStageOptions, COARSE, pooled=2, per_level=3)


@register_model
class RTDetr(ObjectDetector):
    """RT-DETR (Zhao et al. 2023, arXiv:2304.08069) on P3 to P5: queries that each predict one object, or none.

    It has no anchors, and in images as large as the chips no non-maximum suppression: a Hungarian matching assigns each
    object to one query. Layers and losses are those of the library transformers (the extra ``detr``) and begin with
    random weights; the backbone is any of geolearn's. `head` takes `TransformerOptions`. ArcGIS's `RTDetrV2` is the
    same network but for details of its sampling and training; its `DETReg` is of the same family. The training loss has
    a part, `denoising`, that the validation loss has not.
    """

    architecture = DetectorArchitecture(RTDetrHead, TransformerOptions, STRIDES, pooled=0, per_level=0)

    @classmethod
    def build(cls, spec: ModelSpec, *, pretrained: bool = False, weights: str | Path | None = None) -> Detector:
        """Build the network that a spec describes.

        Raises:
            MissingExtraError: If transformers is not installed.
        """
        options = cls._options(spec)
        side = spec.chip_size if options.resize_to is None else options.resize_to
        architecture = replace(cls.architecture, head=partial(RTDetrHead, side=side))
        return build_detector(spec, options, architecture, pretrained=pretrained, weights=weights)
