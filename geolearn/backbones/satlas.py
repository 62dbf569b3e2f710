"""Satlas: Swin transformers (v2) pretrained on labels of Sentinel-2, Landsat, Sentinel-1 and aerial images.

Bastani et al. 2023, "SatlasPretrain: A Large-Scale Dataset for Remote Sensing Image Understanding", arXiv:2211.15660.
The network is torchvision's; weights are read in the authors' layout and in torchgeo's. Only the models for single
images are here: those for several dates pool over them afterwards.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from geolearn.backbones import backbone, building, catalog, loading
from geolearn.bands import Band
from geolearn.errors import BackboneError

STEM = 'features.0.0.weight'
WINDOW = 8


class SwinMaps(nn.Module):
    """A Swin transformer v2 that returns the output of its stages, whose strides are 4, 8, 16 and 32.

    Args:
        bands: Number of bands.
        dim: Width of the first stage; each stage doubles it.
        depths: Blocks of each stage.
        heads: Attention heads of the first stage; each stage doubles them.
        strides: Of the maps wanted; stages after the last of them are left out.
        drop_path: Rate of stochastic depth at the last block.
    """

    def __init__(
        self,
        bands: int,
        dim: int,
        depths: Sequence[int],
        heads: int,
        *,
        strides: Sequence[int] = backbone.STRIDES,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2

        swin = SwinTransformer(
            patch_size=[4, 4],
            embed_dim=dim,
            depths=list(depths),
            num_heads=[heads * 2**i for i in range(len(depths))],
            window_size=[WINDOW, WINDOW],
            stochastic_depth_prob=drop_path,
            num_classes=1,
            block=SwinTransformerBlockV2,
            downsample_layer=PatchMergingV2,
        )
        self.taken = tuple(2 * backbone.STRIDES.index(stride) + 1 for stride in strides)
        self.features = swin.features[: max(self.taken) + 1]
        self.features[0][0] = nn.Conv2d(bands, dim, 4, stride=4)
        self.channels = tuple(dim * stride // 4 for stride in strides)
        self.checkpointing = False

    @property
    def stages(self) -> nn.ModuleList:
        """The stages, and what merges patches between them, in order."""
        return nn.ModuleList(self.features[1:])

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Let the blocks compute their activations again instead of keeping them while training."""
        self.checkpointing = enable

    def forward(self, x: Tensor) -> list[Tensor]:
        """Compute one map (B, channels[i], h, w) per stride from images (B, bands, H, W), sides multiples of 4."""
        maps = []
        again = self.checkpointing and self.training and torch.is_grad_enabled()
        for i, layer in enumerate(self.features):
            for part in layer if i % 2 else [layer]:  # a stage's blocks; patches are merged between stages
                x = checkpoint(part, x, use_reentrant=False) if again and i % 2 else part(x)
            if i in self.taken:
                maps.append(x.permute(0, 3, 1, 2))
        return maps


class SwinBackbone(backbone.ConvBackbone):
    """A Swin transformer's maps, one per stride."""

    trunk: SwinMaps

    def enable_checkpointing(self) -> None:
        """Let training compute activations again instead of keeping them."""
        self.trunk.set_grad_checkpointing()


@building.register_family('satlas', tokens=False)
def build_satlas(name: str, bands: tuple[Band, ...], options: backbone.BackboneOptions) -> backbone.Backbone:
    """Build one of Satlas's Swin transformers; its own four stages are the maps."""
    record = catalog.get_record(name)
    if options.form == 'tokens' or options.window or options.layers is not None or options.relative_positions:
        raise BackboneError(
            f'{name} is a Swin transformer, with windows and positions of its own and maps of several resolutions; '
            "form must be 'pyramid', and window, layers and relative_positions cannot be chosen"
        )
    building.require_kinds(record, bands)
    strides = backbone.end_at_coarsest(backbone.choose_strides(name, options.strides), backbone.STRIDES)
    checkpoint = building.read_checkpoint(record, bands, options)
    trunk = SwinMaps(
        len(bands),
        record.dim,
        (2, 2, record.depth - 6, 2),
        record.heads,
        strides=strides,
        drop_path=options.drop_path,
    )
    report = None
    if checkpoint is not None:
        report = _load(trunk, building.fit_stem(checkpoint, record, bands, key=STEM, patch=4))
    return SwinBackbone(name, trunk, channels=trunk.channels, strides=strides, load_report=report)


def _load(trunk: SwinMaps, checkpoint: building.Checkpoint) -> loading.LoadReport:
    """Load the stages that the trunk has, leaving out those that are not used."""
    unused = [n for n in checkpoint.state if n.startswith('features.') and int(n.split('.')[1]) >= len(trunk.features)]
    kept = {n: value for n, value in checkpoint.state.items() if n not in unused}
    checkpoint = replace(checkpoint, state=kept, dropped=(*checkpoint.dropped, *unused))
    return loading.load_strict(
        trunk, kept, dropped=checkpoint.dropped, resized=checkpoint.resized, source=checkpoint.source
    )
