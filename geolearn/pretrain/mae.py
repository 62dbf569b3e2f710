"""Masked autoencoding: an encoder sees a quarter of the patches, and a decoder predicts the pixels of the others."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geolearn.backbones import TokenBackbone, vit
from geolearn.backbones.trunk import Trunk, ViTConfig, make_blocks
from geolearn.errors import BackboneError
from geolearn.networks.network import Normalize
from geolearn.pretrain import views
from geolearn.pretrain.network import PretrainingNetwork, Representations, describe_images
from geolearn.pretrain.options import MaeOptions

EPS = 1e-6
"""Added to the variance of a patch before it is divided by."""


class MaskedAutoencoder(PretrainingNetwork):
    """An encoder of some patches, and a decoder of all of them.

    What the patch embedding is made from learns with the rest: DOFA's generator of kernels, from the wavelengths that
    the backbone was built with.

    Args:
        normalize: Takes the images first.
        backbone: The encoder, in its native form.
        options: Of the method.
        chip_size: Side of the crops in pixels.
        bands: Number of bands.

    Raises:
        BackboneError: If the backbone cannot leave out patches.
    """

    def __init__(
        self, normalize: Normalize, backbone: TokenBackbone, options: MaeOptions, chip_size: int, *, bands: int
    ) -> None:
        super().__init__(normalize)
        trunk = backbone.trunk
        if not trunk.takes_visible:
            raise BackboneError(
                f"{backbone.name} cannot leave out patches, as method='mae' does; take a plain transformer such as "
                "vit_small, dofa_base or prithvi_v2_300M, or method='dino'"
            )
        self.options, self.side = options, chip_size
        self.backbone = backbone
        self.embed = nn.Linear(trunk.dim, options.decoder_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, options.decoder_dim))
        nn.init.normal_(self.mask_token, std=0.02)
        self.blocks = make_blocks(ViTConfig(options.decoder_dim, options.decoder_depth, options.decoder_heads))
        self.norm = nn.LayerNorm(options.decoder_dim, eps=EPS)
        self.head = nn.Linear(options.decoder_dim, bands * trunk.patch**2)
        self.embed.apply(vit.init_linear)
        self.head.apply(vit.init_linear)
        grid = -(-chip_size // trunk.patch)
        self.register_buffer('positions', vit.sincos_position_grid(options.decoder_dim, (grid, grid), cls=False), False)

    positions: Tensor

    @property
    def result(self) -> Trunk:
        """The encoder."""
        return self.backbone.trunk

    def forward(self, images: Tensor, *labels: object) -> tuple[Representations | None, Tensor]:
        """Compute the loss of images (N, bands, H, W); labels are ignored."""
        x, valid = self.normalize(images), images.isnan().any(1, keepdim=True).logical_not()
        if self.training:
            return None, self._loss(x, valid, None)
        features = describe_images(self.backbone, self.result.tokens(x), class_token=False)
        return Representations(features.float()), self._loss(x, valid, views.fixed_generator())

    def reconstruct(self, images: Tensor, visible: Tensor) -> Tensor:
        """Predict the pixels of all patches from some: (N, n, patch * patch * bands), as `patches_of` orders them.

        Args:
            images: Normalized (N, bands, side, side).
            visible: Places (N, k) of the patches that the encoder sees.
        """
        tokens = self.embed(self.result.visible_tokens(images, visible))
        prefix, seen = tokens[:, : self.result.prefix], tokens[:, self.result.prefix :]
        whole = self.mask_token.to(seen.dtype).expand(len(seen), self.positions.shape[1], -1)
        whole = whole.scatter(1, visible[..., None].expand(-1, -1, seen.shape[2]), seen) + self.positions
        whole = torch.cat([prefix, whole], dim=1)
        for block in self.blocks:
            whole = block(whole)
        return self.head(self.norm(whole[:, prefix.shape[1] :]))

    def _loss(self, x: Tensor, valid: Tensor, generator: torch.Generator | None) -> Tensor:
        options, patch, bands = self.options, self.result.patch, x.shape[1]
        both = torch.cat([x, valid.to(x)], dim=1)
        view = views.draw_views(both, 1, self.side, options.crop_scale, options=options, generator=generator)
        # a pixel is valid where all of those that it was interpolated from are
        x, known = (
            views.jitter(view[:, :, :bands], options, generator=generator)[0],
            (view[0, :, bands:] > 0.999).float(),
        )
        count = self.positions.shape[1]
        order = torch.rand(len(x), count, generator=generator).argsort(1).to(x.device)
        visible, hidden = order.tensor_split([max(1, round(count * (1 - options.mask)))], dim=1)
        predicted = self.reconstruct(x, visible).float()
        target, weight = patches_of(x, patch), patches_of(known.expand(-1, bands, -1, -1), patch)
        if options.normalize_patches:
            target = _normalize_patches(target, weight)
        error = (predicted - target).square() * weight
        hidden = hidden[..., None].expand(-1, -1, error.shape[2])
        return error.gather(1, hidden).sum() / weight.gather(1, hidden).sum().clamp(min=1)


def patches_of(x: Tensor, patch: int) -> Tensor:
    """Cut images (N, C, H, W) into patches (N, n, C * patch * patch), row by row, padded with zeros to whole ones."""
    return F.unfold(vit.pad_to_multiple(x, patch), patch, stride=patch).transpose(1, 2)


def _normalize_patches(target: Tensor, weight: Tensor) -> Tensor:
    """Take mean and spread of the valid pixels off each patch."""
    count = weight.sum(-1, keepdim=True).clamp(min=1)
    mean = (target * weight).sum(-1, keepdim=True) / count
    variance = ((target - mean).square() * weight).sum(-1, keepdim=True) / count
    return (target - mean) / (variance + EPS).sqrt()
