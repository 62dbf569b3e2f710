"""Train networks with fastai's Learner. The only package that imports fastai, which it does on first use.

`make_learner` joins a network, batches and a loss; `train` trains it with `FitOptions`; `find_learning_rate` searches a
rate. Checkpoints, resuming, several processes, and running out of memory or into non-finite losses are all in `train`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

_HOMES = {
    'BatchSize': 'memory',
    'Callback': 'fastai',
    'ChipLearner': 'learner',
    'FitOptions': 'options',
    'check_training': 'run',
    'estimate_batch_size': 'memory',
    'estimate_step_memory': 'memory',
    'find_run': 'run',
    'hold_run': 'run',
    'new_run': 'run',
    'find_learning_rate': 'lr_finder',
    'make_learner': 'learner',
    'mlflow_logger': 'progress',
    'read_rate': 'run',
    'tensorboard_logger': 'progress',
    'train': 'run',
    'training_folder': 'run',
    'training_identity': 'run',
    'wandb_logger': 'progress',
}

__all__ = [
    'BatchSize',
    'Callback',
    'ChipLearner',
    'FitOptions',
    'check_training',
    'estimate_batch_size',
    'estimate_step_memory',
    'find_learning_rate',
    'find_run',
    'hold_run',
    'make_learner',
    'mlflow_logger',
    'new_run',
    'read_rate',
    'tensorboard_logger',
    'train',
    'training_folder',
    'training_identity',
    'wandb_logger',
]

if TYPE_CHECKING:
    from geolearn.training.fastai import Callback
    from geolearn.training.learner import ChipLearner, make_learner
    from geolearn.training.lr_finder import find_learning_rate
    from geolearn.training.memory import BatchSize, estimate_batch_size, estimate_step_memory
    from geolearn.training.options import FitOptions
    from geolearn.training.progress import mlflow_logger, tensorboard_logger, wandb_logger
    from geolearn.training.run import (
        check_training,
        find_run,
        hold_run,
        new_run,
        read_rate,
        train,
        training_folder,
        training_identity,
    )


def __getattr__(name: str) -> object:
    """Import a public name when it is first used: options are read without fastai, which takes seconds to import."""
    if name not in _HOMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'{__name__}.{_HOMES[name]}'), name)
