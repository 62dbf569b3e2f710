"""What models share that give every pixel a class: their loss, and all that validation chips say of them."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd
import torch
from torch import nn

from geolearn import plotting
from geolearn.history import Evaluation
from geolearn.inference.encoding import ClassEncoding, Encoding
from geolearn.inference.mapping import map_raster
from geolearn.inference.options import ReadOptions, TilingOptions
from geolearn.inference.reading import RasterSource
from geolearn.losses import make_pixel_loss
from geolearn.metrics import ConfusionMatrix, PixelScores, fit_temperature, rank_chips
from geolearn.models.base import Model
from geolearn.models.evaluation.pixels import (
    JudgedChips,
    Judgement,
    count_confusion,
    draw_chips,
    judge_chips,
    look_at,
    name_chips,
    tabulate_metrics,
)
from geolearn.models.reports.pixels import find_in_pixels
from geolearn.models.reports.report import Findings, bundled_report
from geolearn.networks.segmentation import PixelOptions, Segmenter
from geolearn.networks.spec import ModelSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class JudgedClassifier(Model):
    """A model whose network gives every pixel a class, judged by one confusion matrix."""

    decoder: ClassVar[str]
    """Name of the decoder, where the options name none."""
    network: Segmenter
    _confusion: ConfusionMatrix | None = None
    _judgement: Judgement | None = None

    # -- what a task says

    @property
    def encoding(self) -> ClassEncoding:
        """How the network's outputs become a map's pixels."""
        return ClassEncoding(self.spec.class_infos)

    @classmethod
    def _options(cls, spec: ModelSpec) -> PixelOptions:
        return PixelOptions.from_json(spec.options, decoder=cls.decoder)

    def make_loss(self) -> nn.Module:
        """Make the loss that the options name, with a weight for each class where classes are balanced."""
        weights = None
        if self.spec.class_balancing:
            weights = torch.tensor(self._needed_data().class_weights, dtype=torch.float32)
        return make_pixel_loss(self._options(self.spec).loss, weights)

    def make_scores(self) -> PixelScores:
        """Make what counts the validation pixels in each epoch."""
        return PixelScores(self._needed_data().c)

    @classmethod
    def emd_fields(cls, spec: ModelSpec) -> dict[str, Any]:
        """Return the keys of Esri's model definition that belong to pixel classifiers."""
        return {
            'ModelType': 'ImageClassification',
            'ignore_mapped_class': list(spec.ignored_values),
            'SupportsVariableTileSize': True,
        }

    def evaluate(self) -> Evaluation:
        """Judge the model on the validation chips, for its bundle."""
        figures = bundled_report(self)
        table = self.per_class_metrics().drop(columns='iou').rename(index=str)
        return Evaluation(
            metrics={'accuracy': self.accuracy(), 'miou': self.mIOU(mean=True)},
            esri={'accuracy': f'{self.accuracy():.4e}', 'per_class_metrics': table.T.to_json()},
            figures=figures,
        )

    def findings(self) -> Findings:
        """Judge the model on the validation chips, and say what its report tells besides what all reports tell."""
        return find_in_pixels(self, self._needed_data(), self._options(self.spec))

    def _forget(self) -> None:
        super()._forget()
        self._confusion = self._judgement = None

    # -- looking

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

    def per_class_metrics(self, ignore_classes: Sequence[int] = ()) -> pd.DataFrame:
        """Precision, recall, F1 and IoU of each class on the validation chips; NaN where undefined.

        Args:
            ignore_classes: Values of classes whose rows are left out.
        """
        table = tabulate_metrics(self.confusion(), self._class_names)
        return table.loc[[info.name for info in self.spec.class_infos if info.value not in ignore_classes]]

    def confusion(self) -> ConfusionMatrix:
        """Count truth against prediction on the validation chips; computed once after each fit."""
        data = self._needed_data()
        if self._judgement is not None:
            return self._judgement.confusion
        if self._confusion is None:
            self._confusion = count_confusion(self.network, data.valid_dl, data.c)
        return self._confusion

    def judge(self) -> Judgement:
        """Count confusion, calibration, outlines and what each validation chip costs; once after each fit."""
        data = self._needed_data()
        if self._judgement is None:
            self._judgement = judge_chips(self.network, data.valid_dl, data.c, temperature=self.spec.temperature)
        return self._judgement

    def boundary_iou(self, mean: bool = False) -> dict[str, float] | float:
        """IoU of the classes' outlines on the validation chips (Cheng et al. 2021, arXiv:2103.16562).

        Args:
            mean: One number: the mean over the classes that occur.
        """
        found = self.judge().boundaries.iou
        return float(found.nanmean()) if mean else dict(zip(self._class_names, found.tolist()))

    def calibrate(self) -> float:
        """Fit a temperature on the validation chips, by which logits are divided to say how sure the model is.

        Classes stay as they are (Guo et al. 2017, arXiv:1706.04599). The temperature is kept with the model until it
        is trained again.

        Returns:
            The temperature: over 1 for a model that was too sure of itself.
        """
        chips = self._needed_data().valid_dl
        self.network.to(chips.device).eval()
        with torch.inference_mode():
            temperature = fit_temperature((self.network(images), masks) for images, masks in chips)
        self.spec, self._judgement = replace(self.spec, temperature=temperature), None
        return temperature

    def show_results(self, rows: int = 4, *, worst_first: bool = False) -> 'Figure':
        """Draw validation chips with truth, prediction and where they differ.

        Args:
            rows: Number of chips.
            worst_first: Those of the lowest mean IoU, instead of the first.
        """
        return self.draw_chips(self._order(worst_first=worst_first)[:rows])

    def draw_chips(self, indexes: Sequence[int], *, losses: bool = False) -> 'Figure':
        """Draw validation chips by their positions, with name, IoU and loss above each.

        Args:
            indexes: Positions among the validation chips, at least one.
            losses: Show what each pixel costs, not where it is wrong.
        """
        data = self._needed_data()
        seen = look_at(self.network, data.valid_dl, indexes)
        return self._draw(seen, name_chips(seen, data, indexes), losses=losses)

    def _draw(self, seen: JudgedChips, titles: Sequence[str], *, losses: bool) -> 'Figure':
        return draw_chips(seen, self.spec, titles, losses=losses)

    def _order(self, *, worst_first: bool) -> list[int]:
        """Return the positions of the validation chips, the first or the worst first."""
        if worst_first:
            return rank_chips(self.judge().scores, highest_first=False)
        return list(range(len(self._needed_data().valid_ds)))

    def plot_confusion_matrix(self) -> 'Figure':
        """Draw truth against prediction on the validation chips: pixels, and shares of each true class."""
        return plotting.show_confusion_matrix(self.confusion().counts, self._class_names)

    def plot_hard_examples(self, num_examples: int = 4) -> 'Figure':
        """Draw the validation chips of the highest loss, with what each pixel costs.

        Args:
            num_examples: Number of chips.
        """
        order = rank_chips(self.judge().losses, highest_first=True)
        return self.draw_chips(order[:num_examples], losses=True)

    def plot_calibration(self) -> 'Figure':
        """Draw how often the model is right against how sure it is."""
        return plotting.show_reliability(self.judge().calibration.table())


