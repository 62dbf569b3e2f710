"""Attention maps: what a transformer attends to in images, chips and rasters."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from geolearn import notebook, plotting
from geolearn.bands import Band
from geolearn.embed import opening, scaling
from geolearn.embed.embeddings import KEY, EmbeddingSource
from geolearn.embed.encoder import Attention, EncoderOptions
from geolearn.embed.imagery import How, embed_source
from geolearn.inference.plan import Blend
from geolearn.raster import GeoBox
from geolearn.raster.writing import write_raster

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger('geolearn')


@dataclass(frozen=True, eq=False, repr=False)
class AttentionMaps:
    """What a transformer attends to; ``numpy.asarray`` gives the maps.

    Args:
        values: float32 (maps, rows, columns) of one image, or (items, maps, rows, columns) of several, a pixel for each
            token: 0 gets an equal share of the attention, 1 twice of that. NaN where there is no data.
        source: What made them.
        kind: ``'heads'``, a map for each head, or ``'rollout'``, one map.
        names: Of the items; empty for one image.
        geobox: Where the maps of a raster lie.
    """

    values: np.ndarray
    source: EmbeddingSource
    kind: Attention
    names: tuple[str, ...] = ()
    geobox: GeoBox | None = None

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if dtype is not None and np.dtype(dtype) != self.values.dtype:
            return self.values.astype(dtype)
        return self.values.copy() if copy else self.values

    @property
    def map_names(self) -> tuple[str, ...]:
        """What each map is of: ``'head 1'`` and so on, or ``'rollout'``."""
        count = self.values.shape[-3]
        return ('rollout',) if self.kind == 'rollout' else tuple(f'head {number}' for number in range(1, count + 1))

    def __repr__(self) -> str:
        shape, layer = ' x '.join(map(str, self.values.shape)), self.source.layer
        items = ', '.join(self.names[:3]) + (', ...' if len(self.names) > 3 else '')
        rows = [
            ('backbone', f'{self.source.backbone}, block {"last" if layer == -1 else layer}'),
            ('weights', self.source.weights),
            ('bands', ', '.join(self.source.bands)),
            ('scaling', self.source.scaling),
            ('items', items),
            ('place', '' if self.geobox is None else f'{self.geobox.crs or "no CRS"}, bounds {self.geobox.bounds}'),
        ]
        lines = [f'AttentionMaps: {self.kind}, {shape}, a pixel for each {self.source.stride} px']
        return '\n'.join([*lines, *(f'  {label:<8} {text}' for label, text in rows if text)])

    def _repr_html_(self) -> str:
        return notebook.rows_as_html(repr(self))

    def enlarged(self, shape: tuple[int, int]) -> np.ndarray:
        """Return the maps as large as an image of a height and width, each token repeated over its pixels."""
        stride = self.source.stride
        large = self.values.repeat(stride, axis=-2).repeat(stride, axis=-1)
        if large.shape[-2] < shape[0] or large.shape[-1] < shape[1]:
            raise ValueError(f'the maps are of an image of at most {large.shape[-2:]} pixels, got {shape}')
        return large[..., : shape[0], : shape[1]]

    def show(self, item: int = 0, *, image: np.ndarray | None = None, columns: int = 4) -> 'Figure':
        """Draw the maps of an image.

        Args:
            item: Number of the image, where there are several.
            image: Its pixels (bands, height, width), drawn first.
            columns: Most maps per row.

        Raises:
            ValueError: If the pixels are not those of the bands.
        """
        maps = self.values if self.values.ndim == 3 else self.values[item]
        bands = tuple(
            Band(name, wave, is_radar=wave is None) for name, wave in zip(self.source.bands, self.source.wavelengths_um)
        )
        if image is not None and (image.ndim != 3 or len(image) != len(bands)):
            raise ValueError(f'image must be ({len(bands)} bands, height, width), got an array of shape {image.shape}')
        return plotting.show_attention(maps, self.map_names, bands, image=image, columns=columns)

    def to_raster(self, path: str | Path) -> Path:
        """Write the maps of a raster as a georeferenced GeoTIFF of a band for each, NaN where there is no data.

        Raises:
            ValueError: If they are of several images.
            RasterError: If the file cannot be written; no part of it is left.
        """
        if self.geobox is None:
            raise ValueError('only maps of one raster have a place; pass a raster to attention_maps')
        return write_raster(
            path,
            self.values,
            transform=self.geobox.transform,
            crs=self.geobox.crs,
            nodata=float('nan'),
            band_names=[f'attention of {name}' for name in self.map_names],
            tags={KEY.upper(): self.source.to_json()},
        )


def attention_maps(
    source: Any,
    backbone: str = 'dofa_base',
    *,
    kind: Attention = 'heads',
    layer: int = -1,
    normalize: scaling.Normalize = None,
    bands: str | Sequence[Band | str] | None = None,
    sensor: str | None = None,
    wavelengths: Sequence[float | None] | None = None,
    nodata: float | None = None,
    context: int | None = None,
    blend: Blend | None = None,
    pretrained: bool = True,
    weights: str | Path | None = None,
    names: Sequence[str] | None = None,
    batch_size: int | None = None,
    device: str | None = None,
    check_values: bool = True,
) -> AttentionMaps:
    """Compute what a transformer attends to, from the attention of its native form, in which every block is global.

    A radar study gained most where a U-Net took the attention maps of a transformer pretrained with DINO beside the
    bands (FDL-Europe 2023); `AttentionUNet` does that. Weights that were trained otherwise attend to other things, and
    random ones to nothing in particular.

    Args:
        source: An array, raster, list of rasters, `ChipData` or folder, as `embed` takes them.
        backbone: A plain transformer; see `geolearn.list_backbones`.
        kind: ``'heads'`` gives a map for each head of a block: the attention of the class token or, without one, that
            of all tokens on average. ``'rollout'`` gives one map: the attention of all blocks up to `layer`, followed
            from block to block.
        layer: Block whose attention is taken, counted from 0; -1 for the last.
        normalize: What pixels are normalized by; see `embed`.
        bands: What the bands are; see `embed`.
        sensor: Whose names these are.
        wavelengths: Center of each band in micrometers, None for radar.
        nodata: Value that marks missing pixels.
        context: Side of the images that the transformer sees; attention is shared out within each, so that their edges
            show in the maps of larger ones, and a warning says so. None takes that of its pretraining.
        blend: How these images meet: ``'crop'`` or ``'hann'``.
        pretrained: Whether to fill the backbone with its published weights.
        weights: A file or folder with weights, or a .dlpk, instead of fetching them.
        names: Of the items.
        batch_size: Images computed together.
        device: Torch device; None means CUDA where there is one.
        check_values: Whether to refuse values that look normalized already.

    Raises:
        BackboneError: If the backbone offers no attention, or has no such block.
        BandError: If nothing says what the bands are, or one lacks a wavelength that the backbone needs.
        RasterError: If a raster cannot be read, holds no data, or values look normalized already.
        UnknownNameError: If there is no such backbone, sensor or kind.
        ValueError: If an array is no image.
        WeightsError: If weights cannot be had or do not fit.
    """
    options = EncoderOptions(
        backbone,
        layer,
        normalize,
        pretrained,
        weights,
        wavelengths,
        None,
        None,
        context,
        device,
        check_values,
        attention=kind,
    )
    how = How(options, opening.Wanted(bands, sensor, nodata), None, blend, batch_size)
    found = embed_source(source, how, names)
    side = max(found.values.shape[-2:]) * found.source.stride
    if side >= found.source.context + found.source.stride:
        log.warning(
            'the images are seen in parts of %s px, of which each shares out its own attention, so their edges show in '
            "the maps; pass context=%s to see them whole, or blend='hann'",
            found.source.context,
            side,
        )
    return AttentionMaps(found.values, found.source, kind, found.names, found.geobox)
