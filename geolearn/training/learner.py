"""fastai's Learner for chips: exact steps over micro-batches, batches or processes; non-finite losses stop it."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from geolearn.chips.batches.loader import ChipLoader
from geolearn.metrics.scores import Scores, main_output
from geolearn.precision import Precision, casting
from geolearn.training import distributed as processes
from geolearn.training import fastai, memory, nonfinite, optimization, progress

Splitter = Callable[[Any], Sequence[list[nn.Parameter]]]


@runtime_checkable
class CountingLoss(Protocol):
    """A loss that says how much its mean is over, such as the labelled pixels; otherwise it counts by chips."""

    def counted(self, *targets: Any) -> Tensor:
        """Return the sum of the weights that the loss of these targets was divided by."""


@runtime_checkable
class PartedLoss(Protocol):
    """A loss made of several."""

    parts: Mapping[str, Tensor]
    """Each of them in the last call; empty before the first."""


def prefers_channels_last(device: torch.device) -> bool:
    """Say whether convolutions are faster there with the channels of a pixel side by side.

    They are on graphics cards and on CPUs with AVX-512: a training step of DeepLab on a ResNet-50 took 8 % less time.
    With AVX2 some networks gain and others lose a tenth, so their layout is left alone.
    """
    return device.type == 'cuda' or (device.type == 'cpu' and torch.backends.cpu.get_cpu_capability() == 'AVX512')


@contextmanager
def fast_layout(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Let convolutions run with the channels of a pixel side by side in the block, where that is faster.

    What passes through follows the layout of the kernels. Afterwards they lie as before, and as in a loaded bundle:
    sums are rounded otherwise in another order, so a model would not make the map that its bundle makes.
    """
    if not prefers_channels_last(device):
        yield
        return
    _lay_out(network, torch.channels_last)
    try:
        yield
    finally:
        _lay_out(network, torch.contiguous_format)


@torch.no_grad()
def _lay_out(network: nn.Module, layout: torch.memory_format) -> None:
    tensors = {id(each): each for each in (*network.parameters(), *network.buffers())}.values()
    uses = Counter(each.untyped_storage().data_ptr() for each in tensors)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            if uses[module.weight.untyped_storage().data_ptr()] > 1:
                continue  # another tensor sees the same numbers, and would keep those of before
            # .data: the parameter stays the same object, which optimizers and low-rank updates hold
            module.weight.data = module.weight.data.contiguous(memory_format=layout)


class KeepFrozen(fastai.QuickCallback):
    """Run wholly frozen modules as in evaluation: their running statistics and dropout are part of what is frozen."""

    def before_train(self) -> None:
        """Put frozen modules into evaluation."""
        # one walk: asking every module for all parameters below it takes as long as a step of a small network
        holding, learning = set[str](), set[str]()
        for name, parameter in self.learn.model.named_parameters(remove_duplicate=False):
            parts = name.split('.')
            paths = {'.'.join(parts[:depth]) for depth in range(len(parts))}
            holding |= paths
            learning |= paths if parameter.requires_grad else set()
        frozen = holding - learning
        for name, module in self.learn.model.named_modules():
            if name in frozen:
                module.eval()


class ExactSteps(fastai.QuickCallback):
    """Begin each pass over a loader without gradients of the one before, and end it with all its numbers checked."""

    order = -5  # before whatever looks at the numbers of a pass

    def before_train(self) -> None:
        """Begin a pass."""
        self.learn.begin_pass()

    def after_train(self) -> None:
        """Wait for the numbers that are still on the device."""
        self.learn.check(self.learn.deferred.drain())


