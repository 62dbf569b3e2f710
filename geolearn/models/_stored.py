"""What models of every task share: how they are built, saved and loaded. It never asks which subclass it is."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from torch import Tensor

from geolearn.backbones.weights import load_strict
from geolearn.bundle import write_bundle
from geolearn.chips.label import Task
from geolearn.data import ChipData
from geolearn.errors import BundleError, NotTrainedError
from geolearn.history import Evaluation, History
from geolearn.models._describing import BackboneChoice, describe_model, require_task, spec_from_data
from geolearn.models._loading import load_model
from geolearn.models._saving import choose_target, find_saved, make_bundle
from geolearn.models.network import Network
from geolearn.models.spec import ModelSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class StoredModel(ABC):
    """A network with what it needs to be built, saved and loaded.

    Subclasses say how their network is built, what it learns by and how it is judged; everything else is here. A
    subclass's constructor keeps nothing but what goes into the spec, because a loaded model is assembled without it.

    Args:
        data: Chips to train and validate on.
        choice: The backbone, and how it is trained.
        options: What else the class of model was told, as plain JSON.
        class_balancing: Whether rare classes weigh more in the loss.
        ignore_classes: Label values to leave out, on top of those that `data` ignores.
    """

    tasks: ClassVar[tuple[Task, ...]]
    """What the labels of its chips may teach."""

    def __init__(
        self,
        data: ChipData,
        choice: BackboneChoice,
        *,
        options: Mapping[str, Any],
        class_balancing: bool = False,
        ignore_classes: Sequence[int] = (),
    ) -> None:
        name = type(self).__name__
        require_task(data, name, self.tasks)
        data = data.ignoring(ignore_classes) if ignore_classes else data
        spec = replace(spec_from_data(data, choice, model=name), options=dict(options), class_balancing=class_balancing)
        network = self.build(spec, pretrained=choice.pretrained, weights=choice.weights)
        network.adapt(spec.adaptation)
        spec = replace(spec, pretrained=network.backbone.load_report is not None)
        self._assemble(spec, network, data)

    def _assemble(self, spec: ModelSpec, network: Network, data: ChipData | None) -> None:
        """Set every attribute: the one way to a model, new or loaded."""
        if data is not None:
            require_task(data, spec.model, self.tasks)
        self.spec, self.network, self.data = spec, network, data
        self.history = History()
        self.evaluation: Evaluation | None = None
        """What a loaded model's bundle says of it, until it is trained again."""

    # -- what a task says

    @classmethod
    @abstractmethod
    def build(cls, spec: ModelSpec, *, pretrained: bool = False, weights: str | Path | None = None) -> Network:
        """Build the network that a spec describes; with random weights, unless the backbone's are asked for."""

    @abstractmethod
    def evaluate(self) -> Evaluation:
        """Judge the model on the validation chips, for its bundle."""

    @classmethod
    @abstractmethod
    def emd_fields(cls, spec: ModelSpec) -> dict[str, Any]:
        """Return the keys of Esri's model definition that belong to this class of model."""

    @abstractmethod
    def show_results(self, rows: int = 4) -> 'Figure':
        """Draw validation chips with truth and prediction.

        Args:
            rows: Number of chips.
        """

    # -- loading

    @classmethod
    def from_spec(cls, spec: ModelSpec, weights: Mapping[str, Tensor], data: ChipData | None = None) -> Self:
        """Rebuild a model from its description and weights.

        Low-rank updates lie merged in the weights; with data to train on, new ones start beside them.
        """
        network = cls.build(spec)
        load_strict(network, weights, source='of the bundle')
        if data is not None:
            network.adapt(spec.adaptation)
        return cls.of(spec, network.eval(), data)

    @classmethod
    def of(cls, spec: ModelSpec, network: Network, data: ChipData | None = None) -> Self:
        """Make a model of a network that is already there.

        Args:
            spec: What the model is.
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
            raise BundleError(f'{path} holds a {type(model).__name__}; load it with geolearn.load_model')
        return model

    # -- keeping

    def save(self, name_or_path: str | Path, *, compute_metrics: bool = True) -> Path:
        """Write the model as one .dlpk.

        Args:
            name_or_path: A bare name goes beside the data: ``<working_dir>/models/<name>/<name>.dlpk``, where the
                working_dir of the data is the chip folder if none was given. Whatever has a separator or ends in
                .dlpk is a path: ``'lc.dlpk'`` is that file, ``'./lc'`` the folder of lc.dlpk.
            compute_metrics: Judge the model on the validation chips, and put figures and report into the bundle.

        Returns:
            The .dlpk written.

        Raises:
            RasterError: If it cannot be written.
            NotTrainedError: If a bare name is given to a model without data.
        """
        target = choose_target(name_or_path, self.data)
        return write_bundle(target, make_bundle(self, name=target.stem, judged=compute_metrics))

    def load(self, name_or_path: str | Path) -> Self:
        """Take the weights, classes and history of a saved model of the same class, backbone and options.

        Args:
            name_or_path: What `save` was given: a bare name is looked for beside the data.

        Returns:
            The model itself.

        Raises:
            BundleError: If there is no such bundle, it is broken, or it holds another model.
        """
        found = self.from_model(find_saved(name_or_path, self.data), self.data)
        for what in ('backbone', 'options'):
            ours, theirs = getattr(self.spec, what), getattr(found.spec, what)
            if ours != theirs:
                raise BundleError(f'this model has {what} {ours} and the saved one {theirs}; load it with from_model')
        self._assemble(found.spec, found.network, self.data)
        self.history, self.evaluation = found.history, found.evaluation
        return self

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
