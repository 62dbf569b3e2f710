"""Trunks from timm: convolutional and hierarchical networks by their own maps, plain transformers by a pyramid."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from geolearn.backbones import backbone, building, catalog, efficientnet, loading, vit, weights
from geolearn.backbones.trunk import Trunk, take_tokens
from geolearn.bands import Band
from geolearn.errors import BackboneError, WeightsError


def import_timm() -> Any:
    """Return the module timm, whose import takes seconds."""
    import timm

    return timm


_AFTER_THE_BLOCKS = ('norm.', 'fc_norm.', 'head.', 'head_drop.', 'attn_pool.', 'cls_attn_blocks.', 'neck.')
"""Parameters of timm's transformers that only their heads, or the native form, use."""


class TimmTransformer(Trunk):
    """A transformer of timm that keeps one resolution, for images of any size.

    timm's `VisionTransformer` runs within windows, without prefix tokens, where maps are wanted; the others keep their
    prefix tokens and attend globally, through timm's `forward_intermediates`.

    Args:
        net: The model, without a classifier.
        patch: Stride of its patches, in pixels.
        native: Whether tokens are wanted, so that nothing of the network is left unused.
    """

    def __init__(self, net: Any, patch: int, *, native: bool = False) -> None:
        super().__init__()
        self.net = net
        self.patch = patch
        self.native = native
        self.class_token_is_trained = getattr(net, 'global_pool', '') == 'token'
        # other classes run more than their blocks (position biases, rotary positions) on the way
        plain = type(net) is import_timm().models.VisionTransformer
        self.can_window = plain and bool(getattr(net, 'dynamic_img_size', False))

    @property
    def dim(self) -> int:
        """Width D."""
        return int(self.net.feature_info[-1]['num_chs'])

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.net.feature_info)

    @property
    def prefix(self) -> int:
        """Tokens in front that belong to no place: class token and registers."""
        return int(getattr(self.net, 'num_prefix_tokens', 0))

    @property
    def stages(self) -> nn.ModuleList:
        """The blocks in order."""
        return nn.ModuleList(self.net.blocks)

    @property
    def global_at(self) -> tuple[int, ...]:
        """Blocks that attend globally in the windowed form, counted from 0."""
        return vit.global_blocks(self.depth) if self.can_window else tuple(range(self.depth))

    def hidden_states(self, x: Tensor) -> list[Tensor]:
        """Run the native form: the output (B, prefix + h*w, D) of every block, before any final norm."""
        return self._intermediates(x, list(range(self.depth)), norm=False)

    def tokens(self, x: Tensor) -> Tensor:
        """Run the native form: the last block's output (B, prefix + h*w, D) after the final norm."""
        return self._intermediates(x, [self.depth - 1], norm=True)[0]

    @property
    def offers_attention(self) -> bool:
        """Whether attention can be read: of timm's plain `VisionTransformer`, whose blocks add nothing to it."""
        kinds = import_timm().models.vision_transformer
        return self.can_window and all(
            type(block) is kinds.Block and type(block.attn) is kinds.Attention for block in self.net.blocks
        )

    @property
    def heads(self) -> int:
        """Number of attention heads of each block."""
        return int(self.net.blocks[0].attn.num_heads)

    def first_tokens(self, x: Tensor) -> Tensor:
        """Return what the first block takes in the native form: tokens (B, prefix + n, D) with positions."""
        net = self.net
        tokens: Tensor = net.norm_pre(net._pos_embed(net.patch_embed(vit.pad_to_multiple(x, self.patch))))
        return tokens

    def attention_in(self, block: nn.Module, tokens: Tensor) -> Tensor:
        """Return what a block attends to, (B, heads, N, N) float32, given its input (B, N, D); rows sum to 1."""
        plain: Any = block
        attn = plain.attn
        parts = attn.qkv(plain.norm1(tokens)).reshape(*tokens.shape[:2], 3, attn.num_heads, -1)
        queries, keys, _ = parts.permute(2, 0, 3, 1, 4).unbind(0)
        queries, keys = attn.q_norm(queries), attn.k_norm(keys)
        shares: Tensor = ((queries @ keys.transpose(-2, -1)).float() * attn.scale).softmax(dim=-1)
        return shares

    @property
    def takes_visible(self) -> bool:
        """Whether `visible_tokens` can be called: for timm's plain `VisionTransformer`."""
        return self.can_window

    def visible_tokens(self, x: Tensor, visible: Tensor) -> Tensor:
        """Run the native form on some of the patches (see `Trunk.visible_tokens`): (B, prefix + k, D)."""
        tokens: Tensor = self.net.blocks(take_tokens(self.first_tokens(x), visible, self.prefix))
        found: Tensor = self.net.norm(tokens)
        return found

    def maps(self, x: Tensor, layers: Sequence[int], window: int | None = None) -> list[Tensor]:
        """Return the outputs of some blocks as maps (B, D, h, w), before any final norm.

        Args:
            x: Images (B, bands, H, W).
            layers: Blocks, counted from 0.
            window: Side of the windows in tokens, as for `ViT.maps`; ignored where `can_window` is False.
        """
        if not self.can_window:
            found = self.net.forward_intermediates(
                vit.pad_to_multiple(x, self.patch),
                indices=sorted(set(layers)),
                norm=False,
                stop_early=True,
                intermediates_only=True,
            )
            return [found[sorted(set(layers)).index(layer)] for layer in layers]
        y = self._grid(vit.pad_to_multiple(x, self.patch))
        size = vit.choose_windows((y.shape[1], y.shape[2]), window)
        blocks = [_WindowedBlock(self, block) for block in self.net.blocks]
        states = vit.windowed_states(blocks, y, window=size, global_at=self.global_at, layers=layers)  # type: ignore[arg-type]
        return [state.permute(0, 3, 1, 2) for state in states]

    def native_parameters(self) -> Iterator[nn.Parameter]:
        """Go through the parameters that only the native form uses."""
        # where class attention follows the blocks (xcit), the class token joins only there
        no_prefix = self.can_window or hasattr(self.net, 'cls_attn_blocks')
        unused = _AFTER_THE_BLOCKS + (('cls_token', 'reg_token') if no_prefix else ())
        for name, parameter in self.net.named_parameters():
            if name.startswith(unused):
                yield parameter

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Let the blocks compute their activations again instead of keeping them while training."""
        self.net.set_grad_checkpointing(enable)

    @torch.no_grad()
    def takes_any_size(self) -> bool:
        """Whether images that are no square and of another size than in training come out as maps of their size."""
        device, training = next(self.parameters()).device, self.training
        self.eval()
        taken = True
        for h, w in ((2, 4), (6, 2)):
            image = torch.zeros(1, 3, h * self.patch, w * self.patch, device=device)
            shape = self.maps(image, [self.depth - 1], 0)[0].shape
            taken = taken and tuple(shape) == (1, self.dim, h, w)
            if taken and self.native:
                taken = tuple(self.tokens(image).shape) == (1, self.prefix + h * w, self.dim)
        self.train(training)
        return taken

    def _intermediates(self, x: Tensor, layers: list[int], *, norm: bool) -> list[Tensor]:
        # transformers without prefix tokens do not know the argument
        prefixed = {'return_prefix_tokens': True} if self.prefix else {}
        found = self.net.forward_intermediates(
            vit.pad_to_multiple(x, self.patch), indices=layers, norm=norm, intermediates_only=True, **prefixed
        )
        if not self.prefix:
            return [state.flatten(2).transpose(1, 2) for state in found]
        return [torch.cat([prefix, state.flatten(2).transpose(1, 2)], dim=1) for state, prefix in found]

    def _grid(self, x: Tensor) -> Tensor:
        """Embed padded images as a grid (B, h, w, D) with positions, prefix tokens dropped."""
        patches = self.net.patch_embed(x)
        tokens = self.net.norm_pre(self.net.patch_drop(self.net._pos_embed(patches)))
        return tokens[:, self.prefix :].reshape(patches.shape)


class _WindowedBlock:
    """Call a block of timm, which takes tokens only, on a grid of them or window by window."""

    def __init__(self, trunk: TimmTransformer, block: nn.Module) -> None:
        self.trunk, self.block = trunk, block

    def __call__(self, x: Tensor, window: vit.Size | None) -> Tensor:
        if window is None:
            return self._run(x.reshape(x.shape[0], -1, x.shape[-1])).reshape(x.shape)
        if x.dim() == 3:
            return self._run(x.reshape(-1, window[0] * window[1], x.shape[2])).reshape(x.shape)
        windows = vit.window_partition(x, window)
        return vit.window_unpartition(self._run(windows.flatten(1, 2)), window, (x.shape[1], x.shape[2]))

    def _run(self, tokens: Tensor) -> Tensor:
        if self.trunk.net.grad_checkpointing and self.trunk.training and torch.is_grad_enabled():
            return checkpoint(self.block, tokens, use_reentrant=False)
        return self.block(tokens)


_LOAD_ERRORS: tuple[type[Exception], ...] = (*weights.DOWNLOAD_ERRORS, RuntimeError)

# The errors of timm's constructors and networks where a model does not support an option.
_BUILD_ERRORS: tuple[type[Exception], ...] = (
    *(TypeError, AssertionError, NotImplementedError, ValueError, AttributeError),
    *(RuntimeError, LookupError),
)

_ANY_SIZE: tuple[dict[str, Any], ...] = ({'dynamic_img_size': True}, {'strict_img_size': False}, {})
"""Arguments by which timm's families accept images of any size; most need none."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """How to build one of timm's models as a backbone.

    Args:
        arguments: For `timm.create_model`.
        strides: Of its maps; for a plain transformer the stride of its patches, once.
        step: Image sides must be multiples of it, in pixels.
        channels_last: Whether its maps come as (N, h, w, C).
    """

    arguments: dict[str, Any]
    strides: tuple[int, ...]
    step: int
    channels_last: bool = False


class HierarchicalBackbone(backbone.ConvBackbone):
    """A network of timm that returns one map per stride; its windows may need images of whole multiples of `step`."""

    def __init__(
        self, name: str, trunk: nn.Module, plan: _Plan, *, load_report: loading.LoadReport | None = None
    ) -> None:
        channels = trunk.feature_info.channels()  # type: ignore[union-attr, operator]
        super().__init__(name, trunk, channels=channels, strides=plan.strides, load_report=load_report)
        self.step, self.channels_last = plan.step, plan.channels_last

    def enable_checkpointing(self) -> None:
        """Let training compute activations again instead of keeping them.

        Raises:
            BackboneError: If timm's model cannot do that.
        """
        switch = getattr(self.trunk, 'set_grad_checkpointing', None)
        if switch is None:
            raise BackboneError(f'{self.name} cannot recompute activations; pass checkpointing=False')
        switch(True)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Compute one map per stride from images (N, bands, H, W), padded with zeros right and bottom."""
        maps = self.trunk(vit.pad_to_multiple(x, self.step))
        maps = [m.permute(0, 3, 1, 2) for m in maps] if self.channels_last else maps
        return vit.crop_maps(maps, x, self.strides)


