"""PixelHead: classify pixels by their own values, such as those of precomputed embeddings; trained in seconds."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple, Self, get_args

import torch
from torch import Tensor
from torch.nn import functional

from geolearn import errors, extras
from geolearn.arguments import encode, record_arguments
from geolearn.backbones import loading
from geolearn.backbones.pixel_series import check_location
from geolearn.chips.batches.loader import ChipLoader
from geolearn.classes import IGNORE_INDEX
from geolearn.data import ChipData
from geolearn.models import bundling, new_spec, registry
from geolearn.models.pixel_classifiers import PixelClassifier
from geolearn.networks import pixel_head
from geolearn.networks.pixel_head import Head, PixelHeadOptions
from geolearn.networks.spec import ModelSpec

log = logging.getLogger('geolearn')

MOST_PIXELS, MOST_NEIGHBORS = 200_000, 10_000
"""Training pixels that are used of those labelled; nearest neighbors keep them, and each pixel of a map is compared."""

EPOCHS, ITERATIONS, BATCH, STEPS = 60, 200, 4096, 32
"""Passes of an MLP; steps of L-BFGS for a linear layer; most pixels of a batch, and least steps of a pass."""

RATE, HIDDEN = 3e-3, (128,)


class _Pixels(NamedTuple):
    """Normalized values (n, values) of labelled pixels, and their class indices (n,)."""

    rows: Tensor
    labels: Tensor


@registry.register_model
class PixelHead(PixelClassifier):
    """Classify every pixel by its own values: a linear layer, an MLP, a random forest or nearest neighbors.

    Made for precomputed embeddings (AlphaEarth, TESSERA), for bands that say enough by themselves, and for networks
    over time series (``backbone='presto'``), which stay as they are. Training reads the labelled pixels once, so that
    sparse polygons take seconds; maps are computed without overlapping tiles.

    Args:
        data: From `prepare_data` or `from_rasters`; ``split='polygons'`` keeps each polygon in one part.
        head: ``'linear'``, ``'mlp'``, ``'random_forest'`` or ``'knn'``. The latter two are trained with scikit-learn,
            and stored and computed as plain arrays.
        hidden: Width of each hidden layer of ``'mlp'``; None takes 128.
        trees: Of a forest.
        neighbors: That vote.
        ignore_classes: Label values to ignore, on top of those that `data` ignores.
        class_balancing: Weigh classes by their rarity; ``'knn'`` keeps as many pixels of each.
        backbone: A network over the time series of single pixels, such as ``'presto'``, whose vectors the head takes;
            None hands it the bands. It is not trained.
        pretrained: Whether to fill the backbone with its published weights.
        weights: A file or folder with its weights instead of fetching them.
        dates: When the images of each date were taken, where the chips do not say it.
        location: Latitude and longitude of about the middle of the images; None takes that of the chips, if they are
            georeferenced.

    Raises:
        ChipFolderError: If the labels are not one class per pixel.
        BackboneError: If the backbone is not one of single pixels, or has to know when or where images were taken.
        WeightsError: If weights cannot be had or do not fit.
        UnknownNameError: If there is no such head.
        ValueError: If a number is out of its range, or does not go with the head.
    """

    decoder = 'linear'
    default_backbone = pixel_head.BACKBONE
    trains_by_epochs = False
    network: Any

    def __init__(
        self,
        data: ChipData,
        head: Head = 'linear',
        *,
        hidden: Sequence[int] | None = None,
        trees: int = 100,
        neighbors: int = 5,
        ignore_classes: Sequence[int] = (),
        class_balancing: bool = False,
        backbone: str | None = None,
        pretrained: bool = True,
        weights: str | Path | None = None,
        dates: Sequence[date] = (),
        location: tuple[float, float] | None = None,
    ) -> None:
        arguments = record_arguments(type(self), locals())
        if head not in get_args(Head):
            raise errors.UnknownNameError('head', str(head), get_args(Head))
        if hidden is not None and head != 'mlp':
            raise ValueError(f"hidden= is for head='mlp', got head={head!r}; leave it out")
        widths = () if head != 'mlp' else HIDDEN if hidden is None else tuple(hidden)
        options = PixelHeadOptions(head, widths, trees, neighbors)
        name = pixel_head.BACKBONE if backbone is None else backbone
        given = {
            'pretrained=False': not pretrained,
            'weights=': weights is not None,
            'dates=': bool(dates),
            'location=': location is not None,
        }
        if name == pixel_head.BACKBONE and (wrong := [text for text, is_given in given.items() if is_given]):
            raise ValueError(f'{wrong[0]} does not apply to PixelHead without a backbone; leave it out')
        location = None if location is None else check_location(location)
        self._create(
            data,
            new_spec.BackboneConfig(
                name,
                pretrained and name != pixel_head.BACKBONE,
                weights,
                acquired=tuple(dates),
                location=location,
            ),
            options=options.to_json(),
            arguments=arguments,
            class_balancing=class_balancing,
            ignore_classes=ignore_classes,
        )

    # -- what a task defines

    @classmethod
    def build(  # type: ignore[override]
        cls, spec: ModelSpec, *, pretrained: bool = False, weights: str | Path | None = None
    ) -> pixel_head.PixelNetwork:
        """Build the network that a spec describes; only a backbone has weights to start from."""
        _check_classes(spec)
        options, count = PixelHeadOptions.from_json(spec.options), len(spec.class_infos)
        return pixel_head.build_pixel_network(spec, options, count, pretrained=pretrained, weights=weights)

    @classmethod
    def from_spec(cls, spec: ModelSpec, weights: Any, data: ChipData | None = None) -> Self:
        """Rebuild a model from its description and arrays, which are checked before anything is computed."""
        _check_classes(spec)
        options, count = PixelHeadOptions.from_json(spec.options), len(spec.class_infos)
        network = loading.build_filled(
            lambda: pixel_head.build_pixel_network(spec, options, count, state=weights), weights, 'of the bundle'
        )
        if data is not None:
            network.adapt(spec.adaptation)
        model = cls.of(spec, network.eval(), data)
        if isinstance(model.network.head, pixel_head.PixelwiseHead):
            model.network.head.check(pixel_head.count_values(spec, model.network.backbone))
        return model

    def _export(self, kinds: Any, *, size: tuple[int, int] | None = None) -> Any:
        self._check_saved()
        return super()._export(kinds, size=size)

    # -- training

    def fit(  # type: ignore[override]
        self,
        epochs: int | None = None,
        lr: float | None = None,
        *,
        weight_decay: float = 1e-4,
        max_pixels: int | None = None,
        seed: int | None = None,
    ) -> Self:
        """Train on the labelled pixels of the training chips, which are read once; a second call starts anew.

        Args:
            epochs: Passes of ``'mlp'`` over the pixels, 60 by default, or steps of ``'linear'``, 200 by default;
                forests and neighbors have none.
            lr: Highest learning rate of ``'mlp'``; None takes 0.003.
            weight_decay: Of the layers.
            max_pixels: Most pixels to train on, drawn at random; None takes 200,000, and 10,000 for ``'knn'``.
            seed: Fixes what is drawn; None takes that of the data.

        Returns:
            The model itself.

        Raises:
            ValueError: If an argument is not valid, or does not go with the head.
            ChipFolderError: If no training pixel is labelled, or they are of one class.
            MissingExtraError: If a forest is trained and scikit-learn is not installed.
        """
        given = record_arguments(self.fit, locals())
        data, options = self._needed_data(), PixelHeadOptions.from_json(self.spec.options)
        self._check_fit(options, epochs, lr, max_pixels)
        started = time.perf_counter()
        seed = data.train_dl.options.seed if seed is None else seed
        most = max_pixels or (MOST_NEIGHBORS if options.head == 'knn' else MOST_PIXELS)
        self.network.eval()
        balanced = self.spec.class_balancing and options.head == 'knn'
        train = self._pixels(data.split.train, most, seed, balanced=balanced)
        valid = self._pixels(data.split.valid, MOST_PIXELS, seed)
        if len(train.labels.unique()) < 2:
            found = [self._class_names[index] for index in train.labels.unique().tolist()]
            raise errors.ChipFolderError(
                f'{len(train.labels)} labelled pixels to train on are of the classes {found}; at least 2 are needed: '
                'label more, or pass a smaller val_split_pct'
            )
        self.evaluation = None
        self.spec = replace(self.spec, temperature=1.0)
        if options.head in ('random_forest', 'knn'):
            self._store(options, train, seed)
            self._record(train, valid, started)
        else:
            self._train_layers(options, train, valid, epochs, lr or RATE, weight_decay, seed)
        self.history.fits.append(encode(given))
        bundling.record_trained_chips(self.history, data)
        return self

    def _check_fit(self, options: PixelHeadOptions, epochs: int | None, lr: float | None, pixels: int | None) -> None:
        for name, value in (('epochs', epochs), ('max_pixels', pixels)):
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ValueError(f'{name} must be a whole number of at least 1, got {value!r}')
        if lr is not None and not lr > 0:
            raise ValueError(f'lr must be a number above 0, got {lr!r}')
        unused = {'epochs': epochs is not None and options.head in ('random_forest', 'knn')}
        unused['lr'] = lr is not None and options.head != 'mlp'
        if wrong := [name for name, is_wrong in unused.items() if is_wrong]:
            raise ValueError(f'{wrong[0]}= does not apply to head={options.head!r}; leave it out')

    @torch.no_grad()
    def _pixels(self, positions: Sequence[int], most: int, seed: int, *, balanced: bool = False) -> _Pixels:
        """Read the labelled pixels of some chips, at most so many of them."""
        data = self._needed_data()
        config = replace(data.valid_ds.config, chip_size=int(data.table.shapes.max()))
        chips = ChipLoader(replace(data.valid_ds, positions=tuple(positions), config=config), data.valid_dl.options)
        rows, labels = list[Tensor](), list[Tensor]()
        self.network.to(chips.device)
        for images, masks in chips:
            known = masks != IGNORE_INDEX
            rows.append(images.movedim((-2, -1), (1, 2))[known].cpu())
            labels.append(masks[known].cpu().long())
        found, classes = torch.cat(rows), torch.cat(labels)
        if len(classes) <= most and not balanced:
            return _Pixels(self._values(found), classes)
        random = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(classes), generator=random)
        if balanced:
            share = max(1, most // max(1, len(classes.unique())))
            fewest = int(torch.bincount(classes)[classes.unique()].min())
            parts = [order[classes[order] == index][: min(share, fewest)] for index in classes.unique()]
            order = torch.cat(parts)
        kept = order[:most].sort().values
        return _Pixels(self._values(found[kept]), classes[kept])

    def _values(self, pixels: Tensor) -> Tensor:
        """Return what the head sees of pixels (n, [dates,] bands): (n, values)."""
        device = self.network.normalise.mean.device
        parts = pixels[..., None, None].split(pixel_head.CHUNK)
        return torch.cat([self.network.values(part.to(device))[..., 0, 0].cpu() for part in parts])

    def _store(self, options: PixelHeadOptions, train: _Pixels, seed: int) -> None:
        """Train a forest, or keep the pixels, as the arrays of a network of their sizes."""
        forest: Any = None
        if options.head == 'knn':
            options = replace(options, vectors=len(train.labels), neighbors=min(options.neighbors, len(train.labels)))
        else:
            ensemble = extras.require('sklearn.ensemble', extra='sklearn', to='train random forests')
            weights = 'balanced' if self.spec.class_balancing else None
            forest = ensemble.RandomForestClassifier(
                options.trees, class_weight=weights, n_jobs=torch.get_num_threads(), random_state=seed
            )
            forest.fit(train.rows.numpy(), train.labels.numpy())
            trees = [estimator.tree_ for estimator in forest.estimators_]
            nodes, depth = sum(tree.node_count for tree in trees), max(tree.max_depth for tree in trees)
            options = replace(options, nodes=nodes, depth=depth)
        self.spec = replace(self.spec, options=options.to_json())
        device = self.network.normalise.mean.device
        head = pixel_head.build_head(options, train.rows.shape[1], len(self.spec.class_infos))
        if isinstance(head, pixel_head.Forest):
            head.fill(forest)
        elif isinstance(head, pixel_head.NearestNeighbors):
            head.vectors.copy_(train.rows)
            head.labels.copy_(train.labels)
        self.network.head = head.to(device)
        self.network.eval()

    def _train_layers(
        self,
        options: PixelHeadOptions,
        train: _Pixels,
        valid: _Pixels,
        epochs: int | None,
        lr: float,
        weight_decay: float,
        seed: int,
    ) -> None:
        started = time.perf_counter()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            fresh = pixel_head.build_head(options, train.rows.shape[1], len(self.spec.class_infos))
        device = self.network.normalise.mean.device
        self.network.head = fresh.to(device).train()
        rows, labels = train.rows.to(device), train.labels.to(device)
        weights = self._weights(train.labels).to(device) if self.spec.class_balancing else None

        def loss_of(part: Any) -> Tensor:
            logits = self.network.head(rows[part].T[None, :, :, None])
            return functional.cross_entropy(logits[0, :, :, 0].T, labels[part], weight=weights)

        if options.head == 'linear':
            # a convex problem: L-BFGS on all pixels ends in its minimum
            self._minimize(loss_of, epochs or ITERATIONS, weight_decay)
            self._record(train, valid, started)
        else:
            self._run_epochs(loss_of, train, valid, epochs or EPOCHS, lr, weight_decay, seed)
        self.network.eval()

    def _minimize(self, loss_of: Callable[[Any], Tensor], steps: int, weight_decay: float) -> None:
        parameters = list(self.network.head.parameters())
        optimizer = torch.optim.LBFGS(parameters, max_iter=steps, line_search_fn='strong_wolfe')

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(slice(None)) + weight_decay / 2 * sum((p * p).sum() for p in parameters if p.dim() > 1)
            loss.backward()
            self.history.batch_losses.append(float(loss.detach()))
            return loss

        optimizer.step(closure)

    def _run_epochs(
        self,
        loss_of: Callable[[Any], Tensor],
        train: _Pixels,
        valid: _Pixels,
        epochs: int,
        lr: float,
        weight_decay: float,
        seed: int,
    ) -> None:
        optimizer = torch.optim.AdamW(self.network.head.parameters(), lr=lr, weight_decay=weight_decay)
        # few pixels make small batches, else there would be a step or two in an epoch
        batch = min(BATCH, max(64, len(train.labels) // STEPS))
        steps = -(-len(train.labels) // batch)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * steps)
        random = torch.Generator().manual_seed(seed)
        self.history.learning_rate = lr
        for _ in range(epochs):
            started = time.perf_counter()
            for part in torch.randperm(len(train.labels), generator=random).split(batch):
                optimizer.zero_grad()
                loss = loss_of(part)
                loss.backward()
                optimizer.step()
                schedule.step()
                self.history.batch_losses.append(float(loss.detach()))
            self._record(train, valid, started)

    def _weights(self, labels: Tensor) -> Tensor:
        counts = torch.bincount(labels, minlength=len(self.spec.class_infos)).float()
        weights = labels.numel() / counts.clamp_min(1)
        return torch.where(counts > 0, weights / weights[counts > 0].mean(), 0)

    @torch.no_grad()
    def _record(self, train: _Pixels, valid: _Pixels, started: float) -> None:
        """Add a row to the history: losses and scores over pixels."""
        scores = self.make_scores()
        losses = []
        device = self.network.normalise.mean.device
        for number, (rows, labels) in enumerate((train, valid)):
            step = max(1, len(labels) // pixel_head.CHUNK)  # a sample tells a loss
            part = slice(None, None, step if number == 0 else max(1, step // 4))
            logits = self.network.head(rows[part].to(device).T[None, :, :, None])
            truth = labels[part].to(device)[None, :, None]
            losses.append(float(functional.cross_entropy(logits, truth)) if truth.numel() else float('nan'))
            if number == 1:
                scores.add(logits, truth)
        row = {'epoch': len(self.history.epochs) + 1, 'train_loss': losses[0], 'valid_loss': losses[1]}
        rate = float('nan') if self.history.learning_rate is None else self.history.learning_rate
        self.history.epochs.append(
            row | scores.values() | {'learning_rate': rate, 'seconds': time.perf_counter() - started}
        )

    # -- what there is not

    def _prepare(self) -> None:
        raise errors.NotTrainedError('a PixelHead is trained on pixels, without a Learner: call fit()')

    def _check_saved(self) -> None:
        """Refuse a forest or neighbors that hold nothing yet.

        Raises:
            NotTrainedError: Before the first `fit`.
        """
        options = PixelHeadOptions.from_json(self.spec.options)
        if options.head in ('random_forest', 'knn') and not options.nodes + options.vectors:
            raise errors.NotTrainedError(f'head={options.head!r} holds nothing before training; call fit() first')


def _check_classes(spec: ModelSpec) -> None:
    if len(spec.class_infos) < 2:
        raise errors.BundleError(f'the manifest is broken: {spec.model} needs 2 classes, found {spec.class_infos}')
