"""The report of a model: the sections of its task between those that all tasks share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING

from geolearn import plotting
from geolearn.backbones.loading import LoadReport
from geolearn.bundle import FIGURES, REPORT
from geolearn.data import ChipData
from geolearn.history import History
from geolearn.metrics import Calibration, choose_typical, rank_chips
from geolearn.models.reports.data import data_section, find_warnings
from geolearn.models.reports.sections import (
    backbone_section,
    environment_section,
    picture,
    reproduce_section,
    settings_section,
    training_section,
    training_time,
)
from geolearn.networks.spec import ModelSpec
from geolearn.report import Picture, ReportContents, Section, render_report

if TYPE_CHECKING:
    from matplotlib.figure import Figure


SAMPLES = 4
"""Chips in each figure of samples: few and small, because every bundle carries them."""


@dataclass(frozen=True, eq=False)
class TaskReport:
    """The part of a report that depends on the task.

    Args:
        task: In words, such as ``'object detection'``.
        headline: The metrics that matter most, as label and text.
        sections: Metrics and figures, in order. Pictures that have a name are also put into bundles by themselves.
        settings: Of the network and its loss, as label and text; empty texts are left out.
    """

    task: str
    headline: tuple[tuple[str, str], ...]
    sections: tuple[Section, ...]
    settings: Mapping[str, str] = field(default_factory=dict)


def make_report(
    spec: ModelSpec,
    data: ChipData,
    history: History,
    task: TaskReport,
    *,
    load_report: LoadReport | None,
    made: date,
) -> ReportContents:
    """Lay out data, training, metrics and figures of a model.

    Args:
        spec: Of the model.
        data: That it was trained or evaluated on.
        history: Of its training.
        task: What depends on the task, with the validation results.
        load_report: Of the backbone's weights; None for a backbone that started from random ones.
        made: Day that the report names.
    """
    summary = (
        ('task', task.task),
        ('model', spec.model),
        ('backbone', spec.backbone),
        *task.headline,
        *([('classes', str(data.c))] if data.c else []),
        ('epochs', str(len(history.epochs))),
        ('training time', training_time(history)),
    )
    sections = (
        data_section(data),
        training_section(history),
        *task.sections,
        backbone_section(spec, load_report),
        settings_section(task.settings),
        reproduce_section(spec, data, history),
        environment_section(),
    )
    return ReportContents(f'{spec.model} on {data.path.name}', summary, sections, made, find_warnings(data, spec))


def bundle_figures(report: ReportContents) -> dict[str, bytes]:
    """Return by name in a bundle the page of a report, and those of its pictures that have a name."""
    pictures = [part for section in report.sections for part in section.parts if isinstance(part, Picture)]
    figures = {f'{FIGURES}{drawn.name}.png': drawn.png for drawn in pictures if drawn.name}
    return figures | {REPORT: render_report(report)}


def sample_sections(
    scores: Sequence[float],
    draw: Callable[[list[int]], 'Figure'],
    *,
    by: str,
    highest_is_worst: bool = False,
    count: int = SAMPLES,
) -> list[Section]:
    """Show validation chips from the middle and from the lower end of an order; only the latter where there are few.

    Args:
        scores: Of each validation chip; NaN where undefined.
        draw: Draws the chips at some positions.
        by: Name of the score.
        highest_is_worst: Of errors and losses.
        count: Chips in each figure.
    """
    end = 'highest' if highest_is_worst else 'lowest'
    worst = rank_chips(scores, highest_first=highest_is_worst)[:count]
    shown = [('Worst chips', f'Those of the {end} {by}.', worst)]
    if len(scores) > count and (typical := choose_typical(scores, count)):
        shown.insert(0, ('Typical chips', f'Those in the middle when validation chips are ordered by {by}.', typical))
    names = ['show_results', '']  # a bundle keeps the first by itself too, as Esri's do
    return [
        Section(title, (text, picture(draw(indexes), title, name=name)))
        for (title, text, indexes), name in zip(shown, names)
    ]


def calibration_section(calibration: Calibration, *, of: str = 'the predicted class') -> Section:
    """Show whether confidences are calibrated.

    Args:
        calibration: Counted over the validation chips.
        of: Whose probability the confidence is.
    """
    figure = plotting.show_reliability(calibration.table())
    text = (
        f'Confidence is the probability of {of}. Bars below the line: the model is overconfident. '
        'The expected calibration error is the mean distance from the line.'
    )
    return Section('Calibration', (text, picture(figure, 'Reliability diagram')))