def is_timm_model(name: str) -> bool:
    """Whether timm has an architecture of that name, with or without a tag of weights (``'resnet50.a1_in1k'``)."""
    return bool(import_timm().is_model(name))


def is_plain_transformer(name: str) -> bool:
    """Whether a model of timm, or an alias of one in the catalog, keeps one resolution and so has tokens."""
    return len(_survey(_model_of(name))) == 1


def _model_of(name: str) -> str:
    """Return timm's own name of a model."""
    record = catalog.read_catalog().get(name)
    return name if record is None else record.sources[0].repo.rpartition('/')[2]


def list_timm_models() -> list[str]:
    """List timm's architectures, whether they offer maps at strides 4 to 32 or not."""
    return list(import_timm().list_models())


def build_timm(name: str, bands: tuple[Band, ...], options: backbone.BackboneOptions) -> backbone.Backbone:
    """Build a timm model as a backbone; pretrained RGB stems are carried over band by band (see `kernels.py`)."""
    return _build(name, name, bands, options)


@building.register_family('timm', tokens=is_plain_transformer)
def _build_alias(name: str, bands: tuple[Band, ...], options: backbone.BackboneOptions) -> backbone.Backbone:
    record = catalog.get_record(name)
    if options.pretrained and options.weights is None:
        building.announce_license(record)
    return _build(name, _model_of(name), bands, options)


