"""CROMA: transformers for Sentinel-2 and Sentinel-1, and one that joins them, without positions but with distances.

Fuller et al. 2023, "CROMA: Remote Sensing Representations with Contrastive Radar-Optical Masked Autoencoders",
arXiv:2311.00566. Attention logits fall linearly with the distance of two patches (2-D ALiBi), at a slope of each head,
so that any grid will do. The bands choose the network: optical ones the optical encoder, radar ones the radar encoder,
both the joint one. Weights are read in the official layout (five state dicts in one file) and flat, as torchgeo's class
saves them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geolearn.backbones import backbone, building, catalog, loading, vit, weights
from geolearn.backbones.trunk import Trunk, ViTConfig
from geolearn.bands import Band
from geolearn.errors import BackboneError, WeightsError

MOST_BIASES = 2**26
"""Biases that are held at a time, 256 MiB in float32."""


def alibi_bias(grid: vit.Size, heads: int, rows: slice = slice(None), device: torch.device | None = None) -> Tensor:
    """Compute what distances take off the logits: (heads, h*w, h*w) float32, -slope * distance in patches.

    `rows` chooses queries.
    Head i of n has the slope r ** (i + 1) with r = 2 ** (-8 / n), as in ALiBi (arXiv:2108.12409).
    """
    place = torch.arange(grid[0] * grid[1], device=device)
    y, x = (place // grid[1]).float(), (place % grid[1]).float()
    distances = torch.hypot(y[rows, None] - y, x[rows, None] - x)
    slopes = torch.tensor([2 ** (-8 * (i + 1) / heads) for i in range(heads)], device=device)
    return -slopes[:, None, None] * distances


def alibi_attention(q: Tensor, k: Tensor, v: Tensor, grid: vit.Size) -> Tensor:
    """Attend with `alibi_bias`; queries, keys and values are (B, heads, h*w, d), as is what returns.

    Biases cannot be fused away, so that many queries are taken a part at a time.
    """
    heads, count = q.shape[1], q.shape[2]
    step = max(1, MOST_BIASES // (heads * count))
    parts = []
    for start in range(0, count, step):
        rows = slice(start, start + step)
        bias = alibi_bias(grid, heads, rows, q.device).to(q.dtype)
        parts.append(F.scaled_dot_product_attention(q[:, :, rows], k, v, attn_mask=bias))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


class AlibiAttention(vit.Attention):
    """Self-attention over a grid (B, h, w, D), or a window of it, with `alibi_bias`."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Attend; the shape (B, h, w, D) is kept."""
        b, h, w, d = x.shape
        q, k, v = self.qkv(x).reshape(b, h * w, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(alibi_attention(q, k, v, (h, w)).transpose(1, 2).reshape(x.shape))


class AlibiCrossAttention(nn.Module):
    """Attention from a grid (B, h, w, D) to another of the same size, with `alibi_bias`."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Attend from `x` to `context`; the shape is kept."""
        b, h, w, d = x.shape
        q, k, v = (
            layer(y).reshape(b, h * w, self.heads, d // self.heads).transpose(1, 2)
            for layer, y in ((self.q, x), (self.k, context), (self.v, context))
        )
        return self.proj(alibi_attention(q, k, v, (h, w)).transpose(1, 2).reshape(x.shape))


PATCH = 8
"""Side of the patches, in pixels."""

PREFERRED_WINDOW = 15
"""Side of the token grid at pretraining (120 pixels)."""


class JointBlock(vit.Stage):
    """Self-attention within radar tokens, attention to the optical ones, MLP; all pre-norm, each with a residual."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        d, eps = config.dim, config.eps
        self.norm1, self.norm_cross, self.norm2 = (nn.LayerNorm(d, eps=eps) for _ in range(3))
        self.attn = AlibiAttention(d, config.heads, qkv_bias=False)
        self.cross = AlibiCrossAttention(d, config.heads)
        self.mlp = vit.Mlp(d, 4 * d)
        self.drop_path = vit.DropPath(config.drop_path)

    def run(self, x: Tensor, *context: Any) -> Tensor:
        """Transform radar tokens (B, h, w, D), given optical ones and a window (None: global attention)."""
        optical, window = context
        if window is not None and window != (x.shape[1], x.shape[2]):
            windows = self.run(vit.window_partition(x, window), vit.window_partition(optical, window), None)
            return vit.window_unpartition(windows, window, (x.shape[1], x.shape[2]))
        x = x + self.drop_path(self.attn(self.norm1(x)))
        x = x + self.drop_path(self.cross(self.norm_cross(x), self.norm_cross(optical)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class CromaEncoder(nn.Module):
    """The transformer of one sensor.

    Args:
        config: Its shape.
        positions: Of its bands in the image.
    """

    def __init__(self, config: ViTConfig, positions: Sequence[int]) -> None:
        super().__init__()
        self.positions = list(positions)
        self.patch_embed = nn.Conv2d(len(self.positions), config.dim, PATCH, stride=PATCH)
        self.blocks = nn.ModuleList()
        for i in range(config.depth):
            rate = config.drop_path * i / max(config.depth - 1, 1)
            block = vit.Block(config.dim, config.heads, qkv_bias=False, eps=config.eps, drop_path=rate)
            block.attn = AlibiAttention(config.dim, config.heads, qkv_bias=False)
            self.blocks.append(block)
        self.norm = nn.LayerNorm(config.dim, eps=config.eps)
        self.blocks.apply(vit.init_linear)

    def states(self, x: Tensor, count: int, window: vit.Size | None) -> list[Tensor]:
        """Return the first `count` blocks' outputs (B, h, w, D) for images (B, bands, H, W) of whole patches."""
        y = self.patch_embed(x[:, self.positions]).permute(0, 2, 3, 1)
        states, everywhere = [y], vit.global_blocks(len(self.blocks))
        for i, block in enumerate(self.blocks[:count]):
            states.append(block(states[-1], None if i in everywhere else window))
        return states[1:]


class Croma(Trunk):
    """CROMA for images whose bands are optical, radar or both.

    With both, the layers are the optical encoder's, then the joint ones. Before the two meet, a layer's map is the mean
    of the optical one and of the radar one of the same relative depth.

    Args:
        config: Shape of the optical encoder; the radar and the joint one are half as deep.
        optical: Positions of the optical bands in the image.
        radar: Positions of the radar bands.
    """

    patch = PATCH

    def __init__(self, config: ViTConfig, optical: Sequence[int], radar: Sequence[int]) -> None:
        super().__init__()
        self.config = config
        half = replace(config, depth=config.depth // 2)
        self.optical = CromaEncoder(config, optical) if optical else None
        self.radar = CromaEncoder(half, radar) if radar else None
        self.joint = nn.ModuleList()
        self.norm: nn.LayerNorm | None = None
        if optical and radar:
            self.joint.extend(JointBlock(config) for _ in range(half.depth))
            self.norm = nn.LayerNorm(config.dim, eps=config.eps)
            self.joint.apply(vit.init_linear)

    @property
    def dim(self) -> int:
        """Width D."""
        return self.config.dim

    @property
    def stages(self) -> nn.ModuleList:
        """The blocks in order; where two encoders run side by side, an optical block with the radar one beside it.

        The encoders' norms, which only the joint blocks look through, are with the first of those.
        """
        optical = self.optical.blocks if self.optical is not None else nn.ModuleList()
        radar = self.radar.blocks if self.radar is not None else nn.ModuleList()
        if self.optical is None or self.radar is None:
            return optical if len(optical) else radar
        pairs = [nn.ModuleList([block, *radar[i // 2 : i // 2 + 1 - i % 2]]) for i, block in enumerate(optical)]
        first = nn.ModuleList([self.optical.norm, self.radar.norm, *self.joint[:1]])
        return nn.ModuleList([*pairs, first, *self.joint[1:]])

    def hidden_states(self, x: Tensor) -> list[Tensor]:
        """Run the native form: the output (B, h*w, D) of every layer, before the final norm."""
        return [state.flatten(1, 2) for state in self._states(x, self.depth, None)]

    def tokens(self, x: Tensor) -> Tensor:
        """Run the native form: the last layer's output (B, h*w, D) after the final norm."""
        return self._final_norm(self._states(x, self.depth, None)[-1]).flatten(1, 2)

    def maps(self, x: Tensor, layers: Sequence[int], window: int | None = None) -> list[Tensor]:
        """Run the windowed form: the outputs of some layers as maps (B, D, h, w), before the final norm.

        Args:
            x: Images (B, bands, H, W).
            layers: Counted from 0.
            window: Side of the windows in tokens; None chooses per axis, near 15; 0 is global attention.
        """
        h, w = (-(-side // PATCH) for side in x.shape[-2:])
        chosen = (vit.choose_window(h, PREFERRED_WINDOW), vit.choose_window(w, PREFERRED_WINDOW))
        size = chosen if window is None else (window, window) if window else None
        states = self._states(x, max(layers) + 1, size)
        return [states[layer].permute(0, 3, 1, 2) for layer in layers]

    def native_parameters(self) -> Iterator[nn.Parameter]:
        """Go through the parameters that only the native form uses: the final norm."""
        yield from self._final_norm.parameters()

    @property
    def _final_norm(self) -> nn.LayerNorm:
        norms = [self.norm, *(encoder.norm for encoder in (self.optical, self.radar) if encoder is not None)]
        return next(norm for norm in norms if norm is not None)

    def _states(self, x: Tensor, count: int, window: vit.Size | None) -> list[Tensor]:
        """Return the outputs (B, h, w, D) of the first `count` layers; images are padded to whole patches."""
        x = vit.pad_to_multiple(x, PATCH)
        if self.optical is None or self.radar is None:
            only = self.optical if self.optical is not None else self.radar
            assert only is not None  # one of them holds the bands
            return only.states(x, count, window)
        apart = min(count, len(self.optical.blocks))
        optical, radar = self.optical.states(x, apart, window), self.radar.states(x, -(-apart // 2), window)
        states = [(state + radar[i // 2]) / 2 for i, state in enumerate(optical)]
        y, context = self.radar.norm(radar[-1]), self.optical.norm(optical[-1])
        everywhere = vit.global_blocks(len(self.joint))
        for i, block in enumerate(self.joint[: count - apart]):
            y = block(y, context, None if i in everywhere else window)
            states.append(y)
        return states


_RENAMES = (
    (r'^s2_encoder\.', 'optical.'),
    (r'^s1_encoder\.', 'radar.'),
    (r'^joint_encoder\.layers\.', 'joint.'),
    (r'^joint_encoder\.norm_out\.', 'norm.'),
    (r'\.transformer\.layers\.', '.blocks.'),
    (r'\.transformer\.norm_out\.', '.norm.'),
    (r'\.linear_input\.', '.patch_embed.'),
    (r'^(joint\.\d+)\.1\.input_norm\.', r'\1.norm_cross.'),
    (r'^(joint\.\d+)\.1\.to_out\.', r'\1.cross.proj.'),
    (r'^(joint\.\d+)\.1\.to_([qkv])\.', r'\1.cross.\2.'),
    (r'^(joint\.\d+)\.2\.', r'\1.1.'),
    (r'\.0\.to_qkv\.', '.attn.qkv.'),
    (r'\.0\.to_out\.', '.attn.proj.'),
    (r'\.0\.input_norm\.', '.norm1.'),
    (r'\.1\.input_norm\.', '.norm2.'),
    (r'\.1\.net\.0\.', '.mlp.fc1.'),
    (r'\.1\.net\.3\.', '.mlp.fc2.'),
)
"""From the published names to those of `Croma`, applied in this order."""


def convert_croma(
    checkpoint: building.Checkpoint, record: catalog.WeightsRecord, bands: Sequence[Band]
) -> building.Checkpoint:
    """Turn the published networks into the state of `Croma` for these bands, dropping what they do not need.

    Args:
        checkpoint: With the published names, flat, such as ``s2_encoder.linear_input.weight``.
        record: Whose inputs give the bands of both encoders.
        bands: Of the images.

    Raises:
        WeightsError: If a needed patch embedding is missing or has another shape.
    """
    state = building.rename(checkpoint, _RENAMES).state
    needed = {'radar' if band.is_radar else 'optical' for band in bands}
    parts = {*needed, *(('joint', 'norm') if len(needed) == 2 else ())}
    unused = [name for name in state if name.split('.')[0] in {'optical', 'radar', 'joint', 'norm'} - parts]
    kept = {name: value for name, value in state.items() if name not in unused}
    notes = {}
    for source in (inputs.get_bands() for inputs in record.inputs):
        encoder = 'radar' if source[0].is_radar else 'optical'
        key, target = f'{encoder}.patch_embed.weight', [band for band in bands if band.is_radar == source[0].is_radar]
        if target and not (key in kept and kept[key].dim() == 4):  # a kernel of four dimensions is Croma's own
            if key not in kept or kept[key].shape[1:] != (len(source) * PATCH**2,):
                raise WeightsError(
                    f'weights {checkpoint.source} hold no patch embedding for {len(source)} {encoder} bands'
                )
            kernel = kept[key].reshape(-1, len(source), PATCH, PATCH)
            kept[key], how = building.adapt_input_kernel(kernel, source, target)
            if kept[key].shape != kernel.shape or not torch.equal(kept[key], kernel):
                notes[key] = f'{encoder}: {how}'
    text = checkpoint.source + (f' ({"; ".join(notes.values())})' if notes else '')
    return building.Checkpoint(kept, (*checkpoint.dropped, *unused), tuple(notes), text)


def _flatten(content: Mapping[str, Any]) -> dict[str, Any]:
    """Join the names of a dict of state dicts; what is flat stays as it is."""
    flat: dict[str, Any] = {}
    for part, value in content.items():
        flat |= {f'{part}.{name}': v for name, v in value.items()} if isinstance(value, Mapping) else {part: value}
    return flat


@building.register_family('croma')
def build_croma(name: str, bands: tuple[Band, ...], options: backbone.BackboneOptions) -> backbone.Backbone:
    """Build CROMA for optical bands, radar bands or both."""
    if options.relative_positions:
        raise BackboneError(f'{name} has distances in its attention already; pass relative_positions=False')
    record = catalog.get_record(name)
    config = building.make_config(record, options, eps=1e-5)
    optical, radar = ([i for i, band in enumerate(bands) if band.is_radar == kind] for kind in (False, True))
    checkpoint, report = _read(record, bands, options), None
    trunk = Croma(config, optical, radar)
    if checkpoint is not None:
        report = building.load_checkpoint(trunk, convert_croma(checkpoint, record, bands), options)
    return backbone.finish_backbone(name, trunk, options, load_report=report)


def _read(
    record: catalog.WeightsRecord, bands: Sequence[Band], options: backbone.BackboneOptions
) -> building.Checkpoint | None:
    if not options.wants_weights:
        return None
    path = weights.fetch(record, options.weights)
    building.announce_license(record)
    content = _flatten(loading.load_weights_file(path))
    found = (
        loading.FoundState(content)
        if options.weights is None
        else building.find_given(content, record, bands, options, path)
    )
    state, dropped = loading.unwrap(found.state, wrappers=record.wrappers, prefixes=record.prefixes, drop=record.drop)
    source = f'{path} ({found.note})' if found.note else str(path)
    return building.Checkpoint(state, (*dropped, *found.ignored), source=source)
