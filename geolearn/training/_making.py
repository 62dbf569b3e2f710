"""Join a network, batches and a loss to a learner."""

from torch import nn

from geolearn.chips.loader import ChipLoader
from geolearn.metrics.scores import Scores
from geolearn.training import _distributed as processes
from geolearn.training._contracts import Splitter
from geolearn.training._fastai import DataLoaders
from geolearn.training._layout import lay_channels_last, prefers_channels_last
from geolearn.training._learner import ChipLearner


def make_learner(
    network: nn.Module,
    train_dl: ChipLoader,
    valid_dl: ChipLoader,
    loss: nn.Module,
    *,
    scores: Scores,
    splitter: Splitter,
    gives_targets: bool = False,
) -> ChipLearner:
    """Build the learner of a network: AdamW, with the parameter groups that the splitter returns.

    Where torchrun or ``accelerate launch`` started several processes, each of them trains on its share of the batches.

    Args:
        network: Maps images (N, bands, H, W) to an output. Of a tuple the first part is scored.
        train_dl: Training batches: images, and then what the task teaches.
        valid_dl: Validation batches.
        loss: Takes output and targets. One with ``parts``, losses by name, has a column for each; one with
            ``counted(*targets)``, what its mean is over, is weighed by it where batches are added up.
        scores: Columns of the epoch table, from the validation chips.
        splitter: Returns the parameter groups, the most pretrained first.
        gives_targets: The network takes the targets after the images, and the loss only its output.
    """
    processes.join_processes()
    if processes.process_count() > 1:
        index, count = processes.process_index(), processes.process_count()
        train_dl, valid_dl = (processes.SharedLoader(loader, index, count) for loader in (train_dl, valid_dl))
    if prefers_channels_last(train_dl.device):
        lay_channels_last(network)
    learner = ChipLearner(
        DataLoaders(train_dl, valid_dl),
        network.to(train_dl.device),
        loss.to(train_dl.device),
        splitter=splitter,
        scores=scores,
        gives_targets=gives_targets,
    )
    processes.take_from_first(learner.model)
    return learner
