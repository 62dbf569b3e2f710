"""Networks that classify each pixel by its own values, or by what a network over its time series makes of them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from geolearn.backbones.backbone import Backbone, ConvBackbone
from geolearn.backbones.custom import PREFIX
from geolearn.backbones.pixel_series import PixelBackbone
from geolearn.errors import BackboneError, BundleError
from geolearn.networks.network import Network, Normalize, build_backbone, build_normalize
from geolearn.networks.spec import ModelSpec, decode

Head = Literal['linear', 'mlp', 'random_forest', 'knn']

BACKBONE = 'pixels'
"""Name of the backbone that hands on the bands as they are."""

LEAST_PROBABILITY = 1e-7
"""Probabilities of forests and neighbors become logits, of which 0 has none."""

FAR = float(np.finfo(np.float32).max)
"""The threshold of leaves: no value is larger, so that a leaf leads to itself."""

MAX_NODES, MAX_DEPTH, MAX_VECTORS, MAX_WIDTH = 2**27, 512, 2**22, 2**16

CHUNK = 2**14
"""Pixels that a forest or a search of neighbors takes at once, besides graphs."""


@dataclass(frozen=True)
class PixelHeadOptions:
    """What stands on the bands of a pixel, and the sizes of what it keeps, by which a bundle's network is built.

    Args:
        head: Kind of head.
        hidden: Width of each hidden layer, of ``'mlp'``.
        trees: Of a forest.
        neighbors: That vote, of ``'knn'``.
        nodes: Of all trees together; 0 before training.
        depth: Of the deepest tree.
        vectors: Training pixels that ``'knn'`` keeps; 0 before training.

    Raises:
        ValueError: If a number is out of its range.
    """

    head: Head = 'linear'
    hidden: tuple[int, ...] = ()
    trees: int = 100
    neighbors: int = 5
    nodes: int = 0
    depth: int = 0
    vectors: int = 0

    def __post_init__(self) -> None:
        limits = {'nodes': MAX_NODES, 'depth': MAX_DEPTH, 'vectors': MAX_VECTORS}
        for name, most in limits.items():
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f'{name} must lie in 0..{most}, got {getattr(self, name)}')
        for name in ('trees', 'neighbors'):
            if not 1 <= getattr(self, name) <= 10_000:
                raise ValueError(f'{name} must lie in 1..10000, got {getattr(self, name)}')
        if not all(isinstance(width, int) and 1 <= width <= MAX_WIDTH for width in self.hidden):
            raise ValueError(f'hidden must hold whole numbers in 1..{MAX_WIDTH}, got {self.hidden}')

    def to_json(self) -> dict[str, Any]:
        """Return the options as plain JSON."""
        return asdict(self) | {'hidden': list(self.hidden)}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> 'PixelHeadOptions':
        """Read the options that a spec carries.

        Raises:
            BundleError: If they are not what `to_json` returns.
        """
        return decode(cls, {f.name: row[f.name] for f in fields(cls) if f.name in row}, 'options')


class PixelLayers(nn.Module):
    """Layers on the values of a pixel: 1 x 1 convolutions with ReLU between them.

    Args:
        widths: Inputs, hidden layers and outputs.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(before, after, 1) for before, after in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits (N, classes, H, W) of normalized values (N, values, H, W)."""
        return self._rest(self.layers[0](x))

    def of_stored(self, x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """Compute the same of values as they are stored: the normalization is folded into the first layer.

        This spares passes over all bands, which take longer than the layers themselves.

        Args:
            x: (N, values, H, W), NaN where there is no data.
            mean: (values,), subtracted.
            std: (values,), divided by.
        """
        first: Any = self.layers[0]
        weight = first.weight[:, :, 0, 0] / std
        bias = first.bias - weight @ mean
        # as a product of matrices: convolutions would bring all bands to another layout first
        values = torch.matmul(weight, x.flatten(2)) + bias[:, None]
        values = torch.where(torch.isnan(values), first.bias[:, None], values)
        return self._rest(values.view(x.shape[0], -1, *x.shape[2:]))

    def _rest(self, x: Tensor) -> Tensor:
        for layer in self.layers[1:]:
            x = layer(torch.relu(x))
        return x


class PixelwiseHead(nn.Module):
    """A head that computes the probabilities of rows of pixels, some at a time."""

    def probabilities(self, rows: Tensor) -> Tensor:
        """Compute (n, classes) of normalized values (n, values)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits (N, classes, H, W), whose softmax are the probabilities, of normalized (N, values, H, W)."""
        rows = x.permute(0, 2, 3, 1).flatten(0, 2)
        if torch.compiler.is_exporting() or torch.jit.is_tracing():
            found = self.probabilities(rows)
        else:
            found = torch.cat([self.probabilities(part) for part in rows.split(CHUNK)])
        logits = torch.log(found.clamp_min(LEAST_PROBABILITY))
        return logits.view(x.shape[0], x.shape[2], x.shape[3], -1).permute(0, 3, 1, 2)

    def check(self, values: int) -> None:
        """Check that what was loaded is such as training makes.

        Args:
            values: Of a pixel.

        Raises:
            BundleError: If an index leads nowhere, or a number is out of its range.
        """
        raise NotImplementedError


class Forest(PixelwiseHead):
    """A random forest as plain arrays; all trees walk down together, a level at a time.

    The right child of a node lies behind the left one, so that one index names both; a leaf is its own child.

    Args:
        options: Numbers of trees and nodes, and the depth.
        classes: Number of classes.
    """

    def __init__(self, options: PixelHeadOptions, classes: int) -> None:
        super().__init__()
        self.depth = options.depth
        self.roots: Tensor
        self.feature: Tensor
        self.threshold: Tensor
        self.child: Tensor
        self.votes: Tensor
        self.register_buffer('roots', torch.zeros(options.trees, dtype=torch.int64))
        self.register_buffer('feature', torch.zeros(options.nodes, dtype=torch.int64))
        self.register_buffer('threshold', torch.full((options.nodes,), FAR))
        self.register_buffer('child', torch.arange(options.nodes))
        self.register_buffer('votes', torch.zeros(options.nodes, classes))

    def probabilities(self, rows: Tensor) -> Tensor:
        """Compute the mean over the trees of the class shares in the leaf that a row falls into."""
        node = self.roots.expand(rows.shape[0], -1)
        for _ in range(self.depth):
            right = torch.gather(rows, 1, self.feature[node]) > self.threshold[node]
            node = self.child[node] + right.to(node.dtype)
        return self.votes[node].mean(1)

    def fill(self, forest: Any) -> None:
        """Take the trees of a `sklearn.ensemble.RandomForestClassifier` whose classes are indices."""
        start = 0
        columns = np.asarray(forest.classes_, np.int64)
        for number, estimator in enumerate(forest.estimators_):
            tree = estimator.tree_
            order = _siblings_together(tree.children_left, tree.children_right)
            place = np.empty(len(order), np.int64)
            place[order] = np.arange(len(order)) + start
            inner = tree.children_left[order] >= 0
            part = slice(start, start + len(order))
            child = np.where(inner, place[tree.children_left[order]], place[order])
            shares = tree.value[order][:, 0, :]
            votes = np.zeros((len(order), self.votes.shape[1]))
            votes[:, columns] = shares / shares.sum(axis=1, keepdims=True)
            threshold = np.where(inner, _at_most(tree.threshold[order]), FAR)
            self.roots[number] = start
            self.feature[part] = torch.from_numpy(np.where(inner, tree.feature[order], 0).astype(np.int64))
            self.threshold[part] = torch.from_numpy(threshold.astype(np.float32))
            self.child[part] = torch.from_numpy(child)
            self.votes[part] = torch.from_numpy(votes.astype(np.float32))
            start += len(order)

    def check(self, values: int) -> None:
        """Check that every path ends, within the trees and the values."""
        count = len(self.child)
        nodes = torch.arange(count)
        inner = self.child != nodes
        wrong = {
            'trees without nodes': not count or not bool(((self.roots >= 0) & (self.roots < count)).all()),
            'values of pixels that are not there': not bool(((self.feature >= 0) & (self.feature < values)).all()),
            'children that are not there': bool(((self.child < nodes) | (self.child + inner.long() >= count)).any()),
            'votes that are no shares': not bool(((self.votes >= 0) & (self.votes <= 1 + 1e-5)).all()),
        }
        _refuse(wrong, 'the forest')


def _siblings_together(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return the nodes of a tree level by level, so that the right child of each follows the left one."""
    order, position = [0], 0
    while position < len(order):
        node = order[position]
        if left[node] >= 0:
            order += [int(left[node]), int(right[node])]
        position += 1
    return np.array(order, np.int64)


