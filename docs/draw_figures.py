"""Draw the figures of the documentation from the scenes and the model of `make demo`.

make demo
.venv/bin/python docs/draw_figures.py demo_output docs/images
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import rasterio
from matplotlib.patches import Patch

from geolearn import load_model
from geolearn.plotting.figure import Figure

DPI = 75


def read(path: Path, index: int = 1) -> np.ndarray:
    """Return a band, NaN where there is no data."""
    with rasterio.open(path) as src:
        return src.read(index, masked=True).astype(np.float32).filled(np.nan)


def true_color(path: Path) -> np.ndarray:
    """Return red, green and blue (height, width, 3) in 0..1, stretched together."""
    with rasterio.open(path) as src:
        names = src.descriptions
        bands = np.stack([src.read(names.index(name) + 1) for name in ('B04', 'B03', 'B02')], axis=-1).astype(
            np.float32
        )
    low, high = np.percentile(bands[bands.min(axis=-1) > 0], (1, 90))
    return np.clip((bands - low) / (high - low), 0, 1)


def colored(path: Path) -> tuple[np.ndarray, dict[str, tuple[float, ...]]]:
    """Return a map (height, width, 4) in the colors that it stores, and the color of each class."""
    with rasterio.open(path) as src:
        values, colors, tags = src.read(1), src.colormap(1), src.tags(1)
    table = np.zeros((256, 4), np.uint8)
    for value, color in colors.items():
        table[value] = color
    if src.nodata is not None:
        table[int(src.nodata)] = 0
    names = {
        text: value for key, text in tags.items() if key.startswith('class_') and (value := int(key[6:])) in colors
    }
    return table[values], {name: tuple(part / 255 for part in colors[value]) for name, value in names.items()}


def panels(count: int, height: float = 3.6) -> tuple[Figure, list]:
    """Return a figure of images side by side."""
    figure = Figure(figsize=(height * count, height + 0.7), layout='constrained')
    axes = list(figure.subplots(1, count, squeeze=False)[0])
    for ax in axes:
        ax.set_axis_off()
    return figure, axes


def draw_map(scene: Path, made: Path, out: Path) -> None:
    """A scene, its map, and how confident the model is."""
    figure, axes = panels(3)
    classes, names = colored(made)
    axes[0].imshow(true_color(scene))
    axes[1].imshow(classes, interpolation='nearest')
    shown = axes[2].imshow(read(made.with_name(f'{made.stem}_confidence.tif')) / 250, vmin=0.3, vmax=1, cmap='viridis')
    for ax, title in zip(axes, ('scene', 'map', 'confidence')):
        ax.set_title(title)
    figure.colorbar(shown, ax=axes[2], shrink=0.8)
    figure.legend(handles=[Patch(color=color, label=name) for name, color in names.items()], ncols=6,
                  loc='outside lower center', frameon=False)  # fmt: skip
    figure.savefig(out, dpi=DPI)


def draw_seams(scene: Path, paths: dict[str, Path], corner: tuple[int, int], side: int, out: Path) -> None:
    """A part of a scene, and how its map looks where tiles are cut and where they fade into each other."""
    rows, cols = slice(corner[0], corner[0] + side), slice(corner[1], corner[1] + side)
    figure, axes = panels(1 + len(paths))
    axes[0].imshow(true_color(scene)[rows, cols])
    axes[0].set_title('scene')
    for ax, (title, path) in zip(axes[1:], paths.items()):
        ax.imshow(read(path)[rows, cols] / 250, vmin=0.3, vmax=1, cmap='viridis')
        ax.set_title(title)
    figure.savefig(out, dpi=DPI)


def main() -> None:
    """Draw all figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('demo', type=Path, help='what `make demo` made')
    parser.add_argument('out', type=Path, help='folder of the figures')
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    scene, model = arguments.demo / 'scene_2.tif', load_model(next(arguments.demo.glob('**/*.dlpk')))
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / 'map.tif'
        model.predict_raster(scene, made, outputs=('classes', 'confidence'))
        draw_map(scene, made, arguments.out / 'map.png')
        paths = {}
        for blend, title in (('crop', "confidence, blend='crop'"), ('hann', "confidence, blend='hann'")):
            target = Path(folder) / f'{blend}.tif'
            model.predict_raster(scene, target, outputs=('classes', 'confidence'), blend=blend, tile_size=128)
            paths[title] = target.with_name(f'{blend}_confidence.tif')
        draw_seams(scene, paths, (200, 200), 320, arguments.out / 'seams.png')


if __name__ == '__main__':
    main()
