"""Model: what every public model is, a network with its data, its training, its evaluation and its bundle."""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import date
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from torch import Tensor, nn

from geolearn import errors, history, plotting
from geolearn.arguments import MODEL_ATTRIBUTES, advise, check_call, check_methods, encode, record_arguments
from geolearn.backbones import building, catalog, custom, list_backbones, loading
from geolearn.backbones.adapt import merged_state_dict
from geolearn.backbones.backbone import BUILDERS
from geolearn.backbones.scene import scene_of
from geolearn.bundle import (
    EXPORT_FILES,
    DetectionFacts,
    Export,
    GraphFacts,
    GraphOutput,
    check_exports,
    read_bundle,
    write_bundle,
)
from geolearn.chips.label import Task
from geolearn.data import ChipData
from geolearn.inference import computing
from geolearn.inference.encoding import output_encoding
from geolearn.inference.options import TilingOptions
from geolearn.inference.resume import weights_digest
from geolearn.losses.options import CustomLoss, as_loss_module, loss_name
from geolearn.metrics import LOSSES, Scores, cover_classes, spread_chips
from geolearn.metrics.scores import CustomMetric, MetricFunction, ScoresAndFunctions
from geolearn.models import bundling, predict_many, registry
from geolearn.models.exporting import ExportedGraphs, HeldGraph, export_network, read_graphs
from geolearn.models.new_spec import BackboneConfig, describe_as_html, describe_model, require_task, spec_from_data
from geolearn.models.raster_use import RasterUse
from geolearn.models.reports.report import TaskReport, bundle_figures, make_report
from geolearn.networks.network import Network
from geolearn.networks.spec import ModelSpec
from geolearn.report.page import ReportContents, write_report
from geolearn.training.options import Rate, choose_rates, top_rate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from geolearn.precision import Precision
    from geolearn.training import BatchSize


log = logging.getLogger('geolearn')

FEWEST_SHOWN, MOST_SHOWN = 4, 8
"""Chips that `show_results` draws where it may choose their number."""


