"""Pixel classifiers: any decoder on any backbone, evaluated by one confusion matrix, mapped over rasters."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast, get_args

import torch
from torch import Tensor, nn

from geolearn import plotting
from geolearn.adaptation import DEFAULT_ADAPTATION, Adaptation, Temporal
from geolearn.arguments import record_arguments
from geolearn.backbones.custom import ModuleBackbone
from geolearn.chips.label import Task
from geolearn.data import ChipData
from geolearn.errors import BundleError
from geolearn.inference.encoding import ClassEncoding
from geolearn.losses import PixelLossOptions, find_lines, make_pixel_loss
from geolearn.metrics import (
    ConfusionMatrix,
    JoinedScores,
    LineScores,
    PixelScores,
    Scores,
    fit_temperature,
    rank_chips,
)
from geolearn.models import base, map_rasters, new_spec, registry
from geolearn.models.evaluation.pixels import PixelEvaluation, draw_chips, evaluate_pixels, whole_chips
from geolearn.models.raster_use import CLASS_MAP_OPTIONS, EMBEDDING_OPTIONS, RASTERS, RasterUse, one_or_several
from geolearn.models.reports.report import TaskReport
from geolearn.models.reports.tasks import pixel_report
from geolearn.networks import segmentation
from geolearn.networks.network import build_backbone
from geolearn.networks.spec import ModelSpec, decode
from geolearn.training.nonfinite import predict_batches

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


class PixelClassifier(base.Model):
    """Classify every pixel with a decoder on any backbone's maps; the subclasses name the decoder.

    Args:
        data: From `prepare_data`.
        backbone: Such as ``'dofa_base'`` or ``'resnet50'``; see `geolearn.list_backbones`. None takes the class's own.
        pretrained: Fill the backbone with its published weights.
        weights: A file or folder with the backbone's weights, or another model's .dlpk, instead of fetching them.
        wavelengths: Center wavelength of each band in micrometers, where the data does not name the bands well; None
            for radar.
        ignore_classes: Label values to ignore, on top of those that `data` ignores.
        class_balancing: Weigh classes in the loss by their rarity among the training chips.
        focal_loss: Weigh pixels that are already right less (Lin et al. 2017, arXiv:1708.02002); gamma is 2.
        dice_loss_fraction: Share of the dice loss in the whole, 0..1.
        dice_loss_average: Dice over all pixels together (``'micro'``) or by class (``'macro'``).
        loss: All options of the loss, its name, or a module or function of logits and indices, in place of the three
            before it; see `geolearn.losses.options.CustomLoss`.
        auxiliary_head: Train a small head on the map of stride 16 beside the decoder, with 0.4 of its loss.
        decoder_options: Passed to the decoder; see its class in `geolearn.decoders`.
        adapt: What of the backbone is trained, how fast, and with low-rank updates or in full. The default trains
            all of it.
        temporal: How the maps of chips of several dates become one: ``'mean'``, ``'concat'`` or ``'ltae'``.
        resolution_m: Of the images in meters per pixel, for backbones whose positions depend on it.

    Raises:
        ChipFolderError: If the labels are not one class per pixel.
        UnknownNameError: If there is no such backbone.
        BackboneError: If there is, but it gives no maps that the decoder can use, cannot be adapted as `adapt` says, or
            states no mean and std for ``normalize='pretraining'``.
        BandError: If bands lack a wavelength that the backbone needs, or `wavelengths` do not fit.
        WeightsError: If weights cannot be had or do not fit.
        ValueError: If an option of loss or decoder is not valid.
    """

    tasks = (Task.PIXELS,)
    raster_use = RasterUse('maps pixels', RASTERS, (*CLASS_MAP_OPTIONS, *EMBEDDING_OPTIONS))
    default_backbone: ClassVar[str] = 'resnet50'
    decoder: ClassVar[str]
    """Name of the decoder, where the options name none."""
    network: segmentation.Segmenter

    def __init__(
        self,
        data: ChipData,
        backbone: str | ModuleBackbone | None = None,
        *,
        pretrained: bool = True,
        weights: str | Path | None = None,
        wavelengths: Sequence[float | None] | None = None,
        ignore_classes: Sequence[int] = (),
        class_balancing: bool = False,
        focal_loss: bool = False,
        dice_loss_fraction: float = 0.0,
        dice_loss_average: Literal['micro', 'macro'] = 'micro',
        loss: PixelLossOptions | str | nn.Module | Callable[..., Tensor] | None = None,
        auxiliary_head: bool = False,
        decoder_options: Mapping[str, Any] | None = None,
        adapt: Adaptation = DEFAULT_ADAPTATION,
        temporal: Temporal = 'mean',
        resolution_m: float | None = None,
    ) -> None:
        arguments = record_arguments(type(self), locals())
        name = self.default_backbone if backbone is None else backbone
        config = new_spec.BackboneConfig(name, pretrained, weights, wavelengths, adapt, temporal, resolution_m)
        short = PixelLossOptions(
            loss='focal' if focal_loss else 'cross_entropy',
            dice_fraction=dice_loss_fraction,
            dice_average=dice_loss_average,
        )
        loss, custom = new_spec.choose_loss(loss, PixelLossOptions) if loss is not None else (None, None)
        if loss is not None and short != PixelLossOptions():
            raise ValueError('pass either loss, or focal_loss and dice_loss_fraction; loss holds these too')
        options = segmentation.PixelOptions(
            self.decoder, decoder_options or {}, loss or short, auxiliary_head=auxiliary_head
        )
        if data.task in self.tasks:
            find_lines(options.loss, [info.value for info in data.class_infos if info.value not in ignore_classes])
        self._create(
            data,
            config,
            options=options.to_json(),
            arguments=arguments,
            loss=custom,
            class_balancing=class_balancing,
            ignore_classes=ignore_classes,
        )

    # -- what a task defines

    @classmethod
    def _options(cls, spec: ModelSpec) -> segmentation.PixelOptions:
        return segmentation.PixelOptions.from_json(spec.options, decoder=cls.decoder)

    @classmethod
    def build(
        cls, spec: ModelSpec, *, pretrained: bool = False, weights: str | Path | None = None
    ) -> segmentation.Segmenter:
        """Build the network that a spec describes."""
        if len(spec.class_infos) < 2:
            raise BundleError(f'the manifest is broken: {spec.model} needs 2 classes or more, found {spec.class_infos}')
        return segmentation.build_segmenter(
            spec, cls._options(spec), len(spec.class_infos), pretrained=pretrained, weights=weights
        )

    @classmethod
    def emd_fields(cls, spec: ModelSpec) -> dict[str, Any]:
        """Return the keys of Esri's model definition that belong to pixel classifiers."""
        return {
            'ModelType': 'ImageClassification',
            'ignore_mapped_class': list(spec.ignored_values),
            'SupportsVariableTileSize': True,
        }

    def make_loss(self) -> nn.Module:
        """Make the loss that the options name, with a weight for each class where classes are balanced."""
        if (custom := self._custom()) is not None:
            return custom
        weights = None
        if self.spec.class_balancing:
            weights = torch.tensor(self._needed_data().class_weights, dtype=torch.float32)
        values = [info.value for info in self.spec.class_infos]
        return make_pixel_loss(self._options(self.spec).loss, weights, class_values=values)

    def _lines(self) -> tuple[int, ...]:
        """Return the indices of the classes that the loss knows as lines."""
        return find_lines(self._options(self.spec).loss, [info.value for info in self.spec.class_infos])

    def make_scores(self) -> Scores:
        """Make the metrics that each epoch computes on the validation pixels, of lines too where the loss has some."""
        scores, lines = PixelScores(self._needed_data().c), self._lines()
        return JoinedScores(scores, LineScores(lines)) if lines else scores

    def evaluate(self) -> PixelEvaluation:
        """Compute confusion, calibration, boundary IoU and the loss of each validation chip; once after each fit."""
        if not isinstance(self.evaluation, PixelEvaluation):
            chips = self._needed_data().valid_dl
            self.evaluation = evaluate_pixels(
                self.network, chips, self._class_names, temperature=self.spec.temperature, lines=self._lines()
            )
        return self.evaluation

    def _task_report(self) -> TaskReport:
        data = self._needed_data()
        return pixel_report(self.spec, self.network, data, self.evaluate(), self._options(self.spec))

    # -- evaluation

    def accuracy(self) -> float:
        """Share of the labelled validation pixels that are right."""
        return self.confusion().accuracy

    def mIOU(self, mean: bool = False) -> dict[str, float] | float:
        """Intersection over union on the validation chips.

        Args:
            mean: One number: the mean over the classes that occur in truth or prediction.

        Returns:
            IoU by class name, NaN for classes that do not occur; or their mean.
        """
        matrix = self.confusion()
        return matrix.miou if mean else dict(zip(self._class_names, matrix.iou.tolist()))

    def per_class_metrics(self, ignore_classes: Sequence[int] = ()) -> 'pd.DataFrame':
        """Precision, recall, F1 and IoU of each class on the validation chips; NaN where undefined.

        Args:
            ignore_classes: Values of classes whose rows are dropped.
        """
        table = self.evaluate().per_class
        assert table is not None
        return table.loc[[info.name for info in self.spec.class_infos if info.value not in ignore_classes]]

    def confusion(self) -> ConfusionMatrix:
        """Count truth against prediction on the validation chips; computed once after each fit."""
        return self.evaluate().confusion

    def boundary_iou(self, mean: bool = False) -> dict[str, float] | float:
        """IoU of the classes' boundaries on the validation chips (Cheng et al. 2021, arXiv:2103.16562).

        Args:
            mean: One number: the mean over the classes that occur.
        """
        iou = self.evaluate().boundaries.iou
        return float(iou.nanmean()) if mean else dict(zip(self._class_names, iou.tolist()))

    def calibrate(self) -> float:
        """Fit a temperature on whole validation chips, by which logits are divided before confidences are computed.

        Temperature scaling leaves classes as they are (Guo et al. 2017, arXiv:1706.04599). The temperature is kept with
        the model until it is trained again.

        Returns:
            The temperature: over 1 for an overconfident model.
        """
        chips = self._needed_data().valid_dl
        self.network.to(chips.device).eval()
        with torch.inference_mode():
            predicted = predict_batches(*whole_chips(self.network, chips))
            temperature = fit_temperature((logits, masks) for _, masks, logits in predicted)
        self.spec, self.evaluation = replace(self.spec, temperature=temperature), None
        return temperature

    def show_results(self, rows: int | None = None, *, worst_first: bool = False) -> 'Figure':
        """Draw validation chips with truth, prediction and where they differ: chips that together show every class.

        Args:
            rows: Number of chips; None takes as many as show every class, 4 to 8.
            worst_first: Those of the lowest mean IoU instead.
        """
        chosen = self._choose_chips(rows)
        if worst_first:
            chosen = rank_chips(self.evaluate().per_chip, highest_first=False)[: len(chosen)]
        return self.draw_chips(chosen)

    def draw_chips(self, indexes: Sequence[int], *, losses: bool = False) -> 'Figure':
        """Draw validation chips by their positions, with name, IoU and loss above each.

        Args:
            indexes: Positions among the validation chips, at least one.
            losses: Show the loss of each pixel, not where the prediction is wrong.
        """
        return draw_chips(self.network, self._needed_data(), self.spec, indexes, losses=losses)

    def plot_confusion_matrix(self) -> 'Figure':
        """Draw truth against prediction on the validation chips: pixels, and shares of each true class."""
        return plotting.show_confusion_matrix(self.confusion().counts, self._class_names)

    def plot_hard_examples(self, num_examples: int = 4) -> 'Figure':
        """Draw the validation chips of the highest loss, with the loss of each pixel.

        Args:
            num_examples: Number of chips.
        """
        order = rank_chips(self.evaluate().losses, highest_first=True)
        return self.draw_chips(order[:num_examples], losses=True)

    def plot_calibration(self) -> 'Figure':
        """Draw the accuracy of predictions against their confidence."""
        return plotting.show_reliability(self.evaluate().calibration.table())

    # -- mapping

    @property
    def encoding(self) -> ClassEncoding:
        """How the network's outputs become a map's pixels."""
        return ClassEncoding(self.spec.class_infos, self.spec.temperature)

    predict_raster = map_rasters.predict_raster
    predict_lines = map_rasters.predict_lines

    def use_on_raster(self, sources: Sequence[Any], dst: str | Path, options: Mapping[str, Any]) -> Path:
        """Map rasters with the options of `predict_raster`."""
        return self.predict_raster(one_or_several(sources), dst, **options)