def _at_most(thresholds: np.ndarray) -> np.ndarray:
    """Return the largest float32 up to each number: for float32 values both divide in the same way."""
    rounded = thresholds.astype(np.float32)
    above = rounded.astype(np.float64) > thresholds
    rounded[above] = np.nextafter(rounded[above], np.float32(-np.inf))
    return rounded


class NearestNeighbors(PixelwiseHead):
    """The votes of the training pixels that are nearest to a pixel.

    Args:
        options: How many vote, and how many pixels are kept.
        classes: Number of classes.
        values: Of a pixel.
    """

    def __init__(self, options: PixelHeadOptions, classes: int, values: int) -> None:
        super().__init__()
        self.neighbors, self.classes = options.neighbors, classes
        self.vectors: Tensor
        self.labels: Tensor
        self.register_buffer('vectors', torch.zeros(options.vectors, values))
        self.register_buffer('labels', torch.zeros(options.vectors, dtype=torch.int64))

    def probabilities(self, rows: Tensor) -> Tensor:
        """Compute the share of each class among the nearest pixels (Euclidean)."""
        # the length of a row itself is the same for all that it is compared with
        apart = (self.vectors * self.vectors).sum(1) - 2 * rows @ self.vectors.T
        nearest = apart.topk(min(self.neighbors, len(self.vectors)), dim=1, largest=False, sorted=False).indices
        return functional.one_hot(self.labels[nearest], self.classes).to(rows.dtype).mean(1)

    def check(self, values: int) -> None:
        """Check that labels are classes and vectors are finite."""
        wrong = {
            'no pixels': not len(self.vectors),
            'labels that are no classes': not bool(((self.labels >= 0) & (self.labels < self.classes)).all()),
        }
        _refuse(wrong, 'the nearest neighbors')


