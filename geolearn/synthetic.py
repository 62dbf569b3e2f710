"""Make scenes whose labels follow from their pixels: the demo and many tests run on them.

A scene is drawn in four steps: what hides the ground (border, clouds), where the classes lie, what each pixel is made
of (mixtures of spectra with texture), and what the sensor sees (light, shade, haze, blur, noise). Shares of classes
are quantiles of what stays visible, so every class is there for every seed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from affine import Affine
from numpy.random import Generator
from rasterio.features import sieve
from scipy import ndimage

from geolearn.classes import ClassInfo
from geolearn.raster import write_raster

BAND_NAMES = ('B02', 'B03', 'B04', 'B05', 'B06', 'B07', 'B08', 'B8A', 'B11', 'B12')

CLASSES = (
    ClassInfo(1, 'water', (46, 116, 196)),
    ClassInfo(2, 'forest', (24, 96, 48)),
    ClassInfo(3, 'grass', (140, 200, 90)),
    ClassInfo(4, 'cropland', (236, 200, 72)),
    ClassInfo(5, 'bare soil', (158, 112, 74)),
    ClassInfo(6, 'built-up', (206, 60, 60)),
)

WATER, FOREST, GRASS, CROP, SOIL, BUILT = (info.value for info in CLASSES)

MIN_REGION = 150
"""Smallest region of one class in pixels, before clouds and border cut it, in a scene of 512 pixels a side or more."""

# Reflectance in percent by band: two ends for each class (in the order of CLASSES) between which its pixels vary.
# Shapes follow the water, vegetation, soil and man-made chapters of the USGS Spectral Library Version 7 (Kokaly et al.
# 2017, USGS Data Series 1035) and the ECOSTRESS library (Meerdink et al. 2019, Remote Sensing of Environment 230,
# 111196), rounded by hand at the band centers; plants are lowered from leaf to canopy, whose gaps lie in shade.
_ENDS = (
    ((3.6, 3.4, 1.9, 1.6, 1.3, 1.2, 1.0, 0.9, 0.5, 0.4), (6.2, 7.4, 5.6, 4.6, 2.6, 2.5, 2.0, 1.8, 0.7, 0.5)),
    ((2.4, 3.9, 2.3, 6.4, 17.5, 21.5, 23.5, 24, 10.5, 4.9), (3.2, 6.2, 3.2, 10.8, 31, 38, 40, 41, 18.5, 8.4)),
    ((5.0, 8.2, 6.0, 12.5, 26, 30.5, 33, 34, 24, 13.5), (6.8, 9.8, 10, 15, 22.5, 25.5, 27.5, 29, 29.5, 19.5)),
    ((3.2, 6.6, 3.3, 11, 42, 53, 56, 57, 20, 9.4), (8.2, 11.6, 15.6, 19.5, 25, 28, 30.5, 32, 33.5, 24)),
    ((5.4, 7.4, 9.6, 11, 12.4, 13.6, 14.8, 15.8, 21, 18.5), (10.8, 14.6, 19.6, 22, 24, 25.6, 27.2, 28.8, 38, 34)),
    ((9, 9.8, 10.4, 10.8, 11.4, 11.8, 12.2, 12.6, 13.6, 13), (14.5, 17, 22, 24, 25.5, 27, 28, 29, 31, 28)),
)

_PLANTS = np.array((3.8, 7.2, 4.0, 12, 36, 44, 47, 48, 21, 10), np.float32) / 100  # gardens, weeds, field margins

_CLOUD = np.array((66, 66, 67, 68, 69, 69, 70, 70, 54, 42), np.float32) / 100

_NOISE = np.array((11, 11, 12, 13, 14, 15, 18, 16, 13, 12), np.float32) / 10000  # standard deviation of reflectance

_HAZE = (
    0.49 / np.array((0.49, 0.56, 0.665, 0.705, 0.74, 0.783, 0.842, 0.865, 1.61, 2.19), np.float32)
) ** 2  # by wavelength

# Sentinel-2 sees B05, B06, B07, B8A, B11 and B12 at 20 m: on a 10 m grid they are softer.
_BLUR_PX = tuple(0.7 if name in ('B02', 'B03', 'B04', 'B08') else 1.1 for name in BAND_NAMES)

_SHARES = {WATER: 0.10, BUILT: 0.11, FOREST: 0.24}  # in the order in which they take their place

_OPEN_LAND = {GRASS: 0.34, CROP: 0.42, SOIL: 0.24}  # of what water, towns and forest leave

_OPAQUE = 0.3  # cloud cover from which the ground counts as hidden


@dataclass(frozen=True)
class Scene:
    """An image with the labels it was drawn from.

    Args:
        image: Reflectance x 10000, (10, height, width) uint16; 0 is NoData. Of radar, linear power (2, height, width)
            float32.
        label: Class values 1..6, (height, width) uint8; 0 beyond the border and under cloud.
        band_names: Names of the bands, in the order of `image`.
        classes: The six classes.
        transform: Pixel to map coordinates in meters, north up, 10 m a pixel.
        crs: Coordinate reference system, such as ``'EPSG:32633'``.
    """

    image: np.ndarray
    label: np.ndarray
    band_names: tuple[str, ...]
    classes: tuple[ClassInfo, ...]
    transform: Affine
    crs: str


@dataclass(frozen=True)
class _Land:
    label: np.ndarray  # class values, also under cloud; all arrays are (height, width)
    field: np.ndarray  # number of the field, 0..n-1
    across: np.ndarray  # pixels across the field's rows
    town: np.ndarray  # 1 in the center of a town, falling outwards


def make_scene(
    size: int | tuple[int, int] = 768, *, seed: int = 0, cloud_fraction: float = 0.05, border: bool = True
) -> Scene:
    """Draw a landscape as Sentinel-2 would see it; the same arguments give the same bytes.

    Args:
        size: Pixels a side, or (height, width); 64 at least. Below 512 the landscape shrinks with the scene.
        seed: Chooses the landscape, its season and its air. Seeds 0..99 lie side by side, 10 km apart.
        cloud_fraction: Share of pixels under opaque cloud, 0..0.5.
        border: Whether a slanted wedge of 3-6 % along one side has no data, as at the edge of an orbit.
    """
    shape = (size, size) if isinstance(size, int) else size
    if min(shape) < 64:
        raise ValueError(f'a scene needs 64 pixels a side to hold its six classes, got {shape}')
    if not 0 <= cloud_fraction <= 0.5:
        raise ValueError(f'cloud_fraction must lie in 0..0.5, got {cloud_fraction}')
    sky, ground, surface, sensor = np.random.default_rng(seed).spawn(4)
    cloud = _cloud(sky, shape, cloud_fraction)
    inside = _inside(sky, shape) if border else np.ones(shape, bool)
    seen = inside & (cloud < _OPAQUE)
    land = _land(ground, seen)
    image = np.where(inside, _sense(sensor, _reflectance(surface, land), cloud), 0).astype(np.uint16)
    place = Affine(10, 0, 399960 + 10000 * (seed % 10), 0, -10, 5400000 - 10000 * (seed // 10 % 10))
    return Scene(image, np.where(seen, land.label, 0).astype(np.uint8), BAND_NAMES, CLASSES, place, 'EPSG:32633')


def write_scene(scene: Scene, image_path: str | Path, label_path: str | Path) -> None:
    """Write the image and its labels as two GeoTIFFs whose NoData is 0; that of labels only where 0 is no class."""
    write = partial(write_raster, transform=scene.transform, crs=scene.crs, compress='deflate')
    sensor = {} if scene.band_names == AERIAL_BANDS else {'SensorName': 'Sentinel-2'}
    write(image_path, scene.image, band_names=scene.band_names, tags=sensor, nodata=0)
    names = {f'class_{info.value}': info.name for info in scene.classes}
    nodata = None if any(info.value == 0 for info in scene.classes) else 0
    colors = {info.value: info.color for info in scene.classes}
    write(label_path, scene.label, colors=colors, tags=sensor | names, nodata=nodata)


RADAR_BANDS = ('VV', 'VH')

RADAR_CLASSES = (
    ClassInfo(1, 'even', (190, 190, 190)),
    ClassInfo(2, 'forest', (24, 96, 48)),
    ClassInfo(3, 'patchy', (140, 200, 90)),
    ClassInfo(4, 'rows north-south', (236, 200, 72)),
    ClassInfo(5, 'rows east-west', (158, 112, 74)),
    ClassInfo(6, 'built-up', (206, 60, 60)),
)
"""Kinds of land that differ in texture alone: all have the same mean backscatter."""

_BACKSCATTER = np.array((0.1, 0.02), np.float32)  # mean of each band, linear power

_CORRELATION = {2: (1.2, 1.2), 3: (5.0, 5.0), 4: (16.0, 0.8), 5: (0.8, 16.0)}  # of the texture, in rows and columns

_POINTS = 0.02  # share of the pixels of built-up land that are corners of buildings

_BRIGHTNESS = 0.05  # spread of the brightness of fields, in powers of ten

_RADAR_FIELD_PX = 90  # about the side of a field


def make_radar_scene(size: int | tuple[int, int] = 768, *, seed: int = 0, looks: float = 4.0) -> Scene:
    """Draw land of six textures as a radar would see it, in linear power; the same arguments give the same bytes.

    Intensity is the texture times speckle of known statistics, which follows a gamma distribution of mean 1 and shape
    `looks`. Every field has a brightness of its own, so that the mean says nothing of the class.

    Args:
        size: Pixels a side, or (height, width).
        seed: Chooses fields, textures and speckle.
        looks: Number of looks; fewer are noisier.
    """
    shape = (size, size) if isinstance(size, int) else size
    layout, ground, speckle = np.random.default_rng(seed).spawn(3)
    count = max(2 * len(RADAR_CLASSES), shape[0] * shape[1] // _RADAR_FIELD_PX**2)
    field = _nearest(shape, layout.random((count, 2)) * shape)
    classes = layout.permutation(np.arange(count) % len(RADAR_CLASSES) + 1)
    brightness = 10 ** layout.normal(0, _BRIGHTNESS, count)
    label = classes[field].astype(np.uint8)
    texture = np.ones(shape, np.float32)
    for info in RADAR_CLASSES:
        texture = np.where(label == info.value, radar_texture(ground, shape, info.value), texture)
    image = _speckled(speckle, texture * brightness[field].astype(np.float32), looks)
    place = Affine(10, 0, 399960, 0, -10, 5400000)
    return Scene(image, label, RADAR_BANDS, RADAR_CLASSES, place, 'EPSG:32633')


def make_radar_chips(count: int, size: int = 48, *, seed: int = 0, looks: float = 4.0) -> tuple[np.ndarray, np.ndarray]:
    """Draw chips of one texture each, as `make_radar_scene` does.

    Args:
        count: Chips of each class.
        size: Side in pixels.
        seed: Chooses textures, brightness and speckle.
        looks: Number of looks.

    Returns:
        Images (chips, 2, size, size) float32 of linear power, and class values (chips,).
    """
    rng = np.random.default_rng(seed)
    values = rng.permutation(np.repeat([info.value for info in RADAR_CLASSES], count))
    images = [
        _speckled(rng, radar_texture(rng, (size, size), int(v)) * np.float32(10 ** rng.normal(0, _BRIGHTNESS)), looks)
        for v in values
    ]
    return np.stack(images), values


def radar_texture(rng: Generator, shape: tuple[int, int], value: int) -> np.ndarray:
    """Return the texture (height, width) of a radar class, float32 of mean 1; all but one spread by the same amount."""
    if value in _CORRELATION:
        field = _smooth_along(rng, shape, _CORRELATION[value])
        texture = np.exp(rng.uniform(0.5, 0.8) * field)
        return (texture / texture.mean()).astype(np.float32)
    if value == len(RADAR_CLASSES):
        texture = 1 + rng.exponential(12, shape) * (rng.random(shape) < _POINTS)
        return (texture / texture.mean()).astype(np.float32)
    return np.ones(shape, np.float32)


def _smooth_along(rng: Generator, shape: tuple[int, int], sigmas: tuple[float, float]) -> np.ndarray:
    """Return a smooth random field of mean 0 and spread 1, whose correlation differs in rows and columns."""
    spectrum = np.fft.rfft2(rng.standard_normal(shape))
    rows, cols = np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None]
    kernel = np.exp(-2 * np.pi**2 * ((sigmas[0] * rows) ** 2 + (sigmas[1] * cols) ** 2))
    field: np.ndarray = np.fft.irfft2(spectrum * kernel, shape)
    return (field - field.mean()) / max(field.std(), 1e-9)


def _speckled(rng: Generator, texture: np.ndarray, looks: float) -> np.ndarray:
    """Return what both bands measure of a texture: its power times speckle of its own in each."""
    noise = rng.gamma(looks, 1 / looks, (len(RADAR_BANDS), *texture.shape)).astype(np.float32)
    return _BACKSCATTER[:, None, None] * texture * noise


AERIAL_BANDS = ('Red', 'Green', 'Blue')

ROAD_CLASSES = (ClassInfo(0, 'other', (120, 120, 120)), ClassInfo(1, 'road', (230, 190, 60)))

_TREES = 0.25  # share of the length of roads near which a tree may hide them
_SIGNS = 4.0  # pixels between two points of a road


def make_road_scene(
    size: int | tuple[int, int] = 256, *, seed: int = 0, trees: float = _TREES
) -> tuple[Scene, tuple[np.ndarray, ...]]:
    """Draw an aerial image of land with roads, which trees hide in places; the same arguments give the same bytes.

    Roads join in crossings and leave the scene. Bare fields and yards have their color, so that shape must tell.

    Args:
        size: Pixels a side, or (height, width).
        seed: Chooses land, roads and trees.
        trees: How many trees stand beside roads: one for each hundred pixels of road times this times ten.

    Returns:
        The scene, 8-bit, with label 1 on roads, under trees too; and the center lines of the roads, points (k, 2) in
        pixels; those that begin in one place share that end.
    """
    shape = (size, size) if isinstance(size, int) else size
    layout, ground, sensor = np.random.default_rng(seed).spawn(3)
    lines, widths = _roads(layout, shape)
    road = np.zeros(shape, bool)
    for line, width in zip(lines, widths):
        road |= _near_line(line, shape) <= width / 2
    fields = _nearest(shape, ground.random((max(8, shape[0] * shape[1] // 2500), 2)) * shape)
    tone = ground.normal(0, 0.05, fields.max() + 1)[fields] + 0.04 * smooth_noise(ground, shape, 6)
    bare = (ground.random(fields.max() + 1) < 0.15)[fields]
    colors = {'grass': (70, 105, 60), 'bare': (150, 140, 128), 'road': (158, 150, 142), 'tree': (38, 66, 34)}
    image = np.array(colors['grass'])[:, None, None] * (1 + 3 * tone)
    image = np.where(bare, np.array(colors['bare'])[:, None, None] * (1 + tone), image)
    image = np.where(road, np.array(colors['road'])[:, None, None] * (1 + 0.5 * tone), image)
    total = sum(len(line) for line in lines) * _SIGNS
    hidden = np.zeros(shape, bool)
    rows, cols = np.indices(shape)
    for _ in range(round(total / 100 * trees * 10)):
        line = lines[int(layout.integers(len(lines)))]
        col, row = line[int(layout.integers(len(line)))] + layout.normal(0, 3, 2)
        hidden |= np.hypot(rows - row, cols - col) < layout.uniform(2, 5)
    image = np.where(hidden, np.array(colors['tree'])[:, None, None] * (1 + 4 * tone), image)
    image = np.stack([_blur(band, 0.7) for band in image]) + sensor.normal(0, 5, image.shape)
    place = Affine(0.5, 0, 400_000, 0, -0.5, 5_400_000)
    pixels = image.round().clip(1, 255).astype(np.uint8)
    return Scene(pixels, road.astype(np.uint8), AERIAL_BANDS, ROAD_CLASSES, place, 'EPSG:32633'), lines


PANOPTIC_CLASSES = (
    ClassInfo(1, 'grass', (120, 170, 90)),
    ClassInfo(2, 'water', (60, 110, 190)),
    ClassInfo(3, 'house', (190, 80, 60)),
    ClassInfo(4, 'tree', (30, 90, 40)),
)
"""Two kinds of stuff, and two of things: houses and trees."""


def make_panoptic_scene(
    size: int | tuple[int, int] = 256, *, seed: int = 0
) -> tuple[Scene, tuple[tuple[int, np.ndarray], ...]]:
    """Draw grass and water with houses and round trees, of which some touch; same arguments, same bytes.

    Args:
        size: Pixels a side, or (height, width).
        seed: Chooses all of it.

    Returns:
        The scene, 8-bit; and of each object its class value and its mask (height, width). No two overlap.
    """
    shape = (size, size) if isinstance(size, int) else size
    layout, ground = np.random.default_rng(seed).spawn(2)
    rows, cols = np.indices(shape)
    water = smooth_noise(layout, shape, 0.12 * min(shape)) > 0.6
    label = np.where(water, 2, 1).astype(np.uint8)
    taken = water.copy()
    objects: list[tuple[int, np.ndarray]] = []
    for _ in range(round(shape[0] * shape[1] / 400)):
        row, col = layout.uniform(0, shape[0]), layout.uniform(0, shape[1])
        if layout.random() < 0.5:
            angle, (high, wide) = layout.uniform(0, np.pi), layout.uniform(4.5, 9, 2)
            along = (cols - col) * np.cos(angle) + (rows - row) * np.sin(angle)
            across = (rows - row) * np.cos(angle) - (cols - col) * np.sin(angle)
            value, mask = 3, (np.abs(along) < wide) & (np.abs(across) < high)
        else:
            value, mask = 4, np.hypot(rows - row, cols - col) < layout.uniform(4.5, 8)
        if mask.any() and not (mask & taken).any():
            objects.append((value, mask))
            taken |= mask
            label[mask] = value
    colors = np.array([(0, 0, 0), (95, 140, 75), (50, 80, 120), (190, 110, 90), (35, 75, 40)], np.float64)
    image = colors[label].transpose(2, 0, 1) * (1 + 0.06 * smooth_noise(ground, shape, 3))
    image = np.stack([_blur(band, 0.6) for band in image]) + ground.normal(0, 6, (3, *shape))
    place = Affine(0.5, 0, 400_000, 0, -0.5, 5_400_000)
    pixels = image.round().clip(1, 255).astype(np.uint8)
    return Scene(pixels, label, AERIAL_BANDS, PANOPTIC_CLASSES, place, 'EPSG:32633'), tuple(objects)


def _roads(rng: Generator, shape: tuple[int, int]) -> tuple[tuple[np.ndarray, ...], list[float]]:
    """Return lines between places that lie apart, and from some of them out of the scene, and their widths."""
    height, width = shape
    places: list[np.ndarray] = []
    while len(places) < max(3, round(height * width / 80**2 / 2)):
        place = rng.uniform(0.12, 0.88, 2) * (width, height)
        if all(np.hypot(*(place - other)) > 0.22 * min(shape) for other in places):
            places.append(place)
        elif rng.random() < 0.02:
            break
    pairs, tied = [], [0]
    for number in range(1, len(places)):
        nearest = min(tied, key=lambda other: float(np.hypot(*(places[other] - places[number]))))
        pairs.append((places[nearest], places[number]))
        tied.append(number)
    sides = [(-20, None), (width + 20, None), (None, -20), (None, height + 20)]
    for number, (x, y) in zip(rng.permutation(len(places)), sides):
        x0, y0 = places[number]
        goal = np.array([x0 + rng.normal(0, 15) if x is None else x, y0 + rng.normal(0, 15) if y is None else y])
        pairs.append((places[number], goal))
    lines, widths = [], []
    for start, end in pairs:
        length = float(np.hypot(*(end - start)))
        along = np.linspace(0, 1, max(2, round(length / _SIGNS)))[:, None]
        across = np.array([start[1] - end[1], end[0] - start[0]]) / max(length, 1)
        bend = 0.08 * length * rng.normal() * np.sin(np.pi * along)
        lines.append(start + along * (end - start) + bend * across)
        widths.append(float(rng.uniform(4, 8)))
    return tuple(lines), widths


def _near_line(line: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return the distance (height, width) of the middle of each pixel from a line's points and what lies between."""
    steps = np.linspace(0, len(line) - 1, 4 * len(line))
    x, y = (np.interp(steps, np.arange(len(line)), line[:, axis]) for axis in (0, 1))
    margin = 24
    marks = np.ones((shape[0] + 2 * margin, shape[1] + 2 * margin), bool)
    rows, cols = np.floor(y).astype(int) + margin, np.floor(x).astype(int) + margin
    inside = (rows >= 0) & (rows < marks.shape[0]) & (cols >= 0) & (cols < marks.shape[1])
    marks[rows[inside], cols[inside]] = False
    far: np.ndarray = ndimage.distance_transform_edt(marks)
    return far[margin:-margin, margin:-margin]


