"""What the builders of all families share: read a record's weights, fit them to the bands, give the trunk its form."""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geolearn.backbones import backbone, catalog, loading, weights
from geolearn.backbones.catalog import WeightsRecord
from geolearn.backbones.trunk import Trunk, ViTConfig
from geolearn.bands import Band, match_bands
from geolearn.errors import BackboneError, BandError, WeightsError

log = logging.getLogger('geolearn')

RGB = (Band('red', 0.665, 'red'), Band('green', 0.56, 'green'), Band('blue', 0.49, 'blue'))
"""The bands of ImageNet's weights, in their order."""


@dataclass(frozen=True, slots=True)
class KernelReport:
    """How each band got its kernel.

    Args:
        origins: For each target band: the band, and the source band whose kernel it took (None: the mean of all).
        exact: Names of the target bands that the source names too.
        unused: Names of the source bands that no target band took.
        scale: Factor on all kernels, which keeps the response to a flat image: source over target bands.
        unchanged: Whether the kernels are the source's own, in its order.
    """

    origins: tuple[tuple[str, str | None], ...]
    exact: tuple[str, ...]
    unused: tuple[str, ...]
    scale: float
    unchanged: bool = False

    def __str__(self) -> str:
        """Say it in a line for the reader of a log."""
        parts = []
        for band, origin in self.origins:
            how = '' if band in self.exact else ' (nearest wavelength)' if origin else ' (wavelength unknown)'
            parts.append(f'{band} <- {origin or "mean of all"}{how}')
        unused = f'; unused: {", ".join(self.unused)}' if self.unused else ''
        return f'{", ".join(parts)}{unused}; kernels x {self.scale:.3g}'


def adapt_input_kernel(weight: Tensor, source: Sequence[Band], target: Sequence[Band]) -> tuple[Tensor, KernelReport]:
    """Make the kernel for `target` bands from the one for `source` bands.

    A band takes the kernel of the same band by common name or name; else that of the band nearest in wavelength; else,
    for radar and where no wavelength is known, the mean kernel. All are scaled by source over target bands.

    Args:
        weight: Kernel (O, C, kh, kw) or (O, C, t, kh, kw), C source bands.
        source: Bands that the kernel was trained for.
        target: Bands that it is wanted for.

    Returns:
        Kernel of the same dtype with the target bands in place of the C, and how it was made.
    """
    if weight.dim() not in (4, 5) or weight.shape[1] != len(source):
        raise BandError(f'a kernel of shape {tuple(weight.shape)} does not fit {len(source)} source bands')
    if not target:
        raise BandError('no target bands were given; a backbone needs at least one band')
    exact = [_same(source, band) for band in target]
    origins = [_nearest(source, band) if same is None else same for same, band in zip(exact, target)]
    mean, scale = weight.mean(dim=1), len(source) / len(target)
    kernel = torch.stack([mean if i is None else weight[:, i] for i in origins], dim=1)
    report = KernelReport(
        origins=tuple((b.name, None if i is None else source[i].name) for b, i in zip(target, origins)),
        exact=tuple(b.name for b, same in zip(target, exact) if same is not None),
        unused=tuple(b.name for i, b in enumerate(source) if i not in origins),
        scale=scale,
        unchanged=origins == list(range(len(source))),
    )
    return kernel if scale == 1 else kernel * scale, report


def resample_kernel(weight: Tensor, side: int) -> Tensor:
    """Resample a patch kernel (..., k, k) to (..., side, side), bicubic without antialiasing; itself if k is side.

    Values are kept, as in the published conversions of patch 14 to 16, so that sums grow with the area.
    """
    if weight.shape[-1] == side:
        return weight
    square = weight.float().flatten(0, -4)
    resized = F.interpolate(square, size=(side, side), mode='bicubic', align_corners=False)
    return resized.reshape(*weight.shape[:-2], side, side).to(weight.dtype)


def _same(source: Sequence[Band], band: Band) -> int | None:
    try:
        return match_bands(source, [band])[0]
    except BandError:
        return None