class ChipLearner(fastai.Learner):
    """fastai's Learner whose step is exact over several batches, micro-batches of a batch, and processes.

    Losses and gradients are weighed by what they count, added up, and divided by the sum of the weights. A step whose
    loss or gradient is not finite changes nothing, and the training then stops.

    Args:
        dls: Training and validation batches.
        network: Maps images, with `forward_takes_targets` images and targets, to an output.
        loss: Of output and targets, with `forward_takes_targets` of the output alone.
        splitter: Returns the parameter groups, the most pretrained first.
        scores: Of the validation chips.
        forward_takes_targets: Whether the network itself takes the targets.
    """

    def __init__(
        self,
        dls: fastai.DataLoaders,
        network: nn.Module,
        loss: nn.Module,
        *,
        splitter: Splitter,
        scores: Scores,
        forward_takes_targets: bool = False,
    ) -> None:
        def make_optimizer(params: Sequence[Sequence[nn.Parameter]], lr: float) -> optimization.AdamW:
            return optimization.AdamW(params, lr, no_decay=fastai.norm_bias_params(network, with_bias=True))

        super().__init__(
            dls,
            network,
            loss_func=loss,
            opt_func=make_optimizer,
            splitter=splitter,
            wd_bn_bias=True,  # the optimizer knows which weights do not decay
            train_bn=False,  # frozen means frozen, batch normalization too
            default_cbs=False,
            cbs=[fastai.TrainEvalCallback(), ExactSteps(), progress.LossRecorder(scores), KeepFrozen()],
        )
        self.scores, self.forward_takes_targets = scores, forward_takes_targets
        self.device = torch.device(dls.train.device)
        self.start_epoch = 0
        self.identity: dict[str, Any] = {}
        """What else a training must agree in to be resumed, such as the chips; JSON."""
        self.batch_weight: Tensor | float = 1.0
        self.loss_parts: dict[str, Tensor] = {}
        self.deferred = nonfinite.DeferredScalars(self.device)
        self.last_result: nonfinite.BatchResult | None = None
        self._weight: Tensor | float = 0.0
        self._begun = False
        self._statistics: list[Tensor] = []
        self.configure()

    def configure(
        self,
        *,
        precision: Precision | None = None,
        accumulate: int = 1,
        clip: float | None = None,
        mean: optimization.MeanWeights | None = None,
    ) -> None:
        """Say how the coming fit takes its steps.

        Args:
            precision: What the network computes in; None for float32.
            accumulate: Batches for one step.
            clip: Longest norm of the gradient, or None.
            mean: Follows the weights after every step.
        """
        self.precision, self.accumulate, self.clip, self.mean = precision, accumulate, clip, mean
        self.scaler = torch.amp.GradScaler(self.device.type) if precision == 'fp16' else None
        self.micro_batches = memory.MicroBatches()
        self.start_epoch = 0
        self._forget_gradients()
        self.deferred.clear()
        self.last_result = None

    def begin_pass(self) -> None:
        """Begin a pass over the training batches."""
        self._forget_gradients()
        self._statistics = nonfinite.running_statistics(self.model)

    # -- what is overridden of fastai's loop, each for one promise

    def _do_fit(self) -> None:
        # exact resume: epochs that were trained before raise no events, which fastai's SkipToEpoch does
        for epoch in range(self.start_epoch, self.n_epoch):
            self.epoch = epoch
            self._with_events(self._do_epoch, 'epoch', fastai.CancelEpochException)

    def _do_one_batch(self) -> None:
        # micro-batches and accumulation: a batch may take several forward passes, a step several batches
        count = len(self.xb[0])
        if not self.training:
            self.micro_batches.run(count, self._validate)
            return
        statistics = nonfinite.copy_statistics(self._statistics)
        context = nonfinite.BatchContext(self.epoch + 1, self.iter + 1, self.xb[0], statistics)
        self._begun = False
        self.micro_batches.run(count, self._add_gradients)
        norm = self._take_step() if (self.iter + 1) % self.accumulate == 0 or self.iter + 1 == self.n_iter else None
        gradient = torch.full_like(self.loss, float('nan')) if norm is None else norm
        self.check(self.deferred.put(torch.stack([self.loss, gradient, self._is_nonfinite(norm)]), context))
        if norm is not None:
            self._forget_gradients()

    def _backward(self) -> None:
        # scaled float16, and a gradient that ran out of memory half way is dropped
        self._begun = True
        (self.loss_grad if self.scaler is None else self.scaler.scale(self.loss_grad)).backward()

    def _step(self) -> None:
        # non-finite gradients change nothing
        if self.scaler is None:
            self.opt.step(nonfinite=self._nonfinite)
            return
        self.scaler.step(self.opt)
        self.scaler.update()

    # -- a batch

    def _compute(self, part: slice) -> tuple[Any, Tensor]:
        """Return output and loss of a micro-batch."""
        images, targets = self.xb[0][part], tuple(target[part] for target in self.yb)
        with casting(self.precision, self.device):
            output = self.model(images, *targets) if self.forward_takes_targets else self.model(images)
        if self.precision and not self.forward_takes_targets:  # those compute their losses in float32 themselves
            output = fastai.to_float(output)
        self.pred = output
        self('after_pred')
        output = self.pred
        loss = self.loss_func(output) if self.forward_takes_targets else self.loss_func(output, *targets)
        self.loss_grad, self.loss = loss, loss.detach()
        self('after_loss')
        return output, self.loss_grad

    def _weigh(self, part: slice) -> Tensor | float:
        """Return what a micro-batch counts, in chips."""
        targets = tuple(target[part] for target in self.yb)
        if not isinstance(self.loss_func, CountingLoss):
            return float(len(self.xb[0][part]))
        first = targets[0]
        return self.loss_func.counted(*targets) / (first[0].numel() if isinstance(first, Tensor) else 1)

    def _add_gradients(self, parts: Sequence[slice]) -> None:
        if self._begun:  # an attempt before this one stopped half way through a gradient
            self._forget_gradients()
        plain = len(parts) == 1 and self.accumulate == 1 and processes.process_count() == 1
        sums: Tensor | None = None
        losses: dict[str, Tensor] = {}
        for part in parts:
            _, loss = self._compute(part)
            losses = dict(self.loss_func.parts) if isinstance(self.loss_func, PartedLoss) else {}
            numbers = torch.stack([loss.detach(), *(one.detach().to(loss) for one in losses.values())])
            if plain:
                self._weight, sums = 1.0, numbers
            else:
                weight = self._weigh(part)
                self.loss_grad = loss * weight
                self._weight = self._weight + weight
                numbers = torch.cat([numbers.new_ones(1), numbers]) * weight
                sums = numbers if sums is None else sums + numbers
            self._with_events(self._backward, 'backward', fastai.CancelBackwardException)
        assert sums is not None
        if not plain:
            sums = processes.add_up(sums)
            sums = sums[1:] / sums[0].clamp(min=1e-12)
        self.batch_weight = 1.0
        self.loss, self.loss_parts = sums[0], dict(zip(losses, sums[1:]))

    def _validate(self, parts: Sequence[slice]) -> None:
        done = [(part, *self._compute(part), self._weigh(part)) for part in parts]
        for part, output, loss, _ in done:
            seen = loss.expand(part.stop - part.start) if self.forward_takes_targets else main_output(output)
            nonfinite.check_outputs(seen, partial(self._chip_names, part))
            targets = tuple(target[part] for target in self.yb)
            self.scores.add(main_output(output), targets[0] if len(targets) == 1 else targets)
        self.batch_weight = cast(float, sum(weight for *_, weight in done))
        self.loss = sum(loss * weight for *_, loss, weight in done) / _positive(self.batch_weight)

    def _chip_names(self, part: slice) -> list[str]:
        """Return the names of chips in the batch at hand."""
        if isinstance(self.dl, ChipLoader):
            return self.dl.batch_names(self.iter)[part]
        first = self.iter * len(self.xb[0])
        return [f'number {first + row}' for row in range(len(self.xb[0]))][part]

    # -- a step

    def _take_step(self) -> Tensor:
        """Update the weights by the gradients added up so far; returns the gradient's norm."""
        trained = [p for group in self.opt.param_lists for p in group if p.requires_grad]
        if processes.process_count() > 1:
            processes.add_up_gradients(trained)
            self._weight = processes.add_up(torch.as_tensor(self._weight, device=self.device, dtype=torch.float32))
        if self.scaler is not None:
            self.scaler.unscale_(self.opt)
        if not (isinstance(self._weight, float) and self._weight == 1):
            divisor = _positive(self._weight)
            for parameter in trained:
                if parameter.grad is not None:
                    parameter.grad /= divisor
        norm = nn.utils.clip_grad_norm_(trained, float('inf') if self.clip is None else self.clip)
        self._nonfinite = self._is_nonfinite(norm)
        self._with_events(self._step, 'step', fastai.CancelStepException)
        if self.mean is not None:
            self.mean.update()
        return norm

    def _is_nonfinite(self, norm: Tensor | None) -> Tensor:
        """Return 1 where loss or gradient are NaN or infinite, else 0."""
        # scaled float16 overflows now and then; its scaler leaves out such steps and scales less
        both = self.loss if norm is None or self.scaler is not None else self.loss + norm
        return both.isfinite().logical_not().float()

    def _forget_gradients(self) -> None:
        self._weight = 0.0
        if self.opt is not None:
            self.opt.zero_grad()

    def check(self, results: Sequence[nonfinite.BatchResult]) -> None:
        """Stop at the first batch with a loss or gradient that is not finite.

        Raises:
            TrainingError: Naming the batch; the weights are those before it.
        """
        for result in results:
            if result.nonfinite:
                before = float('nan') if self.last_result is None else self.last_result.gradient
                error = nonfinite.nonfinite_error(
                    result.context, result.loss, loader=self.dl, network=self.model, before=before
                )
                nonfinite.put_back_statistics(self._statistics, result.context.statistics)
                if self.mean is not None:
                    self.mean.replace_nonfinite()
                self._forget_gradients()
                self.deferred.clear()
                raise error
            if result.gradient == result.gradient:
                self.last_result = result


