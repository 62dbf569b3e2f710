"""Object detectors: any head on any backbone, evaluated as in COCO, run over rasters."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd
from torch import nn

from geolearn.arguments import record_arguments
from geolearn.backbones.adapt import DEFAULT_ADAPTATION, Adaptation
from geolearn.backbones.custom import ModuleBackbone
from geolearn.backbones.temporal import Temporal
from geolearn.chips.label import Task
from geolearn.data import ChipData
from geolearn.inference.detecting import DetectOptions, ImageDetections, detect_image, detect_raster
from geolearn.inference.merging import Merge
from geolearn.inference.options import NoData, ReadOptions, Resolution, Scale, TilingOptions
from geolearn.inference.outlines import Outline
from geolearn.inference.reading import Image, RasterSource
from geolearn.inference.vectors import DRIVERS
from geolearn.metrics import DetectionScores
from geolearn.models.anchor_choice import AnchorChoice, as_row, as_rows, choose_options
from geolearn.models.base import TILE_OPTIONS, Model, RasterUse, one_or_several
from geolearn.models.evaluation.objects import DetectionEvaluation, draw_results, evaluate_objects
from geolearn.models.new_spec import BackboneConfig, require_task
from geolearn.models.reports.objects import detection_report
from geolearn.models.reports.report import TaskReport
from geolearn.networks.detection.architecture import DetectorArchitecture, DetectorOptions, HeadOptions, build_detector
from geolearn.networks.detection.detector import DetectionLoss, Detector
from geolearn.networks.spec import ModelSpec
from geolearn.plotting import show_precision_recall

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class ObjectDetector(Model):
    """Find objects with a head on any backbone's pyramid; the subclasses name the head.

    Images keep their size and their bands; torchvision's resizing and its mean of three bands take no part. Chips
    without objects train too: they show background.

    Args:
        data: From `prepare_data`.
        backbone: Such as ``'dofa_base'`` or ``'resnet50'``; see `geolearn.list_backbones`. None takes the class's own.
        scales: Sizes of anchors on each level, as factors of 32 pixels on the finest and twice that on each coarser
            one; None takes them from the training boxes.
        ratios: Heights over widths of anchors; None takes them from the training boxes.
        anchor_sizes: Sides of square anchors in pixels for each level, finest first, instead of `scales`.
        resize_to: Side in pixels to which chips are brought, and rasters as much; None leaves them as they are.
        head: The numbers of the head: thresholds, samples, most objects.
        pretrained: Fill the backbone with its published weights.
        weights: A file or folder with the backbone's weights, or another model's .dlpk, instead of fetching them.
        wavelengths: Center wavelength of each band in micrometers, where the data does not name the bands well; None
            for radar.
        ignore_classes: Label values to ignore, on top of those that `data` ignores.
        adapt: What of the backbone is trained, how fast, and with low-rank updates or in full. The default trains
            all of it.
        temporal: How the maps of chips of several dates become one: ``'mean'``, ``'concat'`` or ``'ltae'``.
        resolution_m: Of the images in meters per pixel, for backbones whose positions depend on it.

    Raises:
        ChipFolderError: If the labels are not objects.
        UnknownNameError: If there is no such backbone.
        BackboneError: If there is, but it gives no maps at the strides needed, or cannot be adapted as `adapt` says.
        BandError: If bands lack a wavelength that the backbone needs.
        WeightsError: If weights cannot be had or do not fit.
        ValueError: If anchors or options of the head are not valid.
    """

    tasks: ClassVar[tuple[Task, ...]] = (Task.OBJECTS, Task.INSTANCES)
    raster_use = RasterUse(
        'detects objects',
        tuple(DRIVERS),
        (*TILE_OPTIONS, 'threshold', 'nms_overlap', 'overlap', 'outline', 'augment', 'merge', 'resume'),
    )
    forward_takes_targets = True
    architecture: ClassVar[DetectorArchitecture]
    """What makes this detector different from the others."""
    default_backbone: ClassVar[str] = 'resnet50'

    network: Detector

    def __init__(
        self,
        data: ChipData,
        backbone: str | ModuleBackbone | None = None,
        *,
        scales: Sequence[float] | None = None,
        ratios: Sequence[float] | None = None,
        anchor_sizes: Sequence[float] | Sequence[Sequence[float]] | None = None,
        resize_to: int | None = None,
        head: HeadOptions | None = None,
        pretrained: bool = True,
        weights: str | Path | None = None,
        wavelengths: Sequence[float | None] | None = None,
        ignore_classes: Sequence[int] = (),
        adapt: Adaptation = DEFAULT_ADAPTATION,
        temporal: Temporal = 'mean',
        resolution_m: float | None = None,
    ) -> None:
        arguments = record_arguments(type(self), locals())
        require_task(data, type(self).__name__, self.tasks)
        data = data.ignoring(ignore_classes) if ignore_classes else data
        if scales is not None and anchor_sizes is not None:
            raise ValueError('pass either scales or anchor_sizes; both say how large anchors are')
        if head is not None and not isinstance(head, self.architecture.options):
            raise ValueError(f'head must be {self.architecture.options.__name__}, got {head!r}')
        anchors = AnchorChoice(as_rows(anchor_sizes), as_row(scales), as_row(ratios))
        numbers = self.architecture.options() if head is None else head
        options = choose_options(data, self.architecture, anchors, resize_to=resize_to, head=numbers)
        name = self.default_backbone if backbone is None else backbone
        config = BackboneConfig(name, pretrained, weights, wavelengths, adapt, temporal, resolution_m)
        self._create(data, config, options=options.to_json(), arguments=arguments)

    @classmethod
    def _options(cls, spec: ModelSpec) -> DetectorOptions:
        return DetectorOptions.from_json(spec.options, head=cls.architecture.options)

    @classmethod
    def build(cls, spec: ModelSpec, *, pretrained: bool = False, weights: str | Path | None = None) -> Detector:
        """Build the network that a spec describes."""
        return build_detector(spec, cls._options(spec), cls.architecture, pretrained=pretrained, weights=weights)

    def make_loss(self) -> nn.Module:
        """Make the sum of the losses that the network computes."""
        return DetectionLoss()

    def make_scores(self) -> DetectionScores:
        """Make the metrics that each epoch computes on the validation chips."""
        count, most = len(self.spec.class_infos), self._options(self.spec).head.most
        return DetectionScores(count, iou_type='segm' if self.architecture.masks else 'bbox', max_detections=most)

    @classmethod
    def emd_fields(cls, spec: ModelSpec) -> dict[str, Any]:
        """Return the keys of Esri's model definition that belong to detectors."""
        options = cls._options(spec)
        return {
            'ModelType': 'InstanceDetection' if cls.architecture.masks else 'ObjectDetection',
            'SupportsVariableTileSize': True,
            'resize_to': options.resize_to,
        }

    def evaluate(self) -> DetectionEvaluation:
        """Match detections, by boxes or by masks where there are some, with the true objects of the validation chips.

        Computed once after each fit; its metrics are COCO's.
        """
        if not isinstance(self.evaluation, DetectionEvaluation):
            chips = self._needed_data().valid_dl
            self.evaluation = evaluate_objects(self.network, chips, self.make_scores(), self._class_names)
        return self.evaluation

    def _task_report(self) -> TaskReport:
        data, options = self._needed_data(), self._options(self.spec)
        return detection_report(self.spec, self.network, data, self.evaluate(), options, masks=self.architecture.masks)

    # -- evaluation

    def average_precision_score(
        self, detect_thresh: float = 0.0, iou_thresh: float = 0.5, mean: bool = False
    ) -> dict[str, float] | float:
        """Average precision on the validation chips, by boxes, or by masks where the model draws them.

        The defaults give AP50 as it is usual, and as the table of `fit` shows it. ArcGIS drops objects of low
        confidence (0.2) and counts true positives from an overlap of 0.1.

        Args:
            detect_thresh: Objects with a lower score are dropped, 0..1. The usual AP counts them.
            iou_thresh: Overlap from which on a detection is a true positive.
            mean: One number: the mean over the classes that have true objects.

        Returns:
            By class name, NaN for classes without true objects; or their mean.
        """
        values = self.evaluate().detections.average_precision(iou=iou_thresh, score=detect_thresh)
        known = [value for value in values if value == value]
        if mean:
            return sum(known) / len(known) if known else float('nan')
        return dict(zip(self._class_names, values))

    def per_class_metrics(self) -> pd.DataFrame:
        """COCO's mAP, AP50 and recall of each class on the validation chips; NaN without true objects."""
        table = self.evaluate().per_class
        assert table is not None
        return table

    def plot_precision_recall(self, iou_thresh: float = 0.5) -> 'Figure':
        """Draw precision over recall of each class on the validation chips.

        Args:
            iou_thresh: Overlap from which on a detection is a true positive.
        """
        curves = self.evaluate().detections.precision_recall(iou=iou_thresh)
        return show_precision_recall(curves, self.spec.class_infos, iou=iou_thresh)

    def show_results(self, rows: int = 4, *, threshold: float = 0.5) -> 'Figure':
        """Draw validation chips with true objects and detections.

        Args:
            rows: Number of chips.
            threshold: Lowest score of what is drawn.
        """
        return draw_results(self.network, self._needed_data().valid_dl, self.spec, rows=rows, threshold=threshold)

    # -- detection

    def use_on_raster(self, sources: Sequence[str | Path], dst: str | Path, options: Mapping[str, Any]) -> Path:
        """Detect objects in rasters, with the options of `detect_objects`."""
        return self.detect_objects(one_or_several(sources), dst, **options)

    def predict(
        self,
        image: Image,
        threshold: float = 0.5,
        nms_overlap: float = 0.3,
        *,
        bands: Sequence[str] | None = None,
        sensor: str | None = None,
        scale: Scale | None = None,
        offset: float = 0.0,
        nodata: NoData = None,
        resolution: Resolution | None = None,
        augment: bool = False,
        device: str | None = None,
    ) -> ImageDetections:
        """Find the objects in one image that memory holds; for rasters see `detect_objects`.

        Args:
            image: Pixels (bands, H, W) in the model's order of bands, NaN where there is no data; or a file.
            threshold: Lowest score of an object, 0..1.
            nms_overlap: Of two objects of one class that overlap more, intersection over union, the one of lower
                score is dropped.
            bands: Names of the file's bands; see `detect_objects` for this, `sensor`, `scale` and `offset`.
            sensor: Whose names they are.
            scale: Multiplies pixel values.
            offset: Is added after that.
            nodata: Value that marks missing pixels where the file does not say so, or one for each band.
            resolution: Side of the pixels to resample a file to, in units of its CRS, or ``'training'``.
            augment: Predict four times, flipped, and take the mean: slower, and a little better.
            device: Torch device; None means CUDA where there is one.

        Raises:
            RasterError: If bands or units do not fit, or the file cannot be read.
            ValueError: If an array has another shape, or a number is out of its range.
        """
        options = DetectOptions(threshold, nms_overlap, augment)
        read = ReadOptions(bands, sensor, scale, offset, nodata, resolution, self.spec.is_radar)
        return detect_image(self.spec, self.network, image, read=read, options=options, device=device)

    def detect_objects(
        self,
        src: RasterSource,
        dst: str | Path,
        *,
        threshold: float = 0.5,
        nms_overlap: float = 0.3,
        bands: Sequence[str] | None = None,
        sensor: str | None = None,
        scale: Scale | None = None,
        offset: float = 0.0,
        nodata: NoData = None,
        resolution: Resolution | None = None,
        tile_size: int | None = None,
        overlap: int | None = None,
        batch_size: int = 4,
        device: str | None = None,
        outline: Outline = 'exact',
        augment: bool = False,
        merge: Merge = 'nms',
        resume: bool = False,
        overwrite: bool = False,
    ) -> Path:
        """Find the objects in a raster of any size and write them as a layer of polygons.

        Tiles overlap; an object that the edge of a tile cuts comes from the tile that shows it whole, and one that is
        larger than the overlap is put together. Memory grows with the tile size, the raster's width and the number of
        objects, never with its area. Columns are ``Class`` (name), ``value`` (its number), ``area`` (square units of
        the CRS; square meters where these are degrees) and ``Confidence`` (percent), sorted by it. Without any
        object the layer is empty. What is finished stays in `dst` with ``.part`` behind until the layer is there.

        Args:
            src: A raster, or several that make one mosaic; for models of several dates one such for each date.
            dst: Layer to write, when all tiles are done: .gpkg, .geojson (which is in WGS84), .parquet or .shp.
            threshold: Lowest score of an object, 0..1.
            nms_overlap: Two objects of one class that overlap more, intersection over union, are merged.
            bands: Names of the raster's bands in file order, where the file names none or wrong ones.
            sensor: Whose names they are, such as ``'Sentinel-2'`` for ``'B04'``; color names need none.
            scale: Multiplies pixel values, where units are not those of the training chips. Values far from these are
                refused, unless 1 is given, which asserts that they are right.
            offset: Is added after that.
            nodata: Value that marks missing pixels where the file does not say so, or one for each band of the file.
            resolution: Side of the pixels to resample to while reading, in units of the raster's CRS, or
                ``'training'``. Without it, rasters whose pixels are over 1.5 times larger or smaller than in training
                are refused.
            tile_size: Side in pixels; None takes twice the chips' for backbones with a position grid, else 512 or more.
            overlap: Pixels that tiles share; None takes what 98 of 100 training boxes fit in, at most half a tile.
            batch_size: Tiles computed together.
            device: Torch device; None means CUDA where there is one.
            outline: Of masks: ``'exact'`` along the pixels, ``'simplified'``, or ``'orthogonal'`` as buildings are.
            augment: Predict each tile four times, flipped, and take the mean.
            merge: Of objects that overlap, ``'nms'`` keeps the highest-scoring; ``'soft_nms'``, for crowds, lowers the
                scores of the others and leaves what stays above `threshold`; ``'weighted'`` makes them one,
                of their mean box and score (outlines have no mean: the highest-scoring's stays).
            resume: Continue a run that was interrupted: same raster, model and options.
            overwrite: Replace `dst` if it exists.

        Returns:
            The path written.

        Raises:
            RasterError: If bands or units do not fit, or reading or writing fails; no part of `dst` is left.
            CheckpointError: If there is no such run to resume, or what is finished cannot be kept.
            MissingExtraError: If the libraries of the extra ``vector`` are not installed.
            ValueError: If a number is out of its range.
        """
        return detect_raster(
            self.spec,
            self.network,
            src,
            dst,
            typical_side=self._options(self.spec).typical_side,
            masks=self.architecture.masks,
            read=ReadOptions(bands, sensor, scale, offset, nodata, resolution, self.spec.is_radar),
            tiling=TilingOptions(tile_size, batch_size=batch_size, device=device),
            options=DetectOptions(threshold, nms_overlap, augment, outline, overlap, merge, resume),
            overwrite=overwrite,
        )