def _nearest(source: Sequence[Band], band: Band) -> int | None:
    w = band.wavelength_um
    gaps = {i: abs(b.wavelength_um - w) for i, b in enumerate(source) if b.wavelength_um is not None and w is not None}
    return None if band.is_radar else min(gaps, key=gaps.__getitem__, default=None)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A state dict on its way into a trunk.

    Args:
        state: Tensors by name.
        dropped: Names that were left out on purpose.
        resized: Names whose tensors were fitted to other bands or another patch.
        source: Where it came from, with what was done to it.
    """

    state: dict[str, Tensor]
    dropped: tuple[str, ...] = ()
    resized: tuple[str, ...] = ()
    source: str = ''


def read_checkpoint(
    record: catalog.WeightsRecord,
    bands: Sequence[Band],
    options: backbone.BackboneOptions,
    *,
    partial: Sequence[str] = (),
    own: tuple[str, ...] = (),
) -> Checkpoint | None:
    """Find, verify and read the weights of a record; None where the options ask for random ones.

    Args:
        record: The encoder.
        bands: Of the images.
        options: Of `create_backbone`.
        partial: Prefixes that only some of the names have; the family takes them off itself.
        own: How published names of the encoder begin that look like those of heads.

    Raises:
        WeightsError: If there are none, or they cannot be had.
    """
    if not options.wants_weights:
        return None
    if not record.sources and options.weights is None:
        refuse_unpublished(record)
    path = weights.fetch(record, options.weights)
    announce_license(record)
    content = loading.load_weights_file(path)
    if options.weights is None:
        found = loading.FoundState(content)
    else:
        found = find_given(content, record, bands, options, path, partial=partial, own=own)
    state, dropped = loading.unwrap(found.state, wrappers=record.wrappers, prefixes=record.prefixes, drop=record.drop)
    source = f'{path} ({found.note})' if found.note else str(path)
    return Checkpoint(state, (*dropped, *found.ignored), source=source)


def find_given(
    content: Mapping[str, Any],
    record: catalog.WeightsRecord,
    bands: Sequence[Band],
    options: backbone.BackboneOptions,
    path: Path,
    *,
    partial: Sequence[str] = (),
    own: tuple[str, ...] = (),
) -> loading.FoundState:
    """Find the weights of a record in a user's file, whose names may have any prefix; heads are left out.

    Args:
        content: Of the file.
        record: The encoder.
        bands: Of the images.
        options: Of `create_backbone`.
        path: The file, for errors.
        partial: Prefixes that only some of the names have; they are left on.
        own: As for `read_checkpoint`.

    Raises:
        WeightsError: If the file holds no tensors, or far too few for the encoder.
    """
    with loading.without_values():
        random = replace(options, pretrained=False, weights=None)
        needed = backbone.BUILDERS[record.name].build(record.name, tuple(bands), random).trunk.state_dict()
    prefixes = (*record.prefixes, *partial)
    found = loading.find_state(content, needed, str(path), prefixes=prefixes)
    bare = {name: _without(prefixes, name) for name in found.state}
    heads = tuple(
        name
        for name in bare
        if bare[name] not in needed and loading.is_head(bare[name]) and not bare[name].startswith(own)
    )
    state = {name: value for name, value in found.state.items() if name not in heads}
    loading.refuse_small(state, needed, str(path))
    usual = [prefix for prefix in record.prefixes if any(name.startswith(prefix) for name in state)]
    notes = [*([found.note] if found.note else []), *(f'without the prefix {prefix!r}' for prefix in usual)]
    return replace(found, state=state, ignored=(*found.ignored, *heads), note=', '.join(notes))


def _without(prefixes: Sequence[str], name: str) -> str:
    """Take off each prefix once, in order."""
    for prefix in prefixes:
        name = name.removeprefix(prefix)
    return name


def fit_stem(
    checkpoint: Checkpoint, record: catalog.WeightsRecord, bands: Sequence[Band], *, key: str, patch: int
) -> Checkpoint:
    """Fit a fixed-band patch embedding to other bands, by what they are, and to another patch side.

    Args:
        checkpoint: Whose tensor `key` is a kernel (D, C, p, p) or (D, C, 1, p, p), C the bands of `record.inputs[0]`.
        record: The encoder.
        bands: Of the images.
        key: Name of the kernel.
        patch: Side of the patches wanted, in pixels; a kernel of another side is resampled (bicubic).

    Raises:
        WeightsError: If the checkpoint lacks the kernel.
        BandError: If radar bands are given to optical weights, or optical ones to radar weights.
    """
    if key not in checkpoint.state:
        raise WeightsError(f'weights {checkpoint.source} do not fit {record.name}; they hold no {key}')
    kernel = checkpoint.state[key]
    source = record.source_bands
    if kernel.dim() not in (4, 5) or kernel.shape[1] != len(source):
        raise WeightsError(
            f'weights {checkpoint.source} do not fit {record.name}; {key}: found {tuple(kernel.shape)}, needed a '
            f'kernel for the {len(source)} bands {", ".join(band.name for band in source)}'
        )
    fitted, how = adapt_input_kernel(kernel, source, bands)
    fitted = resample_kernel(fitted, patch)
    if how.unchanged and fitted.shape == kernel.shape:
        return checkpoint
    note = f'{key}: {how}'
    if fitted.shape[-1] != kernel.shape[-1]:
        note += f'; patch {kernel.shape[-1]} resampled to {patch}'
    # a kernel that stands for no wavelength is a guess, which people must hear of
    guessed = any(origin is None for _, origin in how.origins)
    log.log(logging.WARNING if guessed else logging.INFO, '%s: %s', record.name, note)
    return replace(
        checkpoint,
        state={**checkpoint.state, key: fitted},
        resized=(*checkpoint.resized, key),
        source=f'{checkpoint.source} ({note})',
    )


def require_kinds(record: catalog.WeightsRecord, bands: Sequence[Band]) -> None:
    """Refuse radar bands for optical weights and optical bands for radar ones, whether weights are loaded or not.

    Raises:
        BandError: With what to do instead.
    """
    kinds = {band.is_radar for band in record.source_bands}
    strange = [band.name for band in bands if band.is_radar not in kinds]
    if strange:
        kind, other = ('radar', 'optical') if True not in kinds else ('optical', 'radar')
        raise BandError(
            f'{record.name} was trained on {other} bands only; found {kind}: {", ".join(map(repr, strange))}. Leave '
            f'them out, or take a backbone that was trained on {kind} bands, such as dofa_base'
        )


def choose_patch(
    record: catalog.WeightsRecord,
    name: str,
    options: backbone.BackboneOptions,
    *,
    limits: tuple[int, int],
    of_maps: Sequence[int],
) -> int:
    """Return the side of the patches, in pixels, of a network that takes several.

    Args:
        record: Of the weights; it has the usual side.
        name: What messages call the backbone.
        options: What is asked for.
        limits: Smallest and largest side.
        of_maps: Those whose maps lie at strides of a pyramid.

    Raises:
        BackboneError: If the network does not take this side.
    """
    patch = record.patch if options.patch is None else options.patch
    if not limits[0] <= patch <= limits[1]:
        raise BackboneError(f'{name} takes patches of {limits[0]} to {limits[1]} pixels, got patch={patch}')
    if options.form != 'tokens' and patch not in of_maps:
        *first, last = of_maps
        sides = f'{", ".join(map(str, first))} or {last}'
        raise BackboneError(f"maps of {name} need patches of {sides} pixels, got patch={patch}; or form='tokens'")
    return patch


def build_fixed_band(
    record: catalog.WeightsRecord,
    trunk: Trunk,
    bands: Sequence[Band],
    options: backbone.BackboneOptions,
    *,
    checkpoint: Checkpoint | None,
    stem: str = 'patch_embed.proj.weight',
    may_be_missing: Sequence[str] = (),
) -> backbone.Backbone:
    """Fill a trunk that was built for `bands` with weights made for fixed bands, and put it into its form.

    Args:
        record: The encoder; `record.inputs[0]` says which bands its kernels were made for.
        trunk: Built for `bands`, at random values.
        bands: Of the images.
        options: How to build.
        checkpoint: With the trunk's own names; None leaves the trunk as it is.
        stem: Name of the kernel that sees the bands.
        may_be_missing: Shell patterns of names that the checkpoint may lack.
    """
    require_kinds(record, bands)
    report = None
    if checkpoint is not None:
        checkpoint = fit_stem(checkpoint, record, bands, key=stem, patch=trunk.patch)
        report = load_checkpoint(trunk, checkpoint, options, may_be_missing=may_be_missing)
    return backbone.finish_backbone(record.name, trunk, options, load_report=report)


def take_tensor(state: dict[str, Tensor], name: str, *, family: str, published: str) -> Tensor:
    """Remove a tensor from a state and return it.

    Args:
        state: Tensors by name.
        name: Of the tensor.
        family: Whose encoder the state should be, for messages.
        published: What to take instead, for messages.

    Raises:
        WeightsError: If it is not there.
    """
    if name not in state:
        raise WeightsError(f'the file holds no {name}, so it is no encoder of {family}; take {published}')
    return state.pop(name)


def rename(checkpoint: Checkpoint, patterns: Sequence[tuple[str, str]]) -> Checkpoint:
    """Change the names of a checkpoint's tensors by regular expressions and what replaces them, applied in order."""
    state = {}
    for name, value in checkpoint.state.items():
        for pattern, replacement in patterns:
            name = re.sub(pattern, replacement, name)
        state[name] = value
    return replace(checkpoint, state=state)


