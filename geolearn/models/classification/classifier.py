"""FeatureClassifier: one class, or any number of classes, for a whole chip or for the ground around a polygon."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from geolearn.backbones.adapt import DEFAULT_ADAPTATION, Adaptation
from geolearn.backbones.temporal import Temporal
from geolearn.chips.label import Task
from geolearn.classes import MAX_CLASSES
from geolearn.data import ChipData
from geolearn.device import choose_device
from geolearn.inference.polygons import Crop
from geolearn.models._describing import BackboneChoice, require_task
from geolearn.models._registry import register_model
from geolearn.models.classification import _looking
from geolearn.models.classification._objects import PolygonJob, classify_layer
from geolearn.models.classification._outputs import THRESHOLD, check_threshold, class_probabilities, decide
from geolearn.models.classification.explain import Explanation, heat_map
from geolearn.models.classification.model import ChipModel
from geolearn.models.classification.options import ChipOptions, Pooling, mixup_strength
from geolearn.models.images import Image, load_dates, load_image
from geolearn.models.mapping import RasterSource, Reading


class ChipPrediction(NamedTuple):
    """What an image is taken for.

    Args:
        names: The likeliest class; or, where an image may hold several, all that are likely, in the order of classes.
        confidences: Probability of each class by name, 0..1.
    """

    names: tuple[str, ...]
    confidences: dict[str, float]


@register_model
class FeatureClassifier(ChipModel):
    """Name the class of a whole chip, or all classes in it: a linear layer on any backbone.

    Of a plain transformer it takes the class token or the mean of the tokens, of other networks the mean of the
    coarsest map.

    Args:
        data: From `prepare_data`, of Labeled_Tiles, MultiLabeled_Tiles, Imagenet or BigEarthNet.
        backbone: Such as ``'dofa_base'`` or ``'resnet50'``; see `geolearn.list_backbones`.
        pretrained: Fill the backbone with its published weights.
        weights: A file or folder with the backbone's weights, or another model's .dlpk, instead of fetching them.
        wavelengths: Centre wavelength of each band in micrometres, where the data does not name the bands well; None
            for radar.
        pooling: ``'mean'``, ``'cls'``, or ``'auto'`` for what the transformer was pretrained with.
        dropout: Rate before the linear layer.
        class_balancing: Weigh classes in the loss by their rarity among the training chips.
        label_smoothing: Share of each target, 0..1, that is spread over all classes; for one class per chip.
        mixup: Blend training chips with one another (Zhang et al. 2017, arXiv:1710.09412): True, or how strongly; see
            `geolearn.augment.Mixup`.
        oversample: Show chips of rare classes several times in an epoch, as ``prepare_data(oversample=True)`` does.
        adapt: What of the backbone learns, how fast, and with low-rank updates or in full.
        temporal: How the maps of chips of several dates become one: ``'mean'``, ``'concat'`` or ``'ltae'``.
        resolution_m: Of the images in metres per pixel, for backbones whose positions depend on it.

    Raises:
        ChipFolderError: If the labels are not classes of whole chips.
        UnknownNameError: If there is no such backbone.
        BackboneError: If there is, but it cannot be adapted as `adapt` says, or has no class token to take.
        BandError: If bands lack a wavelength that the backbone needs, or `wavelengths` do not fit.
        WeightsError: If weights cannot be had or do not fit.
        ValueError: If another option makes no sense, or there are more than 255 classes.
    """

    default_backbone: ClassVar[str] = 'resnet34'

    def __init__(
        self,
        data: ChipData,
        backbone: str | None = None,
        *,
        pretrained: bool = True,
        weights: str | Path | None = None,
        wavelengths: Sequence[float | None] | None = None,
        pooling: Pooling = 'auto',
        dropout: float = 0.2,
        class_balancing: bool = False,
        label_smoothing: float = 0.0,
        mixup: bool | float = False,
        oversample: bool = False,
        adapt: Adaptation = DEFAULT_ADAPTATION,
        temporal: Temporal = 'mean',
        resolution_m: float | None = None,
    ) -> None:
        require_task(data, type(self).__name__, self.tasks)
        if data.c > MAX_CLASSES:
            raise ValueError(f'found {data.c} classes, but a model tells at most {MAX_CLASSES} apart; merge some')
        name = self.default_backbone if backbone is None else backbone
        choice = BackboneChoice(name, pretrained, weights, wavelengths, adapt, temporal, resolution_m)
        multi_label = data.task == Task.LABELS
        options = ChipOptions(
            multi_label,
            pooling,
            dropout,
            label_smoothing,
            mixup_strength(mixup),
            oversample,
            crop='bounding_box' if data.variable_size else 'fixed',
            blackened=data.blackened,
        )
        super().__init__(data, choice, options=options.to_json(), class_balancing=class_balancing)

    # -- using

    def predict(
        self,
        image: Image | Sequence[Image],
        *,
        bands: Sequence[str] | None = None,
        sensor: str | None = None,
        scale: float | None = None,
        offset: float = 0.0,
        threshold: float = THRESHOLD,
        device: str | None = None,
    ) -> ChipPrediction:
        """Classify one image, best of about the size of the training chips.

        Args:
            image: Array (bands, H, W), bands as in training and NaN where there is no data; or a raster file. For
                models of several dates one such for each date, oldest first.
            bands: Names of the file's bands in their order, where it names none or wrong ones.
            sensor: Whose names the bands have, such as ``'Sentinel-2'`` for ``'B04'``.
            scale: Multiplies pixel values, where they are not in the units of the training chips.
            offset: Is added after that.
            threshold: Probability from which on a class is there, where a chip may hold several.
            device: Torch device; None means CUDA where there is one.

        Returns:
            ``(names, confidences)``.

        Raises:
            RasterError: If bands or units do not fit, or there is no data.
            ValueError: If an array has another shape, or the threshold is no probability.
        """
        check_threshold(threshold)
        pixels = self._load(image, Reading(bands, sensor, scale, offset))
        network = self.network.to(choose_device(device)).eval()
        multi_label = self._options.multi_label
        with torch.inference_mode():
            logits = network(pixels[None].to(choose_device(device)))
            likely = class_probabilities(logits, multi_label=multi_label).cpu()
        found = decide(likely, multi_label=multi_label, threshold=threshold)[0].tolist()
        names = tuple(name for name, there in zip(self._class_names, found) if there)
        return ChipPrediction(names, dict(zip(self._class_names, likely[0].tolist())))

    def explain(
        self,
        image: Image | Sequence[Image],
        *,
        class_name: str | None = None,
        method: Explanation = 'auto',
        device: str | None = None,
    ) -> np.ndarray:
        """Show where the model looks in an image.

        Args:
            image: As for `predict`, in the units of the training chips.
            class_name: What Grad-CAM shows the places of; None takes the likeliest class.
            method: ``'gradcam'``, ``'rollout'`` (attention of plain transformers, whatever the class), or ``'auto'``.
            device: Torch device; None means CUDA where there is one.

        Returns:
            Heat map (H, W) float32 in 0..1.

        Raises:
            UnknownNameError: If there is no such class.
            BackboneError: If the backbone does not offer its attention.
        """
        pixels = self._load(image, Reading()).to(choose_device(device))
        network = self.network.to(choose_device(device)).eval()
        index = _looking.choose_class(network, pixels, self._class_names, class_name)
        return heat_map(network, pixels, index, method).numpy()

    def _load(self, image: Image | Sequence[Image], reading: Reading) -> Tensor:
        """Return pixels ([dates,] bands, H, W)."""
        if self.spec.dates > 1:
            return load_dates(cast(Sequence[Image], image), self.spec, reading)
        return load_image(cast(Image, image), self.spec, reading).pixels

    def classify_objects(
        self,
        raster: RasterSource,
        polygons: Any,
        dst: str | Path,
        *,
        layer: str | None = None,
        crop: Crop | None = None,
        blacken: bool | None = None,
        chip_size: int | None = None,
        threshold: float = THRESHOLD,
        bands: Sequence[str] | None = None,
        sensor: str | None = None,
        scale: float | None = None,
        offset: float = 0.0,
        batch_size: int = 16,
        device: str | None = None,
    ) -> Path:
        """Classify the ground around each polygon of a layer, and write a copy of the layer that says so.

        The copy has the columns ``ClassLabel``, the names of several classes joined by ``;``, and ``Confidence``, in
        percent: of the class, or of the least certain decision. Polygons outside of the raster, or where it has no
        data, get neither; they are counted and told.

        Args:
            raster: A raster, or several that make one mosaic; for models of several dates a list of one such for each
                date, oldest first, or one raster of all.
            polygons: A file that OGR reads, a GeoParquet, or a GeoDataFrame, in any CRS.
            dst: Layer to write: .gpkg, .geojson (in WGS84), .parquet or .shp.
            layer: Layer of the file; None takes the only one.
            crop: ``'fixed'`` sees a chip around each polygon's middle, ``'bounding_box'`` its bounding box alone; None
                takes what the training chips were exported with.
            blacken: Set pixels around each polygon to 0; None does as the training chips were exported.
            chip_size: Side of the chips in pixels; None takes that of the training chips.
            threshold: Probability from which on a class is there, where a chip may hold several.
            bands: Names of the raster's bands in file order, where the file names none or wrong ones.
            sensor: Whose names the bands have, such as ``'Sentinel-2'`` for ``'B04'``.
            scale: Multiplies pixel values, where they are not in the units of the training chips.
            offset: Is added after that.
            batch_size: Chips computed together.
            device: Torch device; None means CUDA where there is one.

        Returns:
            The path written.

        Raises:
            RasterError: If bands, units or places do not fit, or reading or writing fails; no part of `dst` is left.
            MissingExtraError: If ``geolearn[vector]`` is not installed.
        """
        check_threshold(threshold)
        size = self.spec.chip_size if chip_size is None else chip_size
        job = PolygonJob(layer, crop, blacken, size, threshold, batch_size, device)
        reading = Reading(bands, sensor, scale, offset)
        return classify_layer(self.spec, self.network, raster, polygons, dst, reading, job)
