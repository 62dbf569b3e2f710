"""DOFA v1 and v2: one vision transformer for any bands, whose patch kernels are generated from their wavelengths.

Xiong et al. 2024, "Neural Plasticity-Inspired Multimodal Foundation Model for Earth Observation", arXiv:2403.15356.
Weights of v1 are read in the official layout (with a final norm) and in torchgeo's (without). v2 has patches of 14
pixels and LayerScale.
"""

from collections.abc import Sequence
from dataclasses import replace
from operator import is_
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from geolearn.backbones import backbone, building, catalog
from geolearn.backbones.trunk import ViT
from geolearn.bands import Band, require_wavelengths
from geolearn.errors import BandError

RADAR_WAVELENGTH_UM = 3.75
"""What DOFA v1 was trained with for Sentinel-1: a placeholder, no wavelength (C band is 5.5 cm).

Bands of one wavelength get one kernel, so VV and VH are summed by the patch embedding, as in the published model.
"""

RADAR_WAVELENGTH_UM_V2 = 5.405
"""What DOFA v2 was trained with for Sentinel-1: its frequency in GHz, taken for a wavelength."""

LAYER_SCALE = 1e-5
"""First value of v2's LayerScale."""

GENERATOR_DIM = 128
KERNEL_SCALE = 0.01

_INNER = 'model.'
"""Prefix of the names of v2's transformer; those of its patch embedding have none."""

POSITION_STD = 0.5
"""Spread of a sine-cosine position embedding over the tokens of one channel, about."""


class WeightGenerator(nn.Module):
    """A one-layer transformer that turns embedded wavelengths into a kernel and a bias, as flat rows."""

    def __init__(self, kernel: int, dim: int) -> None:
        super().__init__()
        d = GENERATOR_DIM
        layer = nn.TransformerEncoderLayer(d, nhead=4, dim_feedforward=2048, dropout=0.0, activation='gelu')
        self.transformer_encoder = nn.TransformerEncoder(layer, num_layers=1, enable_nested_tensor=False)
        self.fc_weight = nn.Linear(d, kernel * kernel * dim)
        self.fc_bias = nn.Linear(d, dim)
        self.weight_tokens = nn.Parameter(torch.randn(d, d) * 0.02)
        self.bias_token = nn.Parameter(torch.randn(1, d) * 0.02)

    def forward(self, waves: Tensor) -> tuple[Tensor, Tensor]:
        """Map embedded wavelengths (C, 128) to kernel rows (C, k*k*D) and a bias (D)."""
        y = self.transformer_encoder(torch.cat([self.weight_tokens, waves, self.bias_token]))
        return self.fc_weight(y[len(self.weight_tokens) : -1] + waves), self.fc_bias(y[-1])


class WaveResidual(nn.Module):
    """Two linear layers with ReLU after each, added to their input."""

    def __init__(self) -> None:
        super().__init__()
        self.w1 = nn.Linear(GENERATOR_DIM, GENERATOR_DIM)
        self.w2 = nn.Linear(GENERATOR_DIM, GENERATOR_DIM)

    def forward(self, x: Tensor) -> Tensor:
        """Transform embedded wavelengths; shape (C, 128) is kept."""
        return x + F.relu(self.w2(F.relu(self.w1(x))))


class _CachedKernel(NamedTuple):
    """A generated kernel and bias, with the very parameters, and their state, that it came from."""

    parameters: list[nn.Parameter]
    state: list[tuple[Any, ...]]
    value: tuple[Tensor, Tensor]

    def fits(self, parameters: list[nn.Parameter], state: list[tuple[Any, ...]]) -> bool:
        return self.state == state and all(map(is_, self.parameters, parameters))


