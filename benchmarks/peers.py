"""Maps from file to file beside the tiling of other libraries, which run the very same network, with their defaults.

terratorch's `tiled_inference` works in memory: reading and writing around it are those of a plain script.
geoai's `predict_geotiff` works on files. torchgeo's `GridGeoSampler` gives windows: overlaps are averaged around it, as
its tutorials do; raster-vision's data set of sliding windows gives them too, and its labels add up the outputs. Prints
seconds and the share of pixels whose class is that of one forward over the whole image, and last one JSON object of
{name: {value, bar, ok}}.

Where a network runs at the processor's limit, libraries differ only by how often each pixel is computed. The bars
hold for what geolearn offers besides: engine='openvino', and for the transformer bfloat16 and tiles that share an
eighth, as terratorch's do, instead of a quarter. The peers compute in float32, as their functions do; what they gain
where a user wraps their network in bfloat16 is printed too.

    fast_<network>              seconds of the fastest peer / those of predict_raster with these options; null where no
                                peer is installed
    agreement_<network>         share of pixels of that map as in the whole image, less that of the fastest peer's
    default_<network>           the first with the defaults: torch, in float32; no bar
    same_precision_vit          the first with bfloat16 on both sides; null with --quick; no bar
"""

import importlib.util
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

os.environ['TQDM_DISABLE'] = '1'  # bars would mix with the figures

import numpy as np
import rasterio
import torch
from _measure import Check, interleave, median_ratio, parse_quick, report
from scale import NAMES, make_spec, write_scene
from torch import nn

from geolearn.models import LinearProbe, Model, UNet
from geolearn.precision import casting


@dataclass(frozen=True)
class Case:
    """A model that is mapped with.

    Args:
        kind: Its class.
        backbone: What it is built on.
        quick_backbone: The same with --quick.
        bar: How many times faster than the fastest peer it is to be with the options.
        options: Of predict_raster.
    """

    kind: type[Model]
    backbone: str
    quick_backbone: str
    bar: float
    options: dict[str, object]


CASES = {
    'unet': Case(UNet, 'resnet18', 'resnet18', 1.4, {'engine': 'openvino'}),
    'vit': Case(
        LinearProbe, 'dofa_base', 'dofa_small', 1.5, {'engine': 'openvino', 'mixed_precision': 'bf16', 'halo': 16}
    ),
}

TILE_SIZE, OVERLAP, BATCH_SIZE = 256, 64, 4
"""Of torchgeo's tutorials and the defaults of geoai; terratorch's are 224, 16 and 16."""


@dataclass(frozen=True)
class Scene:
    """What is mapped by whom.

    Args:
        path: Of the raster.
        network: Maps stored values (N, bands, H, W) to logits.
        folder: Where maps go.
    """

    path: Path
    network: nn.Module
    folder: Path

    def read(self) -> torch.Tensor:
        """Return all pixels as float32 (1, bands, H, W)."""
        with rasterio.open(self.path) as src:
            return torch.from_numpy(src.read().astype(np.float32))[None]

    def write(self, name: str, classes: np.ndarray) -> None:
        """Write classes (H, W) as the peers' users do."""
        with rasterio.open(self.path) as src:
            profile = {**src.profile, 'count': 1, 'dtype': 'uint8', 'compress': 'deflate'}
        with rasterio.open(self.folder / f'{name}.tif', 'w', **profile) as dst:
            dst.write(classes.astype(np.uint8), 1)

    def agreement(self, name: str, whole: np.ndarray) -> float:
        """Return the share of pixels of a map whose class is that of the whole image."""
        with rasterio.open(self.folder / f'{name}.tif') as src:
            return float((src.read(1) == whole).mean())


def map_terratorch(scene: Scene) -> None:
    """Map with terratorch's tiling."""
    from terratorch.tasks.tiled_inference import tiled_inference

    with torch.inference_mode():
        logits = tiled_inference(scene.network, scene.read(), len(NAMES))
    scene.write('terratorch', logits[0].argmax(0).numpy() + 1)