def _inside(rng: Generator, shape: tuple[int, int]) -> np.ndarray:
    """True where the satellite looked; its track leans 8-12 degrees from north."""
    rows, cols = np.indices(shape)
    into = cols * rng.choice((-1, 1)) + rows * np.tan(np.radians(rng.uniform(8, 12)))
    return into > np.quantile(into, rng.uniform(0.03, 0.06))


def _cloud(rng: Generator, shape: tuple[int, int], fraction: float) -> np.ndarray:
    """Cloud cover 0..1 with soft edges, at least _OPAQUE over `fraction` of the scene."""
    puffs = sum(part * smooth_noise(rng, shape, px * _scale(shape)) for part, px in ((1, 24), (0.3, 8), (0.12, 3)))
    floor = np.quantile(puffs, 1 - fraction) if fraction else np.inf
    return np.clip(_OPAQUE + (puffs - floor) / 0.8, 0, 1)


def _land(rng: Generator, seen: np.ndarray) -> _Land:
    """Lay out the classes so that each has its share of the `seen` pixels."""
    shape, scale = seen.shape, _scale(seen.shape)
    (field, across), town = _fields(rng, shape), _towns(rng, shape)
    woods = smooth_noise(rng, shape, 30 * scale) + 0.3 * smooth_noise(rng, shape, 9 * scale)
    label = np.zeros(shape, np.uint8)
    for value, score in ((WATER, _waters(rng, shape)), (BUILT, town), (FOREST, woods)):
        free = label == 0
        pool = score[free & seen]
        label[free & (score >= np.quantile(pool, 1 - _SHARES[value] * seen.sum() / pool.size))] = value
    free = label == 0
    label[free] = _field_classes(rng, field, free & seen)[field[free]]
    return _Land(sieve(label, max(4, round(MIN_REGION * scale**2)), connectivity=4), field, across, town)