def _refuse(wrong: Mapping[str, bool], what: str) -> None:
    if found := next((text for text, is_wrong in wrong.items() if is_wrong), None):
        raise BundleError(f'the bundle is broken: {what} hold {found}')


class PixelNetwork(Network):
    """Images in stored units, NaN where there is no data, to class logits, each pixel by itself.

    Args:
        normalize: Takes the images first.
        head: Takes the normalized values of pixels, or the backbone's vectors.
        backbone: Takes the normalized images; that of `pass_on` hands on the values.
    """

    context = 0

    def __init__(self, normalize: Normalize, head: PixelLayers | PixelwiseHead, backbone: Backbone) -> None:
        super().__init__(normalize, backbone)
        self.head = head
        self.is_plain = backbone.name == BACKBONE

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits (N, classes, H, W) of images (N, [dates,] bands, H, W) of any size."""
        if isinstance(self.head, PixelLayers) and not self.training and x.dim() == 4 and self.is_plain:
            logits = self.head.of_stored(x, self.normalize.mean.flatten(), self.normalize.std.flatten())
        else:
            logits = self.head(self.values(x))
        return logits

    def values(self, x: Tensor) -> Tensor:
        """Return what the head sees of images: (N, dates * bands, H, W), normalized, or the backbone's map."""
        x = self.normalize(x)
        if not self.is_plain:
            found: Tensor = self.backbone(x)[0]
            return found
        return x.flatten(1, 2) if x.dim() == 5 else x


def pass_on(bands: int) -> ConvBackbone:
    """Make the backbone that hands on the bands as they are."""
    return ConvBackbone(BACKBONE, nn.Identity(), channels=(bands,), strides=(1,))


def count_values(spec: ModelSpec, backbone: Backbone) -> int:
    """Return how many numbers of a pixel a head sees."""
    return len(spec.bands) * spec.dates if backbone.name == BACKBONE else backbone.channels[0]


def build_head(options: PixelHeadOptions, values: int, class_count: int) -> PixelLayers | PixelwiseHead:
    """Build what stands on the `values` numbers of a pixel."""
    if options.head == 'random_forest':
        return Forest(options, class_count)
    if options.head == 'knn':
        return NearestNeighbors(options, class_count, values)
    return PixelLayers([values, *options.hidden, class_count])


def build_pixel_network(
    spec: ModelSpec,
    options: PixelHeadOptions,
    class_count: int,
    *,
    pretrained: bool = False,
    weights: str | Path | None = None,
    state: Mapping[str, Tensor] | None = None,
) -> PixelNetwork:
    """Build the network that a spec describes.

    Args:
        spec: Of the model.
        options: Those in the spec, read.
        class_count: Number of classes.
        pretrained: Whether to fill the backbone with its published weights.
        weights: The user's own, instead of fetching them.
        state: Of the network that is rebuilt, whose backbone may have another shape than the catalog's.

    Raises:
        BackboneError: If the backbone is not one of single pixels.
    """
    backbone: Backbone = pass_on(len(spec.bands))
    if spec.backbone != BACKBONE:
        bare = replace(spec, location=None, acquired=())  # dates are checked by what the weights take
        backbone = build_backbone(bare, pretrained=pretrained, weights=weights)
        if not isinstance(backbone, PixelBackbone):
            raise BackboneError(f"{spec.backbone} sees more than one pixel; take UNet or DeepLab, or backbone='presto'")
        if state is not None:
            own = {key.removeprefix(PREFIX): value for key, value in state.items() if key.startswith(PREFIX)}
            backbone = PixelBackbone(backbone.name, backbone.trunk.like(own))
        if not spec.acquired:
            raise BackboneError(
                f'{spec.backbone} has to know when images were taken, which the chips do not say; pass '
                'dates=[date(2024, 5, 1), ...], one for each'
            )
        backbone.set_dates([date.fromisoformat(day) for day in spec.acquired])
        backbone.set_location(spec.location)
        backbone.requires_grad_(False)
    head = build_head(options, count_values(spec, backbone), class_count)
    return PixelNetwork(build_normalize(spec), head, backbone)
