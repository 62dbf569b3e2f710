"""A progress bar for what takes long."""

from typing import Any

from tqdm.auto import tqdm


def progress_bar(total: int, does: str, *, few: int, unit: str = 'it') -> 'tqdm[Any]':
    """Return a bar that vanishes when it is full; none is shown for fewer than `few` things.

    Args:
        total: How many things there are.
        does: What is done to them, such as ``'cutting chips'``.
        few: Fewer need no bar.
        unit: What one thing is called.
    """
    # nothing is passed where a bar may show, so that TQDM_DISABLE is heeded
    quiet: dict[str, Any] = {'disable': True} if total < few else {}
    return tqdm(total=total, desc=does, unit=unit, leave=False, **quiet)
