"""Figures of chips, results and training. The only place that imports matplotlib, and only when something is drawn."""

from geolearn.plotting.canvas import class_colors, instance_colors, natural_colors, stretch
from geolearn.plotting.chips import (
    show_batch,
    show_boxes,
    show_chips,
    show_images,
    show_instances,
    show_labels,
    show_pairs,
    show_values,
)
from geolearn.plotting.confusion import show_confusion_matrix, show_reliability
from geolearn.plotting.fitting import show_losses, show_rate_test
from geolearn.plotting.places import show_split_map
from geolearn.plotting.regression import show_value_predictions, show_value_scatter
from geolearn.plotting.results import describe_chip, error_map, show_hard_examples, show_predictions

__all__ = [
    'class_colors',
    'describe_chip',
    'error_map',
    'instance_colors',
    'natural_colors',
    'show_batch',
    'show_boxes',
    'show_chips',
    'show_confusion_matrix',
    'show_hard_examples',
    'show_images',
    'show_instances',
    'show_labels',
    'show_losses',
    'show_pairs',
    'show_predictions',
    'show_rate_test',
    'show_reliability',
    'show_split_map',
    'show_value_predictions',
    'show_value_scatter',
    'show_values',
    'stretch',
]
