"""Callbacks that send a training's numbers to TensorBoard, MLflow or Weights & Biases."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from geolearn.extras import require
from geolearn.training.distributed import process_index
from geolearn.training.fastai import Callback, QuickCallback


def tensorboard_logger(folder: str | Path) -> Callback:
    """Return fastai's callback that writes losses, rates and scores for TensorBoard.

    Args:
        folder: Of the log; one for each training.

    Raises:
        MissingExtraError: If TensorBoard is not installed.
    """
    require('tensorboard', extra='tensorboard', to='write a TensorBoard log')
    callbacks = require('fastai.callback.tensorboard', extra='tensorboard', to='write a TensorBoard log')
    return callbacks.TensorBoardCallback(log_dir=str(folder), trace_model=False, log_preds=False)


def wandb_logger(project: str) -> Callback:
    """Return a callback that sends each epoch's row to Weights & Biases.

    Args:
        project: Where a run is begun, if none is.

    Raises:
        MissingExtraError: If wandb is not installed.
    """
    wandb = require('wandb', extra='wandb', to='log to Weights & Biases')
    if wandb.run is None and process_index() == 0:
        wandb.init(project=project)
    return RowLogger(lambda row, step: wandb.log({**row, 'epoch': step}))


def mlflow_logger(parameters: Mapping[str, Any] | None = None) -> Callback:
    """Return a callback that logs each epoch's row to MLflow's active run, or to a new one.

    Args:
        parameters: Of the run, such as backbone and learning rate.

    Raises:
        MissingExtraError: If MLflow is not installed.
    """
    mlflow = require('mlflow', extra='mlflow', to='log to MLflow')
    if parameters and process_index() == 0:
        mlflow.log_params(dict(parameters))
    return RowLogger(lambda row, step: mlflow.log_metrics(row, step=step))


class RowLogger(QuickCallback):
    """Hands each epoch's row on.

    fastai has no callback for MLflow, and its own for Weights & Biases stumbles over learners whose settings hold lists
    of numbers.

    Args:
        log: Takes a row and the epoch, from 1.
    """

    order = 65  # after the row of the epoch is complete

    def __init__(self, log: Callable[[dict[str, float], int], Any]) -> None:
        self._log = log

    def after_epoch(self) -> None:
        """Log the row."""
        if process_index() == 0:
            self._log(self.learn.recorder.row, self.learn.epoch + 1)
