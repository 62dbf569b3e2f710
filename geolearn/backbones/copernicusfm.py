"""Copernicus-FM: DOFA's generated kernels from wavelength and bandwidth or a variable's name, with place and time.

Wang et al. 2025, "Towards a Unified Copernicus Foundation Model for Earth Vision", arXiv:2503.11849. Images are of
bands with a spectrum (optical or radar), or of one variable, such as elevation, whose kernel is made from a vector that
a language model has for its name. To every token are added codes of longitude and latitude, of the ground area of a
patch, and of the date; what is not known of these has a learned code of its own.
"""

import math
import re
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geolearn.backbones import backbone, building, catalog, galileo, loading, vit
from geolearn.backbones.dofa import GENERATOR_DIM, DynamicPatchEmbed
from geolearn.backbones.trunk import ViT, ViTConfig
from geolearn.bands import Band, get_bands, match_bands
from geolearn.errors import BackboneError, BandError, WeightsError

RADAR_NM = (5e7, 1e9)
"""Wavelength and bandwidth of radar bands, as in pretraining: VV and VH share one kernel."""

SPECTRA: dict[str, dict[str, tuple[float, float]]] = {
    'sentinel2_l1c': dict(
        zip(
            ('B1', 'B2', 'B3', 'B4', 'B5', 'B6', 'B7', 'B8', 'B8A', 'B9', 'B10', 'B11', 'B12'),
            zip(
                (440, 490, 560, 665, 705, 740, 783, 842, 860, 940, 1370, 1610, 2190),
                (20, 65, 35, 30, 15, 15, 20, 115, 20, 20, 30, 90, 180),
            ),
        )
    ),
}
"""Wavelength and bandwidth in nanometers of bands, by sensor, as in pretraining."""

OLCI = {
    f'Oa{number:02d}': pair
    for number, pair in enumerate(
        (
            *((400, 15), (412.5, 10), (442.5, 10), (490, 10), (510, 10), (560, 10), (620, 10), (665, 10)),
            *((673.75, 7.5), (681.25, 7.5), (708.75, 10), (753.75, 7.5), (761.25, 7.5), (764.375, 3.75)),
            *((767.5, 2.5), (778.75, 15), (865, 20), (885, 10), (900, 10), (940, 20), (1020, 40)),
        ),
        start=1,
    )
}
"""The same of Sentinel-3 OLCI, by the bands' names."""

VARIABLES = {
    'CO': 'Sentinel 5P Carbon Monoxide',
    'NO2': 'Sentinel 5P Nitrogen Dioxide',
    'O3': 'Sentinel 5P Ozone',
    'SO2': 'Sentinel 5P Sulfur Dioxide',
    'elevation': 'Copernicus Digital Elevation Model',
    'DEM': 'Copernicus Digital Elevation Model',
}
"""Variables by the names of bands, and what the authors' file of vectors calls them."""

LANGUAGE_DIM = 2048
LANGUAGE_FILE = 'varname_embed_llama3.2_1B.pt'
"""The authors' file of vectors, looked for beside the weights and in the folder ``varname_embed`` there."""

SAME_SHARE = 0.01
"""Bands whose wavelengths differ by a larger share are not the same band; Sentinel-2A and 2B differ by less."""

EPOCH = date(1970, 1, 1)


