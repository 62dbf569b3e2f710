"""TODO geolearn.networks.attention."""

from collections.abc import Sequence

from torch import Tensor, nn

from geolearn.backbones import Backbone, create_backbone
from geolearn.bands import Band
from geolearn.decoders import AttentionInput
from geolearn.decoders.attention_input import AttentionMode

ENCODER = 'plain_unet'


class AttentionEncoder(Backbone):
    """The plain U-Net encoder on images with a transformer's attention maps.

    Args:
        looker: A transformer in its native form; it is frozen.
        mode: Whether the maps join the bands or replace them.
        bands: Of the images.

    Raises:
        BackboneError: If the transformer offers no attention maps.
        ValueError: If there is no such mode.
    """

    has_position_grid = True

    def __init__(self, looker: Backbone, mode: AttentionMode, bands: Sequence[Band]) -> None:
        inputs = AttentionInput(looker, mode)
        heads = tuple(Band(f'attention {head}') for head in range(inputs.heads))
        encoder = create_backbone(
            ENCODER, (*bands, *heads) if mode == 'extra' else heads, pretrained=False, strides=None
        )
        super().__init__(
            looker.name,
            looker.trunk,
            channels=encoder.channels,
            strides=encoder.strides,
            load_report=looker.load_report,
        )
        del self._modules['trunk']  # it lies in `inputs`; a state dict is to hold it once
        self.inputs, self.encoder = inputs, encoder

    @property
    def trunk(self) -> nn.Module:  # type: ignore[override]
        """The transformer, which stays frozen."""
        return self.inputs.backbone.trunk

    def forward(self, x: Tensor) -> list[Tensor]:
        """Compute maps at strides 1 to 8 from normalised images (N, bands, H, W)."""
        return self.encoder(self.inputs(x))