def _positive(weight: Tensor | float) -> Tensor | float:
    """Return the weight, or a tiny number where nothing counted, so that 0 divided by it is 0."""
    return weight.clamp(min=1e-12) if isinstance(weight, Tensor) else max(weight, 1e-12)


def make_learner(
    network: nn.Module,
    train_dl: ChipLoader,
    valid_dl: ChipLoader,
    loss: nn.Module,
    *,
    scores: Scores,
    splitter: Splitter,
    forward_takes_targets: bool = False,
) -> ChipLearner:
    """Build the learner of a network: AdamW, with the parameter groups that the splitter returns.

    Where torchrun or ``accelerate launch`` started several processes, each of them trains on its share of the batches.

    Args:
        network: Maps images (N, bands, H, W) to an output. Of a tuple the first part is scored.
        train_dl: Training batches: images, and then the targets.
        valid_dl: Validation batches.
        loss: Takes output and targets. One with ``parts``, losses by name, has a column for each; one with
            ``counted(*targets)``, what its mean is over, is weighed by it where batches are added up.
        scores: Columns of the epoch table, from the validation chips.
        splitter: Returns the parameter groups, the most pretrained first.
        forward_takes_targets: The network takes the targets after the images, and the loss only its output.
    """
    processes.join_processes()
    if processes.process_count() > 1:
        index, count = processes.process_index(), processes.process_count()
        train_dl, valid_dl = (processes.SharedLoader(loader, index, count) for loader in (train_dl, valid_dl))
    learner = ChipLearner(
        fastai.DataLoaders(train_dl, valid_dl, device=train_dl.device),
        network.to(train_dl.device),
        loss.to(train_dl.device),
        splitter=splitter,
        scores=scores,
        forward_takes_targets=forward_takes_targets,
    )
    processes.take_from_first(learner.model)
    return learner