@registry.register_model
class DeepLab(PixelClassifier):
    """DeepLabV3+ (Chen et al. 2018, arXiv:1802.02611): pooling at several rates, then a fine skip connection."""

    decoder = 'deeplab'
    default_backbone = 'dofa_base'


@registry.register_model
class DeepLabV3(PixelClassifier):
    """DeepLabV3 (Chen et al. 2017, arXiv:1706.05587): pooling at several rates, no skip connection."""

    decoder = 'deeplab_v3'


@registry.register_model
class UNet(PixelClassifier):
    """U-Net (Ronneberger et al. 2015, arXiv:1505.04597): every map that the backbone offers joins on the way up.

    ``backbone='plain_unet'`` is the paper's own encoder, with 64 to 512 channels and no weights.
    """

    decoder = 'unet'
    default_backbone = 'resnet34'


@registry.register_model
class PSPNet(PixelClassifier):
    """PSPNet (Zhao et al. 2017, arXiv:1612.01105): the image's context, pooled in grids of several sizes."""

    decoder = 'pspnet'


@registry.register_model
class UPerNet(PixelClassifier):
    """UPerNet (Xiao et al. 2018, arXiv:1807.10221): a CNN's stages or four layers of a transformer."""

    decoder = 'upernet'
    default_backbone = 'dofa_base'


