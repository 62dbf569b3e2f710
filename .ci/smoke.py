"""What must work of an installed geolearn: every public name, and the path from a scene to a map in some seconds."""

import subprocess
import sys
import sysconfig
import tempfile
from importlib.metadata import version
from pathlib import Path

import geolearn
from geolearn.synthetic import CLASSES, make_scene, write_scene


def main() -> None:
    """Try it."""
    assert 'site-packages' in geolearn.__file__, f'{geolearn.__file__} is not installed'
    for name in geolearn.__all__:
        getattr(geolearn, name)
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        write_scene(make_scene(128, seed=1), folder / 'scene.tif', folder / 'labels.tif')
        chips = geolearn.export_training_data(
            folder / 'scene.tif',
            folder / 'labels.tif',
            folder / 'chips',
            classes=CLASSES,
            tile_size=32,
            sensor='Sentinel-2',
        )
        data = geolearn.prepare_data(chips, chip_size=32, batch_size=4, ignore_classes=[0])
        model = geolearn.DeepLab(data, 'dofa_tiny', pretrained=False)
        model.fit(1, lr=1e-3)
        model.report(folder / 'report.html')
        bundle = model.save(folder / 'm')
        command = Path(sysconfig.get_path('scripts')) / 'geolearn'
        for words in (
            ['predict', bundle, folder / 'scene.tif', folder / 'map.tif', '--outputs', 'classes,confidence'],
            ['info', bundle],
            ['weights', 'list'],
            ['--help'],
        ):
            subprocess.run([command, *map(str, words)], check=True, stdout=subprocess.DEVNULL)
        assert (folder / 'map.tif').stat().st_size > 0
    names = ('geolearn-rs', 'torch', 'torchvision', 'fastai', 'timm', 'numpy', 'rasterio', 'pandas')
    print(f'works with Python {sys.version.split()[0]}:', ', '.join(f'{name} {version(name)}' for name in names))


if __name__ == '__main__':
    main()