def _waters(rng: Generator, shape: tuple[int, int]) -> np.ndarray:
    """Score that is 9 in a winding river and elsewhere highest where lakes would lie, in standard deviations."""
    scale = _scale(shape)
    along, off = _rotate(shape, rng.uniform(0, np.pi))
    steps = np.arange(-1.5 * max(shape), 1.5 * max(shape))
    bends, width = (smooth_noise(rng, (1, steps.size), px * scale)[0] for px in (45, 60))
    bends = 28 * scale * bends + rng.uniform(-0.2, 0.2) * min(shape)
    width = (9 + 2.5 * width) * np.sqrt(scale) * np.hypot(1, np.gradient(bends))  # measured askew where the river turns
    river = np.abs(off - np.interp(along, steps, bends)) < np.interp(along, steps, width)
    return np.where(river, 9, smooth_noise(rng, shape, 40 * scale) + 0.15 * smooth_noise(rng, shape, 14 * scale))


def _towns(rng: Generator, shape: tuple[int, int]) -> np.ndarray:
    """Nearness to one town and three villages, ragged at the edge."""
    rows, cols = np.indices(shape)
    near = np.full(shape, -np.inf)
    for radius in (1.0, 0.5, 0.36, 0.3):
        row, col = rng.uniform(0.12, 0.88, 2) * shape
        near = np.maximum(near, 1 - np.hypot(rows - row, cols - col) / (radius * 0.25 * min(shape)))
    return near + 0.12 * smooth_noise(rng, shape, 12 * _scale(shape)) + 0.04 * smooth_noise(rng, shape, 3)


