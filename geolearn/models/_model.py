"""What models of every task share: training. It never asks which subclass it is."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from torch import nn

from geolearn import plotting
from geolearn.backbones import list_backbones
from geolearn.data import ChipData
from geolearn.errors import NotTrainedError
from geolearn.metrics import Scores
from geolearn.models._fitting import Rate, build_learner, check_training, choose_rates, top_rate, training_folder
from geolearn.models._report import Findings, make_report
from geolearn.models._stored import StoredModel
from geolearn.models.network import Network
from geolearn.models.spec import ModelSpec
from geolearn.report import write_report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from geolearn.training import BatchSize
    from geolearn.training.options import Precision


class Model(StoredModel):
    """A network that is trained on chips; subclasses say what it learns by and how each epoch is judged."""

    gives_targets: ClassVar[bool] = False
    """Whether the network takes the targets too, as detectors do that sample proposals by them."""

    def _assemble(self, spec: ModelSpec, network: Network, data: ChipData | None) -> None:
        super()._assemble(spec, network, data)
        self._learner: Any = None
        self._scales: list[float] | None = None
        self.lr_figure: Figure | None = None
        self._forget()

    # -- what a task says

    @abstractmethod
    def make_loss(self) -> nn.Module:
        """Make what training minimises: a module of the network's output and the targets."""

    @abstractmethod
    def make_scores(self) -> Scores:
        """Make what counts the validation chips in each epoch."""

    @abstractmethod
    def findings(self) -> Findings:
        """Judge the model on the validation chips, and say what its report tells besides what all reports tell."""

    # -- training

    @property
    def learner(self) -> Any:
        """fastai's Learner, the door to the layer beneath: callbacks, optimisers, schedules."""
        self._prepare()
        return self._learner

    def _prepare(self) -> None:
        """Build the learner and divide the parameters, once."""
        if self._learner is None:
            # divided once: `freeze` must not change which groups there are
            groups = self.network.rate_groups()
            self._scales = [group.scale for group in groups] if self.network.layer_decay is not None else None
            data = self._needed_data()
            self._learner = build_learner(
                self.network,
                data,
                groups,
                loss=self.make_loss(),
                scores=self.make_scores(),
                gives_targets=self.gives_targets,
            )

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
        early_stopping: bool = False,
        checkpoint: bool | Literal['all'] = True,
        monitor: str = 'valid_loss',
        mixed_precision: 'Precision | bool | None' = None,
        accumulate: int = 1,
        ema: bool | float = False,
        tensorboard: bool = False,
        callbacks: Sequence[Any] = (),
        weight_decay: float = 0.01,
        resume: bool = False,
        seed: int | None = None,
        deterministic: bool = False,
    ) -> Self:
        """Train for `epochs` more epochs, going on from where the model is: a second call does not start over.

        Args:
            epochs: Passes over the training chips.
            lr: Highest learning rate; None searches for one. A single rate is used as it is for new layers and for a
                backbone without pretrained weights; a pretrained backbone gets a tenth of it, or what `layer_decay`
                gives to each of its blocks. A slice goes from the backbone's rate to that of new layers.
            one_cycle: Warm the rate up and anneal it; False keeps it constant.
            early_stopping: End when `monitor` has not got better by 0.001 for 5 epochs.
            checkpoint: Keep the last and the best state on disk after each epoch, and end with the best weights;
                ``'all'`` keeps the weights of every epoch. They go to ``models/training`` beside the data.
            monitor: Column of the printed table that says what is best, such as ``'valid_loss'``.
            mixed_precision: ``'bf16'``, ``'fp16'`` (CUDA only), or True for the better of them on a GPU.
            accumulate: So many batches make one step.
            ema: Keep a running mean of the weights, and end with it: True, or how much of it each step keeps.
            tensorboard: Write a TensorBoard log beside the checkpoints.
            callbacks: fastai's, for whatever is not here; see `geolearn.training` for MLflow and Weights & Biases.
            weight_decay: Decoupled weight decay of AdamW.
            resume: Go on from the last checkpoint of the same training, which was interrupted: same data, model and
                arguments.
            seed: Fixes whatever is drawn at random while training; order and augmentation have the data's seed.
            deterministic: Use only algorithms that give the same numbers each time; slower on a GPU.

        Returns:
            The model itself; the rows that are printed stay in `history`.

        Raises:
            ValueError: If an argument makes no sense, or batches would be of one chip.
            NotTrainedError: If the model was loaded without data.
            TrainingError: If a loss is no number, or memory does not hold one chip.
            CheckpointError: If a checkpoint cannot be written, or resumed.
            UnknownNameError: If there is no such monitor.
        """
        from geolearn.training import FitOptions, tensorboard_logger, train

        data = self._needed_data()
        check_training(data, epochs, lr, self.network.layer_decay)
        folder = training_folder(data, self.spec)
        options = FitOptions(
            epochs,
            one_cycle=one_cycle,
            weight_decay=weight_decay,
            early_stopping=early_stopping,
            checkpoint=checkpoint,
            monitor=monitor,
            mixed_precision=mixed_precision,
            accumulate=accumulate,
            ema=ema,
            seed=seed,
            deterministic=deterministic,
            callbacks=(*callbacks, *([tensorboard_logger(folder / 'tensorboard')] if tensorboard else [])),
        )
        rates = self._rates(lr, folder, resume=resume)
        self._forget()
        self.spec = replace(self.spec, temperature=1.0)  # fitted to the weights as they were
        self.history.learning_rate = top_rate(rates)
        train(self.learner, self.history, replace(options, learning_rate=rates), folder=folder, resume=resume)
        return self

    def _rates(self, lr: float | slice | None, folder: Path, *, resume: bool) -> Rate:
        """Return the rate of each parameter group: as asked for, as a checkpoint says, or as a search finds."""
        from geolearn.training import read_rate

        if lr is None and resume:
            return read_rate(folder)
        self._prepare()  # divides the parameters
        rate = self.lr_find(allow_plot=False) if lr is None else lr
        return choose_rates(rate, scales=self._scales, pretrained=self.spec.pretrained)

    def _forget(self) -> None:
        """Drop what was computed with weights that are about to change."""
        self.evaluation = None

    def freeze(self) -> None:
        """Keep the backbone as it is; only what is new learns."""
        learner = self.learner  # first: its parameter groups hold what learns now
        learner.create_opt()
        for parameter in self.network.backbone.trunk.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None  # where there is one, if only zeros, the optimiser decays the weight

    def unfreeze(self) -> None:
        """Let everything learn that the model's adaptation does not keep frozen."""
        self.learner.unfreeze()

    def plot_losses(self) -> 'Figure':
        """Draw training and validation loss.

        Raises:
            NotTrainedError: Before the first `fit`.
        """
        if not self.history.batch_losses:
            raise NotTrainedError('there are no losses to plot; call fit() first')
        return plotting.show_losses(self.history.batch_losses, self.history.epochs[self.history.loaded :])

    def report(self, path: str | Path) -> Path:
        """Write all that there is to say of the model as one HTML page that needs no other file.

        Args:
            path: The page, such as ``'report.html'``.

        Returns:
            The path written.

        Raises:
            NotTrainedError: If the model was loaded without data.
            RasterError: If the page cannot be written.
        """
        return write_report(path, make_report(self, made=date.today()))

    # -- what there is to choose from

    @property
    def available_metrics(self) -> list[str]:
        """Columns of the epoch table, for ``fit(monitor=...)``."""
        return ['train_loss', 'valid_loss', *self.make_scores().names]

    @property
    def supported_backbones(self) -> list[str]:
        """Names of geolearn's own backbones; most models of timm and torchvision serve too."""
        return list_backbones()

    def estimate_batch_size(self, mode: Literal['train', 'eval'] = 'train') -> 'BatchSize':
        """Estimate by measuring how many chips go into memory at once.

        Args:
            mode: For training or for looking.

        Raises:
            ValueError: If training also needs the targets, whose number differs from chip to chip.
        """
        from geolearn.training import estimate_batch_size

        if self.gives_targets and mode == 'train':
            raise ValueError(f"{self.spec.model} trains on targets too; pass mode='eval', or try a batch_size")
        shape = (len(self.spec.bands), self.spec.chip_size, self.spec.chip_size)
        return estimate_batch_size(self.network, shape, mode=mode)