def map_geoai(scene: Scene) -> None:
    """Map with geoai's tiling."""
    from geoai.inference import predict_geotiff

    predict_geotiff(
        scene.network,
        str(scene.path),
        str(scene.folder / 'geoai.tif'),
        num_classes=len(NAMES),
        output_dtype='uint8',
        output_nodata=0,
        preprocess_fn=lambda tile: tile.astype(np.float32),
        postprocess_fn=lambda logits: logits.argmax(0)[None] + 1,
        device='cpu',
        verbose=False,
    )


def map_torchgeo(scene: Scene) -> None:
    """Map with torchgeo's data set and sampler."""
    from torch.utils.data import DataLoader
    from torchgeo.datasets import RasterDataset, stack_samples
    from torchgeo.samplers import GridGeoSampler

    data = RasterDataset(str(scene.path))
    with rasterio.open(scene.path) as src:
        total = torch.zeros(len(NAMES), src.height, src.width)
        count, transform = torch.zeros(src.height, src.width), src.transform
    sampler = GridGeoSampler(data, size=TILE_SIZE, stride=TILE_SIZE - OVERLAP)
    batches = DataLoader(data, batch_size=BATCH_SIZE, sampler=sampler, collate_fn=stack_samples)
    with torch.inference_mode():
        for batch in batches:
            for logits, (x, y, _) in zip(scene.network(batch['image']), batch['bounds']):
                left, top = (round(each) for each in ~transform * (x.start, y.stop))
                rows, columns = slice(max(top, 0), top + TILE_SIZE), slice(max(left, 0), left + TILE_SIZE)
                height, width = count[rows, columns].shape  # the outermost windows reach beyond the raster
                inside = logits[:, rows.start - top :, columns.start - left :][:, :height, :width]
                total[:, rows, columns] += inside
                count[rows, columns] += 1
    scene.write('torchgeo', (total / count).argmax(0).numpy() + 1)


def map_raster_vision(scene: Scene) -> None:
    """Map with raster-vision's sliding windows and labels."""
    from rastervision.core import data as rv
    from rastervision.pytorch_learner import (
        SemanticSegmentationGeoDataConfig,
        SemanticSegmentationLearner,
        SemanticSegmentationLearnerConfig,
        SemanticSegmentationSlidingWindowGeoDataset,
        SolverConfig,
    )

    source = rv.RasterioSource(str(scene.path), channel_order=list(range(len(NAMES))))
    windows = SemanticSegmentationSlidingWindowGeoDataset(
        scene=rv.Scene(id='scene', raster_source=source),
        size=TILE_SIZE,
        stride=TILE_SIZE - OVERLAP,
        normalize=False,
    )
    classes = rv.ClassConfig(names=[f'class {value}' for value in range(1, len(NAMES) + 1)])
    config = SemanticSegmentationLearnerConfig(
        data=SemanticSegmentationGeoDataConfig(class_config=classes, num_workers=0),
        solver=SolverConfig(batch_sz=BATCH_SIZE),
    )
    learner = SemanticSegmentationLearner(cfg=config, model=scene.network, training=False)
    outputs = learner.predict_dataset(windows, raw_out=True, numpy_out=True, progress_bar=False)
    labels = rv.SemanticSegmentationLabels.from_predictions(
        windows.windows, outputs, extent=source.extent, num_classes=len(NAMES), smooth=True
    )
    scene.write('raster-vision', labels.get_label_arr(source.extent) + 1)


PEERS: dict[str, Callable[[Scene], None]] = {
    'terratorch': map_terratorch,
    'geoai': map_geoai,
    'torchgeo': map_torchgeo,
    'raster-vision': map_raster_vision,
}

MODULES = {'raster-vision': 'rastervision'}
"""Names of the packages, where these differ."""


class Half(nn.Module):
    """A network whose matrix products and convolutions are in bfloat16, and whose outputs are float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Compute logits of (N, bands, H, W)."""
        with casting('bf16', images.device):
            return self.network(images).float()


