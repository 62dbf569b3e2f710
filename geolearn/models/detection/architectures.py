"""The detectors by name: each is one of torchvision's heads, on any backbone. `ObjectDetector` has their arguments."""

from functools import partial

from geolearn.chips.label import Task
from geolearn.models._registry import register_model
from geolearn.models.detection.building import Recipe
from geolearn.models.detection.object_detector import ObjectDetector
from geolearn.models.detection.options import RCNNOptions, SingleStageOptions
from geolearn.models.detection.single_stage import FCOSHead, RetinaNetHead, SSDHead
from geolearn.models.detection.two_stage import TwoStageHead

FINE, COARSE = (4, 8, 16, 32), (8, 16, 32)
"""Proposals look at P2 to P6; detectors that judge every place begin at P3, where there are a quarter as many."""


@register_model
class FasterRCNN(ObjectDetector):
    """Faster R-CNN (Ren et al. 2015, arXiv:1506.01497) on P2 to P6; with a plain transformer it is ViTDet's.

    `head` takes `RCNNOptions`, of which ``style='vitdet'`` gives ViTDet's heads.
    """

    recipe = Recipe(partial(TwoStageHead, masks=False), RCNNOptions, FINE, pooled=1, per_level=1)


@register_model
class MaskRCNN(ObjectDetector):
    """Mask R-CNN (He et al. 2017, arXiv:1703.06870): Faster R-CNN with an outline of each object."""

    tasks = (Task.INSTANCES,)
    recipe = Recipe(partial(TwoStageHead, masks=True), RCNNOptions, FINE, pooled=1, per_level=1, masks=True)


@register_model
class RetinaNet(ObjectDetector):
    """RetinaNet (Lin et al. 2017, arXiv:1708.02002) on P3 to P7, three sizes of anchors on each."""

    recipe = Recipe(RetinaNetHead, SingleStageOptions, COARSE, pooled=2, per_level=3)


@register_model
class FCOS(ObjectDetector):
    """FCOS (Tian et al. 2019, arXiv:1904.01355) on P3 to P7; it has no anchors."""

    recipe = Recipe(FCOSHead, SingleStageOptions, COARSE, pooled=2, per_level=0)


@register_model
class SingleShotDetector(ObjectDetector):
    """SSD's heads and training (Liu et al. 2016, arXiv:1512.02325) on P3 to P7.

    ArcGIS's `grids` and `zooms` have no counterpart: levels are those of the backbone, and `anchor_sizes` or `scales`
    say how large anchors are on each.
    """

    default_backbone = 'resnet34'
    recipe = Recipe(SSDHead, SingleStageOptions, COARSE, pooled=2, per_level=3)
