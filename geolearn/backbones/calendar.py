"""Calendar: when the dates of a time series were, in order, with the months that networks count from.

Networks over the series of pixels take a `Calendar`, which refuses dates that are repeated or out of order. The code of
networks over series of images takes any dates; `review_days` says which of them pretraining never had.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from itertools import pairwise

from geolearn.adaptation import is_whole

MONTHS = 12


@dataclass(frozen=True, slots=True)
class Calendar:
    """When the dates of a time series were: in order, none twice.

    Args:
        months: Month of each date, 1 (January) to 12.
        days: The dates themselves; empty where only months are known. A month that is not later in the year than the
            one before it is then one of the next year.

    Raises:
        ValueError: If there is no date, a month is not in 1..12, or a date is repeated or out of order.
    """

    months: tuple[int, ...]
    days: tuple[date, ...] = ()

    def __post_init__(self) -> None:
        months = self.months
        if not months or not all(is_whole(month) for month in months):
            raise ValueError(f'months must be a list of whole numbers, got {months!r}')
        if not all(1 <= month <= MONTHS for month in months):
            hint = '; they are counted from 0 here: add 1 to each' if set(months) <= set(range(MONTHS)) else ''
            raise ValueError(f'months must lie in 1 (January) to 12, found {sorted(set(months))}{hint}')
        if self.days:
            if tuple(day.month for day in self.days) != months:
                raise ValueError(f'months {months} are not those of the dates {_show(self.days)}')
            _check_order(self.days)
        elif repeated := [b for a, b in pairwise(months) if a == b]:
            raise ValueError(f'month {repeated[0]} comes twice in a row in {months}; give dates, or one value a month')

    @classmethod
    def of(cls, dates: Sequence[date]) -> 'Calendar':
        """Make the calendar of some dates.

        Raises:
            ValueError: If there is none, or one is repeated or out of order.
        """
        days = tuple(dates)
        return cls(tuple(day.month for day in days), days)

    @property
    def steps(self) -> tuple[int, ...]:
        """Months from the first date to each: 0, 1, 2 ... where no month is missing."""
        if self.days:
            first = self.days[0]
            return tuple(MONTHS * (day.year - first.year) + day.month - first.month for day in self.days)
        steps = [0]
        for before, month in pairwise(self.months):
            steps.append(steps[-1] + (month - before) % MONTHS)
        return tuple(steps)

    def __len__(self) -> int:
        """Return the number of dates."""
        return len(self.months)


def _check_order(days: tuple[date, ...]) -> None:
    for before, day in pairwise(days):
        if day == before:
            raise ValueError(f'the date {day} is repeated; give each date once, such as the mean of its images')
        if day < before:
            raise ValueError(f'the date {day} comes after {before}; put the dates, and the images with them, in order')


def review_days(days: Sequence[date], *, ordered: bool) -> list[str]:
    """Say what of the dates of image series no network was trained on, though their code takes it.

    Args:
        days: When the images were taken.
        ordered: Whether the network counts the dates, so that they have to be in order.

    Returns:
        A sentence for each fault, with what was found, what was needed and what to do.
    """
    plain = [day.toordinal() for day in days]
    notes = []
    if repeated := sorted({day.isoformat()[:10] for day, n in zip(days, plain) if plain.count(n) > 1}):
        notes.append(
            f'found images of the same day ({", ".join(repeated)}), needed one image for each date, as in pretraining; '
            'merge the images of a day, such as by their mean'
        )
    late = [(before, day) for before, day in pairwise(days) if day.toordinal() < before.toordinal()]
    if ordered and late:
        before, day = late[0]
        notes.append(
            f'found {day.isoformat()[:10]} after {before.isoformat()[:10]}, needed dates from first to last, as it '
            'counts them; put the dates, and the images with them, in order'
        )
    return notes


def _show(days: Sequence[date]) -> str:
    return ', '.join(day.isoformat() for day in days)
