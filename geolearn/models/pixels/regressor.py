"""PixelRegressor: a number for every pixel, such as height or biomass."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from geolearn import plotting
from geolearn.backbones.adapt import DEFAULT_ADAPTATION, Adaptation
from geolearn.backbones.temporal import Temporal
from geolearn.bundle import FIGURES
from geolearn.chips.label import Task
from geolearn.data import ChipData
from geolearn.errors import BundleError
from geolearn.history import Evaluation
from geolearn.inference.encoding import ValueEncoding
from geolearn.losses import ValueLossOptions, make_value_loss
from geolearn.metrics import RegressionScores
from geolearn.models._describing import BackboneChoice, require_task
from geolearn.models._registry import register_model
from geolearn.models._saving import png
from geolearn.models.mapping import MapModel
from geolearn.models.pixels.base import PixelModel
from geolearn.models.pixels.options import PixelOptions
from geolearn.models.pixels.segmenter import Segmenter, build_segmenter
from geolearn.models.spec import ModelSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class ToUnits(nn.Module):
    """Bring a decoder's outputs, which start around 0 with a spread of 1, to the units of the target.

    Args:
        decoder: Of the pixels.
        mean: Of the target.
        std: Of the target.
    """

    def __init__(self, decoder: nn.Module, mean: float, std: float) -> None:
        super().__init__()
        self.decoder = decoder
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer('mean', torch.tensor(mean, dtype=torch.float32))
        self.register_buffer('std', torch.tensor(std, dtype=torch.float32))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Compute values (N, 1, H, W) in units of the target."""
        return self.decoder(maps).float() * self.std + self.mean


class InSpreads(nn.Module):
    """A loss of predictions and truth in multiples of the target's spread, so that rates do not depend on its units.

    Args:
        loss: Of predictions (N, 1, H, W) and targets (N, H, W), NaN where there is no truth.
        std: Of the target.
    """

    def __init__(self, loss: nn.Module, std: float) -> None:
        super().__init__()
        self.loss, self.std = loss, std

    def counted(self, target: Tensor) -> Tensor:
        """Return the number of pixels that have a truth."""
        return cast(Any, self.loss).counted(target)

    def forward(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        return self.loss(predicted / self.std, target / self.std)


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

    tasks = (Task.VALUES,)

    def __init__(
        self,
        data: ChipData,
        backbone: str = 'resnet50',
        *,
        decoder: str = 'unet',
        pretrained: bool = True,
        weights: str | Path | None = None,
        wavelengths: Sequence[float | None] | None = None,
        loss: ValueLossOptions | None = None,
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
        options = PixelOptions(decoder, decoder_options or {}, value_loss=loss or ValueLossOptions())
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
        network.decoder = ToUnits(network.decoder, *cls._target(spec))
        return network

    def make_loss(self) -> nn.Module:
        """Make the loss that the options name, in spreads of the target."""
        options, std = PixelOptions.from_json(self.spec.options, decoder='unet').value_loss, self._target(self.spec)[1]
        return InSpreads(make_value_loss(replace(options, delta=options.delta / std)), std)

    def make_scores(self) -> RegressionScores:
        """Make what counts the validation pixels in each epoch."""
        return RegressionScores()

    @classmethod
    def emd_fields(cls, spec: ModelSpec) -> dict[str, Any]:
        """Return the keys of Esri's model definition that belong to regression of pixels."""
        return {'ModelType': 'PixelRegression', 'SupportsVariableTileSize': True}

    def evaluate(self) -> Evaluation:
        """Judge the model on the validation chips, for its bundle."""
        figures = {f'{FIGURES}show_results.png': png(self.show_results())}
        if self.history.batch_losses:
            figures[f'{FIGURES}loss_graph.png'] = png(self.plot_losses())
        return Evaluation(metrics=self.scores(), figures=figures)

    def _forget(self) -> None:
        super()._forget()
        self._scores: dict[str, float] | None = None

    # -- looking

    def scores(self) -> dict[str, float]:
        """Return rmse, mae and bias, in units of the target, and r2 on the validation chips.

        They are computed once after each fit.
        """
        chips = self._needed_data().valid_dl
        if self._scores is None:
            found = self.make_scores()
            self.network.to(chips.device).eval()
            with torch.inference_mode():
                for images, values in chips:
                    found.add(self.network(images), values)
            self._scores = found.values()
        return self._scores

    def show_results(self, rows: int = 4) -> 'Figure':
        """Draw validation chips with truth, prediction and their difference.

        Args:
            rows: Number of chips.
        """
        chips = self._needed_data().valid_dl
        images, values = (part[:rows] for part in next(iter(chips)))
        self.network.to(chips.device).eval()
        with torch.inference_mode():
            predicted = self.network(images)[:, 0]
        if images.dim() == 5:  # of several dates the last is shown
            images = images[:, -1]
        return plotting.show_value_predictions(images.cpu(), values.cpu(), predicted.cpu(), self.spec.bands)

    def _map_model(self) -> MapModel:
        return MapModel(self.spec, self.network, ValueEncoding())
