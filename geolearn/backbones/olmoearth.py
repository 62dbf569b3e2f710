"""OlmoEarth v1, v1.1 and v1.2: a transformer over the sensors, sets of bands and dates of images together.

Herzog et al. 2025, "OlmoEarth: Stable Latent Image Modeling for Multimodal Earth Observation", arXiv:2511.13655.
Every set of bands of a sensor has a token at every place and date. v1 has three sets for Sentinel-2 and two for
Landsat, v1.1 and v1.2 one for each sensor, whose pixels go through a layer of their own first. v1 and v1.1 add codes of
set, date, month and place to the tokens; v1.2 adds set and month, and turns queries and keys by place and time.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geolearn.backbones import backbone, building, catalog, galileo, vit
from geolearn.backbones.calendar import MONTHS, review_days
from geolearn.backbones.olmoearth_bands import SENSORS, BandSet, choose_sets
from geolearn.backbones.trunk import BlockTrunk, ViTConfig, make_blocks
from geolearn.bands import Band
from geolearn.errors import BackboneError, WeightsError

log = logging.getLogger('geolearn')

KERNEL = 8
"""Side of the published patch kernels, in pixels; images are scaled for smaller patches."""

BASE_RESOLUTION_M = galileo.BASE_RESOLUTION_M

DEFAULT_YEAR, DEFAULT_MONTH = 2020, 6
"""Images of one date need not say when they are from; June is taken then. A year matters only to several dates."""


class SetEmbed(nn.Module):
    """Embed the patches of a set of bands: a convolution (v1), or a layer on each pixel and one on the patch.

    Args:
        bands: Number of bands.
        dim: Width D.
        hidden: Width of the layer on pixels; 0 for a convolution.
    """

    def __init__(self, bands: int, dim: int, hidden: int) -> None:
        super().__init__()
        self.proj: nn.Module
        self.pixel_proj: nn.Module | None = None
        if hidden:
            self.pixel_proj = nn.Sequential(nn.Linear(bands, hidden), nn.ReLU())
            self.proj = nn.Linear(KERNEL * KERNEL * hidden, dim)
        else:
            self.proj = nn.Conv2d(bands, dim, KERNEL, stride=KERNEL)

    def forward(self, x: Tensor) -> Tensor:
        """Embed images (B, bands, 8 h, 8 w) as grids (B, h, w, D)."""
        if self.pixel_proj is None:
            return self.proj(x).permute(0, 2, 3, 1)
        pixels = self.pixel_proj(x.permute(0, 2, 3, 1))
        patches = pixels.unflatten(2, (-1, KERNEL)).unflatten(1, (-1, KERNEL)).transpose(2, 3)
        return self.proj(patches.flatten(3))


class OlmoEarth(BlockTrunk):
    """OlmoEarth's encoder for images of any size, of one date (B, bands, H, W) or several (B, T, bands, H, W).

    The native form returns the tokens of a place averaged: over sets and dates for each sensor, then over sensors.
    Values that are NaN are missing: patches without any value of a set have no token there.

    Args:
        config: Shape of the transformer.
        sets: Of the image's bands.
        version: ``'1'``, ``'1.1'`` or ``'1.2'``.
        hidden: Width of the layers on pixels, from v1.1 on.
        patch: Side of the patches, in pixels, 1 to 8.
    """

    knows_resolution = True
    knows_dates = True
    takes_dates = True
    assumes_june = True
    takes_missing = True

    def __init__(self, config: ViTConfig, sets: Sequence[BandSet], version: str, *, hidden: int, patch: int) -> None:
        super().__init__(config, patch)
        self.sets, self.version = tuple(sets), version
        self.ground_resolution_m = BASE_RESOLUTION_M
        self.embeds = nn.ModuleDict({s.name: SetEmbed(len(s.at), config.dim, hidden) for s in self.sets})
        self.set_embed = nn.Parameter(torch.empty(len(self.sets), config.dim // 4))
        nn.init.normal_(self.set_embed, std=0.02)
        self.blocks = make_blocks(config)
        if version == '1.2':
            for block in self.blocks:
                width = config.dim // config.heads // 2
                attention: Any = block.attn
                attention.rope_mixed_freqs = nn.Parameter(torch.randn(3, config.heads, width) * 0.02)
        self.norm = nn.LayerNorm(config.dim, eps=config.eps)

    # -- forms

    def hidden_states(self, x: Tensor) -> list[Tensor]:
        """Run the native form: the output of every block, averaged over groups, (B, h*w, D), before the final norm."""
        return [state.flatten(2).transpose(1, 2) for state in self.maps(x, range(self.depth), 0)]

    def tokens(self, x: Tensor) -> Tensor:
        """Run the native form: the last block's tokens after the final norm, averaged over groups, (B, h*w, D)."""
        days = self._choose_days(x, None)
        grid, seen = self.embed(x, days)
        (last,) = self._run(grid, seen, days, [self.depth - 1], 0)
        return self._average(self.norm(last), seen).flatten(1, 2)

    def maps(self, x: Tensor, layers: Sequence[int], window: int | None = None) -> list[Tensor]:
        """Run the windowed form: the outputs of some blocks, averaged over groups and dates, as maps (B, D, h, w).

        Args:
            x: Images (B, bands, H, W) or (B, T, bands, H, W).
            layers: Blocks, counted from 0.
            window: Side of the windows in places; None chooses per axis, 0 is global attention. All tokens of a place
                share its window.
        """
        days = self._choose_days(x, None)
        grid, seen = self.embed(x, days)
        states = self._run(grid, seen, days, layers, window)
        return [self._average(state, seen).permute(0, 3, 1, 2) for state in states]

    def date_maps(
        self, x: Tensor, layers: Sequence[int], window: int | None, acquired: Sequence[date] | None
    ) -> list[Tensor]:
        """Run the windowed form on images (B, T, bands, H, W): maps (B, T, D, h, w), every date having seen the others.

        A date that has no data at a place is given the mean of the others there, which no mean over dates sees.
        """
        days = self._choose_days(x, acquired)
        grid, seen = self.embed(x, days)
        found = []
        for state in self._run(grid, seen, days, layers, window):
            whole = self._average(state, seen)
            dates = [
                self._average(state[:, :, :, t : t + 1], None if seen is None else seen[:, :, :, t : t + 1])
                for t in range(state.shape[3])
            ]
            if seen is not None:
                there = seen.any(dim=4)
                dates = [torch.where(there[:, :, :, t, None], one, whole) for t, one in enumerate(dates)]
            found.append(torch.stack(dates, dim=1).permute(0, 1, 4, 2, 3))
        return found

    def first_tokens(self, x: Tensor) -> Tensor:
        """Return what the first block takes in the native form: tokens (B, h*w*dates*sets, D), place by place."""
        return self.embed(x, self._choose_days(x, None))[0].flatten(1, 4)

    def _average(self, state: Tensor, seen: Tensor | None) -> Tensor:
        """Average tokens (B, h, w, T, sets, D) over sets and dates of each sensor, then over sensors: (B, h, w, D)."""
        sensors = list(dict.fromkeys(s.sensor for s in self.sets))
        total, count = torch.zeros_like(state[..., 0, 0, :]), torch.zeros_like(state[..., 0, 0, :1])
        for sensor in sensors:
            at = [i for i, s in enumerate(self.sets) if s.sensor == sensor]
            part = state[..., at, :]
            if seen is None:
                total, count = total + part.mean(dim=(3, 4)), count + 1
                continue
            weights = seen[..., at, None].to(state.dtype)
            found = weights.sum(dim=(3, 4))
            total = total + (part * weights).sum(dim=(3, 4)) / found.clamp_min(1)
            count = count + (found > 0).to(state.dtype)
        return total / count.clamp_min(1)

    def review_dates(self, days: Sequence[date]) -> list[str]:
        """Say what of the dates pretraining never had: v1 and v1.1 number them, and had a place for every month."""
        notes = review_days(days, ordered=self.version != '1.2')
        months = sorted({MONTHS * day.year + day.month - 1 for day in days})
        if self.version == '1.2' or len(months) < 2 or not (gaps := months[-1] - months[0] + 1 - len(months)):
            return notes
        first, last = (f'{month // MONTHS}-{month % MONTHS + 1:02d}' for month in (months[0], months[-1]))
        return [
            *notes,
            f'found no image in {gaps} of the months from {first} to {last}, needed a place for each month, as in '
            'pretraining; give an image of NaN in such a month, whose place then stays empty',
        ]

    # -- tokens

    def _choose_days(self, x: Tensor, acquired: Sequence[date] | None) -> tuple[date, ...]:
        count = 1 if x.dim() == 4 else x.shape[1]
        days = tuple(acquired) if acquired is not None else self.acquired
        if len(days) == count:
            return days
        if count > 1:
            raise BackboneError(
                f'OlmoEarth has to know when each of {count} dates was: pass dates=[date(2024, 5, 1), ...]'
            )
        return (date(DEFAULT_YEAR, DEFAULT_MONTH, 1),)

    def embed(self, x: Tensor, days: Sequence[date]) -> tuple[Tensor, Tensor | None]:
        """Turn images into tokens (B, h, w, T, sets, D), and which of them hold values (B, h, w, T, sets).

        Images are padded right and bottom with zeros to whole patches. The second is None where no value is missing.
        """
        frames = x[:, None] if x.dim() == 4 else x
        b, t = frames.shape[:2]
        frames = frames.flatten(0, 1)
        there = torch.isfinite(frames)
        fixed = torch.compiler.is_exporting() or torch.jit.is_tracing()
        some_missing = fixed or not bool(there.all())
        # what is padded holds no values: it must not make a patch at the edge count that has none
        frames, there = (vit.pad_to_multiple(one, self.patch) for one in (frames, there))
        values = torch.where(there, frames, 0) if some_missing else frames
        if self.patch < KERNEL:
            size = [KERNEL * side // self.patch for side in values.shape[2:]]
            values = F.interpolate(values, size=size, mode='bicubic', align_corners=False, antialias=True)
        tokens = torch.stack([self.embeds[s.name](values[:, list(s.at)]) for s in self.sets], dim=3)
        tokens = tokens.unflatten(0, (b, t)).permute(0, 2, 3, 1, 4, 5)
        tokens = tokens + self._encodings((tokens.shape[1], tokens.shape[2]), days).to(tokens.dtype)
        if not some_missing:
            return tokens, None
        parts = [
            F.max_pool2d(there[:, list(s.at)].any(dim=1, keepdim=True).to(values.dtype), self.patch) for s in self.sets
        ]
        seen = torch.cat(parts, dim=1).unflatten(0, (b, t)).permute(0, 3, 4, 1, 2) > 0
        return tokens, seen

    def _encodings(self, grid: vit.Size, days: Sequence[date]) -> Tensor:
        """Make what is added to tokens, (h, w, T, sets, D): set, number of the date, month and place."""
        quarter, device, count = self.dim // 4, self.set_embed.device, len(days)
        months = torch.tensor([day.month for day in days], device=device) - 1
        month = galileo.month_table(quarter).to(device)[months]
        shape = (*grid, count, len(self.sets), -1)
        number = galileo.embed_places(torch.arange(count, device=device), quarter)
        step = self.ground_resolution_m * self.patch / BASE_RESOLUTION_M
        place = galileo.place_table(grid, quarter, step, device)
        if self.version == '1.2':
            number, place = torch.zeros_like(number), torch.zeros_like(place)
        return torch.cat(
            [
                self.set_embed.expand(shape),
                number[:, None].expand(shape),
                month[:, None].expand(shape),
                place[:, :, None, None].expand(shape),
            ],
            dim=-1,
        )

    # -- blocks

    def _run(
        self, grid: Tensor, seen: Tensor | None, days: Sequence[date], layers: Sequence[int], window: int | None
    ) -> list[Tensor]:
        """Run the blocks over tokens (B, h, w, T, sets, D), and return the outputs of some of them in that shape."""
        b, h, w, t, s, d = grid.shape
        group = t * s
        size = vit.choose_windows((h, w), window)
        wide = None if size is None else (size[0], size[1] * group)
        time = torch.tensor([count_days(day) for day in days], dtype=torch.float32, device=grid.device) / 30
        if seen is None and size is not None and (h % size[0] or w % size[1]):
            seen = grid.new_ones(grid.shape[:5], dtype=torch.bool)  # windows are padded, and padding is not attended to
        context = _Context((h, w), t, s, size, seen, time, self._step)
        blocks = [_PlacedBlock(block, context) for block in self.blocks]
        states = vit.windowed_states(
            blocks,  # type: ignore[arg-type]
            grid.reshape(b, h, w * group, d),
            window=wide,
            global_at=self.global_at,
            layers=layers,
        )
        return [state.reshape(grid.shape) for state in states]

    @property
    def _step(self) -> float:
        return self.ground_resolution_m * self.patch / BASE_RESOLUTION_M


_BEFORE = (0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334)


def count_days(day: date) -> float:
    """Count the days from 2000 on as the weights saw them: years of 365.25 days, and February always of 28."""
    return 365.25 * (day.year - 2000) + _BEFORE[day.month - 1] + day.day - 1


@dataclass(frozen=True, eq=False)
class _Context:
    """Where and when the tokens of a grid are, for the blocks.

    Args:
        grid: (h, w).
        dates: Number of dates.
        sets: Number of sets.
        window: Height and width of the windows in places; None for global attention.
        seen: Which tokens hold values, (B, h, w, T, sets), or None for all.
        time: Of each date.
        step: From one place to the next, in units of 10 m.
    """

    grid: vit.Size
    dates: int
    sets: int
    window: vit.Size | None
    seen: Tensor | None
    time: Tensor
    step: float

    def places(self, side: vit.Size) -> Tensor:
        """Return time, row and column of the tokens of a grid, (3, h, w * T * sets)."""
        h, w = side
        rows = torch.arange(h, device=self.time.device) * self.step
        columns = torch.arange(w, device=self.time.device) * self.step
        shape = (h, w, self.dates, self.sets)
        found = (
            self.time[None, None, :, None].expand(shape),
            rows[:, None, None, None].expand(shape),
            columns[None, :, None, None].expand(shape),
        )
        return torch.stack([one.reshape(h, -1) for one in found])

    def in_windows(self, x: Tensor) -> Tensor:
        """Put values (B, h, w * T * sets, ...) in the order of the windows: (B * windows, tokens of a window, ...)."""
        assert self.window is not None  # called where there are windows
        wide = (self.window[0], self.window[1] * self.dates * self.sets)
        return vit.window_partition(x, wide).flatten(1, 2)


class _PlacedBlock:
    """Call a block with what it has to know of the tokens' places, in whichever order they come."""

    def __init__(self, block: Any, context: _Context) -> None:
        self.block, self.context = block, context

    def __call__(self, x: Tensor, window: vit.Size | None) -> Tensor:
        c = self.context
        ordered = x.dim() == 3  # window by window
        place = c.places(c.grid if window is None or c.window is None else c.window)
        if window is None and ordered:
            place = c.in_windows(place[..., None])[..., 0].reshape(3, -1)
        turns = None
        frequencies = self.block.attn.rope_mixed_freqs
        if frequencies is not None:
            turns = torch.einsum('kn,khd->hnd', place.flatten(1), frequencies.float())
        return self.block(x, window, self._seen(window, ordered=ordered), turns)

    def _seen(self, window: vit.Size | None, *, ordered: bool) -> Tensor | None:
        c = self.context
        if c.seen is None:
            return None
        seen = c.seen.flatten(3).flatten(2, 3)
        if window is not None:
            found = c.in_windows(seen[..., None].to(torch.uint8))[..., 0] > 0
        elif ordered:
            found = (c.in_windows(seen[..., None].to(torch.uint8))[..., 0] > 0).reshape(len(seen), -1)
        else:
            found = seen.flatten(1)
        # where nothing at all is seen there is nothing to leave out
        return found | ~found.any(dim=1, keepdim=True)


# -- weights


def version_of(state: Mapping[str, Tensor]) -> str:
    """Tell the version of published weights by the names of their tensors."""
    names = list(state)
    if any('attention_pooler.' in name for name in names):
        return '1.3'
    if any('rope_mixed_freqs' in name for name in names):
        return '1.2'
    return '1.1' if any('pixel_proj.' in name for name in names) else '1'


def convert_olmoearth(
    checkpoint: building.Checkpoint, sets: Sequence[BandSet], version: str, statistics: Mapping[str, tuple[Any, Any]]
) -> building.Checkpoint:
    """Turn the published encoder into the state of `OlmoEarth` for some sets; a state of `OlmoEarth` stays as it is.

    Args:
        checkpoint: With the tensors of ``weights.pth`` by name, without the prefix ``encoder.``.
        sets: Of the image.
        version: That is wanted.
        statistics: Shift and divisor of every band of each sensor, by which missing bands of v1 are filled.

    Raises:
        WeightsError: If it is of another version, or a tensor that is needed is missing.
    """
    state = checkpoint.state
    if 'set_embed' in state:
        return checkpoint
    if (found := version_of(state)) != version:
        raise WeightsError(
            f'weights {checkpoint.source} are of OlmoEarth v{found}, needed v{version}; take the name of '
            f'that version, such as olmoearth_v{found.replace(".", "_")}_base'
        )
    made, rows, notes = {}, [], []
    for s in sets:
        stem = f'patch_embeddings.per_modality_embeddings.{s.sensor}.{s.name}'
        weight = _take(state, f'{stem}.proj.weight' if version == '1' else f'{stem}.pixel_proj.0.weight')
        own = len(s.sources)
        if weight.shape[1] != own:
            raise WeightsError(f'{stem} is of {weight.shape[1]} bands, needed {own}: this is no file of OlmoEarth')
        kernel = torch.zeros(weight.shape[0], len(s.at), *weight.shape[2:])
        offset = torch.zeros(weight.shape[0])
        shifts, divisors = statistics[s.sensor]
        for slot, source in enumerate(s.sources):
            if source is None:
                continue
            n, m = s.start + slot, s.numbers[source]
            gain = divisors[m] / divisors[n]
            kernel[:, source] += weight[:, slot] * gain
            if m != n:
                offset += weight[:, slot].flatten(1).sum(1) * (shifts[m] - shifts[n]) / divisors[n]
        if version == '1':
            made[f'embeds.{s.name}.proj.weight'] = kernel
            made[f'embeds.{s.name}.proj.bias'] = _take(state, f'{stem}.proj.bias') + offset
        else:
            made[f'embeds.{s.name}.pixel_proj.0.weight'] = kernel
            made[f'embeds.{s.name}.pixel_proj.0.bias'] = _take(state, f'{stem}.pixel_proj.0.bias')
            made[f'embeds.{s.name}.proj.weight'] = _take(state, f'{stem}.proj.weight')
            made[f'embeds.{s.name}.proj.bias'] = _take(state, f'{stem}.proj.bias')
        if kernel.shape[1] != own:
            notes.append(f'{s.name}: {kernel.shape[1]} of {own} bands')
        rows.append(_take(state, f'composite_encodings.per_modality_channel_embeddings.{s.sensor}')[s.number])
    made['set_embed'] = torch.stack(rows)
    kept = {n: v for n, v in state.items() if n.startswith(('blocks.', 'norm.'))}
    unused = [
        n
        for n in state
        if n not in kept
        and not any(n.startswith(f'patch_embeddings.per_modality_embeddings.{s.sensor}.{s.name}.') for s in sets)
    ]
    return replace(
        checkpoint,
        state=made | building.join_qkv(kept),
        dropped=(*checkpoint.dropped, *unused),
        resized=tuple(f'embeds.{note.partition(":")[0]}' for note in notes),
        source=checkpoint.source + (f' ({"; ".join(notes)})' if notes else ''),
    )


def _take(state: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in state:
        raise WeightsError(f'the file holds no {name}; take the whole weights.pth of OlmoEarth')
    return state[name]


HIDDEN = {'olmoearth_v1_1_nano': 12, 'olmoearth_v1_2_nano': 12}
"""Width of the layer on pixels, from v1.1 on; 64 for all others."""


def check_config(path: Path, record: catalog.WeightsRecord) -> None:
    """Compare the config.json beside published weights, where there is one, with what is to be built.

    Raises:
        WeightsError: If it is of another size, or cannot be read.
    """
    file = path.parent / 'config.json'
    if not file.is_file():
        return
    try:
        config = json.loads(file.read_text(encoding='utf-8'))['model']['encoder_config']
        found = {name: config[name] for name in ('embedding_size', 'depth', 'num_heads', 'max_patch_size')}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f'{file} says not what the weights beside it are ({error!r}); take that of OlmoEarth'
        ) from error
    needed = {'embedding_size': record.dim, 'depth': record.depth, 'num_heads': record.heads, 'max_patch_size': KERNEL}
    if wrong := {name: value for name, value in found.items() if value != needed[name]}:
        raise WeightsError(
            f'{file} is not of {record.name}: found {wrong}, needed { ({name: needed[name] for name in wrong}) }'
        )


@building.register_family('olmoearth')
def build_olmoearth(name: str, bands: tuple[Band, ...], options: backbone.BackboneOptions) -> backbone.Backbone:
    """Build one of OlmoEarth's sizes and versions."""
    if options.relative_positions:
        raise BackboneError(f'{name} knows no relative positions; pass relative_positions=False')
    record = catalog.get_record(name)
    patch = building.choose_patch(record, name, options, limits=(1, KERNEL), of_maps=(1, 2, 4, 8))
    version = '1.' + name.split('_')[2] if name.split('_')[2].isdecimal() else '1'
    sets = choose_sets(bands, version)
    checkpoint = building.read_checkpoint(record, bands, options)
    hidden = 0 if version == '1' else HIDDEN.get(name, 64)
    if checkpoint is not None:
        check_config(Path(checkpoint.source.partition(' (')[0]), record)
        statistics = {key: (inputs.mean, inputs.std) for key, inputs in zip(SENSORS, record.inputs)}
        checkpoint = convert_olmoearth(checkpoint, sets, version, statistics)
    config = building.make_config(record, options, eps=1e-5)
    trunk = OlmoEarth(config, sets, version, hidden=hidden, patch=patch)
    report = None if checkpoint is None else building.load_checkpoint(trunk, checkpoint, options)
    return backbone.finish_backbone(name, trunk, options, load_report=report)