@registry.register_model
class FPN(PixelClassifier):
    """Feature pyramid network (Kirillov et al. 2019, arXiv:1901.02446): the sum of all maps at stride 4."""

    decoder = 'fpn'


@registry.register_model
class SegFormer(PixelClassifier):
    """SegFormer's all-MLP head (Xie et al. 2021, arXiv:2105.15203)."""

    decoder = 'segformer'
    default_backbone = 'dofa_base'


@registry.register_model
class FCN(PixelClassifier):
    """Fully convolutional head on one map of stride 16 (Long et al. 2015, arXiv:1411.4038)."""

    decoder = 'fcn'


@registry.register_model
class LinearProbe(PixelClassifier):
    """One linear layer per token, to probe features as they are; usual with ``adapt=Adaptation(freeze='all')``."""

    decoder = 'linear'
    default_backbone = 'dofa_base'


@registry.register_model
class MUSTER(PixelClassifier):
    """Multi-scale transformer decoder (Xu et al. 2022, arXiv:2211.13928)."""

    decoder = 'muster'
    default_backbone = 'dofa_base'


UnetClassifier = UNet
"""ArcGIS's name."""

PSPNetClassifier = PSPNet
"""ArcGIS's name."""


@registry.register_model
class AttentionUNet(PixelClassifier):
    """Classify every pixel with a plain U-Net that takes a foundation model's attention maps beside the bands.

    Its last block's attention, one channel for each head, is enlarged to the image.

    Args:
        data: From `prepare_data`.
        backbone: A plain transformer, such as ``'dofa_base'`` or one pretrained with DINO.
        attention: ``'extra'`` joins the maps to the bands, ``'only'`` takes them alone.
        freeze: Whether the transformer stays as it is; else it is trained through its attention.
        pretrained: Fill the transformer with its published weights; random ones attend nowhere in particular.
        weights: A file or folder with its weights, or a .dlpk, instead of fetching them.
        wavelengths: Center wavelength of each band in micrometers; None for radar.
        ignore_classes: Label values to ignore, on top of those that `data` ignores.
        class_balancing: Weigh classes in the loss by their rarity among the training chips.
        loss: What training minimizes; None takes cross-entropy.

    Raises:
        ChipFolderError: If the labels are not one class per pixel, or chips are of several dates.
        UnknownNameError: If there is no such backbone.
        BackboneError: If it offers no attention maps.
        BandError: If bands lack a wavelength that the backbone needs.
        WeightsError: If weights cannot be had or do not fit.
        ValueError: If `attention` is not valid.
    """

    decoder = 'unet'

    def __init__(
        self,
        data: ChipData,
        backbone: str = 'dofa_base',
        *,
        attention: segmentation.AttentionMode = 'extra',
        freeze: bool = True,
        pretrained: bool = True,
        weights: str | Path | None = None,
        wavelengths: Sequence[float | None] | None = None,
        ignore_classes: Sequence[int] = (),
        class_balancing: bool = False,
        loss: PixelLossOptions | str | nn.Module | Callable[..., Tensor] | None = None,
    ) -> None:
        arguments = record_arguments(type(self), locals())
        new_spec.require_task(data, type(self).__name__, self.tasks)
        if attention not in get_args(segmentation.AttentionMode):
            raise ValueError(f"attention must be 'extra' or 'only', got {attention!r}")
        if data.table.dates > 1:
            raise ValueError(f'AttentionUNet takes images of one date, and these chips have {data.table.dates}')
        config = new_spec.BackboneConfig(
            backbone, pretrained, weights, wavelengths, Adaptation(freeze='all') if freeze else DEFAULT_ADAPTATION
        )
        chosen, custom = new_spec.choose_loss(loss, PixelLossOptions)
        options = segmentation.PixelOptions(self.decoder, loss=chosen).to_json() | {'attention': attention}
        if not freeze:
            options |= {'freeze': False}
        self._create(
            data,
            config,
            options=options,
            arguments=arguments,
            loss=custom,
            class_balancing=class_balancing,
            ignore_classes=ignore_classes,
        )

    @classmethod
    def build(
        cls, spec: ModelSpec, *, pretrained: bool = False, weights: str | Path | None = None
    ) -> segmentation.Segmenter:
        """Build the network that a spec describes."""
        if len(spec.class_infos) < 2 or spec.dates != 1:
            raise BundleError(f'the manifest is broken: {spec.model} needs 2 classes or more, and one date')
        mode: segmentation.AttentionMode = decode(
            cast(Any, segmentation.AttentionMode), spec.options.get('attention', 'extra'), 'attention'
        )
        transformer = build_backbone(spec, pretrained=pretrained, weights=weights, form='tokens')
        frozen: bool = decode(bool, spec.options.get('freeze', True), 'freeze')
        encoder = segmentation.AttentionEncoder(transformer, mode, spec.bands, frozen=frozen)
        return segmentation.put_decoder(spec, cls._options(spec), encoder, len(spec.class_infos))
