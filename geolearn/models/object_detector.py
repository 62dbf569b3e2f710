"""Object detectors: any head on any backbone, evaluated as in COCO, run over rasters."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from torch import Tensor, nn

from geolearn import extras
from geolearn.adaptation import DEFAULT_ADAPTATION, Adaptation, Temporal
from geolearn.arguments import record_arguments
from geolearn.backbones.custom import ModuleBackbone
from geolearn.bundle import DetectionFacts
from geolearn.chips.label import Task
from geolearn.data import ChipData
from geolearn.errors import ArgumentError
from geolearn.inference import area, cluster, detecting, images, merging, reading, vectors
from geolearn.inference.detect_raster import DetectRequest, detect_in_shares, detect_request
from geolearn.inference.engines import Engine
from geolearn.inference.options import NoData, ReadOptions, Resolution, Scale, TilingOptions
from geolearn.inference.outlines import ObjectOutline
from geolearn.inference.placing import DetectOptions
from geolearn.inference.plan import choose_share
from geolearn.losses.options import as_loss_module
from geolearn.metrics import ApMetric, DetectionScores
from geolearn.models import base, new_spec, registry
from geolearn.models.evaluation.objects import DetectionEvaluation, draw_detected_chips, evaluate_objects
from geolearn.models.raster_use import TILE_OPTIONS, RasterUse, one_or_several
from geolearn.models.reports.report import TaskReport
from geolearn.models.reports.tasks import detection_report
from geolearn.networks.detection import detector, heads, oriented_rcnn, rotated
from geolearn.networks.detection.architecture import (
    USUAL_RATIOS,
    DetectorArchitecture,
    DetectorOptions,
    HeadOptions,
    RCNNOptions,
    RotatedOptions,
    SingleStageOptions,
    TransformerOptions,
    build_detector,
    choose_ratios,
    choose_sizes,
    detection_facts,
)
from geolearn.networks.network import Network
from geolearn.networks.spec import ModelSpec
from geolearn.plotting import show_precision_recall

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class AnchorChoice:
    """Anchors as a user gave them; None takes them from the training boxes.

    Args:
        sizes: Sides of square anchors in pixels by level, finest first.
        scales: Factors of the usual size of each level (32 pixels, twice that on each coarser level).
        ratios: Height over width.
    """

    sizes: tuple[tuple[float, ...], ...] | None = None
    scales: tuple[float, ...] | None = None
    ratios: tuple[float, ...] | None = None


def choose_options(
    data: ChipData,
    architecture: DetectorArchitecture,
    anchors: AnchorChoice,
    *,
    resize_to: int | None,
    head: HeadOptions,
) -> DetectorOptions:
    """Choose the options of a new detector from the sizes of the training boxes.

    Args:
        data: To train on.
        architecture: Of the class of model.
        anchors: As the user gave them.
        resize_to: Side to which chips are resized, or None.
        head: Options of the head.

    Raises:
        ValueError: If anchors are given for other levels, or to a detector that has none.
    """
    sides = training_sides(data)
    options = DetectorOptions(resize_to=resize_to, typical_side=typical_side(data), head=head)
    if not architecture.per_level:
        if anchors != AnchorChoice():
            raise ValueError('this detector has no anchors; omit anchor_sizes, scales and ratios')
        return options
    if anchors.sizes is not None and len(anchors.sizes) != architecture.levels:
        raise ValueError(f'anchor_sizes must have {architecture.levels} levels, finest first, got {len(anchors.sizes)}')
    seen = sides * (1.0 if resize_to is None else resize_to / data.chip_size)
    sizes = anchors.sizes
    if anchors.scales is not None:
        usual = choose_sizes(np.zeros((0, 2)), levels=architecture.levels, per_level=1)
        sizes = tuple(tuple(size * scale for scale in anchors.scales) for (size,) in usual)
    if sizes is None:
        sizes = choose_sizes(seen, levels=architecture.levels, per_level=architecture.per_level)
    ratios = choose_ratios(seen) if anchors.ratios is None else anchors.ratios
    return DetectorOptions(sizes, ratios or USUAL_RATIOS, resize_to, options.typical_side, head)


def training_sides(data: ChipData) -> np.ndarray:
    """Return widths and heights (n, 2) in pixels of the training boxes of trained classes."""
    trained = [info.value for info in data.class_infos]
    parts = []
    for position in data.split.train:
        values, boxes = data.table.objects(position)
        if boxes is not None and len(boxes):
            chosen = boxes[np.isin(values, trained)]
            parts.append(chosen[:, 2:] - chosen[:, :2])
    sides = np.concatenate(parts) if parts else np.zeros((0, 2))
    return sides[(sides > 0).all(axis=1)].astype(np.float64)


def typical_side(data: ChipData) -> float:
    """Return the side in pixels that 98 of 100 training boxes do not exceed; 64 without boxes."""
    sides = training_sides(data)
    return max(float(np.percentile(sides.max(axis=1), 98)), 1.0) if len(sides) else 64.0


def training_rectangles(data: ChipData) -> np.ndarray:
    """Return the oriented boxes (n, 5) of the training chips, of trained classes and not ignored."""
    trained = [info.value for info in data.class_infos]
    parts = []
    for position in data.split.train:
        values, _ = data.table.objects(position)
        turned, ignored = data.table.oriented_boxes(position)
        if turned is not None and len(turned):
            kept = np.isin(values, trained) if ignored is None else np.isin(values, trained) & ~ignored
            parts.append(turned[kept])
    return np.concatenate(parts) if parts else np.zeros((0, 5), np.float32)


def as_rows(sizes: Sequence[float] | Sequence[Sequence[float]] | None) -> tuple[tuple[float, ...], ...] | None:
    """Read anchor sizes: one for each level, or several."""
    if sizes is None:
        return None
    return tuple(tuple(row) if isinstance(row, Sequence) else (float(row),) for row in sizes)


def as_row(numbers: Sequence[float] | None) -> tuple[float, ...] | None:
    """Read scales or ratios."""
    return None if numbers is None else tuple(float(number) for number in numbers)


class ObjectDetector(base.Model):
    """Find objects with a head on any backbone's pyramid; the subclasses name the head.

    Images keep their size and their bands; torchvision's resizing and its mean of three bands take no part. Chips
    without objects train too: they show background.

    Batch norms of a pretrained backbone normalize by the statistics of its pretraining while it is trained, as in
    torchvision and detectron2: batches of detectors hold too few images for their own. Scale and shift are trained.

    Args:
        data: From `prepare_data`.
        backbone: Such as ``'dofa_base'`` or ``'resnet50'``; see `geolearn.list_backbones`. None takes the class's own.
        scales: Sizes of anchors on each level, as factors of 32 pixels on the finest and twice that on each coarser
            one; None takes them from the training boxes.
        ratios: Heights over widths of anchors; None takes them from the training boxes.
        anchor_sizes: Sides of square anchors in pixels for each level, finest first, instead of `scales`.
        resize_to: Side in pixels to which chips are brought, and rasters as much; None leaves them as they are.
        head: The numbers of the head: thresholds, samples, most objects.
        loss: The head computes its own losses, whose names `fit` prints (``'classes'``, ``'boxes'`` and others), and
            their sum is minimized. A module or function given here takes them by name, a mapping, and returns what is
            minimized instead, such as ``lambda parts: parts['classes'] + 2 * parts['boxes']``.
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

    tasks: ClassVar[tuple[Task, ...]] = (Task.OBJECTS, Task.INSTANCES, Task.ORIENTED)
    graph_output = 'objects'
    raster_use = RasterUse(
        'detects objects',
        tuple(vectors.DRIVERS),
        (
            *(*TILE_OPTIONS, 'engine'),
            *('threshold', 'nms_overlap', 'overlap', 'outline', 'augment', 'merge', 'resume', 'part', 'merge_parts'),
        ),
    )
    forward_takes_targets = True
    keeps_statistics = True
    architecture: ClassVar[DetectorArchitecture]
    """What makes this detector different from the others."""
    default_backbone: ClassVar[str] = 'resnet50'

    network: detector.Detector

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
        loss: nn.Module | Callable[[dict[str, Tensor]], Tensor] | None = None,
        pretrained: bool = True,
        weights: str | Path | None = None,
        wavelengths: Sequence[float | None] | None = None,
        ignore_classes: Sequence[int] = (),
        adapt: Adaptation = DEFAULT_ADAPTATION,
        temporal: Temporal = 'mean',
        resolution_m: float | None = None,
    ) -> None:
        arguments = record_arguments(type(self), locals())
        new_spec.require_task(data, type(self).__name__, self.tasks)
        data = data.oriented() if self.architecture.oriented else data
        data = data.ignoring(ignore_classes) if ignore_classes else data
        if scales is not None and anchor_sizes is not None:
            raise ValueError('pass either scales or anchor_sizes; both say how large anchors are')
        if loss is not None and not callable(loss):
            raise ArgumentError(
                f'a detector computes its own losses; loss must be a function of them by name, such as '
                f"lambda parts: parts['classes'] + 2 * parts['boxes'], got {loss!r}"
            )
        if head is not None and not isinstance(head, self.architecture.options):
            raise ValueError(f'head must be {self.architecture.options.__name__}, got {head!r}')
        anchors = AnchorChoice(as_rows(anchor_sizes), as_row(scales), as_row(ratios))
        numbers = self._default_head(data, resize_to) if head is None else head
        options = choose_options(data, self.architecture, anchors, resize_to=resize_to, head=numbers)
        name = self.default_backbone if backbone is None else backbone
        config = new_spec.BackboneConfig(name, pretrained, weights, wavelengths, adapt, temporal, resolution_m)
        own = None if loss is None else as_loss_module(loss)
        self._create(data, config, options=options.to_json(), arguments=arguments, loss=own)

    def _assemble(
        self, spec: ModelSpec, network: Network, data: ChipData | None, loss: nn.Module | None = None
    ) -> None:
        # a loaded model takes outlines as the new one does
        data = data.oriented() if data is not None and self.architecture.oriented else data
        super()._assemble(spec, network, data, loss)

    def _default_head(self, data: ChipData, resize_to: int | None) -> HeadOptions:
        """Choose the numbers of the head where the user gives none."""
        return self.architecture.options()

    @classmethod
    def _levels(cls, head: HeadOptions) -> DetectorArchitecture:
        """Return the architecture with the levels that the options of the head ask for."""
        return cls.architecture

    @classmethod
    def _options(cls, spec: ModelSpec) -> DetectorOptions:
        return DetectorOptions.from_json(spec.options, head=cls.architecture.options)

    @classmethod
    def build(
        cls, spec: ModelSpec, *, pretrained: bool = False, weights: str | Path | None = None
    ) -> detector.Detector:
        """Build the network that a spec describes."""
        options = cls._options(spec)
        return build_detector(spec, options, cls._levels(options.head), pretrained=pretrained, weights=weights)

    def _graph_network(self, network: Any) -> Network:
        return detector.Places(network)

    def _detection_facts(self, network: Any) -> DetectionFacts | None:
        options = self._options(self.spec)
        return detection_facts(options, self._levels(options.head), network)

    def make_loss(self) -> nn.Module:
        """Make the sum of the losses that the network computes, or what a loss of the user's own makes of them."""
        return detector.DetectionLoss(self._own_loss())

    def make_scores(self) -> DetectionScores:
        """Make the metrics that each epoch computes on the middle of each validation chip, and `evaluate` on all of it.

        Raises:
            MissingExtraError: If a library is not installed that one of the two needs.
        """
        count, most = len(self.spec.class_infos), self._options(self.spec).head.most
        if self.architecture.masks and self.data is not None and self.data.valid_dl.shows_parts:
            # said before the training, not after it
            extras.require('shapely', extra='vector', to='evaluate outlines on chips larger than chip_size')
        return DetectionScores(count, iou_type=self.architecture.iou_type, max_detections=most)

    @classmethod
    def emd_fields(cls, spec: ModelSpec) -> dict[str, Any]:
        """Return the keys of Esri's model definition that belong to detectors."""
        options = cls._options(spec)
        return {
            'ModelType': 'InstanceDetection' if cls.architecture.masks else 'ObjectDetection',
            'SupportsVariableTileSize': True,
            'resize_to': options.resize_to,
            **({'OrientedBoxes': 'le90, radians, clockwise'} if cls.architecture.oriented else {}),
        }

    def evaluate(self) -> DetectionEvaluation:
        """Match detections, by boxes or by masks where there are some, with the true objects of the validation chips.

        Computed once after each fit; its metrics are COCO's.
        """
        if not isinstance(self.evaluation, DetectionEvaluation):
            chips = self._needed_data().valid_dl
            side = self._options(self.spec).typical_side
            self.evaluation = evaluate_objects(
                self.network, chips, self.make_scores(), self._class_names, typical_side=side
            )
        return self.evaluation

    def _task_report(self) -> TaskReport:
        data, options = self._needed_data(), self._options(self.spec)
        return detection_report(
            self.spec, self.network, data, self.evaluate(), options, kind=self.architecture.iou_type
        )

    # -- evaluation

    def average_precision_score(
        self, detect_thresh: float = 0.0, iou_thresh: float = 0.5, mean: bool = False, *, metric: ApMetric = 'coco'
    ) -> dict[str, float] | float:
        """Average precision on the validation chips, by boxes, or by masks or oriented boxes where it gives them.

        The defaults give AP50 as it is usual, and as the table of `fit` shows it. ArcGIS drops objects of low
        confidence (0.2) and counts true positives from an overlap of 0.1.

        Args:
            detect_thresh: Objects with a lower score are dropped, 0..1. The usual AP counts them.
            iou_thresh: Overlap from which on a detection is a true positive.
            mean: One number: the mean over the classes that have true objects.
            metric: ``'coco'``, at 101 recalls; ``'voc07'``, at 11 recalls, as the tables of DOTA have it; or
                ``'voc10'``, the area below the curve.

        Returns:
            By class name, NaN for classes without true objects; or their mean.

        Raises:
            UnknownNameError: If there is no such metric.
        """
        scores = self.evaluate().detections
        values = scores.average_precision(iou=iou_thresh, score=detect_thresh, metric=metric)
        known = [value for value in values if value == value]
        if mean:
            return sum(known) / len(known) if known else float('nan')
        return dict(zip(self._class_names, values))

    def per_class_metrics(self) -> 'pd.DataFrame':
        """COCO's mAP, AP50 and recall of each class on the validation chips; NaN without true objects.

        Of oriented boxes also AP75 and the median angle error in degrees.
        """
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

    def show_results(self, rows: int | None = None, *, threshold: float = 0.5) -> 'Figure':
        """Draw validation chips with true objects and detections: chips that together show every class.

        Args:
            rows: Number of chips; None takes as many as show every class, 4 to 8.
            threshold: Lowest score of what is drawn.
        """
        chosen = self._choose_chips(rows)
        data, side = self._needed_data(), self._options(self.spec).typical_side
        return draw_detected_chips(self.network, data, self.spec, chosen, threshold=threshold, typical_side=side)

    # -- detection

    def use_on_raster(self, sources: Sequence[Any], dst: str | Path, options: Mapping[str, Any]) -> Path:
        """Detect objects in rasters, with the options of `detect_objects`."""
        return self.detect_objects(one_or_several(sources), dst, **options)

    def predict(
        self,
        image: images.Image,
        threshold: float = 0.5,
        nms_overlap: float = 0.3,
        *,
        bands: Sequence[str] | None = None,
        sensor: str | None = None,
        scale: Scale | None = None,
        offset: float = 0.0,
        nodata: NoData = None,
        resolution: Resolution | None = None,
        dates: Sequence[date | str] | None = None,
        augment: bool | Literal['flips'] = False,
        device: str | None = None,
    ) -> detecting.ImageDetections:
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
            dates: When the images were taken, one for each date, such as ``['2024-05-01']``, for networks that read it;
                None takes what the files state.
            augment: Predict four times, flipped, and take the mean: slower, and a little better; ``'flips'`` is the
                same.
            device: Torch device; None means CUDA where there is one.

        Raises:
            RasterError: If bands or units do not fit, or the file cannot be read.
            ValueError: If an array has another shape, or a number is out of its range.
        """
        options = DetectOptions(threshold, nms_overlap, augment)
        read = ReadOptions(bands, sensor, scale, offset, nodata, resolution, self.spec.is_radar, dates=dates)
        return detecting.detect_image(self.spec, self.network, image, read=read, options=options, device=device)

    def detect_objects(
        self,
        src: reading.RasterSource,
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
        dates: Sequence[date | str] | None = None,
        aoi: Any = None,
        bbox: Sequence[float] | None = None,
        bbox_crs: str | int | None = None,
        tile_size: int | None = None,
        overlap: int | None = None,
        batch_size: int = 4,
        device: str | None = None,
        outline: ObjectOutline = 'exact',
        augment: bool | Literal['flips'] = False,
        merge: merging.Merge = 'nms',
        resume: bool = False,
        overwrite: bool = False,
        part: tuple[int, int] | None = None,
        merge_parts: bool = False,
        client: Any = None,
        engine: Engine = 'torch',
    ) -> Path:
        """Find the objects in a raster of any size and write them as a layer of polygons.

        Tiles overlap; an object that the edge of a tile cuts comes from the tile that shows it whole, and one that is
        larger than the overlap is put together. Memory grows with the tile size, the raster's width and the number of
        objects, never with its area. Columns are ``Class`` (name), ``value`` (its number), ``area`` (square units of
        the CRS; square meters where these are degrees) and ``Confidence`` (percent), sorted by it. Oriented boxes also
        have ``length`` and ``width`` (meters) and ``angle``, the azimuth of the long side: 0..180 degrees, clockwise
        from the grid's north. Without any object the layer is empty. What is finished stays in `dst` with ``.part``
        behind until the layer is there.

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
            dates: When the images were taken, one for each date, such as ``['2024-05-01']``, for networks that read it;
                None takes what the files state.
            aoi: Area that holds the middles of the objects' boxes: a vector file or GeoDataFrame, which is reprojected;
                or a geometry in the raster's CRS.
            bbox: Left, bottom, right, top of an area that holds them, in the raster's CRS or `bbox_crs`.
            bbox_crs: CRS of `bbox`, such as ``'EPSG:4326'``; None for the raster's.
            tile_size: Side in pixels; None takes twice the chips' for backbones with a position grid, else 512 or more.
            overlap: Pixels that tiles share; None takes what 98 of 100 training boxes fit in, at most half a tile.
            batch_size: Tiles computed together.
            device: Torch device; None means CUDA where there is one.
            outline: Of masks: ``'exact'`` along the pixels, ``'simplified'``, ``'orthogonal'`` as buildings are, or
                ``'rectangle'``, the one of least area, with the columns of oriented boxes.
            augment: Predict each tile four times, flipped, and take the mean; ``'flips'`` is the same.
            merge: Of objects that overlap, ``'nms'`` keeps the highest-scoring; ``'soft_nms'``, for crowds, lowers the
                scores of the others and leaves what stays above `threshold`; ``'weighted'`` makes them one,
                of their mean box and score (outlines have no mean: the highest-scoring's stays).
            resume: Continue a run that was interrupted: same raster, model and options.
            overwrite: Replace `dst` if it exists.
            part: Compute one of several parts alone, for machines that share a disk: ``(3, 40)`` is the third of forty.
                It stays in the folder ``<dst>.part``, which is returned.
            merge_parts: Write the layer, once all its parts are computed: that of one machine.
            client: A `dask.distributed.Client`: its workers, which see the same disk, compute the parts. One that fails
                is tried again twice; the same call again does only what is missing.
            engine: What computes: ``'torch'``; on the CPU, except for detectors of two stages, also ``'onnx'``
                (onnxruntime) and ``'openvino'``, which run the network's ONNX graph, or ``'auto'``, the fastest by a
                short measurement. In parts and on clusters torch computes.

        Returns:
            The path written.

        Raises:
            RasterError: If bands or units do not fit, or reading or writing fails; no part of `dst` is left.
            CheckpointError: If there is no such run to resume, or what is finished cannot be kept.
            ExportError: If another engine than torch cannot run the network.
            MissingExtraError: If the libraries of the extra ``vector``, or the engine, are not installed.
            ValueError: If a number is out of its range.
        """
        request = DetectRequest(
            src,
            dst,
            self._options(self.spec).typical_side,
            self.architecture.masks,
            ReadOptions(
                bands,
                sensor,
                scale,
                offset,
                nodata,
                resolution,
                self.spec.is_radar,
                area.AreaOfInterest(aoi, bbox, bbox_crs),
                dates=dates,
            ),
            TilingOptions(tile_size, batch_size=batch_size, device=device, engine=engine),
            DetectOptions(threshold, nms_overlap, augment, outline, overlap, merge, resume),
            overwrite,
            self.architecture.oriented,
        )
        share = choose_share(part, merge_parts=merge_parts)
        if engine != 'torch':
            if client is not None or share is not None or merge_parts:
                raise ArgumentError(
                    f"part=, merge_parts= and client= compute with engine='torch', so that all parts are alike; leave "
                    f'out engine={engine!r}'
                )
            request = replace(request, graph=self.onnx_graph, detection=self._detection_facts(self.network))
        if client is not None:
            cluster.refuse_parts(part, merge_parts=merge_parts)
            return cluster.detect_on_cluster(self, request, client)
        if share is not None or merge_parts:
            return detect_in_shares(self.spec, self.network, request, share)
        return detect_request(self.spec, self.network, request)


TWO_STAGES = (
    'its second stage computes as many regions as its first proposes, which differs from image to image; use '
    'detect_objects, which needs torch, and save it without export=, or train a RetinaNet, FCOS or RotatedFCOS'
)
"""Why no graph of an R-CNN is written."""

FINE_SIDE = 12.0
"""Median of the shorter sides of oriented training boxes, in pixels, below which `RotatedFCOS` begins at stride 4."""

FINE, COARSE = (4, 8, 16, 32), (8, 16, 32)
"""Proposals come from P2 to P6; dense detectors begin at P3, which has a quarter as many places."""


@registry.register_model
class FasterRCNN(ObjectDetector):
    """Faster R-CNN (Ren et al. 2015, arXiv:1506.01497) on P2 to P6; with a plain transformer it is ViTDet's.

    `head` takes `RCNNOptions`, of which ``style='vitdet'`` gives ViTDet's heads.
    """

    not_exported = TWO_STAGES
    architecture = DetectorArchitecture(
        partial(heads.TwoStageHead, masks=False), RCNNOptions, FINE, pooled=1, per_level=1
    )


@registry.register_model
class MaskRCNN(ObjectDetector):
    """Mask R-CNN (He et al. 2017, arXiv:1703.06870): Faster R-CNN with an outline of each object."""

    tasks = (Task.INSTANCES,)
    not_exported = TWO_STAGES
    architecture = DetectorArchitecture(
        partial(heads.TwoStageHead, masks=True), RCNNOptions, FINE, pooled=1, per_level=1, masks=True
    )


@registry.register_model
class RetinaNet(ObjectDetector):
    """RetinaNet (Lin et al. 2017, arXiv:1708.02002) on P3 to P7, three sizes of anchors on each."""

    architecture = DetectorArchitecture(
        heads.RetinaNetHead, SingleStageOptions, COARSE, pooled=2, per_level=3, candidates='level'
    )


@registry.register_model
class FCOS(ObjectDetector):
    """FCOS (Tian et al. 2019, arXiv:1904.01355) on P3 to P7; it has no anchors."""

    architecture = DetectorArchitecture(
        heads.FCOSHead, SingleStageOptions, COARSE, pooled=2, per_level=0, candidates='level'
    )


@registry.register_model
class RotatedFCOS(ObjectDetector):
    """FCOS for oriented boxes, such as ships, vehicles and buildings that lie in any direction.

    At every place of P3 to P7 (P2 to P7 with ``fine=True``) it gives classes and one oriented box. Places are assigned
    to objects by how well their class and box fit (task-aligned), and the loss compares whole boxes, by ProbIoU
    (Llerena et al. 2021, arXiv:2106.06072) or exactly, so that no angle is a border. Metrics and suppression take the
    exact overlap. A box says in which direction its long side lies, not where the bow is.

    It trains on oriented boxes (DOTA, YOLO-OBB, COCO quadrilaterals) and on outlined objects, of which it takes the
    rectangles of least area. `head` takes `RotatedOptions`; without it, `fine` is chosen by the training boxes: where
    half of them have a shorter side under 12 pixels.
    """

    tasks = (Task.ORIENTED, Task.INSTANCES)
    architecture = DetectorArchitecture(
        rotated.RotatedFCOSHead,
        RotatedOptions,
        COARSE,
        pooled=2,
        per_level=0,
        oriented=True,
        candidates='level and image',
    )

    @classmethod
    def _levels(cls, head: HeadOptions) -> DetectorArchitecture:
        fine = isinstance(head, RotatedOptions) and head.fine
        return replace(cls.architecture, strides=FINE) if fine else cls.architecture

    def _default_head(self, data: ChipData, resize_to: int | None) -> HeadOptions:
        turned = training_rectangles(data)
        zoom = 1.0 if resize_to is None else resize_to / data.chip_size
        return RotatedOptions(fine=bool(len(turned)) and float(np.median(turned[:, 3])) * zoom < FINE_SIDE)


ORIENTED_OVERLAP = 0.3
"""Of two oriented boxes of one class that overlap more, `OrientedRCNN` drops one, unless its options say otherwise."""


@registry.register_model
class OrientedRCNN(ObjectDetector):
    """Oriented R-CNN (Xie et al. 2021, arXiv:2108.05699): Faster R-CNN for oriented boxes, on P2 to P6.

    Level anchors, chosen by the training boxes, propose oriented boxes; what lies in these, turned level, says what
    they are and corrects them. It computes more than `RotatedFCOS`, and trains on the same data. `head` takes
    `RCNNOptions`, of which ``box_nms_thresh`` is an exact overlap, 0.3 without options.
    """

    tasks = (Task.ORIENTED, Task.INSTANCES)
    not_exported = TWO_STAGES
    architecture = DetectorArchitecture(
        oriented_rcnn.OrientedRCNNHead, RCNNOptions, FINE, pooled=1, per_level=1, oriented=True
    )

    def _default_head(self, data: ChipData, resize_to: int | None) -> HeadOptions:
        return RCNNOptions(box_nms_thresh=ORIENTED_OVERLAP)


@registry.register_model
class SingleShotDetector(ObjectDetector):
    """SSD's heads and training (Liu et al. 2016, arXiv:1512.02325) on P3 to P7.

    ArcGIS's `grids` and `zooms` have no counterpart: levels are those of the backbone, and `anchor_sizes` or `scales`
    say how large anchors are on each.
    """

    default_backbone = 'resnet34'
    architecture = DetectorArchitecture(
        heads.SSDHead, SingleStageOptions, COARSE, pooled=2, per_level=3, candidates='class'
    )


@registry.register_model
class RTDetr(ObjectDetector):
    """RT-DETR (Zhao et al. 2023, arXiv:2304.08069) on P3 to P5: queries that each predict one object, or none.

    It has no anchors, and in images as large as the chips no non-maximum suppression: a Hungarian matching assigns each
    object to one query. Layers and losses are those of the library transformers (the extra ``detr``) and begin with
    random weights; the backbone is any of geolearn's. `head` takes `TransformerOptions`. ArcGIS's `RTDetrV2` is the
    same network but for details of its sampling and training; its `DETReg` is of the same family. The training loss has
    a part, `denoising`, that the validation loss has not.
    """

    architecture = DetectorArchitecture(heads.RTDetrHead, TransformerOptions, heads.STRIDES, pooled=0, per_level=0)

    @classmethod
    def build(
        cls, spec: ModelSpec, *, pretrained: bool = False, weights: str | Path | None = None
    ) -> detector.Detector:
        """Build the network that a spec describes.

        Raises:
            MissingExtraError: If transformers is not installed.
        """
        options = cls._options(spec)
        side = spec.chip_size if options.resize_to is None else options.resize_to
        architecture = replace(cls.architecture, head=partial(heads.RTDetrHead, side=side))
        return build_detector(spec, options, architecture, pretrained=pretrained, weights=weights)
