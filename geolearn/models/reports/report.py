"""The report of any model: what its task says, between the sections that all tasks share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING

from geolearn import plotting
from geolearn.bundle import FIGURES, REPORT
from geolearn.errors import NotTrainedError
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
from geolearn.report import Picture, ReportContents, Section, render_report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from geolearn.models.base import Model


SAMPLES = 4
"""Chips in each figure of samples: few and small, because every bundle carries them."""


@dataclass(frozen=True, eq=False)
class Findings:
    """What a task has to say of a model in its report.

    Args:
        task: In words, such as ``'object detection'``.
        headline: The scores that matter most, as label and text.
        sections: Scores and figures, in order. Pictures that have a name are also put into bundles by themselves.
        settings: Of the network and its loss, as label and text; empty texts are left out.
        arguments: What the constructor was told besides its defaults, for the lines that do it again.
    """

    task: str
    headline: tuple[tuple[str, str], ...]
    sections: tuple[Section, ...]
    settings: Mapping[str, str] = field(default_factory=dict)
    arguments: Mapping[str, object] = field(default_factory=dict)


def make_report(model: 'Model', *, made: date) -> ReportContents:
    """Judge a model on its validation chips and lay out all that there is to say of it.

    Args:
        model: Trained or loaded, with data.
        made: Day that the report names.

    Raises:
        NotTrainedError: If the model was loaded without data.
    """
    data, spec, history = model.data, model.spec, model.history
    if data is None:
        raise NotTrainedError('a report needs the chips; pass data= to load_model or from_model')
    found = model.findings()
    summary = (
        ('task', found.task),
        ('model', spec.model),
        ('backbone', spec.backbone),
        *found.headline,
        *([('classes', str(data.c))] if data.c else []),
        ('epochs', str(len(history.epochs))),
        ('training time', training_time(history)),
    )
    sections = (
        data_section(data),
        training_section(history),
        *found.sections,
        backbone_section(spec, model.network.backbone.load_report),
        settings_section(found.settings),
        reproduce_section(spec, data, history, arguments=found.arguments),
        environment_section(),
    )
    return ReportContents(f'{spec.model} on {data.path.name}', summary, sections, made, find_warnings(data, spec))


def bundled_report(model: 'Model') -> dict[str, bytes]:
    """Draw a model's report for its bundle, once.

    Returns:
        By name in the bundle: the page, and those of its pictures that have a name.
    """
    report = make_report(model, made=date.today())
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
        scores: Of each validation chip; NaN where it cannot be judged.
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
        Section(title, (told, picture(draw(indexes), title, name=name)))
        for (title, told, indexes), name in zip(shown, names)
    ]


def calibration_section(calibration: Calibration, *, sure_of: str = 'the predicted class') -> Section:
    """Show whether a model is as sure as it is right.

    Args:
        calibration: Counted over the validation chips.
        sure_of: Whose probability confidence is.
    """
    figure = plotting.show_reliability(calibration.table())
    told = (
        f'Confidence is the probability of {sure_of}. Bars below the line: the model is surer than it is '
        'right. The expected calibration error is the mean distance from the line.'
    )
    return Section('Calibration', (told, picture(figure, 'Reliability diagram')))