def _build(name: str, model: str, bands: tuple[Band, ...], options: backbone.BackboneOptions) -> backbone.Backbone:
    if is_plain_transformer(model):
        return _build_transformer(name, model, bands, options)
    backbone.refuse_transformer_options(name, options)
    plan = _plan_maps(model, options.strides, options.drop_path)
    arguments = plan.arguments | {'features_only': True}
    donor = _get_donor(model, arguments, options)
    net = _create(model, arguments, in_chans=len(bands))
    report = _load(model, net, bands, arguments, donor)
    _cut_unused(net)
    return HierarchicalBackbone(name, net, plan, load_report=report)


def _cut_unused(net: Any) -> None:
    """Drop the stages behind the last map that is taken: timm's EfficientNet kin keep and run them all the same."""
    stage, _, index = net.feature_info.module_name()[-1].partition('.')
    if stage == 'blocks' and index.isdecimal() and isinstance(getattr(net, 'blocks', None), nn.Sequential):
        net.blocks = net.blocks[: int(index) + 1]


def _build_transformer(
    name: str, model: str, bands: tuple[Band, ...], options: backbone.BackboneOptions
) -> backbone.Backbone:
    if options.relative_positions:
        raise BackboneError(f'{name} comes from timm; relative_positions cannot be added to it')
    plan = _plan_tokens(model, options)
    donor = _get_donor(model, plan.arguments, options)
    net = _create(model, plan.arguments, in_chans=len(bands))
    report = _load(model, net, bands, plan.arguments, donor)
    trunk = TimmTransformer(net, plan.strides[0], native=options.form == 'tokens')
    if options.window and not trunk.can_window:
        raise BackboneError(f'{name} cannot attend within windows; pass window=None or 0 for global attention')
    return backbone.finish_backbone(name, trunk, options, load_report=report)


