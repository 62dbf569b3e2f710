"""What classifiers of chips learn by, and how they are judged on validation chips."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import nn

from geolearn.chips.label import Task
from geolearn.data import ChipData
from geolearn.errors import BundleError, ChipFolderError
from geolearn.history import Evaluation
from geolearn.losses import MultiLabelCrossEntropy, SoftCrossEntropy
from geolearn.metrics import ChipScores, ConfusionMatrix, MultiLabelScores
from geolearn.models._describing import require_task
from geolearn.models._model import Model
from geolearn.models._report import Findings, bundled_report
from geolearn.models.classification import _looking
from geolearn.models.classification._outputs import (
    ChipOutputs,
    collect_outputs,
    count_confusion,
    score_chips,
    tabulate_classes,
)
from geolearn.models.classification._report import find_in_chips
from geolearn.models.classification._training_data import shown_as
from geolearn.models.classification.network import ChipNetwork, build_chip_network
from geolearn.models.classification.options import ChipOptions
from geolearn.models.network import Network
from geolearn.models.spec import ModelSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class ChipModel(Model):
    """A model that says of whole chips which class, or which classes, they hold; see `Model` for its arguments."""

    tasks = (Task.LABEL, Task.LABELS)

    network: ChipNetwork
    _options: ChipOptions
    _outputs: ChipOutputs | None = None

    # -- what a task says

    @classmethod
    def build(cls, spec: ModelSpec, *, pretrained: bool = False, weights: str | Path | None = None) -> ChipNetwork:
        """Build the network that a spec describes."""
        options = ChipOptions.from_json(spec.options)
        least = 1 if options.multi_label else 2
        if len(spec.class_infos) < least:
            raise BundleError(f'the manifest is broken: {spec.model} needs {least} classes or more, found fewer')
        return build_chip_network(spec, options, pretrained=pretrained, weights=weights)

    def make_loss(self) -> nn.Module:
        """Make the cross-entropy of one class per chip or of many, weighted where classes are balanced."""
        weights = None
        if self.spec.class_balancing:
            weights = torch.tensor(self._needed_data().class_weights, dtype=torch.float32)
        if self._options.multi_label:
            return MultiLabelCrossEntropy(weights)
        return SoftCrossEntropy(weights, label_smoothing=self._options.label_smoothing)

    def make_scores(self) -> ChipScores | MultiLabelScores:
        """Make what counts the validation chips in each epoch."""
        count = self._needed_data().c
        return MultiLabelScores(count) if self._options.multi_label else ChipScores(count)

    @classmethod
    def emd_fields(cls, spec: ModelSpec) -> dict[str, Any]:
        """Return the keys of Esri's model definition that belong to classifiers of features."""
        options = ChipOptions.from_json(spec.options)
        return {
            'ModelType': 'ObjectClassification',
            'MetaDataMode': 'MultiLabeled_Tiles' if options.multi_label else 'Labeled_Tiles',
            'CropSizeFixed': int(options.crop == 'fixed'),
            'BlackenAroundFeature': int(options.blackened),
        }

    def evaluate(self) -> Evaluation:
        """Judge the model on the validation chips, for its bundle."""
        table = self.per_class_metrics().drop(columns=['f2', 'support']).rename(index=str)
        return Evaluation(
            metrics=self.scores(),
            esri={'accuracy': f'{self.accuracy():.4e}', 'per_class_metrics': table.T.to_json()},
            figures=bundled_report(self),
        )

    def findings(self) -> Findings:
        """Judge the model on the validation chips, and say what its report tells besides what all reports tell."""
        return find_in_chips(self, self._needed_data(), self._options)

    def _assemble(self, spec: ModelSpec, network: Network, data: ChipData | None) -> None:
        options = ChipOptions.from_json(spec.options)
        if data is not None:
            require_task(data, spec.model, self.tasks)
            if options.multi_label != (data.task == Task.LABELS):
                held = 'any number of classes' if options.multi_label else 'one class'
                raise ChipFolderError(f'this model learned {held} per chip, and {data.path} ({data.task}) does not')
            data = shown_as(data, options)
        super()._assemble(spec, network, data)
        self._options = options

    def _forget(self) -> None:
        super()._forget()
        self._outputs = None

    # -- looking

    def outputs(self) -> ChipOutputs:
        """Logits and truth of the validation chips in their order; computed once after each fit."""
        data = self._needed_data()
        if self._outputs is None:
            self._outputs = collect_outputs(self.network, data.valid_dl)
        return self._outputs

    def accuracy(self) -> float:
        """Share of the validation chips that are right, with all their classes where they hold several."""
        return self.scores()['accuracy']

    def scores(self) -> dict[str, float]:
        """Score the validation chips.

        Returns:
            ``accuracy``, ``f1_micro``, ``f1_macro``, ``f2_micro``, ``f2_macro``, ``precision``, ``recall`` and
            ``hamming_loss``, NaN where undefined; see `geolearn.metrics.MultiLabelScores`.
        """
        return score_chips(self.outputs())

    def per_class_metrics(self) -> pd.DataFrame:
        """Precision, recall, F1, F2 and number of the validation chips of each class; NaN where undefined."""
        return tabulate_classes(self.outputs(), self._class_names)

    def confusion(self) -> ConfusionMatrix:
        """Count truth against prediction on the validation chips.

        Raises:
            ValueError: If chips hold any number of classes, for which there is no such matrix.
        """
        if self._options.multi_label:
            raise ValueError('chips of several classes have no one confusion matrix; see per_class_metrics()')
        return count_confusion(self.outputs())

    def plot_confusion_matrix(self) -> 'Figure':
        """Draw the confusion matrix; where chips may hold several classes, one of absent and present for each class."""
        return _looking.draw_confusion(self.outputs(), self._class_names)

    def plot_hard_examples(self, num_examples: int = 5) -> 'Figure':
        """Draw the validation chips of the highest loss, with truth and prediction.

        Args:
            num_examples: Number of chips.
        """
        return _looking.draw_hard_examples(self.outputs(), self._needed_data(), num_examples)

    def show_results(self, rows: int = 4, explain: bool = False) -> 'Figure':
        """Draw validation chips with truth and prediction.

        Args:
            rows: Number of chips.
            explain: Draw beside each where the model looks.
        """
        network = self.network if explain else None
        return _looking.draw_results(self.outputs(), self._needed_data(), rows, network=network)