class PixelModel(Model):
    """A model whose network gives every pixel a class or a number."""

    network: Segmenter

    @property
    @abstractmethod
    def encoding(self) -> Encoding:
        """How the network's outputs become a map's pixels."""

    def predict_raster(
        self,
        src: RasterSource,
        dst: str | Path,
        *,
        bands: Sequence[str] | None = None,
        sensor: str | None = None,
        scale: float | None = None,
        offset: float = 0.0,
        tile_size: int | None = None,
        halo: int | None = None,
        batch_size: int = 4,
        device: str | None = None,
        compile: bool = False,
    ) -> Path:
        """Map a raster of any size to a GeoTIFF: of class values, or of float32 numbers with NaN for NoData.

        Memory depends on the tile size and the raster's width, never on its area. Bands are matched by name, else by
        count, else refused. Pixels without data come out as NoData.

        Args:
            src: A raster, or several that make one mosaic. For models of several dates a list of one such for each
                date, oldest first, or one raster with all bands of the first date before those of the second.
            dst: GeoTIFF to write; it appears only when it is whole.
            bands: Names of the raster's bands in file order, where the file names none or wrong ones.
            sensor: Whose names the bands have, such as ``'Sentinel-2'`` for ``'B04'``; colour names need none.
            scale: Multiplies pixel values, where the raster's units are not those of the training chips. Values far
                from what the model was trained on are refused, unless 1 is given, which says that they are right.
            offset: Is added after that.
            tile_size: Side of the tiles in pixels; None takes twice the chip size for backbones with a position grid
                and at least 512 for others.
            halo: Pixels dropped at inner tile edges; None takes an eighth of the chip size, or 32 for CNNs.
            batch_size: Tiles computed together.
            device: Torch device; None means CUDA where there is one.
            compile: Compile the network first: up to a minute, then convolutions run 1.1 to 1.4 times as fast.

        Returns:
            The path written.

        Raises:
            RasterError: If bands, units or dates do not fit, or reading or writing fails; no part of `dst` is left.
        """
        read = ReadOptions(bands, sensor, scale, offset)
        tiling = TilingOptions(tile_size, halo, batch_size, device, compile)
        return map_raster(self.spec, self.network, self.encoding, src, dst, read=read, tiling=tiling)
