"""What a pretraining came to."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from geolearn import plotting
from geolearn.backbones.pretrained import PretrainingFacts
from geolearn.history import History
from geolearn.pretrain.collapse import ACCURACY, INFORMATION, RANK, SPREAD

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Pretraining:
    """A pretrained backbone.

    Args:
        weights: The file: pass it as ``backbone=`` to any model, to `create_backbone`, or to `embed`.
        facts: What the file says of itself.
        history: Losses by batch, and a row for each epoch with the measures of collapse.
        collapse: Which measures show a collapse at the end; empty where none does.
    """

    weights: Path
    facts: PretrainingFacts
    history: History = field(repr=False)
    collapse: tuple[str, ...] = ()

    @property
    def measures(self) -> dict[str, float]:
        """The validation results of the last epoch by name."""
        return dict(self.facts.measures)

    def plot(self) -> 'Figure':
        """Draw the losses, and the measures of collapse by epoch."""
        labels = {metric.name: metric.label for metric in (SPREAD, RANK, INFORMATION, ACCURACY)}
        return plotting.show_pretraining(self.history.batch_losses, self.history.epochs, labels, warning=self.warning)

    @property
    def warning(self) -> str:
        """What shows a collapse, and what to do about it; empty where nothing does."""
        return collapse_warning(self.collapse)

    def __str__(self) -> str:
        """Say it in a few lines."""
        measures = ', '.join(f'{name} {value:.4g}' for name, value in self.measures.items())
        return '\n'.join([f'{self.facts}', f'  weights  {self.weights}', f'  measures {measures}', *self._warnings()])

    def _warnings(self) -> list[str]:
        return [f'  warning  {self.warning}'] if self.collapse else []


def collapse_warning(found: Sequence[str]) -> str:
    """Say which measures show a collapse, and what to do about it; empty where none does."""
    if not found:
        return ''
    return (
        f'the representations have collapsed: {"; ".join(found)}. Keep centering on and teacher_temperature low '
        '(0.04), or take a lower lr, a larger batch_size or more varied images'
    )