def register_family(
    *families: str, tokens: bool | Callable[[str], bool] = True
) -> Callable[[backbone.Builder], backbone.Builder]:
    """Decorate the function that builds every backbone that the catalog holds of some families.

    Args:
        families: As the catalog names them.
        tokens: Whether they have the form ``'tokens'``, or a function that says so of a name.
    """

    def add(build: backbone.Builder) -> backbone.Builder:
        for record in catalog.read_catalog().values():
            if record.family in families:
                backbone.register_backbone(record.name, tokens=tokens)(build)
        return build

    return add


def load_checkpoint(
    trunk: nn.Module, checkpoint: Checkpoint, options: backbone.BackboneOptions, *, may_be_missing: Sequence[str] = ()
) -> loading.LoadReport:
    """Load a checkpoint into a trunk strictly; relative positions, which no checkpoint has, may be missing."""
    new = ('*.rel_pos_h', '*.rel_pos_w') if options.relative_positions else ()
    return loading.load_strict(
        trunk,
        checkpoint.state,
        may_be_missing=(*may_be_missing, *new),
        dropped=checkpoint.dropped,
        resized=checkpoint.resized,
        source=checkpoint.source,
    )


def refuse_unpublished(record: catalog.WeightsRecord) -> None:
    """Raise WeightsError naming the variants of the family that have published weights."""
    published = [r.name for r in catalog.read_catalog().values() if r.family == record.family and r.sources]
    instead = f'take {" or ".join(published)}, or ' if published else ''
    raise WeightsError(
        f'no weights are published for {record.name}; {instead}pass pretrained=False to train from scratch'
    )