@check_methods
class Model(ABC):
    """A network that is built for chips, trained, evaluated, saved and loaded.

    Subclasses define how their network is built, what it is trained by and how it is evaluated; everything else is
    here. A subclass's constructor keeps nothing but what goes into the spec, because a loaded model is assembled
    without it.
    """

    tasks: ClassVar[tuple[Task, ...]]
    """The kinds of labels that it can be trained on."""
    raster_use: ClassVar[RasterUse]
    """What it does with rasters."""
    needs_every_date: ClassVar[bool] = False
    """Whether a prediction needs data at every date, as change does; else one date is enough."""
    forward_takes_targets: ClassVar[bool] = False
    """Whether the network takes the targets too, as detectors do that sample proposals by them."""
    keeps_statistics: ClassVar[bool] = False
    """Whether batch norms of a pretrained backbone keep its statistics: those of a few images are poor."""
    graph_output: ClassVar[GraphOutput] = 'classes'
    """What the network's output is, for programs that run its exported graph."""
    trains_by_epochs: ClassVar[bool] = True
    """Whether a second call of `fit` trains on; else it starts anew."""
    not_exported: ClassVar[str] = ''
    """Why no graph of the network can be written; empty where one can."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        check_methods(cls)

    if not TYPE_CHECKING:  # else type checkers would take any attribute

        def __getattr__(self, name: str) -> Any:
            """Answer names that only arcgis.learn's models have."""
            text = f'{type(self).__name__} has no attribute {name!r}'
            answer = MODEL_ATTRIBUTES.get(name)
            raise AttributeError(f'{text}; instead of that of arcgis.learn: {answer}' if answer else text)

    def _create(
        self,
        data: ChipData,
        backbone: BackboneConfig,
        *,
        options: Mapping[str, Any],
        arguments: Mapping[str, Any],
        class_balancing: bool = False,
        ignore_classes: Sequence[int] = (),
        loss: nn.Module | None = None,
    ) -> None:
        """Build a new model: what the constructors of all classes end with.

        Args:
            data: Chips to train and validate on.
            backbone: The backbone, and how it is trained.
            options: Those of the class of model, as plain JSON.
            arguments: What the constructor was given, as `record_arguments` returns it.
            class_balancing: Whether rare classes weigh more in the loss.
            ignore_classes: Label values to ignore, on top of those that `data` ignores.
            loss: A module of the user's own.
        """
        if loss is not None and class_balancing:
            raise errors.ArgumentError('class_balancing weighs the losses of geolearn; give your own loss its weights')
        name = type(self).__name__
        require_task(data, name, self.tasks)
        data = data.ignoring(ignore_classes) if ignore_classes else data
        spec = replace(
            spec_from_data(data, backbone, model=name),
            options=dict(options),
            class_balancing=class_balancing,
            arguments=dict(arguments),
        )
        network = self.build(spec, pretrained=backbone.pretrained, weights=backbone.weights)
        network.adapt(spec.adaptation)
        spec = replace(spec, pretrained=network.backbone.load_report is not None)
        if loss is not None:
            spec = replace(spec, custom={**spec.custom, 'loss': loss_name(loss)})
        self._assemble(spec, network, data, loss)

    def _custom(self) -> nn.Module | None:
        """Return the loss of the user's own as one that networks can be trained with; None for geolearn's."""
        own = self._own_loss()
        return None if own is None else CustomLoss(own)

    def _own_loss(self) -> nn.Module | None:
        """Return the loss of the user's own as it is; None for geolearn's.

        Raises:
            NotTrainedError: If the model was loaded without it.
        """
        if self._custom_loss is not None:
            return self._custom_loss
        if name := self.spec.custom.get('loss'):
            raise errors.NotTrainedError(
                f'this model was trained with {name}, a loss of your own that its bundle does not hold; pass it as '
                'load_model(path, data, loss=...)'
            )
        return None

    def _assemble(
        self, spec: ModelSpec, network: Network, data: ChipData | None, loss: nn.Module | None = None
    ) -> None:
        """Set every attribute: the one way to a model, new or loaded."""
        if data is not None:
            require_task(data, spec.model, self.tasks)
        network.keeps_statistics = self.keeps_statistics and spec.pretrained
        self.spec, self.network, self.data = spec, network, data
        self.history = history.History()
        self.evaluation: history.Evaluation | None = None
        """The last one: computed by `evaluate`, or read from a bundle. Training drops it."""
        self.lr_figure: Figure | None = None
        self._learner: Any = None
        self._scales: list[float] | None = None
        self._custom_loss = loss
        self._scores: ScoresAndFunctions | None = None
        self._loaded_from: Path | None = None
        self._graphs: list[HeldGraph] = []

    # -- what a task defines

    @classmethod
    @abstractmethod
    def build(cls, spec: ModelSpec, *, pretrained: bool = False, weights: str | Path | None = None) -> Network:
        """Build the network that a spec describes; with random weights, unless the backbone's are asked for."""

    @classmethod
    @abstractmethod
    def emd_fields(cls, spec: ModelSpec) -> dict[str, Any]:
        """Return the keys of Esri's model definition that belong to this class of model."""

    @abstractmethod
    def make_loss(self) -> nn.Module:
        """Make what training minimizes: a module of the network's output and the targets."""

    @abstractmethod
    def make_scores(self) -> Scores:
        """Make the metrics that each epoch computes on the validation chips."""

    @abstractmethod
    def evaluate(self) -> history.Evaluation:
        """Evaluate the model on the validation chips; computed once after each fit.

        Raises:
            NotTrainedError: If the model was loaded without data.
        """

    @abstractmethod
    def _task_report(self) -> TaskReport:
        """Return what the report of this task holds besides what all reports hold."""

    @abstractmethod
    def show_results(self, rows: int | None = None) -> 'Figure':
        """Draw validation chips with truth and prediction: those that together show every class.

        Args:
            rows: Number of chips; None takes as many as show every class, 4 to 8.
        """

    @abstractmethod
    def use_on_raster(self, sources: Sequence[Any], dst: str | Path, options: Mapping[str, Any]) -> Path:
        """Map, detect or classify, whatever the class of model does with rasters; for callers that do not know it.

        Args:
            sources: One raster or several; see `predict_raster`.
            dst: To write, with one of the suffixes of `raster_use`.
            options: Keywords of `predict_raster`, `detect_objects` or `classify_objects`.

        Returns:
            The path written.

        Raises:
            RasterError: If rasters or options do not fit the model.
        """

    predict_many = predict_many.predict_many

    # -- evaluation

    def scores(self) -> dict[str, float]:
        """Return the metrics of `evaluate` by name; NaN where undefined."""
        return dict(self.evaluate().metrics)

    def report_contents(self, *, made: date | None = None) -> ReportContents:
        """Return what `report` writes, as sections of texts, tables and pictures.

        Args:
            made: Day that the report names; None takes today.

        Raises:
            NotTrainedError: If the model was loaded without data.
        """
        data, task = self._needed_data('a report'), self._task_report()
        load_report = self.network.backbone.load_report
        made = date.today() if made is None else made
        return make_report(self.spec, data, self.history, task, load_report=load_report, made=made)

    def report(self, path: str | Path) -> Path:
        """Write data, training, metrics and figures as one HTML page that needs no other file.

        Args:
            path: The page, such as ``'report.html'``.

        Returns:
            The path written.

        Raises:
            NotTrainedError: If the model was loaded without data.
            FileWriteError: If the page cannot be written.
        """
        return write_report(path, self.report_contents())

    # -- saving and loading

    @classmethod
    def from_spec(cls, spec: ModelSpec, weights: Mapping[str, Tensor], data: ChipData | None = None) -> Self:
        """Rebuild a model from its description and weights.

        Low-rank updates lie merged in the weights; with data to train on, new ones start beside them.
        """
        network = loading.build_filled(lambda: cls.build(spec), weights, 'of the bundle')
        if data is not None:
            network.adapt(spec.adaptation)
        return cls.of(spec, network.eval(), data)

    @classmethod
    def of(cls, spec: ModelSpec, network: Network, data: ChipData | None = None) -> Self:
        """Wrap an existing network.

        Args:
            spec: Of the model.
            network: The network that `spec` describes.
            data: Chips to train and validate on; None for a model that is only used.
        """
        model = cls.__new__(cls)
        model._assemble(spec, network, data)
        return model

    @classmethod
    def from_model(cls, path: str | Path, data: ChipData | None = None) -> Self:
        """Load a model that `save` wrote; see `load_model`.

        Raises:
            BundleError: If the bundle is broken or holds another class of model.
        """
        model = load_model(path, data)
        if not isinstance(model, cls):
            raise errors.BundleError(f'{path} holds a {type(model).__name__}; load it with geolearn.load_model')
        return model

    def save(
        self, name_or_path: str | Path, *, compute_metrics: bool = True, export: Export | Sequence[Export] = ()
    ) -> Path:
        """Write the model as one .dlpk.

        Args:
            name_or_path: A bare name goes beside the data: ``<working_dir>/models/<name>/<name>.dlpk``, where the
                working_dir of the data is the chip folder if none was given. Whatever has a separator or ends in
                .dlpk is a path: ``'lc.dlpk'`` is that file, ``'./lc'`` the folder of lc.dlpk.
            compute_metrics: Evaluate the model on the validation chips, and put figures and report into the bundle.
            export: Graphs to put into the bundle, which run without geolearn's networks: ``'onnx'`` (see
                `geolearn.onnx`), ``'torch'`` (a program of `torch.export`), ``'onnx-int8'`` (weights of 8 bits, a
                quarter of the size), or several. Each is compared with the model; the manifest states what 8 bits cost
                on the validation chips.

        Returns:
            The .dlpk written.

        Raises:
            FileWriteError: If it cannot be written.
            ExportError: If a graph cannot be written, or differs from the network by more than 0.001 of the largest
                output.
            NotTrainedError: If a bare name is given to a model without data.
        """
        kinds = check_exports(export)
        self._check_saved()
        target = bundling.choose_target(name_or_path, self.data)
        graphs = self._export(kinds) if kinds else None
        evaluation = self.evaluation
        if compute_metrics and self.data is not None and self.history.epochs:
            # the losses of single batches are not in a bundle: their figure stays as it was read
            loaded = evaluation.figures if evaluation is not None and evaluation.loaded else {}
            evaluation = replace(self.evaluate(), figures={**loaded, **bundle_figures(self.report_contents())})
        elif evaluation is not None and not evaluation.loaded:
            evaluation = None
        for part, name in self.spec.custom.items():
            log.warning('the bundle names the %s %s and does not hold it: load_model(path, %s=...)', part, name, part)
        emd = self.emd_fields(self.spec)
        bundle = bundling.make_bundle(self.spec, self.network, self.history, evaluation, emd=emd, name=target.stem)
        return write_bundle(target, bundle if graphs is None else bundle.with_graphs(graphs.members, graphs.manifest))

    def _check_saved(self) -> None:
        """Refuse to save a model that could not be used; classes say when that is."""
        return

    def onnx_graph(self, shape: tuple[int, int]) -> bytes:
        """Return the network as an ONNX graph, the file's content, for `geolearn.inference.engines`.

        That of the bundle is taken where the model was loaded from one that holds it, else it is written, once.

        Args:
            shape: Height and width of the images that it must take.

        Raises:
            ExportError: If no graph can be written.
            MissingExtraError: If a library that this takes is missing.
        """
        weights = weights_digest(self.network)
        self._graphs = [graph for graph in self._graphs if graph.weights == weights]
        if not self._graphs and self._loaded_from is not None:
            self._graphs = [graph for graph in read_graphs(self._loaded_from) if graph.weights == weights]
        for size in (None, shape):
            for graph in self._graphs:
                if graph.size in (None, shape):
                    return graph.content
            self._graphs.append(self._write_graph(weights, size))
        return self._graphs[-1].content

    def _write_graph(self, weights: str, size: tuple[int, int] | None) -> HeldGraph:
        graphs = self._export(('onnx',), size=size)
        return HeldGraph(graphs.members[EXPORT_FILES['onnx']], graphs.manifest['onnx']['size'], weights)

    def _export(self, kinds: Sequence[Export], *, size: tuple[int, int] | None = None) -> ExportedGraphs:
        """Write the network, as it would be loaded, as graphs.

        Args:
            kinds: Of graphs.
            size: The only height and width of images that they take; None for any, where that is possible.

        Raises:
            ExportError: If that cannot be done.
        """
        if self.not_exported:
            raise errors.ExportError(f'{self.spec.model} cannot be written as a graph: {self.not_exported}')
        network = loading.build_filled(
            lambda: self.build(self.spec), merged_state_dict(self.network), 'of the model'
        ).eval()
        facts = self.graph_facts(network, size=size)
        weights = weights_digest(network)
        chips = () if self.data is None else self.data.valid_dl.batches()
        graphs = export_network(self._graph_network(network), self.spec, kinds, facts, chips)
        return replace(graphs, manifest={kind: {**row, 'weights': weights} for kind, row in graphs.manifest.items()})

    def graph_facts(self, network: Any, *, size: tuple[int, int] | None = None) -> GraphFacts:
        """Return what a program that runs a graph of the network needs to know.

        Args:
            network: Of this model.
            size: The only height and width of images that the graph takes; None for any.
        """
        side, halo = self.spec.chip_size, 0
        if self.graph_output != 'chip classes':
            tiling = TilingOptions()
            # objects of tiles are joined, not blended
            blend = 'crop' if self.graph_output == 'objects' else computing.choose_blend(network, tiling)
            side, halo = computing.choose_tile(self.spec, network, tiling, blend=blend)
        dtype, nodata = ('float32', None)
        if self.graph_output == 'classes':
            dtype, nodata = output_encoding(self.spec.class_infos)
        scene = scene_of(network.backbone)
        return GraphFacts(
            self.graph_output,
            dtype,
            nodata,
            tile_size=side,
            halo=halo,
            multiple=math.lcm(computing.MULTIPLE, *network.backbone.strides),
            position_grid=network.backbone.has_position_grid,
            every_date=self.needs_every_date,
            size=size,
            dates=tuple(day.isoformat() for day in scene.dates),
            location=scene.location,
            resolution_m=None if self.spec.resolution_m is None else scene.resolution_m,
            detection=self._detection_facts(network),
        )

    def _graph_network(self, network: Any) -> Network:
        """Return what is written as a graph: the network itself, or the part of it that a graph can hold."""
        written: Network = network
        return written

    def _detection_facts(self, network: Any) -> DetectionFacts | None:
        """Return how objects are made of what the graph gives; None for networks that detect none."""
        return None

    def load(self, name_or_path: str | Path) -> Self:
        """Take the weights, classes and history of a saved model of the same class, backbone and options.

        Args:
            name_or_path: What `save` was given: a bare name is looked for beside the data.

        Returns:
            The model itself.

        Raises:
            BundleError: If there is no such bundle, it is broken, or it holds another model.
        """
        saved = self.from_model(bundling.beside_data(name_or_path, self.data), self.data)
        for what in ('backbone', 'options'):
            ours, theirs = getattr(self.spec, what), getattr(saved.spec, what)
            if ours != theirs:
                raise errors.BundleError(
                    f'this model has {what} {ours} and the saved one {theirs}; load it with from_model'
                )
        self._assemble(saved.spec, saved.network, self.data)
        self.history, self.evaluation = saved.history, saved.evaluation
        return self

    # -- training

    @property
    def learner(self) -> Any:
        """fastai's Learner, the door to the layer beneath: callbacks, optimizers, schedules."""
        self._prepare()
        return self._learner

    def _prepare(self) -> None:
        """Build the learner and divide the parameters, once."""
        if self._learner is not None:
            return
        # fastai takes seconds to import, and mapping does without it
        from geolearn.training import make_learner

        # divided once: `freeze` must not change which groups there are
        groups = self.network.param_groups()
        self._scales = [group.lr_scale for group in groups] if self.network.layer_decay is not None else None
        data, self._scores = self._needed_data(), ScoresAndFunctions(self.make_scores())
        self._learner = make_learner(
            self.network,
            data.train_dl,
            data.valid_dl,
            self.make_loss(),
            scores=self._scores,
            splitter=lambda _: [group.parameters for group in groups],
            forward_takes_targets=self.forward_takes_targets,
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
        metrics: Sequence[MetricFunction | CustomMetric] = (),
        weight_decay: float = 0.01,
        resume: bool | str = False,
        seed: int | None = None,
        deterministic: bool = False,
    ) -> Self:
        """Train for `epochs` more epochs, continuing from its weights: a second call does not start over.

        Where chips are larger than `chip_size`, the row of each epoch scores the middle of each validation chip, for
        speed; `evaluate` scores whole chips, those of `FeatureClassifier` aside.

        Args:
            epochs: Passes over the training chips.
            lr: Highest learning rate; None searches for one. A single rate is used as it is for new layers and for a
                backbone without pretrained weights; a pretrained backbone gets a tenth of it, or what `layer_decay`
                gives to each of its blocks. A slice goes from the backbone's rate to that of new layers.
            one_cycle: Warm the rate up and anneal it; False keeps it constant.
            early_stopping: End when `monitor` has not got better by 0.001 for 5 epochs.
            checkpoint: Keep the last and the best state on disk after each epoch, and end with the best weights;
                ``'all'`` keeps the weights of every epoch. Each training has a folder of its own in ``models/training``
                beside the data; of those that are finished, the last three stay.
            monitor: Column of the printed table by which the best epoch is chosen, such as ``'valid_loss'``.
            mixed_precision: ``'bf16'``, ``'fp16'`` (CUDA only), or True for the better of them on a GPU.
            accumulate: So many batches make one step.
            ema: Keep a running mean of the weights, and end with it: True, or how much of it each step keeps.
            tensorboard: Write a TensorBoard log beside the checkpoints.
            callbacks: fastai's, for whatever is not here; see `geolearn.training` for MLflow and Weights & Biases.
            metrics: Functions of the network's output and the targets of a validation batch, each of which returns one
                number; their means over the chips are further columns of the table. `geolearn.metrics.CustomMetric`
                gives one a name, and says which way is better, so that `monitor` may take it.
            weight_decay: Decoupled weight decay of AdamW.
            resume: Continue from the last checkpoint of the same training, which was interrupted: same data, model and
                arguments. Where several agree in these, the name of one of them, which the error lists.
            seed: Fixes whatever is drawn at random while training; order and augmentation have the data's seed.
            deterministic: Use only algorithms that give the same numbers each time; slower on a GPU.

        Returns:
            The model itself; the rows that are printed stay in `history`.

        Raises:
            ValueError: If an argument is not valid, or batches would be of one chip.
            NotTrainedError: If the model was loaded without data.
            TrainingError: If a loss is non-finite, or memory does not hold one chip.
            CheckpointError: If a checkpoint cannot be written, or resumed.
            UnknownNameError: If there is no such monitor.
        """
        from geolearn.training import (
            FitOptions,
            check_training,
            find_run,
            hold_run,
            new_run,
            tensorboard_logger,
            train,
            training_folder,
            training_identity,
        )

        given = record_arguments(self.fit, locals())
        data = self._needed_data()
        for name, value in (('tensorboard', tensorboard), ('resume', resume)):
            if not isinstance(value, bool) and not (name == 'resume' and isinstance(value, str)):
                raise ValueError(f'{name} must be True or False, got {value!r}')
        if not isinstance(callbacks, Sequence) or isinstance(callbacks, str):
            raise ValueError(f'callbacks must be a list of fastai callbacks, got {callbacks!r}')
        if isinstance(epochs, int) and epochs < 1:
            raise ValueError(f'epochs must be at least 1, got {epochs}')
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
            callbacks=tuple(callbacks),
        )
        check_training(data, lr, self.network.layer_decay)
        self._prepare()
        assert self._scores is not None
        self._scores.use(metrics)
        self.learner.identity = training_identity(data, self.spec)
        parent = training_folder(data, self.spec)
        if lr is not None or not resume:
            rates = self._rates(lr)
            options = replace(options, learning_rate=rates)
        if resume:
            run = find_run(parent, self.learner, options, name=resume if isinstance(resume, str) else '')
            folder, rates = run.folder, rates if options.learning_rate is not None else run.learning_rate
        else:
            folder = new_run(parent)
        if tensorboard:
            options = replace(options, callbacks=(*callbacks, tensorboard_logger(folder / 'tensorboard')))
        self.evaluation = None
        self.spec = replace(self.spec, temperature=1.0)  # fitted to the weights as they were
        self.history.learning_rate = top_rate(rates)
        with hold_run(folder) if checkpoint else nullcontext():
            train(self.learner, self.history, replace(options, learning_rate=rates), folder=folder, resume=bool(resume))
        given.pop('resume', None)
        rate = self.history.learning_rate if lr is None else encode(lr)
        self.history.fits.append({'epochs': epochs, 'lr': rate} | given)
        bundling.record_trained_chips(self.history, data)
        return self

    def _rates(self, lr: float | slice | None) -> Rate:
        """Return the rate of each parameter group: as asked for, or as a search finds."""
        self._prepare()  # divides the parameters
        rate = self.lr_find(allow_plot=False) if lr is None else lr
        return choose_rates(rate, scales=self._scales, pretrained=self.spec.pretrained)

    def freeze(self) -> None:
        """Freeze the backbone; only the new layers are trained.

        With few labels a pretrained backbone gains by new layers that are trained first: ``model.freeze()``,
        ``model.fit(20)``, ``model.unfreeze()``, ``model.fit(40)`` (Kumar et al. 2022, arXiv:2202.10054). Untrained ones
        give it gradients that say nothing. ``docs/pretraining.md`` has measured it.
        """
        learner = self.learner  # first: its parameter groups hold what is trained now
        learner.create_opt()
        for parameter in self.network.backbone.trunk.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None  # where there is one, if only zeros, the optimizer decays the weight

    def unfreeze(self) -> None:
        """Train everything that the model's adaptation does not keep frozen."""
        self.learner.unfreeze()

    def plot_losses(self) -> 'Figure':
        """Draw training and validation loss.

        Raises:
            NotTrainedError: Before the first `fit`.
        """
        if not self.history.batch_losses:
            raise errors.NotTrainedError('there are no losses to plot; call fit() first')
        return plotting.show_losses(self.history.batch_losses, self.history.epochs[self.history.loaded :])

    # -- choices

    @property
    def available_metrics(self) -> list[str]:
        """Columns of the epoch table, for ``fit(monitor=...)``."""
        return [metric.name for metric in (*LOSSES, *self.make_scores().columns)]

    @property
    def supported_backbones(self) -> list[str]:
        """Names of geolearn's own backbones; most models of timm and torchvision serve too."""
        return list_backbones()

    def estimate_batch_size(self, mode: Literal['train', 'eval'] = 'train') -> 'BatchSize':
        """Estimate by measuring how many chips go into memory at once.

        Args:
            mode: For training or for evaluation.

        Raises:
            ValueError: If training also needs the targets, whose number differs from chip to chip.
        """
        from geolearn.training import estimate_batch_size

        if self.forward_takes_targets and mode == 'train':
            raise ValueError(f"{self.spec.model} trains on targets too; pass mode='eval', or try a batch_size")
        shape = (len(self.spec.bands), self.spec.chip_size, self.spec.chip_size)
        return estimate_batch_size(self.network, shape, mode=mode)

    # -- inside

    def _choose_chips(self, rows: int | None) -> list[int]:
        """Return the positions of validation chips that together show every class, or the range of the target."""
        if rows is not None and rows < 1:
            raise ValueError(f'rows must be at least 1, got {rows}')
        least, most = (FEWEST_SHOWN, MOST_SHOWN) if rows is None else (rows, rows)
        data = self._needed_data()
        positions = list(data.split.valid)
        if data.task == Task.REGRESSION:
            counts, means, *_ = data.table.label_statistics[positions].T
            return spread_chips(np.where(counts > 0, means, np.nan).tolist(), least)
        amounts = data.table.amounts([info.value for info in data.class_infos])
        return cover_classes(amounts[positions], least=least, most=most)

    @property
    def _class_names(self) -> list[str]:
        return [info.name for info in self.spec.class_infos]

    def _needed_data(self, what: str = '') -> ChipData:
        if self.data is None:
            needs = f'{what} needs the chips' if what else 'this model was loaded without data'
            raise errors.NotTrainedError(f'{needs}; pass data= to load_model or from_model')
        return self.data

    def _repr_html_(self) -> str:
        """Show the model in a notebook: backbone, bands, classes in their colors, epochs and the last evaluation."""
        return describe_as_html(self.spec, self.network, self.history, self.evaluation)

    def __repr__(self) -> str:
        return describe_model(self.spec, self.network, epochs=len(self.history.epochs), trains=self.data is not None)


