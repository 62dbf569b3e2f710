"""Train networks with fastai's Learner. The only place that imports fastai.

`make_learner` joins a network, batches and a loss; `train` trains it as `FitOptions` say; `find_learning_rate` finds
a rate. Checkpoints, resuming, several processes and what happens when memory or numbers run out are all in `train`.
"""

from geolearn.training.fastai import Callback, LRFinder
from geolearn.training.learner import ChipLearner, make_learner
from geolearn.training.loggers import mlflow_logger, tensorboard_logger, wandb_logger
from geolearn.training.lr_finder import find_learning_rate
from geolearn.training.memory import BatchSize, estimate_batch_size
from geolearn.training.options import FitOptions
from geolearn.training.train import read_rate, train

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
