"""What every pixel classifier shares: training, looking, saving, mapping. It never asks which subclass it is."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pandas as pd
from torch import Tensor

from geolearn import plotting
from geolearn.backbones.weights import load_strict
from geolearn.bundle import write_bundle
from geolearn.data import ChipData
from geolearn.errors import BundleError, NotTrainedError
from geolearn.history import Evaluation, History
from geolearn.metrics import ConfusionMatrix
from geolearn.models._describing import require_pixels
from geolearn.models._fitting import build_learner, check_training, choose_rates
from geolearn.models._loading import load_model
from geolearn.models._looking import count_confusion, describe_model, draw_results, tabulate_metrics
from geolearn.models._mapping import MapOptions, map_with_model
from geolearn.models._registry import MODELS
from geolearn.models._saving import choose_target, make_bundle
from geolearn.models.segmenter import Segmenter
from geolearn.models.spec import ModelSpec
from geolearn.raster.reading import RasterPath

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class PixelClassifier:
    """A network that gives every pixel a class, with what it needs to be trained, saved and used.

    Subclasses say how their network is built; everything else is here. A subclass's constructor makes spec and network
    of arguments of its own and keeps nothing else, because a loaded model is assembled without it.

    Args:
        spec: What the model is.
        network: The network that `spec` describes.
        data: Chips to train and validate on; None for a model that is only used.
    """

    def __init__(self, spec: ModelSpec, network: Segmenter, data: ChipData | None) -> None:
        self._assemble(spec, network, data)

    def _assemble(self, spec: ModelSpec, network: Segmenter, data: ChipData | None) -> None:
        """Set every attribute: the one way to a model, new or loaded."""
        if data is not None:
            require_pixels(data, spec.model)
        self.spec, self.network, self.data = spec, network, data
        self.history = History()
        self.evaluation: Evaluation | None = None
        """What a loaded model's bundle says of it, until it is trained again."""
        self._confusion: ConfusionMatrix | None = None
        self._learner: Any = None
        self._scales: list[float] | None = None
        self.lr_figure: Figure | None = None

    @classmethod
    def build(cls, spec: ModelSpec) -> Segmenter:
        """Build the network that a spec describes, with random weights."""
        raise TypeError(f'{cls.__name__} builds no network; use one of {sorted(MODELS)}')

    @classmethod
    def from_spec(cls, spec: ModelSpec, weights: Mapping[str, Tensor], data: ChipData | None = None) -> Self:
        """Rebuild a model from its description and weights.

        Low-rank updates lie merged in the weights; with data to train on, new ones start beside them.
        """
        network = cls.build(spec)
        load_strict(network, weights, source='of the bundle')
        if data is not None:
            network.adapt(spec.adaptation)
        model = cls.__new__(cls)
        model._assemble(spec, network.eval(), data)
        return model

    @classmethod
    def from_model(cls, path: str | Path, data: ChipData | None = None) -> 'PixelClassifier':
        """Load a model that `save` wrote; see `load_model`.

        Raises:
            BundleError: If the bundle is broken or holds another class of model.
        """
        model = load_model(path, data)
        if not isinstance(model, cls):
            raise BundleError(f'{path} holds a {type(model).__name__}; load it with geolearn.load_model')
        return model

    # -- training

    @property
    def learner(self) -> Any:
        """fastai's Learner, the door to the layer beneath: callbacks, optimisers, schedules."""
        if self._learner is None:
            # divided once: `freeze` must not change which groups there are
            groups = self.network.rate_groups()
            self._scales = [group.scale for group in groups] if self.network.layer_decay is not None else None
            data = self._needed_data()
            self._learner = build_learner(self.network, data, groups, balanced=self.spec.class_balancing)
        return self._learner

    def lr_find(self, allow_plot: bool = True) -> float:
        """Search for a learning rate; weights are unchanged afterwards.

        Args:
            allow_plot: Keep a figure of the search in `lr_figure`.

        Returns:
            The rate half-way down the longest falling stretch of the loss.
        """
        from geolearn.training import find_learning_rate

        rate, rates, losses = find_learning_rate(self.learner, scales=self._scales)
        self.lr_figure = plotting.show_rate_test(rates, losses, rate) if allow_plot else None
        return rate

    def fit(
        self,
        epochs: int = 10,
        lr: float | slice | None = None,
        *,
        one_cycle: bool = True,
        weight_decay: float = 0.01,
    ) -> Self:
        """Train for `epochs` more epochs, going on from where the model is: a second call does not start over.

        Args:
            epochs: Passes over the training chips.
            lr: Highest learning rate; None searches for one. A single rate is used as it is for new layers and for a
                backbone without pretrained weights; a pretrained backbone gets a tenth of it, or what `layer_decay`
                gives to each of its blocks. A slice goes from the backbone's rate to that of new layers.
            one_cycle: Warm the rate up and anneal it; False keeps it constant.
            weight_decay: Decoupled weight decay of AdamW.

        Returns:
            The model itself; the rows that are printed stay in `history`.

        Raises:
            ValueError: If `epochs` or `lr` is no such number, or batches would be of one chip.
            NotTrainedError: If the model was loaded without data.
        """
        from geolearn.training import train

        check_training(self._needed_data(), epochs, lr, self.network.layer_decay)
        rate = self.lr_find(allow_plot=False) if lr is None else lr
        learner = self.learner
        self._confusion = self.evaluation = None
        self.history.learning_rate = float(rate.stop if isinstance(rate, slice) else rate)
        train(
            learner,
            self.history,
            epochs=epochs,
            learning_rate=choose_rates(rate, scales=self._scales, pretrained=self.spec.pretrained),
            one_cycle=one_cycle,
            weight_decay=weight_decay,
        )
        return self

    def freeze(self) -> None:
        """Keep the backbone as it is; only what is new learns."""
        self.learner.freeze()
        for parameter in self.network.parameters():
            if not parameter.requires_grad:
                parameter.grad = None  # where there is one, if only zeros, the optimiser decays the weight

    def unfreeze(self) -> None:
        """Let everything learn that the model's adaptation does not keep frozen."""
        self.learner.unfreeze()

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

    def per_class_metrics(self) -> pd.DataFrame:
        """Precision, recall, F1 and IoU of each class on the validation chips; NaN where undefined."""
        return tabulate_metrics(self.confusion(), self._class_names)

    def confusion(self) -> ConfusionMatrix:
        """Count truth against prediction on the validation chips; computed once after each fit."""
        data = self._needed_data()
        if self._confusion is None:
            self._confusion = count_confusion(self.network, data.valid_dl, data.c)
        return self._confusion

    def show_results(self, rows: int = 4) -> 'Figure':
        """Draw validation chips with truth and prediction.

        Args:
            rows: Number of chips.
        """
        return draw_results(self.network, self._needed_data().valid_dl, self.spec, rows)

    def plot_losses(self) -> 'Figure':
        """Draw training and validation loss.

        Raises:
            NotTrainedError: Before the first `fit`.
        """
        if not self.history.batch_losses:
            raise NotTrainedError('there are no losses to plot; call fit() first')
        return plotting.show_losses(self.history.batch_losses, self.history.epochs[self.history.loaded :])

    # -- keeping

    def save(self, name_or_path: str | Path) -> Path:
        """Write the model as one .dlpk.

        Args:
            name_or_path: A bare name goes beside the data: ``<working_dir>/models/<name>/<name>.dlpk``, where the
                working_dir of the data is the chip folder if none was given. Whatever has a separator or ends in
                .dlpk is a path: ``'lc.dlpk'`` is that file, ``'./lc'`` the folder of lc.dlpk.

        Returns:
            The .dlpk written.

        Raises:
            RasterError: If it cannot be written.
            NotTrainedError: If a bare name is given to a model without data.
        """
        target = choose_target(name_or_path, self.data)
        return write_bundle(target, make_bundle(self, name=target.stem))

    # -- mapping

    def predict_raster(
        self,
        src: RasterPath,
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
    ) -> Path:
        """Map a raster of any size to a GeoTIFF of class values.

        Memory depends on the tile size and the raster's width, never on its area. Bands are matched by name, else by
        count, else refused. Pixels without data come out as NoData.

        Args:
            src: A raster, or several that make one mosaic.
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

        Returns:
            The path written.

        Raises:
            RasterError: If bands or units do not fit, or reading or writing fails; no part of `dst` is left.
        """
        options = MapOptions(bands, sensor, scale, offset, tile_size, halo, batch_size, device)
        return map_with_model(self.spec, self.network, src, dst, options)

    # -- inside

    @property
    def _class_names(self) -> list[str]:
        return [info.name for info in self.spec.class_infos]

    def _needed_data(self) -> ChipData:
        if self.data is None:
            raise NotTrainedError('this model was loaded without data; pass data= to load_model or from_model')
        return self.data

    def __repr__(self) -> str:
        return describe_model(self.spec, self.network, epochs=len(self.history.epochs), trains=self.data is not None)
