"""What the logits of whole chips say, in NumPy alone: labels and how sure they are."""

import math
from collections.abc import Sequence

import numpy as np

THRESHOLD = 0.5
"""Probability from which on a class is present, where a chip may hold any number of them."""


def check_threshold(threshold: float) -> None:
    """Raise ValueError unless a threshold is a probability that something can reach and something else miss."""
    if not (math.isfinite(threshold) and 0 < threshold < 1):
        raise ValueError(f'threshold must be a probability between 0 and 1, got {threshold}')


def name_rows(
    logits: np.ndarray, class_names: Sequence[str], *, multi_label: bool, threshold: float
) -> tuple[list[str | None], np.ndarray]:
    """Turn logits (n, classes), NaN where there is no data, into labels and confidences in percent (n,).

    Where chips may hold several classes, the confidence is that of the least certain decision: present or absent.
    """
    labels: list[str | None] = [None] * len(logits)
    confidences = np.full(len(logits), np.nan)
    known = np.flatnonzero(~np.isnan(logits).any(1)) if logits.size else np.zeros(0, int)
    if len(known):
        likely = _probabilities(logits[known], multi_label=multi_label)
        chosen = likely >= threshold if multi_label else np.arange(likely.shape[1]) == likely.argmax(1)[:, None]
        certain = np.where(chosen, likely, 1 - likely).min(1) if multi_label else likely.max(1)
        confidences[known] = 100 * certain
        for row, present in zip(known.tolist(), chosen.tolist()):
            labels[row] = ';'.join(name for name, there in zip(class_names, present) if there)
    return labels, confidences


def _probabilities(logits: np.ndarray, *, multi_label: bool) -> np.ndarray:
    """Turn logits (n, classes) into probabilities, which add up to 1 where a chip is of one class."""
    if multi_label:
        # of large negative numbers the exponential has no room
        small = np.exp(-abs(logits))
        likely: np.ndarray = np.where(logits >= 0, 1, small) / (1 + small)
        return likely
    raised = np.exp(logits - logits.max(1, keepdims=True))
    shares: np.ndarray = raised / raised.sum(1, keepdims=True)
    return shares
