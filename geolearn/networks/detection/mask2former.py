"""Mask2Former on the maps of any backbone: queries that each draw one segment, of stuff or of a thing."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import masks_to_boxes

from geolearn.backbones.vit import pad_to_multiple
from geolearn.batch import Detections, Objects
from geolearn.extras import require
from geolearn.networks.detection import detector
from geolearn.networks.detection.panoptic import MergeOptions, PanopticNetwork

STRIDES = (4, 8, 16, 32)

LOSSES = {'loss_cross_entropy': 'classes', 'loss_mask': 'masks', 'loss_dice': 'dice'}
"""transformers' names of losses, and the columns that they get."""

LEAST = 1e-6
"""Is added to probabilities before their logarithm."""


@dataclass(frozen=True)
class Mask2FormerOptions:
    """The numbers of a Mask2Former, by the names of the library transformers.

    Args:
        num_queries: Segments that the network can draw in an image.
        encoder_layers: Layers of deformable attention over the maps.
        decoder_layers: How often segments are corrected.
        hidden_dim: Channels of queries and maps, a multiple of 32.
        train_num_points: Points of each mask at which the loss compares it.

    Raises:
        ValueError: If a number is not valid.
    """

    num_queries: int = 100
    encoder_layers: int = 6
    decoder_layers: int = 9
    hidden_dim: int = 256
    train_num_points: int = 12544

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 2**20:
                raise ValueError(f'{item.name} must be a whole number, at least 1, got {value!r}')
        if self.hidden_dim % 32:
            raise ValueError(f'hidden_dim must be a multiple of 32, got {self.hidden_dim}')