@cache
def announce_license(record: catalog.WeightsRecord) -> None:
    """Say once, in the log, that weights are not free for every use."""
    if record.non_commercial:
        log.warning(
            'the weights of %s are licensed %s: no commercial use, of what is trained from them either',
            record.name,
            record.license,
        )
    if record.terms:
        log.warning('the weights of %s are licensed under the %s: %s', record.name, record.license, record.terms)
    if record.gated:
        log.warning(
            'the weights of %s are gated: their license (%s) must be accepted on %s before use',
            record.name,
            record.license,
            record.sources[0].repo if record.sources else 'the hub',
        )


class PatchEmbed(nn.Module):
    """A convolution that turns each patch of an image into one vector.

    Args:
        bands: Number of bands.
        dim: Width D.
        patch: Side of the patches, in pixels.
    """

    def __init__(self, bands: int, dim: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(bands, dim, patch, stride=patch)
        nn.init.xavier_uniform_(self.proj.weight.view(dim, -1))
        nn.init.zeros_(self.proj.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Embed images (B, bands, H, W), sides multiples of the patch p, as maps (B, D, H/p, W/p)."""
        return self.proj(x)


def make_config(
    record: WeightsRecord,
    options: backbone.BackboneOptions,
    *,
    checkpoint: Checkpoint | None = None,
    eps: float = 1e-6,
    qkv_bias: bool = True,
    layer_scale: float | None = None,
) -> ViTConfig:
    """Describe the transformer of a record, as the options want it.

    Args:
        record: Gives width, depth, heads and grid.
        options: Give drop path and relative positions.
        checkpoint: Of weights that come with and without a final norm: tokens are normed only by one that they have.
        eps: Of the layer norms.
        qkv_bias: Whether queries, keys and values have a bias.
        layer_scale: First value of LayerScale, or None for none.
    """
    return ViTConfig(
        record.dim,
        record.depth,
        record.heads,
        grid=record.grid,
        eps=eps,
        qkv_bias=qkv_bias,
        layer_scale=layer_scale,
        drop_path=options.drop_path,
        # maps never use it; having it there always lets one bundle layout serve both published layouts
        final_norm=options.form != 'tokens' or checkpoint is None or 'norm.weight' in checkpoint.state,
        relative_positions=options.relative_positions,
    )


def join_qkv(state: dict[str, Tensor], *, separate: tuple[str, str, str] = ('q', 'k', 'v')) -> dict[str, Tensor]:
    """Join separate projections to queries, keys and values (``attn.q.weight`` ...) into one (``attn.qkv.weight``).

    Raises:
        WeightsError: If one of the three is missing.
    """
    first = f'.attn.{separate[0]}.'
    joined = {}
    for name, value in state.items():
        if first in name:
            needed = [name.replace(first, f'.attn.{part}.') for part in separate]
            if missing := [part for part in needed if part not in state]:
                raise WeightsError(f'the weights hold {name} but no {" and no ".join(missing)}; take the whole file')
            joined[name.replace(first, '.attn.qkv.')] = torch.cat([state[part] for part in needed])
        elif not any(f'.attn.{part}.' in name for part in separate):
            joined[name] = value
    return joined