def embed_log(numbers: Sequence[float], low: float, high: float, dim: int) -> Tensor:
    """Embed numbers (n) as (n, dim) float32: sines, then cosines, of waves from `low` to `high`, even in logarithm."""
    waves = np.logspace(np.log10(low), np.log10(high), dim // 2)
    # the weights saw numbers of 32 bits, whose last digits the shortest waves tell apart
    angle = 2 * np.pi * np.asarray(numbers, np.float32).astype(np.float64)[:, None] / waves
    return torch.from_numpy(np.concatenate([np.sin(angle), np.cos(angle)], axis=1).astype(np.float32))


class SpectralPatchEmbed(DynamicPatchEmbed):
    """A patch embedding whose kernel is generated from wavelengths and bandwidths.

    Args:
        spectra: Wavelength and bandwidth of each band in nanometers, in band order.
        dim: Width D of the tokens.
        kernel: Side of the generated kernel, in pixels.
        stride: Side of the patches; a kernel of another side is resampled as FlexiViT does.
    """

    limits = (0.1, 1e6)

    def __init__(
        self, spectra: Sequence[tuple[float, float]], dim: int, kernel: int = 16, stride: int | None = None
    ) -> None:
        super().__init__([wave / 1000 for wave, _ in spectra], dim, kernel, stride)
        self.spectra = tuple((float(wave), float(width)) for wave, width in spectra)

    def codes(self, device: torch.device) -> Tensor:
        """Embed wavelengths and bandwidths, (C, 128) float32."""
        waves, widths = zip(*self.spectra)
        found = embed_log(waves, 100, 1e9, GENERATOR_DIM) + embed_log(widths, 1, 1e9, GENERATOR_DIM)
        return found.to(device)

    def resample(self, kernel: Tensor) -> Tensor:
        """Resample a kernel (D, C, k, k) to the stride."""
        return galileo.resample_patch_kernel(kernel, self.stride)


class VariablePatchEmbed(DynamicPatchEmbed):
    """A patch embedding whose kernel is generated from the vector of a variable's name.

    Args:
        dim: Width D of the tokens.
        kernel: Side of the generated kernel, in pixels.
        stride: Side of the patches.
    """

    language_embed: Tensor

    def __init__(self, dim: int, kernel: int = 16, stride: int | None = None) -> None:
        super().__init__([1.0], dim, kernel, stride)
        self.language_proj = nn.Linear(LANGUAGE_DIM, GENERATOR_DIM)
        self.register_buffer('language_embed', torch.randn(LANGUAGE_DIM))

    def codes(self, device: torch.device) -> Tensor:
        """Project the vector, (1, 128) float32."""
        layer = self.language_proj
        return F.linear(self.language_embed.float(), layer.weight.float(), layer.bias.float())[None]

    def resample(self, kernel: Tensor) -> Tensor:
        """Resample a kernel (D, C, k, k) to the stride."""
        return galileo.resample_patch_kernel(kernel, self.stride)


class CopernicusFM(ViT):
    """Copernicus-FM's encoder: a plain transformer, to whose tokens codes of place, area and time are added.

    Args:
        config: Shape of the transformer.
        patch_embed: Of spectral bands, or of a variable.
        patch: Side of the patches, in pixels.
    """

    knows_resolution = True
    knows_dates = True
    knows_location = True

    def __init__(self, config: ViTConfig, patch_embed: DynamicPatchEmbed, patch: int) -> None:
        super().__init__(config, patch_embed, patch)
        d = config.dim
        self.ground_resolution_m = math.nan  # not known
        self.coord_token, self.scale_token, self.time_token = (nn.Parameter(torch.zeros(1, 1, d)) for _ in range(3))
        self.coord_fc, self.scale_fc, self.time_fc = (nn.Linear(d, d) for _ in range(3))
        for layer in (self.coord_fc, self.scale_fc, self.time_fc):
            vit.init_linear(layer)

    def place(self, patches: Tensor) -> Tensor:
        """Add positions and codes to a map of patches (B, D, h, w), giving the grid (B, h, w, D)."""
        h, w = patches.shape[2:]
        side = round((self.pos_embed.shape[1] - 1) ** 0.5)
        table = self.pos_embed[:, 1:]
        if (h, w) != (side, side):
            square = table.reshape(1, side, side, -1).permute(0, 3, 1, 2)
            resized = F.interpolate(square, size=(h, w), mode='bicubic', align_corners=False, antialias=True)
            table = resized.flatten(2).transpose(1, 2)
        return patches.permute(0, 2, 3, 1) + (table.reshape(1, h, w, -1) + self._codes(patches.shape[0])).to(
            patches.dtype
        )

    def first_tokens(self, x: Tensor) -> Tensor:
        """Return what the first block takes in the native form: tokens (B, 1 + h*w, D) with positions and codes."""
        tokens = self.place(self.embed(x)).flatten(1, 2)
        return self.add_class_token(tokens, self.pos_embed[:, :1] + self._codes(tokens.shape[0])[:, 0])

    def _codes(self, count: int) -> Tensor:
        """Make what place, area and time add to every token of `count` images, (1 or count, 1, 1, D).

        With several dates the images are those of all dates, one image after the other.
        """
        d, device = self.dim, self.pos_embed.device
        place: Tensor = self.coord_token
        area: Tensor = self.scale_token
        when: Tensor = self.time_token
        if self.location is not None:
            lat, lon = self.location
            east, north = np.float32(lon) + np.float32(180), np.float32(lat) + np.float32(90)
            halves = [embed_log([float(value)], 1e-4, 720, d // 2) for value in (east, north)]
            place = torch.cat(halves, dim=1).to(device)[None]
        if not math.isnan(self.ground_resolution_m):
            side_km = self.ground_resolution_m * self.patch / 1000
            area = embed_log([side_km**2], 1e-3, 5.1e8, d).to(device)[None]
        if self.acquired:
            days = [(day - EPOCH).days for day in self.acquired]
            when = embed_log(days, 1, 365.25, d).to(device)[:, None]
            if len(days) > 1:
                when = when.repeat(count // len(days), 1, 1)
        return (self.coord_fc(place) + self.scale_fc(area) + self.time_fc(when))[:, None]


def find_spectra(bands: Sequence[Band]) -> list[tuple[float, float]]:
    """Find wavelength and bandwidth in nanometers of bands, as pretraining had them.

    Raises:
        BandError: If those of a band are not known.
    """
    found = []
    known = get_bands('sentinel2_l1c', list(SPECTRA['sentinel2_l1c']))
    for band in bands:
        if band.is_radar:
            found.append(RADAR_NM)
        elif band.name in OLCI:
            found.append(OLCI[band.name])
        else:
            found.append(SPECTRA['sentinel2_l1c'][_find_sentinel2(band, known).name])
    return found


def _find_sentinel2(band: Band, known: Sequence[Band]) -> Band:
    """Return the band of Sentinel-2 that a band is: a common name alone, such as red, says nothing of bandwidth."""
    advice = 'it knows those of Sentinel-2, of Sentinel-3 OLCI (Oa01 to Oa21) and radar: leave the band out'
    try:
        own = known[match_bands(known, [band])[0]]
    except BandError as error:
        raise BandError(
            f'the bandwidth of {band.name!r} is not known, which Copernicus-FM needs beside its wavelength; {advice}'
        ) from error
    wave, exact = band.wavelength_um, own.wavelength_um
    # B5 of Landsat has the wavelength of B8A of Sentinel-2, and another bandwidth
    bare = re.sub(r'^B0*(?=\d)', 'B', band.name.upper())
    other_name = re.fullmatch(r'B\d+A?', bare) is not None and bare != own.name
    if wave is not None and exact is not None and (other_name or abs(wave - exact) > SAME_SHARE * exact):
        raise BandError(
            f'the bandwidth of {band.name!r} at {wave:g} um is not known, which Copernicus-FM needs beside its '
            f'wavelength; Sentinel-2 {own.name} is at {exact:g} um. {advice[0].upper()}{advice[1:]}, or pass the '
            f'band of Sentinel-2 that is to stand for it'
        )
    return own


def find_variable(bands: Sequence[Band]) -> str | None:
    """Return the name in the authors' file of the one variable that an image is of; None for bands with a spectrum.

    Raises:
        BandError: If a variable comes with other bands.
    """
    names = [band.name for band in bands if band.name in VARIABLES and band.wavelength_um is None]
    if names and len(bands) > 1:
        raise BandError(f'Copernicus-FM takes the variable {names[0]!r} alone, found {len(bands)} bands; leave one out')
    return VARIABLES[names[0]] if names else None


def read_language_vector(weights: Path, variable: str) -> Tensor:
    """Read the vector of a variable's name from the authors' file beside the weights.

    Raises:
        WeightsError: If the file is not there, or lacks the variable.
    """
    places = [weights.parent / LANGUAGE_FILE, weights.parent / 'varname_embed' / LANGUAGE_FILE]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise WeightsError(
            f'the kernel for {variable!r} is made from a vector of its name, which {LANGUAGE_FILE} of '
            f'wangyi111/Copernicus-FM holds; put that file beside {weights}'
        )
    content = loading.load_weights_file(path)
    vector = content.get(variable)
    if not isinstance(vector, Tensor) or vector.numel() != LANGUAGE_DIM:
        raise WeightsError(
            f'{path} holds no vector of {LANGUAGE_DIM} numbers for {variable!r}, found {sorted(content)[:9]}'
        )
    return vector.flatten().float()


@building.register_family('copernicusfm')
def build_copernicusfm(name: str, bands: tuple[Band, ...], options: backbone.BackboneOptions) -> backbone.Backbone:
    """Build Copernicus-FM for bands with a spectrum, or for one variable."""
    record, variable = catalog.get_record(name), find_variable(bands)
    patch = record.patch if options.patch is None else options.patch
    if options.form != 'tokens' and patch not in (4, 8, 16):
        raise BackboneError(f"maps of {name} need patches of 4, 8 or 16 pixels, got patch={patch}; or form='tokens'")
    if patch < 4:
        raise BackboneError(f'{name} takes patches of 4 pixels or more, got patch={patch}')
    spectra = None if variable is not None else find_spectra(bands)
    checkpoint = building.read_checkpoint(record, bands, options)
    config = building.make_config(record, options, checkpoint=checkpoint)
    embed: DynamicPatchEmbed
    if spectra is None:
        embed = VariablePatchEmbed(record.dim, record.patch, patch)
    else:
        embed = SpectralPatchEmbed(spectra, record.dim, record.patch, patch)
    trunk = CopernicusFM(config, embed, patch)
    report = None
    if checkpoint is None:
        embed.strengthen()
    else:
        checkpoint = _choose_embedding(checkpoint, variable)
        missing = () if options.form == 'tokens' else ('norm.*',)
        report = building.load_checkpoint(trunk, checkpoint, options, may_be_missing=missing)
    return backbone.finish_backbone(name, trunk, options, load_report=report)


def _choose_embedding(checkpoint: building.Checkpoint, variable: str | None) -> building.Checkpoint:
    """Take the published patch embedding that is needed, of two; a state of `CopernicusFM` stays as it is."""
    state = checkpoint.state
    if any(name.startswith('patch_embed.') for name in state):
        return checkpoint
    kept, other = ('spectral', 'variable') if variable is None else ('variable', 'spectral')
    unused = [name for name in state if name.startswith(f'patch_embed_{other}.')]
    left = building.Checkpoint(
        {name: value for name, value in state.items() if name not in unused},
        (*checkpoint.dropped, *unused),
        checkpoint.resized,
        checkpoint.source,
    )
    renamed = building.rename(left, [(rf'^patch_embed_{kept}\.', 'patch_embed.')])
    if variable is not None and 'patch_embed.language_embed' not in renamed.state:
        path = Path(checkpoint.source.partition(' (')[0])
        renamed.state['patch_embed.language_embed'] = read_language_vector(path, variable)
    return renamed
