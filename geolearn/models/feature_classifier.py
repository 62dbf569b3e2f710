"""FeatureClassifier: one class, or any number of classes, for a whole chip or for the ground around a polygon."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from geolearn import classes, errors
from geolearn.adaptation import DEFAULT_ADAPTATION, Adaptation, Temporal
from geolearn.arguments import record_arguments
from geolearn.augment import Augmentation, Chain, Mixup
from geolearn.backbones.custom import ModuleBackbone
from geolearn.chips.batches import collate, loader
from geolearn.chips.label import Task
from geolearn.data import ChipData
from geolearn.device import choose_device
from geolearn.inference import images, reading, vectors
from geolearn.inference.classify_polygons import PolygonOptions, classify_polygons
from geolearn.inference.explain import Explanation, heat_map
from geolearn.inference.options import NoData, ReadOptions, Resolution, Scale
from geolearn.inference.scene import enter_image
from geolearn.losses import MultiLabelCrossEntropy, SoftCrossEntropy
from geolearn.losses.options import as_loss_module
from geolearn.metrics import ChipScores, ConfusionMatrix, MultiLabelScores
from geolearn.models import base, new_spec, registry
from geolearn.models.evaluation import classification as charts
from geolearn.models.evaluation.classification import ChipEvaluation, count_confusion, evaluate_chips
from geolearn.models.raster_use import RasterUse, one_or_several
from geolearn.models.reports.report import TaskReport
from geolearn.models.reports.tasks import chip_report
from geolearn.networks import classification
from geolearn.networks.chip_decisions import THRESHOLD, check_threshold
from geolearn.networks.network import Network
from geolearn.networks.spec import ModelSpec

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


def with_training_options(data: ChipData, options: classification.ChipOptions) -> ChipData:
    """Return the data with mixup and oversampling of the training chips; validation stays as it is.

    Raises:
        ValueError: If mixup is asked for and the data mixes its chips already.
    """
    loading = data.train_dl.options
    if options.mixup:
        transform = loading.transform
        if isinstance(transform, Augmentation) and (transform.mixup_alpha or transform.cutmix_alpha):
            raise ValueError('the data mixes its chips already (transforms=); pass mixup here or there, not both')
        mixup = Mixup(options.mixup, data.c)
        loading = replace(loading, transform=mixup if transform is None else Chain([transform, mixup]))
    if options.oversample and loading.repeats is None:
        holds = data.table.amounts([info.value for info in data.class_infos])[list(data.split.train)] > 0
        loading = replace(loading, repeats=collate.repeat_factors(holds))
    if loading is data.train_dl.options:
        return data
    return replace(data, train_dl=loader.ChipLoader(data.train_dl.dataset, loading))


class ChipPrediction(NamedTuple):
    """The classes of an image.

    Args:
        names: The likeliest class; or, where an image may hold several, all that are likely, in the order of classes.
        confidences: Probability of each class by name, 0..1.
    """

    names: tuple[str, ...]
    confidences: dict[str, float]


@registry.register_model
class FeatureClassifier(base.Model):
    """Classify whole chips, by one class or any number of them: a linear layer on any backbone.

    Of a plain transformer it takes the class token or the mean of the tokens, of other networks the mean of the
    coarsest map.

    Args:
        data: From `prepare_data`, of Labeled_Tiles, MultiLabeled_Tiles, Imagenet or BigEarthNet.
        backbone: Such as ``'dofa_base'`` or ``'resnet50'``; see `geolearn.list_backbones`.
        pretrained: Fill the backbone with its published weights.
        weights: A file or folder with the backbone's weights, or another model's .dlpk, instead of fetching them.
        wavelengths: Center wavelength of each band in micrometers, where the data does not name the bands well; None
            for radar.
        pooling: ``'mean'``, ``'cls'``, or ``'auto'`` for what the transformer was pretrained with.
        dropout: Rate before the linear layer.
        class_balancing: Weigh classes in the loss by their rarity among the training chips.
        loss: ``'cross_entropy'`` or ``'focal'`` (gamma 2), of each class where chips hold several; or a module or
            function of logits (N, classes) and indices (N,), or shares of the classes (N, classes) where chips hold
            several or are mixed.
        label_smoothing: Share of each target, 0..1, that is spread over all classes; for one class per chip.
        mixup: Blend training chips with one another (Zhang et al. 2017, arXiv:1710.09412): True, or how strongly; see
            `geolearn.augment.Mixup`.
        oversample: Show chips of rare classes several times in an epoch, as ``prepare_data(oversample=True)`` does.
        adapt: What of the backbone is trained, how fast, and with low-rank updates or in full.
        temporal: How the maps of chips of several dates become one: ``'mean'``, ``'concat'`` or ``'ltae'``.
        resolution_m: Of the images in meters per pixel, for backbones whose positions depend on it.

    Raises:
        ChipFolderError: If the labels are not classes of whole chips.
        UnknownNameError: If there is no such backbone.
        BackboneError: If there is, but it cannot be adapted as `adapt` says, or has no class token to take.
        BandError: If bands lack a wavelength that the backbone needs, or `wavelengths` do not fit.
        WeightsError: If weights cannot be had or do not fit.
        ValueError: If another option is not valid, or there are more than 255 classes.
    """

    tasks = (Task.LABEL, Task.LABELS)
    graph_output = 'chip classes'
    raster_use = RasterUse(
        'classifies polygons',
        tuple(vectors.DRIVERS),
        ('batch_size', 'device', 'threshold', 'polygons', 'layer', 'crop'),
    )
    default_backbone: ClassVar[str] = 'resnet34'
    network: classification.ChipNetwork
    _options: classification.ChipOptions

    def __init__(
        self,
        data: ChipData,
        backbone: str | ModuleBackbone | None = None,
        *,
        pretrained: bool = True,
        weights: str | Path | None = None,
        wavelengths: Sequence[float | None] | None = None,
        pooling: classification.Pooling = 'auto',
        dropout: float = 0.2,
        class_balancing: bool = False,
        loss: str | nn.Module | Callable[..., Tensor] = 'cross_entropy',
        label_smoothing: float = 0.0,
        mixup: bool | float = False,
        oversample: bool = False,
        adapt: Adaptation = DEFAULT_ADAPTATION,
        temporal: Temporal = 'mean',
        resolution_m: float | None = None,
    ) -> None:
        arguments = record_arguments(type(self), locals())
        new_spec.require_task(data, type(self).__name__, self.tasks)
        if data.c > classes.MAX_CLASSES:
            raise ValueError(f'found {data.c} classes, but a model has at most {classes.MAX_CLASSES}; merge some')
        name = self.default_backbone if backbone is None else backbone
        config = new_spec.BackboneConfig(name, pretrained, weights, wavelengths, adapt, temporal, resolution_m)
        multi_label = data.task == Task.LABELS
        own = None if isinstance(loss, str) else as_loss_module(loss)
        options = classification.ChipOptions(
            multi_label,
            pooling,
            dropout,
            label_smoothing,
            classification.mixup_strength(mixup),
            oversample,
            crop='bounding_box' if data.variable_size else 'fixed',
            blackened=data.blackened,
            loss=loss if isinstance(loss, str) else 'cross_entropy',
        )
        self._create(
            data, config, options=options.to_json(), arguments=arguments, class_balancing=class_balancing, loss=own
        )

    # -- what a task defines

    @classmethod
    def build(
        cls, spec: ModelSpec, *, pretrained: bool = False, weights: str | Path | None = None
    ) -> classification.ChipNetwork:
        """Build the network that a spec describes."""
        options = classification.ChipOptions.from_json(spec.options)
        needed = 1 if options.multi_label else 2
        if len(spec.class_infos) < needed:
            raise errors.BundleError(
                f'the manifest is broken: {spec.model} needs {needed} classes or more, found fewer'
            )
        return classification.build_chip_network(spec, options, pretrained=pretrained, weights=weights)

    def make_loss(self) -> nn.Module:
        """Make the loss of one class per chip or of many, weighted where classes are balanced."""
        if (custom := self._custom()) is not None:
            return custom
        weights, gamma = None, classification.CHIP_LOSSES[self._options.loss]
        if self.spec.class_balancing:
            weights = torch.tensor(self._needed_data().class_weights, dtype=torch.float32)
        if self._options.multi_label:
            return MultiLabelCrossEntropy(weights, gamma=gamma)
        return SoftCrossEntropy(weights, label_smoothing=self._options.label_smoothing, gamma=gamma)

    def make_scores(self) -> ChipScores | MultiLabelScores:
        """Make the metrics that each epoch computes on the validation chips."""
        count = self._needed_data().c
        return MultiLabelScores(count) if self._options.multi_label else ChipScores(count)

    @classmethod
    def emd_fields(cls, spec: ModelSpec) -> dict[str, Any]:
        """Return the keys of Esri's model definition that belong to classifiers of features."""
        options = classification.ChipOptions.from_json(spec.options)
        return {
            'ModelType': 'ObjectClassification',
            'MetaDataMode': 'MultiLabeled_Tiles' if options.multi_label else 'Labeled_Tiles',
            'CropSizeFixed': int(options.crop == 'fixed'),
            'BlackenAroundFeature': int(options.blackened),
        }

    def evaluate(self) -> ChipEvaluation:
        """Compute logits and truth of the validation chips, and metrics of them; computed once after each fit.

        Its metrics are ``accuracy``, ``f1_micro``, ``f1_macro``, ``f2_micro``, ``f2_macro``, ``precision``, ``recall``
        and ``hamming_loss``, NaN where undefined; see `geolearn.metrics.MultiLabelScores`.
        """
        if not isinstance(self.evaluation, ChipEvaluation):
            self.evaluation = evaluate_chips(self.network, self._needed_data().valid_dl, self._class_names)
        return self.evaluation

    def _task_report(self) -> TaskReport:
        return chip_report(self.spec, self._needed_data(), self.evaluate(), self._options)

    def _assemble(
        self, spec: ModelSpec, network: Network, data: ChipData | None, loss: nn.Module | None = None
    ) -> None:
        options = classification.ChipOptions.from_json(spec.options)
        if data is not None:
            new_spec.require_task(data, spec.model, self.tasks)
            if options.multi_label != (data.task == Task.LABELS):
                labels = 'any number of classes' if options.multi_label else 'one class'
                raise errors.ChipFolderError(
                    f'this model was trained on {labels} per chip, and {data.path} ({data.task}) does not'
                )
            data = with_training_options(data, options)
        super()._assemble(spec, network, data, loss)
        self._options = options

    # -- evaluation

    def accuracy(self) -> float:
        """Share of the validation chips that are right, with all their classes where they hold several."""
        return self.scores()['accuracy']

    def per_class_metrics(self) -> 'pd.DataFrame':
        """Precision, recall, F1, F2 and number of the validation chips of each class; NaN where undefined."""
        table = self.evaluate().per_class
        assert table is not None
        return table

    def confusion(self) -> ConfusionMatrix:
        """Count truth against prediction on the validation chips.

        Raises:
            ValueError: If chips hold any number of classes, for which there is no such matrix.
        """
        if self._options.multi_label:
            raise ValueError('chips of several classes have no one confusion matrix; see per_class_metrics()')
        return count_confusion(self.evaluate().outputs)

    def plot_confusion_matrix(self) -> 'Figure':
        """Draw the confusion matrix; where chips may hold several classes, one of absent and present for each class."""
        return charts.draw_confusion(self.evaluate().outputs, self._class_names)

    def plot_hard_examples(self, num_examples: int = 5) -> 'Figure':
        """Draw the validation chips of the highest loss, with truth and prediction.

        Args:
            num_examples: Number of chips.
        """
        return charts.draw_hard_examples(self.evaluate().outputs, self._needed_data(), num_examples)

    def show_results(self, rows: int | None = None, explain: bool = False) -> 'Figure':
        """Draw validation chips with truth and prediction: chips that together show every class.

        Args:
            rows: Number of chips; None takes as many as show every class, 4 to 8.
            explain: Draw a heat map of the predicted class beside each.
        """
        network = self.network if explain else None
        return charts.draw_results(
            self.evaluate().outputs, self._needed_data(), self._choose_chips(rows), network=network
        )

    # -- prediction

    def predict(
        self,
        image: images.Image | Sequence[images.Image],
        *,
        bands: Sequence[str] | None = None,
        sensor: str | None = None,
        scale: Scale | None = None,
        offset: float = 0.0,
        nodata: NoData = None,
        resolution: Resolution | None = None,
        dates: Sequence[date | str] | None = None,
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
            nodata: Value that marks missing pixels where the file does not say so, or one for each band.
            resolution: Side of the pixels to resample a file to, in units of its CRS, or ``'training'``.
            dates: When the images were taken, one for each date, such as ``['2024-05-01']``, for networks that read it;
                None takes what the files state.
            threshold: Probability from which on a class is there, where a chip may hold several.
            device: Torch device; None means CUDA where there is one.

        Returns:
            ``(names, confidences)``.

        Raises:
            RasterError: If bands or units do not fit, or there is no data.
            ValueError: If an array has another shape, or the threshold is no probability.
        """
        check_threshold(threshold)
        read = ReadOptions(bands, sensor, scale, offset, nodata, resolution, self.spec.is_radar, dates=dates)
        loaded = self._load(image, read)
        network = self.network.to(choose_device(device)).eval()
        multi_label = self._options.multi_label
        with ExitStack() as stack, torch.inference_mode():
            enter_image(stack, self.spec, network, loaded, read)
            logits = network(loaded.pixels[None].to(choose_device(device)))
            likely = classification.class_probabilities(logits, multi_label=multi_label).cpu()
        likely_classes = classification.decide(likely, multi_label=multi_label, threshold=threshold)[0].tolist()
        names = tuple(name for name, is_likely in zip(self._class_names, likely_classes) if is_likely)
        return ChipPrediction(names, dict(zip(self._class_names, likely[0].tolist())))

    def explain(
        self,
        image: images.Image | Sequence[images.Image],
        *,
        class_name: str | None = None,
        method: Explanation = 'auto',
        dates: Sequence[date | str] | None = None,
        device: str | None = None,
    ) -> np.ndarray:
        """Show by a heat map which places of an image a class depends on.

        Args:
            image: As for `predict`, in the units of the training chips.
            class_name: What Grad-CAM shows the places of; None takes the likeliest class.
            method: ``'gradcam'``, ``'rollout'`` (attention of plain transformers, whatever the class), or ``'auto'``.
            dates: As for `predict`.
            device: Torch device; None means CUDA where there is one.

        Returns:
            Heat map (H, W) float32 in 0..1.

        Raises:
            UnknownNameError: If there is no such class.
            BackboneError: If the backbone does not offer its attention.
        """
        read = ReadOptions(dates=dates)
        loaded = self._load(image, read)
        pixels = loaded.pixels.to(choose_device(device))
        network = self.network.to(choose_device(device)).eval()
        with ExitStack() as stack:
            enter_image(stack, self.spec, network, loaded, read)
            index = charts.choose_class(network, pixels, self._class_names, class_name)
            return heat_map(network, pixels, index, method).numpy()

    def _load(self, image: images.Image | Sequence[images.Image], read: ReadOptions) -> images.LoadedImage:
        """Read an image, or those of several dates."""
        if self.spec.dates > 1:
            return images.load_dates(cast(Sequence[images.Image], image), self.spec, read)
        return images.load_image(cast(images.Image, image), self.spec, read)

    def use_on_raster(self, sources: Sequence[Any], dst: str | Path, options: Mapping[str, Any]) -> Path:
        """Classify the ground of polygons, with ``polygons`` and the other options of `classify_objects`."""
        rest = dict(options)
        polygons = rest.pop('polygons', None)
        if polygons is None:
            raise errors.RasterError(
                'a FeatureClassifier classifies polygons; pass the layer that holds them as polygons'
            )
        return self.classify_objects(one_or_several(sources), polygons, dst, **rest)

    def classify_objects(
        self,
        raster: reading.RasterSource,
        polygons: Any,
        dst: str | Path,
        *,
        layer: str | None = None,
        crop: classification.Crop | None = None,
        blacken: bool | None = None,
        chip_size: int | None = None,
        threshold: float = THRESHOLD,
        bands: Sequence[str] | None = None,
        sensor: str | None = None,
        scale: Scale | None = None,
        offset: float = 0.0,
        nodata: NoData = None,
        resolution: Resolution | None = None,
        dates: Sequence[date | str] | None = None,
        batch_size: int = 16,
        device: str | None = None,
        overwrite: bool = False,
    ) -> Path:
        """Classify the ground around each polygon of a layer, and write a copy of the layer that says so.

        The copy has the columns ``ClassLabel``, the names of several classes joined by ``;``, and ``Confidence``, in
        percent: of the class, or of the least certain decision. Polygons outside of the raster, or where it has no
        data, get neither; their number is logged.

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
            nodata: Value that marks missing pixels where the file does not say so, or one for each band of the file.
            resolution: Side of the pixels to resample to while reading, in units of the raster's CRS, or
                ``'training'``. Without it, rasters whose pixels are over 1.5 times larger or smaller than in training
                are refused.
            dates: When the images were taken, one for each date, such as ``['2024-05-01']``, for networks that read it;
                None takes what the files state.
            batch_size: Chips computed together.
            device: Torch device; None means CUDA where there is one.
            overwrite: Replace `dst` if it exists.

        Returns:
            The path written.

        Raises:
            RasterError: If bands, units or places do not fit, or reading or writing fails; no part of `dst` is left.
            MissingExtraError: If the libraries of the extra ``vector`` are not installed.
        """
        options = PolygonOptions(
            chip_size=self.spec.chip_size if chip_size is None else chip_size,
            crop=self._options.crop if crop is None else crop,
            blacken=self._options.blackened if blacken is None else blacken,
            layer=layer,
            threshold=threshold,
            batch_size=batch_size,
            device=device,
        )
        read = ReadOptions(bands, sensor, scale, offset, nodata, resolution, self.spec.is_radar, dates=dates)
        return classify_polygons(
            self.spec, self.network, raster, polygons, dst, read=read, options=options, overwrite=overwrite
        )
