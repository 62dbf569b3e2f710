"""Train networks with fastai's Learner. The only place that imports fastai.

`make_learner` joins a network, batches and a loss; `train` trains it as `FitOptions` say; `find_learning_rate` finds
a rate. Checkpoints, resuming, several processes and what happens when memory or numbers run out are all in `train`.
"""

from geolearn.training._fastai import Callback, LRFinder
from geolearn.training._finder import find_learning_rate
from geolearn.training._fit import read_rate, train
from geolearn.training._learner import ChipLearner
from geolearn.training._making import make_learner
from geolearn.training.batch_size import BatchSize, estimate_batch_size
from geolearn.training.loggers import mlflow_logger, tensorboard_logger, wandb_logger
from geolearn.training.options import FitOptions

__all__ = [
    'BatchSize',
    'Callback',
    'ChipLearner',
    'FitOptions',
    'LRFinder',
    'estimate_batch_size',
    'find_learning_rate',
    'make_learner',
    'mlflow_logger',
    'read_rate',
    'tensorboard_logger',
    'train',
    'wandb_logger',
]