class DynamicPatchEmbed(nn.Module):
    """A patch embedding whose kernel is generated from wavelengths that are fixed at construction.

    The kernel is made in float32 outside autocast and does not depend on the image. While no gradient has to reach
    the generator (it is frozen, or gradients are off) the kernel is kept, until any weight, dtype or device changes.

    Args:
        wavelengths_um: Center wavelength of each band in micrometers, in band order.
        dim: Width D of the tokens.
        kernel: Side of the generated kernel, in pixels.
        stride: Side of the patches; a kernel of another side is resampled to it (bicubic).
    """

    padding = 1
    """Pixels; DOFA's own: its patches lie one pixel up and left of a plain transformer's."""

    limits = (0.2, 20.0)
    """Of wavelengths, in micrometers."""

    def __init__(self, wavelengths_um: Sequence[float], dim: int, kernel: int = 16, stride: int | None = None) -> None:
        super().__init__()
        least, most = self.limits
        if bad := [w for w in wavelengths_um if not least < w < most]:
            raise BandError(f'DOFA takes wavelengths in micrometers, between {least:g} and {most:g}, got {bad}')
        self.wavelengths_um = tuple(float(w) for w in wavelengths_um)
        self.dim, self.kernel_size, self.stride = dim, kernel, stride or kernel
        self.weight_generator = WeightGenerator(kernel, dim)
        self.fclayer = WaveResidual()
        self.apply(_init_generator)
        self._cached: _CachedKernel | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Embed images (B, C, H, W), sides multiples of the stride s, as maps (B, D, H/s, W/s)."""
        weight, bias = self.kernel()
        return embed_patches(x, weight.to(x.dtype), bias.to(x.dtype), padding=self.padding)

    def kernel(self) -> tuple[Tensor, Tensor]:
        """Return the kernel (D, C, s, s) and bias (D) in float32, from the cache where that is exact."""
        parameters = list(self.parameters())
        wanted = torch.is_grad_enabled() and any(p.requires_grad for p in parameters)
        if wanted or torch.compiler.is_compiling():  # a trace must not leave its tensors here; fold before tracing
            return self._generate()
        state = [(p.dtype, p.device, 0 if p.is_inference() else p._version) for p in parameters]
        if self._cached is None or not self._cached.fits(parameters, state):
            # Leave inference mode, so that the kernel can be used in training too.
            with torch.inference_mode(False), torch.no_grad():
                self._cached = _CachedKernel(parameters, state, self._generate())
        return self._cached.value

    def folded(self) -> nn.Conv2d:
        """Make the plain convolution that computes the same, without the generator, for export."""
        conv = nn.Conv2d(len(self.wavelengths_um), self.dim, self.stride, stride=self.stride, padding=self.padding)
        with torch.no_grad():
            weight, bias = self.kernel()
            conv.weight.copy_(weight)
            conv.bias.copy_(bias)  # type: ignore[union-attr]
        return conv.to(weight.device)

    @torch.no_grad()
    def strengthen(self) -> None:
        """Scale the generator so that white noise gives tokens as strong as the positions, to train from scratch.

        The published initialization gives tokens of a tenth of that, which the positions drown for many epochs.
        """
        if self.weight_generator.weight_tokens.is_meta:  # a network that is only measured has no values
            return
        weight, _ = self.kernel()
        strength = weight.square().sum(dim=(1, 2, 3)).mean().sqrt()
        for layer in (self.weight_generator.fc_weight, self.weight_generator.fc_bias):
            layer.weight.mul_(POSITION_STD / strength)
            layer.bias.mul_(POSITION_STD / strength)

    def _generate(self) -> tuple[Tensor, Tensor]:
        device = self.weight_generator.weight_tokens.device
        with torch.autocast(device.type, enabled=False):
            waves = self.codes(device)
            waves = call_float32(self.fclayer, waves)
            rows, bias = call_float32(self.weight_generator, waves)
            k = self.kernel_size
            weight = rows.reshape(-1, k, k, self.dim).permute(3, 0, 1, 2)
            return self.resample(weight) * KERNEL_SCALE, bias * KERNEL_SCALE

    def codes(self, device: torch.device) -> Tensor:
        """Embed what is known of the bands, (C, 128) float32."""
        return embed_wavelengths(torch.tensor(self.wavelengths_um, device=device))

    def resample(self, kernel: Tensor) -> Tensor:
        """Resample a kernel (D, C, k, k) to the stride."""
        if self.stride == self.kernel_size:
            return kernel
        return F.interpolate(kernel, size=(self.stride, self.stride), mode='bicubic', align_corners=False)

    def train(self, mode: bool = True) -> Self:
        """Switch between training and evaluation, forgetting the kernel: some optimizers change weights unseen.

        fastai's step writes through ``parameter.data``, which leaves no trace in the parameter's version.
        """
        self._cached = None
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> 'DynamicPatchEmbed':
        self._cached = None
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, '_cached': None}


def embed_patches(x: Tensor, weight: Tensor, bias: Tensor, padding: int) -> Tensor:
    """Apply a convolution with stride s as one matrix product over the patches.

    A generated kernel lies in memory band by band, which a convolution would have to copy before each use and again
    on the way back; as a matrix it is read as it lies.

    Args:
        x: Images (B, C, H, W), sides multiples of s.
        weight: Kernel (D, C, s, s).
        bias: (D).
        padding: Zeros before the first row and column, in pixels, fewer than s / 2; as many pixels at the end are cut.

    Returns:
        Maps (B, D, H/s, W/s).
    """
    s = weight.shape[-1]
    if padding:
        x = F.pad(x, (padding, -padding, padding, -padding))
    patches = x.unflatten(3, (-1, s)).unflatten(2, (-1, s)).permute(0, 2, 4, 1, 3, 5).flatten(3)
    return F.linear(patches, weight.flatten(1), bias).permute(0, 3, 1, 2)


def embed_wavelengths(wavelengths_um: Tensor) -> Tensor:
    """Embed wavelengths (C) in micrometers as (C, 128) float32: sines, then cosines, of nanometers."""
    half = GENERATOR_DIM // 2
    # 1 / 10000**p and 10000**-p differ in the last bit, which 3750 nm turns into 1e-4; the weights saw this one.
    frequency = 1.0 / 10000 ** (torch.arange(half, dtype=torch.float32, device=wavelengths_um.device) / half)
    angle = 1000 * wavelengths_um.float()[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def call_float32(module: nn.Module, x: Tensor) -> Any:
    """Call a module with its parameters in float32, whatever dtype they are kept in."""
    if all(p.dtype == torch.float32 for p in module.parameters()):
        return module(x)
    return functional_call(module, {name: p.float() for name, p in module.named_parameters()}, (x,))


def _init_generator(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.constant_(module.bias, 0.01)


def dofa_wavelengths(
    bands: Sequence[Band], needed_by: str = 'DOFA', radar_um: float = RADAR_WAVELENGTH_UM
) -> tuple[float, ...]:
    """Resolve the wavelength of every band in micrometers; radar bands get the placeholder `radar_um`."""
    require_wavelengths(bands, needed_by)
    return tuple(radar_um if b.is_radar else float(b.wavelength_um or 0) for b in bands)


@building.register_family('dofa', 'dofa_v2')
def build_dofa(name: str, bands: tuple[Band, ...], options: backbone.BackboneOptions) -> backbone.Backbone:
    """Build one of DOFA's variants."""
    record = catalog.get_record(name)
    second = record.family == 'dofa_v2'
    wavelengths = dofa_wavelengths(bands, name, radar_um=RADAR_WAVELENGTH_UM_V2 if second else RADAR_WAVELENGTH_UM)
    partial = (_INNER,) if second else ()
    checkpoint = building.read_checkpoint(record, bands, options, partial=partial)
    if checkpoint is not None and second:
        checkpoint = _keep_inner_norm(checkpoint)
    tokens = options.form == 'tokens'
    config = building.make_config(record, options, checkpoint=checkpoint, layer_scale=LAYER_SCALE if second else None)
    # The pyramid needs stride 16, so kernels of another side are resampled to it; native tokens keep their patch.
    stride = record.patch if tokens else 16
    patch_embed = DynamicPatchEmbed(wavelengths, record.dim, record.patch, stride)
    trunk = ViT(config, patch_embed, stride)
    report = None
    if checkpoint is None:
        patch_embed.strengthen()
    else:
        report = building.load_checkpoint(trunk, checkpoint, options, may_be_missing=() if tokens else ('norm.*',))
    return backbone.finish_backbone(name, trunk, options, load_report=report)


def _keep_inner_norm(checkpoint: building.Checkpoint) -> building.Checkpoint:
    """Take v2's names to v1's: its transformer lies under `_INNER`, beside an outer norm that nothing uses."""
    inner = {name.removeprefix(_INNER): tensor for name, tensor in checkpoint.state.items() if name.startswith(_INNER)}
    if not inner:  # a flat file, such as geolearn's own bundles
        return checkpoint
    outer = {name: tensor for name, tensor in checkpoint.state.items() if not name.startswith(_INNER)}
    unused = tuple(name for name in outer if name in inner)
    return replace(checkpoint, state={**outer, **inner}, dropped=(*checkpoint.dropped, *unused))