advise(ChipData, "make the data by prepare_data('folder of chips')")


@check_call
def load_model(
    path: str | Path,
    data: ChipData | None = None,
    *,
    backbone: custom.ModuleBackbone | None = None,
    loss: nn.Module | Callable[..., Tensor] | None = None,
) -> Model:
    """Load a model from a .dlpk; nothing in it is unpickled or run.

    Args:
        path: The .dlpk, the .emd beside it, or the folder that holds one.
        data: Chips to continue training or to validate with.
        backbone: The module of the user's own that the model was built on, under the same name; its weights come from
            the bundle.
        loss: The module or function of the user's own that the model was trained with, to continue training.

    Returns:
        The model, of the class that the bundle names.

    Raises:
        BundleError: If the bundle is broken, hostile or too new, or names an unknown model or backbone.
    """
    bundle = read_bundle(path)
    spec = ModelSpec.from_manifest(bundle.manifest)
    if backbone is not None:
        custom.register_module(backbone)
    needed = spec.custom.get('backbone')
    if needed and spec.backbone not in BUILDERS:
        raise errors.BundleError(
            f'{path} is built on {needed}, a module of its own that the bundle does not hold; pass it as '
            f'load_model(path, backbone=ModuleBackbone(module, channels=..., strides=..., name={spec.backbone!r}))'
        )
    if data is not None:
        data = bundling.leave_out(spec, data)
        bundling.check_fits(spec, data)
    try:
        if spec.model in registry.HOMES:
            import_module(f'geolearn.models.{registry.HOMES[spec.model]}')
        if spec.model not in registry.MODELS:
            raise errors.UnknownNameError('model', spec.model, registry.load_all())
        model: Model = registry.MODELS[spec.model].from_spec(spec, bundle.weights, data)
    except (ValueError, TypeError, LookupError, ArithmeticError) as error:  # of libraries that build the network too
        raise errors.BundleError(f'{path} cannot be loaded: {error}') from error
    if spec.pretrained and (record := catalog.find_record(spec.backbone)) is not None:
        building.announce_license(record)
    model._loaded_from = Path(path)
    model.history = bundling.read_history(bundle)
    if data is not None:
        bundling.warn_of_trained_chips(model.history, data)
    model.evaluation = bundling.read_evaluation(bundle)
    if loss is not None:
        model._custom_loss = as_loss_module(loss)
        model.spec = replace(spec, custom={**spec.custom, 'loss': loss_name(model._custom_loss)})
    return model
