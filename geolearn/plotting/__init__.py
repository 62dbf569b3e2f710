"""Figures of chips, results and training. The only place that imports matplotlib, and only when something is drawn."""

from geolearn.plotting.chips import (
    show_batch,
    show_boxes,
    show_chips,
    show_images,
    show_instances,
    show_labels,
    show_pairs,
)
from geolearn.plotting.colors import class_colors, instance_colors, natural_colors, stretch
from geolearn.plotting.results import show_losses, show_predictions, show_rate_test

__all__ = [
    'class_colors',
    'instance_colors',
    'natural_colors',
    'show_batch',
    'show_boxes',
    'show_chips',
    'show_images',
    'show_instances',
    'show_labels',
    'show_losses',
    'show_pairs',
    'show_predictions',
    'show_rate_test',
    'stretch',
]
