"""PixelRegressor: per-pixel regression, such as of height or biomass, and images from images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from geolearn import plotting
from geolearn.adaptation import DEFAULT_ADAPTATION, Adaptation, Temporal
from geolearn.arguments import record_arguments
from geolearn.backbones.custom import ModuleBackbone
from geolearn.bundle import Export
from geolearn.chips.label import Task
from geolearn.data import ChipData
from geolearn.errors import BundleError, ExportError
from geolearn.inference.encoding import RegressionEncoding, VectorEncoding
from geolearn.losses import NormalizedLoss, RegressionLossOptions, make_regression_loss
from geolearn.metrics import ImageScores, RegressionScores, rank_chips
from geolearn.models import base, map_rasters, new_spec, registry
from geolearn.models.evaluation.pixels import RegressionEvaluation, draw_regression_chips, evaluate_values
from geolearn.models.exporting import ExportedGraphs
from geolearn.models.raster_use import EMBEDDING_OPTIONS, MAP_OPTIONS, RASTERS, RasterUse, one_or_several
from geolearn.models.reports.report import TaskReport
from geolearn.models.reports.tasks import regression_report
from geolearn.networks.image_target import ImageTarget, build_image_segmenter
from geolearn.networks.segmentation import Denormalize, PixelOptions, Segmenter, build_segmenter
from geolearn.networks.spec import ModelSpec, decode

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@registry.register_model
class PixelRegressor(base.Model):
    """Predict a value for every pixel, with any decoder on any backbone's maps; or an image.

    Of data with ``target='images'`` it predicts several bands for each pixel (image translation), or finer pixels
    (super-resolution); the metrics then are PSNR and SSIM besides.

    Args:
        data: From `prepare_data`, with float label rasters, or with ``target='values'`` or ``'images'``.
        backbone: Such as ``'dofa_base'`` or ``'resnet50'``; see `geolearn.list_backbones`.
        decoder: One of `geolearn.decoders.DECODERS`.
        pretrained: Fill the backbone with its published weights.
        weights: A file or folder with the backbone's weights, or another model's .dlpk, instead of fetching them.
        wavelengths: Center wavelength of each band in micrometers; None for radar.
        loss: What training minimizes: squared, absolute or Huber's error, by options or name, or a module or function
            of values and targets; see `geolearn.losses.options.CustomLoss`.
        decoder_options: Passed to the decoder.
        adapt: What of the backbone is trained, how fast, and with low-rank updates or in full.
        temporal: How the maps of chips of several dates become one.
        resolution_m: Of the images in meters per pixel, for backbones whose positions depend on it.

    Raises:
        ChipFolderError: If the labels are not one value per pixel.
        UnknownNameError: If there is no such backbone or decoder.
        BackboneError: If the backbone gives no maps that the decoder can use, or cannot be adapted as `adapt` says.
        BandError: If bands lack a wavelength that the backbone needs.
        WeightsError: If weights cannot be had or do not fit.
    """

    tasks = (Task.REGRESSION,)
    graph_output = 'values'
    raster_use = RasterUse('maps pixels', RASTERS, (*MAP_OPTIONS, *EMBEDDING_OPTIONS))
    network: Segmenter

    def __init__(
        self,
        data: ChipData,
        backbone: str | ModuleBackbone = 'resnet50',
        *,
        decoder: str = 'unet',
        pretrained: bool = True,
        weights: str | Path | None = None,
        wavelengths: Sequence[float | None] | None = None,
        loss: RegressionLossOptions | str | nn.Module | Callable[..., Tensor] | None = None,
        decoder_options: Mapping[str, Any] | None = None,
        adapt: Adaptation = DEFAULT_ADAPTATION,
        temporal: Temporal = 'mean',
        resolution_m: float | None = None,
    ) -> None:
        arguments = record_arguments(type(self), locals())
        new_spec.require_task(data, type(self).__name__, self.tasks)
        statistics = data.target_statistics
        if statistics is None:
            raise ValueError(f'no training chip of {data.path} has a value in its label; check their NoData value')
        config = new_spec.BackboneConfig(backbone, pretrained, weights, wavelengths, adapt, temporal, resolution_m)
        chosen, custom = new_spec.choose_loss(loss, RegressionLossOptions)
        options = PixelOptions(decoder, decoder_options or {}, value_loss=chosen)
        target: dict[str, Any] = {'mean': statistics.mean, 'std': statistics.std or 1.0}
        if data.table.has_image_targets:
            target = describe_image_target(data).to_json()
        self._create(data, config, options=options.to_json() | {'target': target}, arguments=arguments, loss=custom)

    # -- what a task defines

    @classmethod
    def _target(cls, spec: ModelSpec) -> tuple[float, float]:
        target = decode(dict[str, float], spec.options.get('target'), 'mean and std of the target')
        if target.keys() != {'mean', 'std'} or target['std'] <= 0:
            raise BundleError(f'the manifest is broken: mean and std of the target are {target}')
        return target['mean'], target['std']

    @classmethod
    def _image(cls, spec: ModelSpec) -> ImageTarget | None:
        """Return what image is predicted; None for a single value per pixel."""
        target = spec.options.get('target')
        return ImageTarget.from_json(target) if isinstance(target, Mapping) and 'times' in target else None

    @property
    def image_target(self) -> ImageTarget | None:
        """The image that is predicted; None for a single value per pixel."""
        return self._image(self.spec)

    @classmethod
    def build(cls, spec: ModelSpec, *, pretrained: bool = False, weights: str | Path | None = None) -> Segmenter:
        """Build the network that a spec describes."""
        options = PixelOptions.from_json(spec.options, decoder='unet')
        if (image := cls._image(spec)) is not None:
            return build_image_segmenter(spec, options, image, pretrained=pretrained, weights=weights)
        network = build_segmenter(spec, options, 1, pretrained=pretrained, weights=weights)
        network.decoder = Denormalize(network.decoder, *cls._target(spec))
        return network

    def make_loss(self) -> nn.Module:
        """Make the loss that the options name, in standard deviations of the target."""
        if (custom := self._custom()) is not None:
            return custom
        options = PixelOptions.from_json(self.spec.options, decoder='unet').value_loss
        if (image := self._image(self.spec)) is not None:
            mean_std = sum(image.std) / len(image.std)
            loss = make_regression_loss(replace(options, delta=options.delta / mean_std))
            return NormalizedLoss(loss, image.std)
        std = self._target(self.spec)[1]
        return NormalizedLoss(make_regression_loss(replace(options, delta=options.delta / std)), std)

    def make_scores(self) -> RegressionScores | ImageScores:
        """Make the metrics that each epoch computes on the validation pixels."""
        image = self._image(self.spec)
        return RegressionScores() if image is None else ImageScores(image.span)

    @classmethod
    def emd_fields(cls, spec: ModelSpec) -> dict[str, Any]:
        """Return the keys of Esri's model definition that belong to regression of pixels."""
        return {'ModelType': 'PixelRegression', 'SupportsVariableTileSize': True}

    def evaluate(self) -> RegressionEvaluation:
        """Compare predictions with the truth on the validation chips; computed once after each fit.

        Its metrics are rmse, mae and bias, in units of the target, and r2; of images psnr (in decibels) and ssim too.
        """
        if not isinstance(self.evaluation, RegressionEvaluation):
            self.evaluation = evaluate_values(self.network, self._needed_data().valid_dl, self.make_scores())
        return self.evaluation

    def _task_report(self) -> TaskReport:
        options = PixelOptions.from_json(self.spec.options, decoder='unet')
        return regression_report(self.spec, self.network, self._needed_data(), self.evaluate(), options)

    # -- evaluation

    def show_results(self, rows: int | None = None, *, worst_first: bool = False) -> 'Figure':
        """Draw validation chips with truth, prediction and their difference: from low targets to high ones.

        Args:
            rows: Number of chips; None takes 4.
            worst_first: Those of the highest root mean square error instead.
        """
        chosen = self._choose_chips(rows)
        if worst_first:
            chosen = rank_chips(self.evaluate().per_chip, highest_first=True)[: len(chosen)]
        return self.draw_chips(chosen)

    def draw_chips(self, indexes: Sequence[int]) -> 'Figure':
        """Draw validation chips by their positions, with name and root mean square error above each.

        Args:
            indexes: Positions among the validation chips, at least one.
        """
        return draw_regression_chips(self.network, self._needed_data(), self.spec, indexes)

    def plot_scatter(self) -> 'Figure':
        """Draw prediction against truth on the validation chips; of a million pixels, where there are more."""
        evaluation = self.evaluate()
        return plotting.show_regression_scatter(evaluation.truth, evaluation.predicted)

    # -- mapping

    @property
    def encoding(self) -> RegressionEncoding | VectorEncoding:
        """How the network's outputs become a map's pixels."""
        image = self._image(self.spec)
        return RegressionEncoding() if image is None else VectorEncoding(image.names)

    def _export(self, kinds: Sequence[Export], *, size: tuple[int, int] | None = None) -> ExportedGraphs:
        image = self._image(self.spec)
        if image is not None and image.times > 1:
            raise ExportError('graphs of networks whose outputs are finer than their inputs are not written')
        return super()._export(kinds, size=size)

    predict_raster = map_rasters.predict_raster

    def use_on_raster(self, sources: Sequence[Any], dst: str | Path, options: Mapping[str, Any]) -> Path:
        """Map rasters with the options of `predict_raster`."""
        return self.predict_raster(one_or_several(sources), dst, **options)


def describe_image_target(data: ChipData) -> ImageTarget:
    """Describe the images that are to be predicted.

    Raises:
        ValueError: If a band of theirs has no value in any training chip.
    """
    by_band = data.table.target_band_statistics(data.split.train)
    names = data.target_bands or tuple(f'band {number}' for number in range(1, len(by_band) + 1))
    if empty := [name for name, found in zip(names, by_band) if found is None]:
        raise ValueError(f'band {empty[0]!r} of the images to predict holds no data in any training chip')
    found = [statistics for statistics in by_band if statistics is not None]
    span = max(statistics.maximum for statistics in found) - min(statistics.minimum for statistics in found)
    return ImageTarget(
        tuple(statistics.mean for statistics in found),
        tuple(statistics.std or 1.0 for statistics in found),
        names,
        data.table.target_times,
        span or 1.0,
    )
