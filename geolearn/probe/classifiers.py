"""The classifiers of a probe: each is trained on the vectors of some items and predicts the classes of others.

All take vectors that are standardized by the mean and the standard deviation of the training items alone, and work on
pieces of them, so that 270,000 vectors of 768 dimensions are never copied as a whole.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from geolearn import extras
from geolearn.device import choose_device
from geolearn.probe.labels import ProbeLabels
from geolearn.probe.options import Method, ProbeOptions

PIECE = 8192
"""Vectors that are standardized at once."""

SEEN = 600_000
"""Items that an MLP sees, where the number of epochs is not given."""


@dataclass(frozen=True, eq=False)
class Scaling:
    """Mean and standard deviation of each dimension (dimensions,) float32; a dimension that does not vary becomes 0."""

    mean: np.ndarray
    factor: np.ndarray

    @classmethod
    def fit(cls, values: np.ndarray, items: np.ndarray) -> 'Scaling':
        """Fit it to some of the vectors.

        Args:
            values: (all items, dimensions) float32.
            items: Positions of those to fit to.
        """
        total = np.zeros(values.shape[1])
        for piece in pieces(items):
            total += values[piece].sum(axis=0, dtype=np.float64)
        mean = (total / len(items)).astype(np.float32)
        squares = np.zeros(values.shape[1])
        for piece in pieces(items):
            squares += np.square(values[piece] - mean).sum(axis=0, dtype=np.float64)
        std = np.sqrt(squares / len(items))
        # rounding makes the deviation of a constant a little more than 0
        constant = std <= 1e-6 * np.abs(mean)
        factor = np.where(constant, 0, 1 / np.where(constant, 1, std))
        return cls(mean, factor.astype(np.float32))

    def apply(self, vectors: np.ndarray) -> np.ndarray:
        """Standardize vectors (n, dimensions) into a new array."""
        scaled = vectors - self.mean
        scaled *= self.factor
        return scaled


def pieces(items: np.ndarray) -> Iterator[np.ndarray]:
    """Yield positions in runs of `PIECE`."""
    for start in range(0, len(items), PIECE):
        yield items[start : start + PIECE]


@dataclass(frozen=True, eq=False)
class Task:
    """One training and test.

    Args:
        values: (all items, dimensions) float32, finite.
        labels: Of all items.
        train: Positions of the items to train on.
        test: Positions of those to predict.
        seed: Of whatever is random.
        options: Of the classifiers.
    """

    values: np.ndarray
    labels: ProbeLabels
    train: np.ndarray
    test: np.ndarray
    seed: int
    options: ProbeOptions

    def scaled(self, scaling: Scaling, items: np.ndarray) -> np.ndarray:
        """Return the standardized vectors of some items."""
        found = np.empty((len(items), self.values.shape[1]), np.float32)
        for start in range(0, len(items), PIECE):
            piece = slice(start, start + PIECE)
            found[piece] = scaling.apply(self.values[items[piece]])
        return found


def predict(method: Method, task: Task) -> np.ndarray:
    """Train a classifier and return its decisions on the test items: (test items, classes) bool.

    Items of one class each get exactly one class; others those whose probability is 0.5 and more.
    """
    scores, threshold = _CLASSIFIERS[method](task)
    if task.labels.multi_label:
        return scores >= threshold
    decisions = np.zeros(scores.shape, bool)
    decisions[np.arange(len(scores)), scores.argmax(axis=1)] = True
    return decisions


Scores = tuple[np.ndarray, float]
"""(test items, classes), and the score from which on a class is present."""


def _knn(task: Task) -> Scores:
    neighbors = extras.require('sklearn.neighbors', extra='sklearn', to='probe with k nearest neighbors')
    scaling = Scaling.fit(task.values, task.train)
    count = min(task.options.neighbors, len(task.train))
    search = neighbors.NearestNeighbors(n_neighbors=count, algorithm='brute')
    search.fit(_unit(task.scaled(scaling, task.train)))
    votes = np.empty((len(task.test), task.labels.presence.shape[1]), np.float32)
    presence = task.labels.presence[task.train]
    for start in range(0, len(task.test), PIECE):
        piece = slice(start, start + PIECE)
        found = search.kneighbors(_unit(task.scaled(scaling, task.test[piece])), return_distance=False)
        votes[piece] = presence[found].mean(axis=1)
    return votes, 0.5


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Scale vectors to length 1 in place; among those the order by distance is that by cosine similarity."""
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return vectors


def _linear(task: Task) -> Scores:
    """Least squares with a penalty, targets -1 and 1: the solution of scikit-learn's `RidgeClassifier`.

    Only products of pieces are kept, (dimensions, dimensions) in float64, so it takes one pass over the vectors.
    """
    from scipy import linalg

    scaling = Scaling.fit(task.values, task.train)
    dimensions = task.values.shape[1]
    presence = task.labels.presence
    offset = 2 * presence[task.train].mean(axis=0) - 1
    products, moments = np.zeros((dimensions, dimensions)), np.zeros((dimensions, presence.shape[1]))
    for piece in pieces(task.train):
        vectors = scaling.apply(task.values[piece])
        products += vectors.T @ vectors
        moments += vectors.T @ (2 * presence[piece] - 1 - offset).astype(np.float32)
    products[np.diag_indices(dimensions)] += task.options.ridge * dimensions
    weights = linalg.solve(products, moments, assume_a='pos', overwrite_a=True).astype(np.float32)
    scores = [scaling.apply(task.values[piece]) @ weights for piece in pieces(task.test)]
    return np.concatenate(scores) + offset.astype(np.float32), 0.0


