"""Panoptic models: a class for every pixel, and a number for every countable object."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, get_args

import numpy as np
import pandas as pd
import torch
from torch import nn

from geolearn import extras
from geolearn.adaptation import DEFAULT_ADAPTATION, Adaptation, Temporal
from geolearn.arguments import record_arguments
from geolearn.backbones.custom import ModuleBackbone
from geolearn.chips.label import Task
from geolearn.data import ChipData
from geolearn.errors import BundleError, ChipFolderError, UnknownNameError
from geolearn.inference import area, panoptic, reading
from geolearn.inference.detect_raster import DetectRequest
from geolearn.inference.mapping import MapOptions, MapRequest
from geolearn.inference.options import NoData, ReadOptions, Resolution, Scale, TilingOptions
from geolearn.inference.outlines import Outline
from geolearn.inference.placing import DetectOptions
from geolearn.metrics import PanopticScores
from geolearn.models import base, new_spec, registry
from geolearn.models.evaluation.panoptic import PanopticEvaluation, draw_panoptic_chips, evaluate_panoptic
from geolearn.models.object_detector import AnchorChoice, choose_options, typical_side
from geolearn.models.raster_use import TILE_OPTIONS, RasterUse, one_or_several
from geolearn.models.reports.report import TaskReport
from geolearn.models.reports.tasks import panoptic_report
from geolearn.networks.detection import heads
from geolearn.networks.detection.architecture import (
    DetectorArchitecture,
    DetectorOptions,
    HeadOptions,
    RCNNOptions,
    build_detector,
)
from geolearn.networks.detection.mask2former import STRIDES, Mask2FormerNetwork, Mask2FormerOptions
from geolearn.networks.detection.panoptic import (
    Classes,
    MergeOptions,
    PanopticDetector,
    PanopticLoss,
    PanopticNetwork,
    Things,
)
from geolearn.networks.network import build_backbone, build_normalize
from geolearn.networks.spec import ModelSpec, decode

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FINE = (4, 8, 16, 32)


class PanopticModel(base.Model):
    """Segment images into stuff (land, water) and things (cars, houses); the subclasses name the network.

    Things are the classes that have objects in the data, as ``labels2/`` of Panoptic_Segmentation numbers them.

    Args:
        data: From `prepare_data`, of Panoptic_Segmentation.
        backbone: Such as ``'dofa_base'`` or ``'resnet50'``; see `geolearn.list_backbones`. None takes the class's own.
        head: The numbers of the head.
        merge: How objects and classes become one map.
        pretrained: Fill the backbone with its published weights.
        weights: A file or folder with the backbone's weights, or another model's .dlpk, instead of fetching them.
        wavelengths: Center wavelength of each band in micrometers, where the data does not name the bands well; None
            for radar.
        ignore_classes: Label values to ignore, on top of those that `data` ignores.
        adapt: What of the backbone is trained, how fast, and with low-rank updates or in full.
        temporal: How the maps of chips of several dates become one: ``'mean'``, ``'concat'`` or ``'ltae'``.
        resolution_m: Of the images in meters per pixel, for backbones whose positions depend on it.

    Raises:
        ChipFolderError: If labels are not classes and objects, no class has objects, or all have.
        UnknownNameError: If there is no such backbone.
        BackboneError: If it gives no maps at the strides needed, or cannot be adapted as `adapt` says.
        BandError: If bands lack a wavelength that the backbone needs.
        WeightsError: If weights cannot be had or do not fit.
        ValueError: If options of the head are not valid.
    """

    tasks: ClassVar[tuple[Task, ...]] = (Task.PANOPTIC,)
    not_exported = 'the number of its objects differs from image to image; save it without export='
    raster_use = RasterUse(
        'maps segments',
        ('.tif', '.tiff'),
        (*TILE_OPTIONS, 'threshold', 'nms_overlap', 'overlap', 'outline', 'resume'),
    )
    forward_takes_targets = True
    keeps_statistics = True
    default_backbone: ClassVar[str] = 'resnet50'
    head_options: ClassVar[type[HeadOptions | Mask2FormerOptions]] = RCNNOptions
    network: PanopticNetwork

    def __init__(
        self,
        data: ChipData,
        backbone: str | ModuleBackbone | None = None,
        *,
        head: HeadOptions | Mask2FormerOptions | None = None,
        merge: MergeOptions | None = None,
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
        data = data.ignoring(ignore_classes) if ignore_classes else data
        if head is not None and not isinstance(head, self.head_options):
            raise ValueError(f'head must be {self.head_options.__name__}, got {head!r}')
        things = find_things(data)
        options = self._choose(data, self.head_options() if head is None else head)
        options |= {'things': things, 'merge': asdict(MergeOptions() if merge is None else merge)}
        name = self.default_backbone if backbone is None else backbone
        config = new_spec.BackboneConfig(name, pretrained, weights, wavelengths, adapt, temporal, resolution_m)
        self._create(data, config, options=options, arguments=arguments)

    @classmethod
    def _choose(cls, data: ChipData, head: Any) -> dict[str, Any]:
        """Return the options of the network, as plain JSON."""
        raise NotImplementedError

    @classmethod
    def _parts(cls, spec: ModelSpec) -> tuple[tuple[int, ...], MergeOptions, dict[str, Any]]:
        """Return the indices of the things, how segments are merged, and the options of the network."""
        values = decode(list[int], spec.options.get('things'), 'things')
        merge = decode(MergeOptions, spec.options.get('merge'), 'merge')
        known = [info.value for info in spec.class_infos]
        if not values or not set(values) < set(known):
            raise BundleError(f'the manifest is broken: things are {values}, and classes {known}')
        rest = {name: value for name, value in spec.options.items() if name not in ('things', 'merge')}
        return tuple(known.index(value) for value in sorted(set(values), key=known.index)), merge, rest

    def _tile_size(self) -> int | None:
        """Return the side of tiles where the user names none; None leaves it to the backbone."""
        return None

    def make_loss(self) -> nn.Module:
        """Make the sum of the losses that the network computes."""
        return PanopticLoss()

    @property
    def _typical_side(self) -> float:
        """Side in pixels that nearly no object of the training chips exceeds."""
        return float(self._parts(self.spec)[2].get('typical_side', 64.0))

    def make_scores(self) -> PanopticScores:
        """Make the metrics that each epoch computes on the middle of each validation chip, and `evaluate` on all of it.

        Raises:
            MissingExtraError: If the latter needs a library that is not installed.
        """
        if self.data is not None and self.data.valid_dl.shows_parts:
            # said before the training, not after it
            extras.require('shapely', extra='vector', to='evaluate segments on chips larger than chip_size')
        return PanopticScores(len(self.spec.class_infos), self._parts(self.spec)[0])

    @classmethod
    def emd_fields(cls, spec: ModelSpec) -> dict[str, Any]:
        """Return the keys of Esri's model definition that belong to panoptic models."""
        things = [spec.class_infos[index] for index in cls._parts(spec)[0]]
        rows = [{'Value': info.value, 'Name': info.name} for info in things]
        return {
            'ModelType': 'PanopticSegmenter',
            'SupportsVariableTileSize': True,
            'Panoptic_Segmentation_Instance_Classes': rows,
        }

    def evaluate(self) -> PanopticEvaluation:
        """Compare segments with the true ones of the validation chips; computed once after each fit.

        Its metrics are panoptic, segmentation and recognition quality: pq, sq, rq, pq_things and pq_stuff; covered
        is the share of the labelled pixels that have a class, without which they say little.
        """
        if not isinstance(self.evaluation, PanopticEvaluation):
            chips = self._needed_data().valid_dl
            self.evaluation = evaluate_panoptic(
                self.network, chips, self.make_scores(), self._class_names, typical_side=self._typical_side
            )
        return self.evaluation

    def _task_report(self) -> TaskReport:
        data = self._needed_data()
        return panoptic_report(self.spec, self.network, data, self.evaluate(), typical_side=self._typical_side)

    def per_class_metrics(self) -> pd.DataFrame:
        """PQ, SQ and RQ of each class on the validation chips; NaN for classes that do not occur."""
        table = self.evaluate().per_class
        assert table is not None
        return table

    def show_results(self, rows: int | None = None) -> 'Figure':
        """Draw validation chips with true and predicted segments: chips that together show every class.

        Args:
            rows: Number of chips; None takes as many as show every class, 4 to 8.
        """
        chosen, side = self._choose_chips(rows), self._typical_side
        return draw_panoptic_chips(self.network, self._needed_data(), self.spec, chosen, typical_side=side)

    # -- mapping

    def use_on_raster(self, sources: Sequence[Any], dst: str | Path, options: Mapping[str, Any]) -> Path:
        """Map rasters with the options of `predict_raster`."""
        return self.predict_raster(one_or_several(sources), dst, **options)

    def predict_raster(
        self,
        src: reading.RasterSource,
        dst: str | Path,
        *,
        layer: str | Path | None = None,
        threshold: float | None = None,
        nms_overlap: float = 0.3,
        outline: Outline = 'exact',
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
        overwrite: bool = False,
        resume: bool = False,
    ) -> Path:
        """Map a raster of any size to classes and objects, and write the objects as a layer too.

        Objects come through overlapping tiles as in `detect_objects`, so that no edge of a tile splits one, and classes
        as in the maps of classifiers; then objects are laid over the classes, the highest-scoring on top.

        Args:
            src: A raster, or several that make one mosaic.
            dst: GeoTIFF to write, uint32: the band ``class`` of class values, NoData where there is no segment; and the
                band ``id``, which numbers the objects of the raster from 1, 0 elsewhere.
            layer: Of the objects; None takes `dst` with the suffix .gpkg. Columns are ``id``, ``Class``, ``value``,
                ``Confidence`` (percent) and ``area``.
            threshold: Lowest score of an object, 0..1; None takes that of `merge`, with which the model was made.
            nms_overlap: Two objects of one class that overlap more, intersection over union, are merged.
            outline: ``'exact'``, ``'simplified'`` or ``'orthogonal'``.
            bands: Names of the raster's bands in file order, where the file names none or wrong ones.
            sensor: Whose names they are.
            scale: Multiplies pixel values, where units are not those of the training chips.
            offset: Is added after that.
            nodata: Value that marks missing pixels where the file does not say so, or one for each band of the file.
            resolution: Side of the pixels to resample to while reading, in units of the CRS, or ``'training'``.
            dates: When the images were taken, one for each date, such as ``['2024-05-01']``, for networks that read it;
                None takes what the files state.
            aoi: Area to map: a vector file or GeoDataFrame, or a geometry in the raster's CRS.
            bbox: Left, bottom, right, top of the part to map, in the raster's CRS or `bbox_crs`.
            bbox_crs: CRS of `bbox`; None for the raster's.
            tile_size: Side in pixels; None takes 512 or more, for `Mask2Former` twice the chips'.
            overlap: Pixels that tiles share, in which objects are sought; None takes what 98 of 100 objects fit in.
            batch_size: Tiles computed together.
            device: Torch device; None means CUDA where there is one.
            overwrite: Replace files that exist.
            resume: Continue a run that was killed or failed, from what is kept in the folder ``<dst>.part``: same
                raster, model and options. Map and objects are those of a run that was not interrupted.

        Returns:
            The path of the map.

        Raises:
            RasterError: If bands or units do not fit, a file exists, or reading or writing fails.
            CheckpointError: If there is no run to resume, or what is finished cannot be kept.
            MissingExtraError: If the libraries of the extra ``vector`` are not installed.
            UnknownNameError: If there is no such outline.
            ValueError: If a number is out of its range.
        """
        if outline not in get_args(Outline):
            raise UnknownNameError('outline', str(outline), get_args(Outline))
        things, merge, _ = self._parts(self.spec)
        target = Path(dst).expanduser()
        read = ReadOptions(
            bands,
            sensor,
            scale,
            offset,
            nodata,
            resolution,
            self.spec.is_radar,
            area.AreaOfInterest(aoi, bbox, bbox_crs),
            dates=dates,
        )
        side = self._tile_size() if tile_size is None else tile_size
        tiling = TilingOptions(side, batch_size=batch_size, device=device)
        least = merge.threshold if threshold is None else threshold
        options = DetectOptions(least, nms_overlap, False, outline, overlap)
        layer_path = target.with_suffix('.gpkg') if layer is None else Path(layer).expanduser()
        job = panoptic.PanopticRequest(
            target,
            layer_path,
            DetectRequest(src, layer_path, self._typical_side, True, read, tiling, options, overwrite),
            MapRequest(src, target, read, tiling, MapOptions(cog=False), False),
            merge,
            overwrite,
            resume,
        )
        return panoptic.map_panoptic(self.spec, Things(self.network), Classes(self.network), things, job)

    @torch.inference_mode()
    def predict(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Segment one image that memory holds; for rasters see `predict_raster`.

        Args:
            image: Pixels (bands, H, W) in the model's order of bands, NaN where there is no data.

        Returns:
            Class values (H, W) int64, -1 where there is no segment, and numbers of the objects (H, W), 0 elsewhere.

        Raises:
            ValueError: If the array has another shape.
        """
        if image.ndim != 3 or len(image) != len(self.spec.bands):
            raise ValueError(f'image must be ({len(self.spec.bands)}, H, W), got {image.shape}')
        self.network.eval()
        device = next(self.network.parameters()).device
        (found,), _ = self.network(torch.from_numpy(image.astype(np.float32))[None].to(device))
        values = np.full(256, -1, np.int64)
        values[: len(self.spec.class_infos)] = [info.value for info in self.spec.class_infos]
        return values[found.classes.cpu().numpy()], found.ids.cpu().numpy()


def find_things(data: ChipData) -> list[int]:
    """Return the label values of the classes that have objects, in the order of the classes.

    Raises:
        ChipFolderError: If no class has objects, or all have.
    """
    held = set(np.unique(data.table.object_values).tolist())
    values = [info.value for info in data.class_infos]
    things = [value for value in values if value in held]
    if not things:
        raise ChipFolderError(
            f'no trained class of {data.path} has objects in labels2/; a class for each pixel is what UNet learns'
        )
    if len(things) == len(values):
        raise ChipFolderError(
            f'all classes of {data.path} have objects, and none is stuff; objects alone are what MaskRCNN learns'
        )
    return things


@registry.register_model
class PanopticFPN(PanopticModel):
    """Panoptic FPN (Kirillov et al. 2019, arXiv:1901.02446): Mask R-CNN and a semantic branch on one pyramid.

    `head` takes `RCNNOptions`.
    """

    architecture: ClassVar[DetectorArchitecture] = DetectorArchitecture(
        partial(heads.TwoStageHead, masks=True), RCNNOptions, FINE, pooled=1, per_level=1, masks=True
    )

    @classmethod
    def _choose(cls, data: ChipData, head: Any) -> dict[str, Any]:
        return choose_options(data, cls.architecture, AnchorChoice(), resize_to=None, head=head).to_json()

    @classmethod
    def build(cls, spec: ModelSpec, *, pretrained: bool = False, weights: str | Path | None = None) -> PanopticDetector:
        """Build the network that a spec describes."""
        things, merge, rest = cls._parts(spec)
        options = DetectorOptions.from_json(rest, head=cls.architecture.options)
        counted = replace(spec, class_infos=tuple(spec.class_infos[index] for index in things))
        parts = build_detector(counted, options, cls.architecture, pretrained=pretrained, weights=weights)
        return PanopticDetector(parts, len(spec.class_infos), things, merge)


@registry.register_model
class Mask2Former(PanopticModel):
    """Mask2Former (Cheng et al. 2022, arXiv:2112.01527): queries that each draw one segment, of stuff or of a thing.

    Layers and losses are those of the library transformers (the extra ``detr``) and begin with random weights; the
    backbone is any of geolearn's. It learns slowly: expect many epochs and batches of 8 or more, and begin with
    `PanopticFPN` where labels are few. What its queries know of places holds for images of the size of the chips, so
    tiles of rasters are twice as large at most, unless `tile_size` says otherwise. `head` takes `Mask2FormerOptions`.
    """

    head_options: ClassVar[type[HeadOptions | Mask2FormerOptions]] = Mask2FormerOptions

    @classmethod
    def _choose(cls, data: ChipData, head: Any) -> dict[str, Any]:
        return {'head': asdict(head), 'typical_side': typical_side(data)}

    def _tile_size(self) -> int | None:
        cells = -(-self.spec.chip_size // STRIDES[-1])
        return 2 * STRIDES[-1] * cells

    @classmethod
    def build(
        cls, spec: ModelSpec, *, pretrained: bool = False, weights: str | Path | None = None
    ) -> Mask2FormerNetwork:
        """Build the network that a spec describes.

        Raises:
            MissingExtraError: If transformers is not installed.
        """
        things, merge, rest = cls._parts(spec)
        if rest.keys() != {'head', 'typical_side'} or not decode(float, rest['typical_side'], 'typical_side') > 0:
            raise BundleError(f'the manifest is broken: options of a Mask2Former are head and typical_side, got {rest}')
        options = decode(Mask2FormerOptions, rest['head'], 'head')
        backbone = build_backbone(spec, pretrained=pretrained, weights=weights, strides=STRIDES)
        return Mask2FormerNetwork(build_normalize(spec), backbone, len(spec.class_infos), things, merge, options)