def map_geolearn(scene: Scene, model: Model, name: str, options: dict[str, object]) -> None:
    """Map with predict_raster."""
    given = {'bands': NAMES, 'sensor': 'Sentinel-2', 'device': 'cpu', 'overwrite': True} | options
    model.predict_raster(scene.path, scene.folder / f'{name}.tif', **given)


def make_jobs(
    scene: Scene, model: Model, options: dict[str, object], peers: Sequence[str], *, half: bool
) -> dict[str, Callable[[], object]]:
    """Return what maps a scene, by name."""
    jobs: dict[str, Callable[[], object]] = {
        'geolearn': partial(map_geolearn, scene, model, 'geolearn', {}),
        'fast': partial(map_geolearn, scene, model, 'fast', options),
    }
    jobs |= {peer: partial(PEERS[peer], scene) for peer in peers}
    if half:
        folder = scene.folder / 'half'
        folder.mkdir()
        jobs |= {
            f'{peer} in bf16': partial(PEERS[peer], Scene(scene.path, Half(model.network), folder)) for peer in peers
        }
    return jobs


def compare(name: str, folder: Path, side: int, rounds: int, *, quick: bool) -> dict[str, Check]:
    """Time maps of one network and hold them against the whole image."""
    case = CASES[name]
    peers = [peer for peer in PEERS if importlib.util.find_spec(MODULES.get(peer, peer))]
    if not peers:
        return {f'fast_{name}': Check(None, case.bar, at_least=True)}
    torch.manual_seed(0)
    spec = make_spec(case.kind.__name__, case.quick_backbone if quick else case.backbone)
    model = case.kind.of(spec, case.kind.build(spec).eval())
    half = 'mixed_precision' in case.options and not quick
    for size in (TILE_SIZE, side):  # a small map of each warms up
        place = folder / str(size)
        place.mkdir(parents=True)
        scene = Scene(write_scene(place / 'scene.tif', size), model.network, place)
        jobs = make_jobs(scene, model, case.options, peers, half=half)
        seconds = interleave(jobs, rounds=1 if size == TILE_SIZE else rounds, rest=0.2, warm_up=False)
    with torch.inference_mode():
        whole = model.network(scene.read())[0].argmax(0).numpy() + 1
    agreement = {job: scene.agreement(job, whole) for job in jobs if not job.endswith('bf16')}
    for job in jobs:
        took = float(np.median(seconds[job]))
        shown = f', as the whole {agreement[job]:.2%}' if job in agreement else ''
        print(f'{name:6} {job:22} {took:6.1f} s {side**2 / 1e6 / took:6.2f} Mpx/s{shown}')
    best = min(peers, key=lambda peer: float(np.median(seconds[peer])))
    checks = {
        f'fast_{name}': Check(median_ratio(seconds, best, 'fast'), case.bar, at_least=True),
        f'agreement_{name}': Check(agreement['fast'] - agreement[best], 0.0, at_least=True),
        f'default_{name}': Check(median_ratio(seconds, best, 'geolearn')),
    }
    if 'mixed_precision' in case.options:
        rivals = [f'{peer} in bf16' for peer in peers] if half else []
        rival = min(rivals, key=lambda job: float(np.median(seconds[job])), default=None)
        checks[f'same_precision_{name}'] = Check(None if rival is None else median_ratio(seconds, rival, 'fast'))
    return checks


def main() -> None:
    """Run all comparisons."""
    quick = parse_quick(__doc__)
    warnings.filterwarnings('ignore')  # of the peers
    with tempfile.TemporaryDirectory() as folder:
        os.environ['GEOLEARN_CACHE'] = folder  # what an earlier run measured does not count
        checks: dict[str, Check] = {}
        for name in CASES:
            checks |= compare(name, Path(folder) / name, 1280 if quick else 2048, 1 if quick else 3, quick=quick)
    report(checks)


if __name__ == '__main__':
    main()