def _logistic(task: Task) -> Scores:
    """Maximum likelihood with a penalty, all classes at once: scikit-learn's fits one class after the other.

    Of one class per item it is multinomial, of several one regression each.
    """
    from scipy import optimize

    device = choose_device(task.options.device)
    scaling = Scaling.fit(task.values, task.train)
    presence, multi_label = task.labels.presence, task.labels.multi_label
    shape = task.values.shape[1] + 1, presence.shape[1]
    penalty = 1 / (task.options.c * len(task.train))
    targets = [torch.from_numpy(presence[piece]).float().to(device) for piece in pieces(task.train)]

    def loss_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = torch.from_numpy(flat.reshape(shape).astype(np.float32)).to(device)
        total, gradient = 0.0, torch.zeros(shape, device=device)
        for piece, target in zip(pieces(task.train), targets):
            vectors = torch.from_numpy(scaling.apply(task.values[piece])).to(device)
            logits = vectors @ weights[:-1] + weights[-1]
            if multi_label:
                total += float(torch.nn.functional.binary_cross_entropy_with_logits(logits, target, reduction='sum'))
                error = logits.sigmoid() - target
            else:
                total += float(torch.nn.functional.cross_entropy(logits, target, reduction='sum'))
                error = logits.softmax(1) - target
            gradient[:-1] += vectors.T @ error
            gradient[-1] += error.sum(0)
        slopes = gradient.cpu().numpy().astype(np.float64) / len(task.train)
        inner = flat.reshape(shape)[:-1]
        slopes[:-1] += penalty * inner
        return total / len(task.train) + penalty / 2 * float((inner**2).sum()), slopes.ravel()

    options = {'maxiter': 100, 'gtol': 1e-5, 'ftol': 1e-7}
    found = optimize.minimize(loss_and_gradient, np.zeros(shape).ravel(), jac=True, method='L-BFGS-B', options=options)
    weights = found.x.reshape(shape).astype(np.float32)
    scores = [scaling.apply(task.values[piece]) @ weights[:-1] + weights[-1] for piece in pieces(task.test)]
    return np.concatenate(scores), 0.0


def _random_forest(task: Task) -> Scores:
    ensemble = extras.require('sklearn.ensemble', extra='sklearn', to='probe with a random forest')
    options = task.options
    presence = task.labels.presence[task.train]
    forest = ensemble.RandomForestClassifier(
        options.trees,
        max_samples=min(len(task.train), options.tree_items),
        random_state=task.seed,
        n_jobs=torch.get_num_threads(),
    )
    targets = presence if task.labels.multi_label else presence.argmax(axis=1)
    forest.fit(task.values[task.train], targets)
    scores = np.zeros((len(task.test), presence.shape[1]), np.float32)
    found = forest.predict_proba(task.values[task.test])
    if task.labels.multi_label:
        # a class that all or no items have is one of a single value
        known = forest.classes_ if presence.shape[1] > 1 else [forest.classes_]
        for index, (values, shares) in enumerate(zip(known, found if presence.shape[1] > 1 else [found])):
            scores[:, index] = (shares * np.asarray(values, np.float32)).sum(axis=1)
    else:
        scores[:, forest.classes_] = found
    return scores, 0.5


def _mlp(task: Task) -> Scores:
    """A perceptron of fully connected layers with ReLU between them, trained by AdamW and a cosine schedule."""
    options, device = task.options, choose_device(task.options.device)
    scaling = Scaling.fit(task.values, task.train)
    classes = task.labels.presence.shape[1]
    with torch.random.fork_rng(devices=[] if device.type == 'cpu' else [device]):
        torch.manual_seed(task.seed)
        network = _make_mlp((task.values.shape[1], *options.hidden, classes)).to(device)
    count = len(task.train)
    epochs = options.epochs or min(100, max(3, -(-SEEN // count)))
    # at least eight steps an epoch, so that few items are learned too
    batch = max(1, min(options.batch_size, -(-count // 8)))
    steps = epochs * -(-count // batch)
    optimizer = torch.optim.AdamW(network.parameters(), lr=options.lr, weight_decay=options.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, total_steps=steps, pct_start=0.1)
    loss_of = torch.nn.BCEWithLogitsLoss() if task.labels.multi_label else torch.nn.CrossEntropyLoss()
    rng = np.random.default_rng(task.seed)
    for _ in range(epochs):
        order = rng.permutation(task.train)
        for start in range(0, count, batch):
            chosen = order[start : start + batch]
            vectors = torch.from_numpy(scaling.apply(task.values[chosen])).to(device)
            target = torch.from_numpy(task.labels.presence[chosen]).float().to(device)
            optimizer.zero_grad()
            loss_of(network(vectors), target).backward()
            optimizer.step()
            schedule.step()
    with torch.inference_mode():
        scores = [
            network(torch.from_numpy(scaling.apply(task.values[piece])).to(device)).cpu().numpy()
            for piece in pieces(task.test)
        ]
    return np.concatenate(scores), 0.0


def _make_mlp(widths: tuple[int, ...]) -> torch.nn.Sequential:
    layers: list[torch.nn.Module] = []
    for index, (inputs, outputs) in enumerate(pairwise(widths)):
        layers += [torch.nn.Linear(inputs, outputs), *([torch.nn.ReLU()] if index < len(widths) - 2 else [])]
    return torch.nn.Sequential(*layers)


_CLASSIFIERS: dict[Method, Callable[[Task], Scores]] = {
    'knn': _knn,
    'linear': _linear,
    'logistic': _logistic,
    'random_forest': _random_forest,
    'mlp': _mlp,
}
