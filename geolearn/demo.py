"""The demo: make two scenes, learn from one, map the other, and say how good the map is."""

import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from geolearn import classes, errors, prepare, synthetic
from geolearn.chips.export import export_training_data
from geolearn.metrics import ConfusionMatrix
from geolearn.models import DeepLab
from geolearn.plotting import show_predictions
from geolearn.raster import open_raster, raster_bands, read_image, read_label

Say = Callable[[str], None]

SCENE_SIZE = 1280
CHIP_SIZE = 128
EPOCHS = 14


def run_demo(out: str | Path, *, backbone: str = 'dofa_tiny', epochs: int = EPOCHS, say: Say) -> dict[str, float]:
    """Run the whole path on synthetic Sentinel-2 scenes.

    Args:
        out: Folder for everything that is made; must not exist or be empty.
        backbone: Trained from scratch.
        epochs: Passes over the chips.
        say: Takes lines for people.

    Returns:
        ``accuracy`` and ``miou`` of the map of the second scene, and ``seconds`` altogether.

    Raises:
        ChipFolderError: If the folder is not empty.
        TrainingError: If the process that makes the map fails.
    """
    started = time.perf_counter()
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise errors.ChipFolderError(f'{folder} is not empty; name a new folder for the demo')
    folder.mkdir(parents=True, exist_ok=True)
    train_image, train_label = folder / 'scene_1.tif', folder / 'scene_1_labels.tif'
    test_image, test_label = folder / 'scene_2.tif', folder / 'scene_2_labels.tif'
    say('1. Drawing two scenes: ten Sentinel-2 bands, six classes, clouds, a NoData border')
    synthetic.write_scene(synthetic.make_scene(SCENE_SIZE, seed=1), train_image, train_label)
    synthetic.write_scene(synthetic.make_scene(768, seed=2), test_image, test_label)
    say("2. Exporting chips of the first in ArcGIS's Classified_Tiles layout")
    chips = export_training_data(
        train_image,
        train_label,
        folder / 'chips',
        classes=synthetic.CLASSES,
        tile_size=CHIP_SIZE,
        sensor='Sentinel-2',
    )
    # neighboring chips resemble each other, so whole blocks of land are held out; label 0 is cloud and border
    data = prepare.prepare_data(chips, chip_size=CHIP_SIZE, batch_size=8, ignore_classes=[0], split='blocks')
    say(repr(data))
    data.show_batch().savefig(folder / 'chips.png', dpi=80)
    say(f'3. Training DeepLab on {backbone} from scratch')
    torch.manual_seed(0)
    model = DeepLab(data, backbone=backbone, pretrained=False)
    model.fit(epochs, lr=1e-3)
    bundle = model.save(folder / 'landcover')
    say('4. Mapping the second scene, which the model has never seen, from the bundle in a new process')
    result = folder / 'scene_2_map.tif'
    command = [sys.executable, '-m', 'geolearn', 'predict', str(bundle), str(test_image), str(result)]
    ended = subprocess.run(command, check=False).returncode
    if ended or not result.is_file():
        raise errors.TrainingError(
            f'the map of the demo was not made: geolearn predict ended with status {ended}, for the reason it said '
            f'above. Run it again by itself: {shlex.join(["geolearn", *command[3:]])}'
        )
    matrix = _compare(test_image, test_label, result, folder / 'scene_2.png')
    scores = {'accuracy': matrix.accuracy, 'miou': matrix.miou, 'seconds': time.perf_counter() - started}
    say(f'\nOn the second scene: accuracy {matrix.accuracy:.3f}, mIoU {matrix.miou:.3f}')
    for info, iou in zip(synthetic.CLASSES, matrix.iou.tolist()):
        say(f'  {info.name:<12} IoU {iou:.3f}')
    say(f'\nAll of it took {scores["seconds"]:.0f} s and lies in {folder.resolve()}')
    for path, what in ((bundle, 'the model'), (result, 'the map'), (folder / 'scene_2.png', 'image, truth and map')):
        say(f'  {path.relative_to(folder)!s:<28} {what}')
    return scores


def _compare(image: Path, label: Path, predicted: Path, figure: Path) -> ConfusionMatrix:
    """Score a map against its labels and draw both beside the image."""
    pixels, mask, _ = read_image(image)
    with open_raster(image) as src:
        bands = raster_bands(src)
    table = classes.index_table(synthetic.CLASSES, [0])
    truth = torch.from_numpy(table[read_label(label)])
    found = torch.from_numpy(table[read_label(predicted)])
    matrix = ConfusionMatrix.empty(len(synthetic.CLASSES))
    # a labeled pixel that the map leaves empty counts as wrong, not as ignored
    matrix.add(torch.where(found == classes.IGNORE_INDEX, (truth + 1) % len(synthetic.CLASSES), found), truth)
    shown = pixels.astype(np.float32)
    if mask is not None:
        shown[:, ~mask] = np.nan
    drawn = show_predictions(torch.from_numpy(shown)[None], truth[None], found[None], bands, synthetic.CLASSES, side=6)
    drawn.savefig(figure, dpi=100)
    return matrix
