"""THOR: a transformer over groups of Sentinel-1 and Sentinel-2 bands, each read at its own resolution.

Forgaard et al. 2026, "THOR: A Versatile Foundation Model for Earth Observation Climate and Society Applications",
arXiv:2601.16011. The bands of 10, 20 and 60 m are groups, whose tokens cover 1, 4 and 36 times the ground; attention
falls with the distance on the ground, so that images may have any size. An image has pixels of the finest resolution
of its bands (10 m where one of these is among them); bands of coarser groups are brought to theirs. Sentinel-3, which
the published weights know too, takes no part.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geolearn.backbones import backbone, building, catalog, galileo, vit
from geolearn.backbones.trunk import BlockTrunk, ViTConfig, make_blocks
from geolearn.bands import Band, get_bands, match_bands
from geolearn.errors import BackboneError, BandError, WeightsError

KERNEL = 16
"""Side of the published patch kernels, in pixels; they are resampled for patches of another side."""

PATCHES = (4, 32)
"""Smallest and largest side of the patches in pretraining, in pixels."""

REFERENCE_M = 40.0
"""Side of the smallest patch of pretraining on the ground, in meters: the unit in which tokens know their size."""

PREFERRED_WINDOW = 14
"""Side of the attention windows in places of the finest group, where none is asked for."""


@dataclass(frozen=True, slots=True)
class BandGroup:
    """Bands of one resolution that share a token.

    Args:
        name: Of its embedding here.
        number: Of the group in the published weights.
        gsd_m: Ground sample distance of pretraining, in meters.
        bands: In the order of `published`.
        published: Names of the bands' kernels in the published weights.
    """

    name: str
    number: int
    gsd_m: int
    bands: tuple[Band, ...]
    published: tuple[str, ...]


GROUPS = (
    BandGroup(
        'S2_10m',
        0,
        10,
        get_bands('sentinel2_l2a', ['B04', 'B03', 'B02', 'B08']),
        ('S2:Red', 'S2:Green', 'S2:Blue', 'S2:NIR'),
    ),
    BandGroup(
        'S2_20m',
        1,
        20,
        get_bands('sentinel2_l2a', ['B05', 'B06', 'B07', 'B8A', 'B11', 'B12']),
        ('S2:RE1', 'S2:RE2', 'S2:RE3', 'S2:RE4', 'S2:SWIR1', 'S2:SWIR2'),
    ),
    # the kernel is published with this spelling
    BandGroup('S2_60m', 2, 60, get_bands('sentinel2_l2a', ['B01', 'B09']), ('S2:CoastAerosal', 'S2:WaterVapor')),
    BandGroup('S1_VV', 3, 10, get_bands('sentinel1', ['VH', 'VV']), ('S1:VH', 'S1:VV')),
    BandGroup('S1_HH', 4, 10, get_bands('sentinel1', ['HV', 'HH']), ('S1:HV', 'S1:HH')),
)
"""Groups of bands that images can fill, in the order of their tokens."""


@dataclass(frozen=True, slots=True)
class FilledGroup:
    """A group of an image.

    Args:
        group: The group.
        at: Positions of its bands in the image.
        numbers: Which of the group's bands each of them is.
    """

    group: BandGroup
    at: tuple[int, ...]
    numbers: tuple[int, ...]


def assign_groups(bands: Sequence[Band]) -> tuple[FilledGroup, ...]:
    """Divide the bands of an image into groups, by what they are; groups without a band are left out.

    Raises:
        BandError: If a band is of no group, or two are the same one.
    """
    known = [(group, number) for group in GROUPS for number in range(len(group.bands))]
    try:
        places = match_bands([group.bands[number] for group, number in known], bands)
    except BandError as error:
        raise BandError(f'THOR knows bands of Sentinel-2 Level-2A and Sentinel-1 only: {error}') from error
    found = []
    for group in GROUPS:
        pairs = [(at, known[place][1]) for at, place in enumerate(places) if known[place][0] is group]
        if pairs:
            found.append(FilledGroup(group, tuple(at for at, _ in pairs), tuple(number for _, number in pairs)))
    return tuple(found)


class THOR(BlockTrunk):
    """THOR's encoder for images of one date, of any size.

    The tokens of all groups go through the blocks together, cell by cell: a cell is the ground of one token of a group
    that every group's tokens divide. What comes out are the maps of the groups, brought to the grid of the finest one
    and averaged.

    Args:
        config: Shape of the transformer.
        groups: Of the image's bands.
        patch: Side of the patches, in pixels of each group's own resolution.
        code_width: How much of the width says which group a token is of; the rest says its size on the ground.
    """

    slopes: Tensor
    group_embed: Tensor
    knows_resolution = True

    def __init__(self, config: ViTConfig, groups: Sequence[FilledGroup], *, patch: int, code_width: int) -> None:
        super().__init__(config, patch)
        self.groups = tuple(groups)
        finest = min(filled.group.gsd_m for filled in self.groups)
        self.base_resolution_m = float(finest)
        self.ground_resolution_m = self.base_resolution_m
        self.ratios = tuple(filled.group.gsd_m // finest for filled in self.groups)
        self.cell = math.lcm(*self.ratios)
        d = config.dim
        self.embeds = nn.ModuleDict(
            {filled.group.name: nn.Conv2d(len(filled.at), d, patch, stride=patch) for filled in self.groups}
        )
        numbers = torch.tensor([float(filled.group.number) for filled in self.groups])
        self.register_buffer('group_embed', vit.embed_numbers(numbers, code_width))
        self.register_buffer('slopes', torch.tensor(alibi_slopes(config.heads)))
        self.blocks = make_blocks(config)
        self.norm = nn.LayerNorm(d, eps=config.eps)

    @property
    def step(self) -> int:
        """Pixels of a cell: images that are cut at its multiples are seen through the same patches of every group."""
        return self.patch * self.cell

    # -- forms

    def first_tokens(self, x: Tensor) -> Tensor:
        """Return what the first block takes in the native form: tokens (B, n, D), cell by cell."""
        return self.embed(x).flatten(1, 3)

    def hidden_states(self, x: Tensor) -> list[Tensor]:
        """Run the native form: the output of every block, merged to (B, h*w, D), before the final norm."""
        return [state.flatten(2).transpose(1, 2) for state in self.maps(x, range(self.depth), 0)]

    def tokens(self, x: Tensor) -> Tensor:
        """Run the native form: the last block's tokens after the final norm, merged to (B, h*w, D)."""
        (last,) = self._run(self.embed(x), [self.depth - 1], None)
        return self._merge(self.norm(last), x).flatten(2).transpose(1, 2)

    def maps(self, x: Tensor, layers: Sequence[int], window: int | None = None) -> list[Tensor]:
        """Run the windowed form: the outputs of some blocks, merged, as maps (B, D, h, w).

        Args:
            x: Images (B, bands, H, W).
            layers: Blocks, counted from 0.
            window: Side of the windows in places of the finest group, rounded up to whole cells; None chooses per
                axis, 0 is global attention. Images are padded right and bottom to whole windows.
        """
        size = self._choose_windows((x.shape[-2], x.shape[-1]), window)
        return [self._merge(state, x) for state in self._run(self.embed(x, size), layers, size)]

    def _choose_windows(self, pixels: vit.Size, window: int | None) -> vit.Size | None:
        """Choose windows in cells for an image of so many pixels; None is global attention."""
        if window == 0:
            return None
        if window is not None:
            side = -(-window // self.cell)
            return side, side
        preferred = max(round(PREFERRED_WINDOW / self.cell), 1)
        rows, columns = (vit.choose_window(-(-n // self.step), preferred) for n in pixels)
        return rows, columns

    def _merge(self, state: Tensor, x: Tensor) -> Tensor:
        """Average tokens (B, cells down, cells across, T, D) over groups, on the finest grid: maps (B, D, h, w)."""
        # what was padded for whole windows must not show at the edges of the coarser maps
        rows, columns = (-(-n // self.step) for n in x.shape[-2:])
        state, b = state[:, :rows, :columns], state.shape[0]
        total: Tensor | None = None
        for part, ratio in zip(state.split(self._counts, dim=3), self.ratios):
            n = self.cell // ratio
            grid = part.unflatten(3, (n, n)).permute(0, 5, 1, 3, 2, 4).reshape(b, -1, rows * n, columns * n)
            if ratio > 1:
                size = (rows * self.cell, columns * self.cell)
                grid = F.interpolate(grid, size=size, mode='bilinear', align_corners=False)
            total = grid if total is None else total + grid
        assert total is not None  # an image has a band
        return vit.crop_maps([total / len(self.groups)], x, [self.patch])[0]

    @property
    def _counts(self) -> list[int]:
        """Tokens of each group in a cell."""
        return [(self.cell // ratio) ** 2 for ratio in self.ratios]

    # -- tokens

    def embed(self, x: Tensor, windows: vit.Size | None = None) -> Tensor:
        """Turn images (B, bands, H, W) of any size into tokens (B, cells down, cells across, T, D).

        Images are padded right and bottom with zeros to whole cells, and to whole windows of so many cells.
        """
        steps = [self.step * side for side in windows or (1, 1)]
        x = F.pad(x, (0, -x.shape[-1] % steps[1], 0, -x.shape[-2] % steps[0]))
        found = []
        for filled, ratio, code in zip(self.groups, self.ratios, self._codes()):
            values = x[:, list(filled.at)]
            if ratio > 1:
                size = (x.shape[-2] // ratio, x.shape[-1] // ratio)
                values = F.interpolate(values, size=size, mode='bilinear', align_corners=False)
            n = self.cell // ratio
            tokens = self.embeds[filled.group.name](values).unflatten(3, (-1, n)).unflatten(2, (-1, n))
            tokens = tokens.permute(0, 2, 4, 3, 5, 1).flatten(3, 4)
            found.append(tokens + code.to(tokens.dtype))
        return torch.cat(found, dim=3)

    def _codes(self) -> Tensor:
        """Make what is added to the tokens of each group, (groups, D): their size on the ground, and the group."""
        scale = self.patch * self.ground_resolution_m / REFERENCE_M
        sizes = torch.tensor([ratio * scale for ratio in self.ratios], device=self.group_embed.device)
        return torch.cat([vit.embed_numbers(sizes, self.dim - self.group_embed.shape[1]), self.group_embed], dim=1)

    # -- blocks

    def _run(self, cells: Tensor, layers: Sequence[int], windows: vit.Size | None) -> list[Tensor]:
        """Run the blocks over tokens (B, cells down, cells across, T, D); the outputs of some, in that shape."""
        b, rows, columns, t, d = cells.shape
        wide = None if windows is None else (windows[0], windows[1] * t)
        distances = _Distances(self._places((rows, columns)), windows, self.slopes)
        states = vit.windowed_states(
            [_BiasedBlock(block, distances) for block in self.blocks],  # type: ignore[misc]
            cells.reshape(b, rows, columns * t, d),
            window=wide,
            global_at=self.global_at,
            layers=layers,
        )
        return [state.reshape(cells.shape) for state in states]

    def _places(self, grid: vit.Size) -> Tensor:
        """Return the middles of tokens, (rows, columns, T, 2), in sides of the coarsest patch that the image has."""
        device, coarsest = self.slopes.device, max(self.ratios)
        inside = []
        for ratio in self.ratios:
            line = (torch.arange(self.cell // ratio, device=device) + 0.5) * (ratio / coarsest)
            inside.append(torch.cartesian_prod(line, line).reshape(-1, 2))
        starts = [torch.arange(n, device=device) * (self.cell / coarsest) for n in grid]
        return torch.cartesian_prod(*starts).reshape(*grid, 1, 2) + torch.cat(inside)


@dataclass(eq=False)
class _Distances:
    """What is added to the logits of attention: the distances of tokens, by the slope of each head.

    Args:
        places: Of the tokens, (rows, columns, T, 2).
        windows: Height and width of the windows in cells; None for global attention.
        slopes: Of the heads.
    """

    places: Tensor
    windows: vit.Size | None
    slopes: Tensor
    made: dict[bool, Tensor] = field(default_factory=dict)

    def bias(self, *, within: bool) -> Tensor:
        """Return (heads, N, N) for the tokens of a window, or of the whole image in the order of `windowed_states`."""
        if within not in self.made:
            places = self.places.flatten(1, 2)
            if self.windows is not None:
                wide = (self.windows[0], self.windows[1] * self.places.shape[2])
                places = places[: wide[0], : wide[1]] if within else vit.window_partition(places[None], wide)
            flat = places.reshape(-1, 2)
            distance = (flat[:, None] - flat[None]).square().sum(dim=-1).sqrt()
            self.made[within] = -self.slopes[:, None, None] * distance
        return self.made[within]


class _BiasedBlock:
    """Call a block with the distances of its tokens."""

    def __init__(self, block: Any, distances: _Distances) -> None:
        self.block, self.distances = block, distances

    def __call__(self, x: Tensor, window: vit.Size | None) -> Tensor:
        return self.block(x, window, None, None, self.distances.bias(within=window is not None))


def alibi_slopes(heads: int) -> list[float]:
    """Return how fast attention falls with distance in each head (Press et al. 2022, arXiv:2108.12409)."""
    if heads & (heads - 1) == 0:
        start = 2.0 ** -(2.0 ** -(math.log2(heads) - 3))
        return [start ** (i + 1) for i in range(heads)]
    below = 2 ** math.floor(math.log2(heads))
    return alibi_slopes(below) + alibi_slopes(2 * below)[::2][: heads - below]


# -- weights


def convert_thor(checkpoint: building.Checkpoint, groups: Sequence[FilledGroup], *, patch: int) -> building.Checkpoint:
    """Turn the published encoder into the state of `THOR` for some groups; a state of `THOR` stays as it is.

    Args:
        checkpoint: With the published names, without the prefix ``encoder.``.
        groups: Of the image.
        patch: Side of the patches; the published kernels, 16 wide, are resampled to it as FlexiViT does.

    Raises:
        WeightsError: If a tensor that is needed is missing or is no kernel of THOR.
    """
    if 'group_embed' in checkpoint.state:
        return checkpoint
    state = dict(checkpoint.state)
    made: dict[str, Tensor] = {'slopes': _take(state, 'encoder_slopes')}
    resized = []
    for filled in groups:
        names = [f'ind_patch_embed.patch_embed.{filled.group.published[number]}' for number in filled.numbers]
        kernels = [_take(state, f'{name}.weight') for name in names]
        for name, kernel in zip(names, kernels):
            if kernel.dim() != 4 or kernel.shape[1:] != (1, KERNEL, KERNEL):
                raise WeightsError(f'{name}.weight has shape {tuple(kernel.shape)}; take a published file of THOR')
        # the tokens of a group's bands are averaged, so one convolution over all of them does the same
        name = f'embeds.{filled.group.name}'
        joint = torch.cat(kernels, dim=1) / len(kernels)
        made[f'{name}.weight'] = galileo.resample_patch_kernel(joint, patch)
        made[f'{name}.bias'] = torch.stack([_take(state, f'{n}.bias') for n in names]).mean(dim=0)
        resized += [f'{name}.weight'] if patch != KERNEL else []
    made['group_embed'] = torch.stack([_take(state, f'band_embed.group{filled.group.number}') for filled in groups])
    unused = [name for name in state if name.startswith(('ind_patch_embed.patch_embed.', 'band_embed.group'))]
    kept = {name: value for name, value in state.items() if name not in unused}
    note = f' (kernels of {KERNEL} px resampled to {patch})' if resized else ''
    return replace(
        checkpoint,
        state=kept | made,
        dropped=(*checkpoint.dropped, *unused),
        resized=(*checkpoint.resized, *resized),
        source=checkpoint.source + note,
    )


_take = partial(building.take_tensor, family='THOR', published='a published file of it')


def code_width(record: catalog.WeightsRecord) -> int:
    """Return how much of a size's width says which group a token is of: a quarter in large, else a sixth."""
    return record.dim // (4 if record.name == 'thor_large' else 6)


@building.register_family('thor')
def build_thor(name: str, bands: tuple[Band, ...], options: backbone.BackboneOptions) -> backbone.Backbone:
    """Build one of THOR's sizes."""
    if options.relative_positions:
        raise BackboneError(f'{name} has relative positions of its own; pass relative_positions=False')
    record = catalog.get_record(name)
    patch = building.choose_patch(record, name, options, limits=PATCHES, of_maps=(4, 8, 16))
    groups = assign_groups(bands)
    checkpoint = building.read_checkpoint(record, bands, options)
    trunk = THOR(building.make_config(record, options), groups, patch=patch, code_width=code_width(record))
    report = None
    if checkpoint is not None:
        report = building.load_checkpoint(trunk, convert_thor(checkpoint, groups, patch=patch), options)
    return backbone.finish_backbone(name, trunk, options, load_report=report)
