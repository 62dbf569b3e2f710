"""fastai's names that training is made of, imported without the warnings of fastai's own imports."""

import warnings

with warnings.catch_warnings():
    # deprecations inside fastai's own imports, which no user of geolearn can act upon
    warnings.simplefilter('ignore', FutureWarning)
    warnings.simplefilter('ignore', DeprecationWarning)
    from fastai.callback.core import (
        Callback,
        CancelBackwardException,
        CancelEpochException,
        CancelFitException,
        CancelStepException,
        TrainEvalCallback,
    )
    from fastai.callback.schedule import LRFinder, ParamScheduler, valley
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner, Recorder
    from fastai.optimizer import OptimWrapper
    from fastai.torch_core import norm_bias_params, to_float

__all__ = [
    'Callback',
    'CancelBackwardException',
    'CancelEpochException',
    'CancelFitException',
    'CancelStepException',
    'DataLoaders',
    'LRFinder',
    'Learner',
    'OptimWrapper',
    'ParamScheduler',
    'QuickCallback',
    'Recorder',
    'TrainEvalCallback',
    'norm_bias_params',
    'to_float',
    'valley',
]


class QuickCallback(Callback):
    """A callback that hears only the events it has methods for, and whose errors keep their messages."""

    def __setattr__(self, name: str, value: object) -> None:
        """Set an attribute; fastai's own way asks the learner and the network for the name first."""
        object.__setattr__(self, name, value)

    def __call__(self, event_name: str) -> None:
        """Run the method of an event, if there is one."""
        method = getattr(type(self), event_name, None)
        if method is not None:
            method(self)
