"""PixelRegressor: a number for every pixel, such as height or biomass."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from geolearn import plotting
from geolearn.backbones.adapt import DEFAULT_ADAPTATION, Adaptation
from geolearn.backbones.temporal import Temporal
from geolearn.chips.label import Task
from geolearn.data import ChipData
from geolearn.errors import BundleError
from geolearn.history import Evaluation
from geolearn.inference.encoding import RegressionEncoding
from geolearn.losses import NormalizedLoss, RegressionLossOptions, make_regression_loss
from geolearn.metrics import RegressionScores, rank_chips
from geolearn.models.base import register_model
from geolearn.models.evaluation.regression import ValueJudgement, judge_values, predict_chips
from geolearn.models.new_spec import BackboneChoice, require_task
from geolearn.models.reports.regression import find_in_values
from geolearn.models.reports.report import Findings, bundled_report
from geolearn.models.segmentation import PixelModel
from geolearn.networks.segmentation import Denormalize, PixelOptions, Segmenter, build_segmenter
from geolearn.networks.spec import ModelSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@register_model
class PixelRegressor(PixelModel):
    """Give every pixel a number, with any decoder on any backbone's maps.

    Args:
        data: From `prepare_data`, with float label rasters, or with ``target='values'``.
        backbone: Such as ``'dofa_base'`` or ``'resnet50'``; see `geolearn.list_backbones`.
        decoder: One of `geolearn.decoders.DECODERS`.
        pretrained: Fill the backbone with its published weights.
        weights: A file or folder with the backbone's weights, or another model's .dlpk, instead of fetching them.
        wavelengths: Centre wavelength of each band in micrometres; None for radar.
        loss: What training minimises: squared, absolute or Huber's error.
        decoder_options: Passed to the decoder.
        adapt: What of the backbone learns, how fast, and with low-rank updates or in full.
        temporal: How the maps of chips of several dates become one.
        resolution_m: Of the images in metres per pixel, for backbones whose positions depend on it.

    Raises:
        ChipFolderError: If the labels are not one number per pixel.
        UnknownNameError: If there is no such backbone or decoder.
        BackboneError: If the backbone gives no maps that the decoder can use, or cannot be adapted as `adapt` says.
        BandError: If bands lack a wavelength that the backbone needs.
        WeightsError: If weights cannot be had or do not fit.
    """

    tasks = (Task.REGRESSION,)
    _judgement: ValueJudgement | None = None

    def __init__(
        self,
        data: ChipData,
        backbone: str = 'resnet50',
        *,
        decoder: str = 'unet',
        pretrained: bool = True,
        weights: str | Path | None = None,
        wavelengths: Sequence[float | None] | None = None,
        loss: RegressionLossOptions | None = None,
        decoder_options: Mapping[str, Any] | None = None,
        adapt: Adaptation = DEFAULT_ADAPTATION,
        temporal: Temporal = 'mean',
        resolution_m: float | None = None,
    ) -> None:
        require_task(data, type(self).__name__, self.tasks)
        statistics = data.target_statistics
        if statistics is None:
            raise ValueError(f'no training chip of {data.path} has a number in its label; check their NoData value')
        choice = BackboneChoice(backbone, pretrained, weights, wavelengths, adapt, temporal, resolution_m)
        options = PixelOptions(decoder, decoder_options or {}, value_loss=loss or RegressionLossOptions())
        target = {'mean': statistics.mean, 'std': statistics.std or 1.0}
        super().__init__(data, choice, options=options.to_json() | {'target': target})

    # -- what a task says

    @classmethod
    def _target(cls, spec: ModelSpec) -> tuple[float, float]:
        found = spec.options.get('target')
        try:
            mean, std = float(found['mean']), float(found['std'])  # type: ignore[index]
        except (TypeError, ValueError, KeyError, OverflowError) as error:
            raise BundleError(f'the manifest is broken: mean and std of the target are {found!r}') from error
        if not (math.isfinite(mean) and 0 < std < math.inf):
            raise BundleError(f'the manifest is broken: mean and std of the target are {found!r}')
        return mean, std

    @classmethod
    def build(cls, spec: ModelSpec, *, pretrained: bool = False, weights: str | Path | None = None) -> Segmenter:
        """Build the network that a spec describes."""
        options = PixelOptions.from_json(spec.options, decoder='unet')
        network = build_segmenter(spec, options, 1, pretrained=pretrained, weights=weights)
        network.decoder = Denormalize(network.decoder, *cls._target(spec))
        return network

    def make_loss(self) -> nn.Module:
        """Make the loss that the options name, in spreads of the target."""
        options, std = PixelOptions.from_json(self.spec.options, decoder='unet').value_loss, self._target(self.spec)[1]
        return NormalizedLoss(make_regression_loss(replace(options, delta=options.delta / std)), std)

    def make_scores(self) -> RegressionScores:
        """Make what counts the validation pixels in each epoch."""
        return RegressionScores()

    @classmethod
    def emd_fields(cls, spec: ModelSpec) -> dict[str, Any]:
        """Return the keys of Esri's model definition that belong to regression of pixels."""
        return {'ModelType': 'PixelRegression', 'SupportsVariableTileSize': True}

    def evaluate(self) -> Evaluation:
        """Judge the model on the validation chips, for its bundle."""
        return Evaluation(metrics=self.scores(), figures=bundled_report(self))

    def findings(self) -> Findings:
        """Judge the model on the validation chips, and say what its report tells besides what all reports tell."""
        return find_in_values(self, PixelOptions.from_json(self.spec.options, decoder='unet'))

    def _forget(self) -> None:
        super()._forget()
        self._judgement = None

    # -- looking

    def judge(self) -> ValueJudgement:
        """Compare predictions with the truth on the validation chips; once after each fit."""
        data = self._needed_data()
        if self._judgement is None:
            self._judgement = judge_values(self.network, data.valid_dl)
        return self._judgement

    def scores(self) -> dict[str, float]:
        """Return rmse, mae and bias, in units of the target, and r2 on the validation chips.

        They are computed once after each fit.
        """
        return self.judge().scores

    def show_results(self, rows: int = 4, *, worst_first: bool = False) -> 'Figure':
        """Draw validation chips with truth, prediction and their difference.

        Args:
            rows: Number of chips.
            worst_first: Those of the highest root mean square error, instead of the first.
        """
        if worst_first:
            return self.draw_chips(rank_chips(self.judge().errors, highest_first=True)[:rows])
        return self.draw_chips(range(min(rows, len(self._needed_data().valid_ds))))

    def draw_chips(self, indexes: Sequence[int]) -> 'Figure':
        """Draw validation chips by their positions, with name and root mean square error above each.

        Args:
            indexes: Positions among the validation chips, at least one.
        """
        data = self._needed_data()
        seen = predict_chips(self.network, data.valid_dl, indexes)
        errors = (seen.predictions - seen.values).square().nanmean((1, 2)).sqrt().tolist()
        names = [data.table.names[data.valid_ds.positions[index]] for index in indexes]
        titles = [plotting.describe_chip(name, RMSE=error) for name, error in zip(names, errors)]
        return plotting.show_value_predictions(*seen, self.spec.bands, titles=titles)

    def plot_scatter(self) -> 'Figure':
        """Draw prediction against truth on the validation chips; of a million pixels, where there are more."""
        judged = self.judge()
        return plotting.show_value_scatter(judged.truth, judged.predicted)

    @property
    def encoding(self) -> RegressionEncoding:
        """How the network's outputs become a map's pixels."""
        return RegressionEncoding()