def _create(model: str, arguments: dict[str, Any], **more: Any) -> Any:
    try:
        return import_timm().create_model(model, **{'pretrained': False, **arguments, **more})
    except _BUILD_ERRORS as error:
        raise BackboneError(f'timm cannot build {model} for feature maps with {arguments}: {error}') from error


@cache
def _survey(model: str, output_stride: int = 32) -> dict[int, int]:
    """Find a model's last map at each stride, without allocating it; those of plain transformers share one stride."""
    layout = {'output_stride': output_stride} if output_stride < max(backbone.STRIDES) else {}
    with loading.without_values():
        info = _create(model, layout, features_only=True).feature_info
    return dict(zip(info.reduction(), info.out_indices))


@cache
def _plan_maps(model: str, wanted: tuple[int, ...] | None, drop_path: float) -> _Plan:
    """Choose dilation, which of the model's maps to take, and how to let it take images of any size."""
    last = _survey(model)
    if not {4, 8, 16} <= set(last) or max(last) > 32:
        raise BackboneError(f'{model} offers maps at strides {list(last)}, needed 4 to 32; take another model')
    strides = backbone.choose_strides(model, wanted, sorted(last))
    layout: dict[str, Any] = {'drop_path_rate': drop_path} if drop_path else {}
    if strides[-1] == 16 and _can_dilate(model):
        layout['output_stride'], last = 16, _survey(model, 16)
    taken = backbone.end_at_coarsest(strides, tuple(last))
    layout['out_indices'] = [last[stride] for stride in taken]
    found: _Plan | str = ''
    for flexible in _ANY_SIZE:
        found = _try_sizes(model, layout | flexible, taken)
        if isinstance(found, _Plan):
            return found
    raise BackboneError(f'{model} cannot take images of any size ({found}); choose another model')