class Mask2FormerNetwork(PanopticNetwork):
    """Mask2Former (Cheng et al. 2022, arXiv:2112.01527) with transformers' layers, which begin with random weights.

    Args:
        normalize: Takes the images first.
        backbone: Gives maps at strides 4, 8, 16 and 32.
        class_count: Of all classes.
        things: Indices of the countable ones.
        merge: How objects and classes become one map.
        options: Numbers.

    Raises:
        MissingExtraError: If transformers is not installed.
    """

    def __init__(
        self,
        normalize: Any,
        backbone: Any,
        class_count: int,
        things: Sequence[int],
        merge: MergeOptions,
        options: Mask2FormerOptions,
    ) -> None:
        super().__init__(normalize, backbone, class_count, things, merge)
        self.layers = _build_layers(class_count, backbone.channels, options)

    def _outputs(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return, of each layer, class logits (N, queries, classes + 1) and mask logits (N, queries, h, w)."""
        x = pad_to_multiple(self.normalize(images), STRIDES[-1])
        maps = [level.float() for level in self.backbone(x)]
        with torch.autocast(x.device.type, enabled=False):
            pixels = self.layers.model.pixel_level_module.decoder(maps)
            drawn = self.layers.model.transformer_module(
                multi_scale_features=pixels.multi_scale_features,
                mask_features=pixels.mask_features,
                output_hidden_states=True,
            )
            classes = [self.layers.class_predictor(state.transpose(0, 1)) for state in drawn.intermediate_hidden_states]
        return classes, list(drawn.masks_queries_logits)

    def segments(self, images: Tensor) -> tuple[list[Detections], Tensor]:
        """Compute objects of all scores with masks, by class index, and logits (N, stuff + 1, H, W)."""
        height, width = images.shape[-2:]
        classes, masks = self._outputs(images)
        chances = classes[-1].softmax(-1)[..., :-1]
        whole = functional.interpolate(masks[-1], scale_factor=STRIDES[0], mode='bilinear', align_corners=False)
        drawn = whole[..., :height, :width].sigmoid()
        of_class = torch.einsum('nqc,nqhw->nchw', chances, drawn)
        of_thing = of_class[:, list(self.things)].sum(1, keepdim=True)
        logits = (torch.cat((of_class[:, list(self.stuff)], of_thing), 1) + LEAST).log()
        return [self._objects(*pair) for pair in zip(chances, drawn)], logits

    def _objects(self, chances: Tensor, drawn: Tensor) -> Detections:
        """Return the things among queries: by class probability (queries, classes) and mask (queries, H, W)."""
        best, labels = chances.max(1)
        masks = drawn > 0.5
        areas = masks.flatten(1).sum(1)
        things = torch.isin(labels, torch.tensor(self.things, device=labels.device)) & (areas > 0)
        # how sure the network is of the class, and of the pixels that it draws
        inside = (drawn * masks).flatten(1).sum(1) / areas.clamp(min=1)
        masks = masks[things]
        boxes = masks_to_boxes(masks) if len(masks) else drawn.new_zeros(0, 4)
        boxes = boxes + boxes.new_tensor([0, 0, 1, 1])  # of the last pixel, the edge
        return Detections(boxes, labels[things], (best * inside)[things], masks)

    def losses(self, images: Tensor, masks: Tensor, objects: Sequence[Objects]) -> dict[str, Tensor]:
        """Compute the losses of all layers by kind; each query is matched to one segment, or none."""
        classes, drawn = self._outputs(images)
        height, width = (STRIDES[0] * side for side in drawn[-1].shape[-2:])
        labels, truth = [], []
        for plane, found in zip(masks, objects):
            present = [index for index in self.stuff if (plane == index).any()]
            parts = [(plane == index)[None] for index in present]
            kinds = [torch.tensor(present, dtype=torch.int64, device=plane.device)]
            if found.masks is not None and len(found.masks):
                counted = torch.isin(found.labels, torch.tensor(self.things, device=found.labels.device))
                counted &= found.masks.flatten(1).any(1)
                parts.append(found.masks[counted].bool())
                kinds.append(found.labels[counted])
            every = torch.cat(parts) if parts else plane.new_zeros(0, *plane.shape).bool()
            padding = (0, width - plane.shape[-1], 0, height - plane.shape[-2])
            truth.append(functional.pad(every.float(), padding))
            labels.append(torch.cat(kinds))
        helping = [
            {'class_queries_logits': row, 'masks_queries_logits': plane} for row, plane in zip(classes[:-1], drawn[:-1])
        ]
        with nullcontext() if self.training else detector.same_samples(images.device):
            raw = self.layers.get_loss_dict(drawn[-1], classes[-1], truth, labels, helping)
        losses: dict[str, Tensor] = {}
        for name, loss in raw.items():
            kind = next(column for start, column in LOSSES.items() if name.startswith(start))
            losses[kind] = losses[kind] + loss if kind in losses else loss
        return losses


def _build_layers(class_count: int, channels: Sequence[int], options: Mask2FormerOptions) -> Any:
    """Build transformers' Mask2Former with random weights and without its backbone; nothing is fetched."""
    transformers = require('transformers', extra='detr', to='build a Mask2Former')
    # it cannot be built without one; its pixel decoder takes the channels of the maps that it is given
    stand_in = transformers.SwinConfig(
        embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], out_features=['stage1', 'stage2', 'stage3', 'stage4']
    )
    config = transformers.Mask2FormerConfig(
        backbone_config=stand_in,
        num_labels=class_count,
        num_queries=options.num_queries,
        encoder_layers=options.encoder_layers,
        decoder_layers=options.decoder_layers + 1,  # transformers counts the first prediction too
        feature_size=options.hidden_dim,
        mask_feature_size=options.hidden_dim,
        hidden_dim=options.hidden_dim,
        encoder_feedforward_dim=4 * options.hidden_dim,
        dim_feedforward=8 * options.hidden_dim,
        train_num_points=options.train_num_points,
    )
    layers = transformers.Mask2FormerForUniversalSegmentation(config)
    module = layers.model.pixel_level_module
    module.encoder = nn.Identity()
    module.decoder = type(module.decoder)(config, feature_channels=list(channels))
    for part in module.decoder.modules():
        layers._init_weights(part)
    return layers
