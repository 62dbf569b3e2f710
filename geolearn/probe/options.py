"""What the classifiers of a probe are set to."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

Method = Literal['knn', 'linear', 'logistic', 'random_forest', 'mlp']

METHODS: tuple[Method, ...] = get_args(Method)
"""In the order in which tables show them."""

METHOD_TITLES = {
    'knn': 'k nearest neighbors',
    'linear': 'linear (least squares)',
    'logistic': 'logistic regression',
    'random_forest': 'random forest',
    'mlp': 'MLP',
}
"""For tables and figures."""


@dataclass(frozen=True, slots=True)
class ProbeOptions:
    """Settings of the classifiers; the same for embeddings and baselines.

    Args:
        neighbors: Of kNN; cosine similarity of standardized vectors, each neighbor counts the same.
        ridge: Penalty of the linear probe for each dimension: `alpha` of scikit-learn's `RidgeClassifier` is this times
            the number of dimensions.
        c: Inverse penalty of the logistic regression, as in scikit-learn.
        trees: Of the random forest.
        tree_items: Each tree sees at most so many items, drawn with replacement.
        hidden: Widths of the hidden layers of the MLP. Its first width is the number of dimensions, its last that of
            the classes: 768-384-192-100-classes for embeddings of 768 dimensions.
        epochs: Of the MLP; None for as many as see 600,000 items, 3 at least and 100 at most.
        batch_size: Of the MLP, in items.
        lr: Highest learning rate of the MLP (AdamW, cosine schedule).
        weight_decay: Of the MLP.
        device: Of MLP and logistic regression; None for CUDA where there is one.

    Raises:
        ValueError: If one makes no sense.
    """

    neighbors: int = 5
    ridge: float = 0.1
    c: float = 1.0
    trees: int = 100
    tree_items: int = 20_000
    hidden: tuple[int, ...] = (384, 192, 100)
    epochs: int | None = None
    batch_size: int = 1024
    lr: float = 2e-3
    weight_decay: float = 1e-2
    device: str | None = None

    def __post_init__(self) -> None:
        whole = {'neighbors': self.neighbors, 'trees': self.trees, 'tree_items': self.tree_items}
        whole |= {'batch_size': self.batch_size, 'epochs': 1 if self.epochs is None else self.epochs}
        whole |= {f'hidden[{index}]': width for index, width in enumerate(self.hidden)}
        for name, value in whole.items():
            if value < 1:
                raise ValueError(f'{name} must be 1 or more, got {value}')
        for name, number in {'ridge': self.ridge, 'c': self.c, 'lr': self.lr}.items():
            if not 0 < number < math.inf:
                raise ValueError(f'{name} must be a positive number, got {number}')
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f'weight_decay must be 0 or a positive number, got {self.weight_decay}')