def _fields(rng: Generator, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Number of the field of each pixel, and pixels across its rows; blocks of fields share a direction."""
    scale = _scale(shape)
    block = _nearest(shape, rng.uniform(-0.1, 1.1, (12, 2)) * shape)
    along, across = _rotate(shape, (rng.uniform(0, np.pi) + rng.normal(0, 0.35, 12))[block])
    strip = np.floor(across / (rng.uniform(45, 80, 12) * scale)[block]).astype(int) % 64
    widths, starts = rng.uniform(55, 120, (12, 64)) * scale, rng.uniform(0, 100, (12, 64))
    cell = np.floor((along + starts[block, strip]) / widths[block, strip]).astype(int)
    key = (block * 64 + strip) * 4096 + cell + 2048
    return np.unique(key, return_inverse=True)[1].reshape(shape), across


def _field_classes(rng: Generator, field: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Class of each field: meadows keep to one part of the land, bare fields lie scattered among crops."""
    area = np.bincount(field[counted], minlength=field.max() + 1)
    wet = smooth_noise(rng, field.shape, 70 * _scale(field.shape))
    wet_field = np.bincount(field.ravel(), wet.ravel()) / np.bincount(field.ravel())
    order = np.argsort(wet_field + rng.normal(0, 0.8, area.size))
    middle = np.empty(area.size)
    middle[order] = np.cumsum(area[order]) - area[order] / 2
    ends = np.cumsum(list(_OPEN_LAND.values()))[:-1] * area.sum()
    return np.array(list(_OPEN_LAND), np.uint8)[np.searchsorted(ends, middle)]


def _reflectance(rng: Generator, land: _Land) -> np.ndarray:
    """Reflectance 0..1 of the ground, (10, height, width) float32."""
    shape = land.label.shape
    mix, plants, tone = parts = np.zeros((3, *shape), np.float32)
    for value, textures in _textures(rng, land).items():
        here = land.label == value
        for part, texture in zip(parts, textures):
            part[here] = np.broadcast_to(texture, shape)[here]
    start, end = np.moveaxis(np.array(_ENDS, np.float32) / 100, 1, 0)[:, land.label - 1]
    pixels = start + np.clip(mix, 0, 1)[..., None] * (end - start)
    pixels += np.clip(plants, 0, 0.8)[..., None] * (_PLANTS - pixels)
    return np.moveaxis(pixels * np.clip(tone, 0.35, 1.8)[..., None], -1, 0)


def _textures(rng: Generator, land: _Land) -> Mapping[int, tuple[np.ndarray | float, ...]]:
    """By class: place between its two spectra, share of other plants, and brightness around 1."""
    shape, count = land.label.shape, land.field.max() + 1
    coarse, middle, fine, grain = (smooth_noise(rng, shape, px) for px in (25 * _scale(shape), 6, 1.0, 0.6))
    ripe = np.clip(rng.beta(1.3, 0.9, count) + rng.uniform(-0.1, 0.1), 0, 1)[land.field]  # by field and season
    bright = (1 + 0.07 * rng.standard_normal(count))[land.field]
    weeds = (0.3 * rng.beta(1, 3, count))[land.field]
    rows = np.sin(2 * np.pi * land.across / rng.uniform(3.2, 6.5, count)[land.field])
    margin = 0.4 * np.logical_or(*(np.gradient(land.field, axis=axis) != 0 for axis in (0, 1)))
    roof, street = _streets(rng, shape)
    gardens = np.clip(0.42 - 0.5 * land.town + 0.1 * middle, 0.03, 0.55) * np.where(street, 0.4, 1)
    return {
        WATER: (0.35 + 0.3 * coarse, 0.0, 1 + 0.02 * middle),
        FOREST: (0.45 + 0.25 * coarse + 0.12 * middle + 0.1 * fine, 0.0, 1 + 0.09 * fine - 0.1 * np.abs(grain)),
        GRASS: (0.5 * ripe + 0.05 + 0.1 * middle, 0.0, bright + 0.04 * fine),
        CROP: (ripe + 0.05 * middle + 0.035 * rows, margin, bright + 0.035 * rows + 0.02 * fine),
        SOIL: (0.45 + 2.2 * (bright - 1) + 0.15 * middle + 0.04 * rows, weeds + margin, 1 + 0.02 * rows + 0.03 * grain),
        BUILT: (np.where(street, 0.1, roof + 0.1 * middle), gardens, 0.85 + 0.3 * roof + 0.08 * grain),
    }


def _streets(rng: Generator, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Brightness of the roofs 0..1 by house block, and True on the streets between; quarters differ in direction."""
    quarter = _nearest(shape, rng.uniform(0, 1, (60, 2)) * shape)
    pitch = rng.uniform(3.5, 6.5, (2, 60))[:, quarter]
    first, second = np.stack(_rotate(shape, rng.uniform(0, np.pi, 60)[quarter])) / pitch
    house = np.floor(first).astype(int) * 101 + np.floor(second).astype(int) + quarter * 17
    roof = rng.beta(1.2, 1.2, 4999)[house % 4999] * 0.7 + rng.uniform(0, 0.3, 60)[quarter]
    return roof, (first % 1 < 1.2 / pitch[0]) | (second % 1 < 1.2 / pitch[1])


def _sense(rng: Generator, ground: np.ndarray, cloud: np.ndarray) -> np.ndarray:
    """Put light, shade, haze, cloud, blur and noise on the ground's reflectance; returns 1..12000."""
    shape, scale = cloud.shape, _scale(cloud.shape)
    slope = _rotate(shape, rng.uniform(0, 2 * np.pi))[0] / max(shape)
    light = 1 + 0.06 * slope + 0.025 * smooth_noise(rng, shape, 30 * scale) + rng.uniform(-0.04, 0.04)
    # The morning sun stands in the south-east. Smoothed noise wraps around, so a roll is a cloud from beyond the edge.
    shade = np.roll(cloud, (-round(22 * scale), -round(9 * scale)), (0, 1))
    tops = 1 + 0.05 * smooth_noise(rng, shape, 5)
    haze = rng.uniform(0.002, 0.014) * (1 + 0.15 * smooth_noise(rng, shape, 80 * scale))
    seen = np.empty(ground.shape, np.float32)
    for band, scatter in enumerate(_HAZE):
        sunlit = ground[band] * light * (1 - (0.75 - 0.3 * scatter) * shade)  # the blue sky lights what lies in shade
        hazy = sunlit + haze * scatter
        seen[band] = _blur(hazy + cloud * (_CLOUD[band] * tops - hazy), _BLUR_PX[band])
        seen[band] += rng.normal(0, _NOISE[band], shape)
    return np.clip(np.rint(seen * 10000), 1, 12000)


def _scale(shape: tuple[int, ...]) -> float:
    """Size of landscape features: 1 from 512 pixels a side on."""
    return min(1.0, min(shape) / 512)


def _rotate(shape: tuple[int, int], angle: float | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels from the center along and across a direction in radians."""
    rows, cols = np.indices(shape, np.float32) - np.array(shape, np.float32)[:, None, None] / 2
    return cols * np.cos(angle) + rows * np.sin(angle), rows * np.cos(angle) - cols * np.sin(angle)


def _nearest(shape: tuple[int, int], points: np.ndarray) -> np.ndarray:
    """Index of the nearest of the points (row, column): a Voronoi map."""
    rows, cols = np.indices(shape, np.float32)
    nearest, least = np.zeros(shape, np.int64), np.full(shape, np.inf, np.float32)
    for index, (row, col) in enumerate(points.astype(np.float32)):
        distance = (rows - row) ** 2 + (cols - col) ** 2
        nearest[distance < least] = index
        np.minimum(least, distance, out=least)
    return nearest


def smooth_noise(rng: Generator, shape: tuple[int, int], sigma: float) -> np.ndarray:
    """Gaussian noise smoothed over `sigma` pixels, mean 0 and standard deviation 1; it wraps around."""
    waves = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1]))
    spectrum = np.fft.rfft2(rng.standard_normal(shape)) * np.exp(-2 * (np.pi * sigma * waves) ** 2)
    spectrum[0, 0] = 0
    noise = np.fft.irfft2(spectrum, s=shape)
    return (noise / noise.std()).astype(np.float32)


def _blur(pixels: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur over `sigma` pixels; edges are repeated."""
    taps = np.exp(-0.5 * (np.arange(-3, 4) / sigma) ** 2)
    taps /= taps.sum()
    wide = np.pad(pixels, 3, mode='edge')
    tall = np.sum([tap * wide[i : i + pixels.shape[0]] for i, tap in enumerate(taps)], axis=0)
    return np.sum([tap * tall[:, i : i + pixels.shape[1]] for i, tap in enumerate(taps)], axis=0)