def _try_sizes(model: str, layout: dict[str, Any], strides: tuple[int, ...]) -> _Plan | str:
    """Find the step that image sides must be multiples of, or the reason for none, by running it without values."""
    try:
        with loading.without_values():
            net = import_timm().create_model(model, features_only=True, **layout).eval()
    except _BUILD_ERRORS as error:
        return _first_line(error)
    last = str(getattr(net, 'output_fmt', 'NCHW')).endswith('NHWC')
    native = int(net.pretrained_cfg['input_size'][-1])
    fault = ''
    for step in (max(backbone.STRIDES), 2 * max(backbone.STRIDES), native):
        if native <= 2048 and step % max(backbone.STRIDES) == 0:
            fault = _find_fault(net, step, strides, channels_last=last)
            if not fault:
                return _Plan(layout, strides, step, last)
    return fault


@torch.no_grad()
def _find_fault(net: nn.Module, step: int, strides: tuple[int, ...], *, channels_last: bool) -> str:
    """Say what goes wrong with oblong images whose sides are multiples of `step`; empty where nothing does."""
    for height, width in ((step, 2 * step), (3 * step, step)):
        try:
            maps = net(torch.zeros(1, 3, height, width, device='meta'))
        except _BUILD_ERRORS as error:
            return _first_line(error)
        sides = [tuple(m.shape[1:3] if channels_last else m.shape[2:]) for m in maps]
        if sides != [(height // s, width // s) for s in strides]:
            return f'maps of {height} x {width} pixels come out as {sides}, which does not fit strides {list(strides)}'
    return ''


def _first_line(error: Exception) -> str:
    # bare assertions say nothing, and an empty text would mean that nothing went wrong
    return str(error).split('\n')[0][:120] or type(error).__name__


def _plan_tokens(model: str, options: backbone.BackboneOptions) -> _Plan:
    """Choose how to let a plain transformer take any size, with patches of 16 (or 8) pixels where maps are wanted."""
    layout: dict[str, Any] = {'num_classes': 0}
    if options.drop_path:
        layout['drop_path_rate'] = options.drop_path
    patch = next(iter(_survey(model)))
    if patch not in (8, 16) and options.form != 'tokens':
        layout['patch_size'] = patch = 16  # timm resamples the kernels as it loads them
    reason = ''
    for flexible in _ANY_SIZE:
        try:
            with loading.without_values():
                net = import_timm().create_model(model, **layout, **flexible)
                trunk = TimmTransformer(net.eval(), patch, native=options.form == 'tokens')
            if trunk.takes_any_size():
                return _Plan(layout | flexible, (patch,), patch)
            reason = 'other sizes come out misshapen'
        except _BUILD_ERRORS as error:
            reason = _first_line(error)
    wanted = f'of any size, with patches of {patch} pixels' if 'patch_size' in layout else 'of any size'
    raise BackboneError(f'{model} cannot take images {wanted} ({reason}); choose another model')


def _can_dilate(model: str) -> bool:
    """Whether the model's last stage can be dilated to stay at stride 16."""
    try:
        _survey(model, 16)
    except BackboneError:
        return False
    return True


MARK = 2**14
"""Numbers from here on stand for the tensors of a file; random weights are smaller."""


@dataclass(frozen=True, slots=True)
class _Donor:
    """A model for RGB images, filled with weights.

    Args:
        state: Its tensors.
        source: Where they came from.
        note: Where in the file they were.
        unused: Names in the file that the network does not use.
        resized: Names whose tensors were resampled, as positions are to another grid.
        unfilled: Names that the file does not hold and need not.
    """

    state: dict[str, Tensor]
    source: str
    note: str = ''
    unused: tuple[str, ...] = ()
    resized: tuple[str, ...] = ()
    unfilled: tuple[str, ...] = ()


def _get_donor(model: str, arguments: dict[str, Any], options: backbone.BackboneOptions) -> _Donor | None:
    """Get the weights that the options ask for, in a model of RGB images; None where they ask for random ones."""
    if options.weights is not None:
        return _read_donor(model, arguments, Path(options.weights), native=options.form == 'tokens')
    return _Donor(_fetch_donor(model, arguments), f'timm {model}') if options.pretrained else None


def _fetch_donor(model: str, arguments: dict[str, Any]) -> dict[str, Tensor]:
    overlay = _find_cached(model)
    try:
        donor = import_timm().create_model(
            model, pretrained=True, **{**arguments, 'in_chans': len(building.RGB), 'pretrained_cfg_overlay': overlay}
        )
    except _LOAD_ERRORS as error:
        reason = f'{type(error).__name__}: {" ".join(str(error).split())[:300]}'
        advice = "pass weights='<file>' or pretrained=False"
        raise WeightsError(f'pretrained weights of {model} could not be had ({reason}); {advice}') from error
    return dict(donor.state_dict())


def _find_cached(model: str) -> dict[str, Any] | None:
    """Return what lets timm take its published weights from the cache where there is no network.

    Raises:
        WeightsError: If there is neither.
    """
    published = import_timm().get_pretrained_cfg(model)
    if published is None or not (published.hf_hub_id or published.url):
        return None
    fault = (
        None
        if weights.is_offline()
        else weights.connection_fault(weights.hub_address() if published.hf_hub_id else published.url)
    )
    if fault is None:
        return None
    names = (
        (published.hf_hub_filename, *weights.ANYBODYS_NAMES)
        if published.hf_hub_id and not published.custom_load
        else ()
    )
    for name in names:
        if name and (path := weights.find_in_cache(published.hf_hub_id, name)):
            return {'file': str(path)}
    advice = "pass weights='<file>' or pretrained=False"
    raise WeightsError(f'pretrained weights of {model} could not be had ({fault}); {advice}')


def _read_donor(model: str, arguments: dict[str, Any], path: Path, *, native: bool) -> _Donor:
    """Fill the model for RGB images with the weights of a file.

    timm renames and resamples what the authors of its models published, and passes over names that it does not know.
    So a first model is filled with numbers that stand for the tensors of the file, which shows where each of them goes.

    Args:
        model: timm's name.
        arguments: How it is built.
        path: The file.
        native: Whether the final norm is used.

    Raises:
        WeightsError: If a tensor is missing, unexpected or of another shape.
    """
    named = {
        key: value for key, value in arguments.items() if key not in ('features_only', 'out_indices', 'num_classes')
    }
    with loading.without_values():
        whole = dict(_create(model, named, in_chans=len(building.RGB)).state_dict())
        cut = dict(_create(model, arguments, in_chans=len(building.RGB)).state_dict())
    content = loading.load_weights_file(path)
    found = loading.find_state(content, whole, str(path))
    if efficientnet.has_published_names(found.state):
        found = replace(found, state=efficientnet.rename(found.state, whole, model, str(path)))
    if whole.keys().isdisjoint(found.state):  # a trunk's own names, which timm changes where it gives feature maps
        found = loading.find_state(content, cut, str(path))
        if not cut.keys().isdisjoint(found.state):
            kept = {name: value for name, value in found.state.items() if name in cut or not loading.is_head(name)}
            loading.refuse_misfits(cut, kept, str(path))
            loading.refuse_nonfinite(kept, str(path))
            unused = (*found.ignored, *(name for name in found.state if name not in kept))
            return _Donor(kept, path.name, found.note, unused)
    state = {name: value for name, value in found.state.items() if value.is_floating_point()}
    loading.refuse_small(state, whole, str(path))
    loading.refuse_nonfinite(state, str(path))
    names = list(state)
    marked = {n: torch.full_like(v, MARK + i, dtype=torch.float32) for i, (n, v) in enumerate(state.items())}
    trace = _fill(model, arguments, marked, path)
    used: set[str] = set()
    unfilled, resized = [], []
    for name, value in trace.items():
        if not value.is_floating_point():
            continue
        if value.abs().max() < MARK / 2:
            unfilled.append(name)
            continue
        marks = [int(mark) - MARK for mark in value.round().unique().tolist()]
        if not all(0 <= mark < len(names) for mark in marks):  # kernels resampled to another patch are no constants
            marks = [names.index(name)] if name in state else [int(value.median().round()) - MARK]
        used.update(names[mark] for mark in marks if 0 <= mark < len(names))
        if len(marks) == 1 and marks[0] in range(len(names)) and state[names[marks[0]]].numel() != value.numel():
            resized.append(name)
    left = [name for name in names if name not in used]
    strange = [name for name in left if name not in whole and not loading.is_head(name)]
    missing = [name for name in unfilled if native or not name.startswith(_AFTER_THE_BLOCKS)]
    if problems := loading.list_names((('missing', missing), ('unexpected', strange))):
        raise WeightsError(f'weights {path} do not fit {model}; {problems}')
    filled = _fill(model, arguments, dict(found.state), path)
    return _Donor(filled, path.name, found.note, (*found.ignored, *left), tuple(resized), tuple(unfilled))


def _fill(model: str, arguments: dict[str, Any], state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Let timm load a state into a new model for RGB images, and return the state of the model."""
    given = {**arguments, 'in_chans': len(building.RGB), 'pretrained_cfg_overlay': {'state_dict': state}}
    try:
        return dict(import_timm().create_model(model, pretrained=True, **given).state_dict())
    except _BUILD_ERRORS as error:
        reason = f'{type(error).__name__}: {" ".join(str(error).split())[:300]}'
        raise WeightsError(f'weights {path} do not fit {model} ({reason}); they must be an RGB model') from error


def _load(
    model: str, net: nn.Module, bands: tuple[Band, ...], arguments: dict[str, Any], donor: _Donor | None
) -> loading.LoadReport | None:
    """Load a donor's RGB weights into `net`, with the kernels that see the bands adapted to them."""
    if donor is None:
        return None
    state, notes, keys = dict(donor.state), [donor.note] if donor.note else [], _stem_keys(model, arguments)
    for key in keys:
        if state[key].dim() != 4 or state[key].shape[1] != len(building.RGB):
            raise WeightsError(f'{key} of {model} cannot be adapted to other bands; pass pretrained=False')
        state[key], how = building.adapt_input_kernel(state[key], building.RGB, bands)
        notes.append(f'{key}: {how}')
    resized = tuple(dict.fromkeys((*keys, *donor.resized)))
    source = f'{donor.source} ({"; ".join(notes)})'
    report = loading.load_strict(net, state, dropped=donor.unused, resized=resized, source=source)
    matched = tuple(name for name in report.matched if name not in donor.unfilled)
    return replace(report, matched=matched, missing=donor.unfilled)


def _stem_keys(model: str, arguments: dict[str, Any]) -> list[str]:
    """Name the weights whose shape depends on the number of bands."""
    with loading.without_values():
        three, four = (_create(model, arguments, in_chans=n).state_dict() for n in (3, 4))
    return [key for key, value in three.items() if value.shape != four[key].shape]
