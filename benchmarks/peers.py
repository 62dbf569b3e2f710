"""Maps from file to file beside the tiling of other libraries, which run the very same network, with their defaults.

terratorch's `tiled_inference` works in memory: reading and writing around it are those of a plain script.
geoai's `predict_geotiff` works on files. torchgeo's `GridGeoSampler` gives windows: overlaps are averaged around it, as
its tutorials do; raster-vision's data set of sliding windows gives them too, and its labels add up the outputs. Prints
seconds and the share of pixels whose class is that of one forward over the whole image, and last one JSON object of
{name: {value, bar, ok}}.

In float32 a transformer computes at the processor's limit in every library, and what is left to differ is how often
each pixel is computed; its bar holds for bfloat16 and the fastest engine, which users ask for. The peers compute in
float32, as their functions do; what they gain where a user wraps their network in bfloat16 is printed too.

    speedup_unet            seconds of the fastest peer / those of predict_raster with its defaults; null
                            where no peer is installed
    agreement_unet          share of pixels of that map as in the whole image, less that of the fastest peer's
    fast_vit_b              the first with mixed_precision='bf16' and engine='auto', measured as for a large map
    agreement_vit_b         the second of that map
    default_vit_b           the first with the defaults, in float32; no bar
    same_precision_vit_b    the first with bfloat16 on both sides; no bar
"""

import importlib.util
import os
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ['TQDM_DISABLE'] = '1'  # bars would mix with the figures

import numpy as np
import rasterio
import torch
from _measure import Check, interleave, median_ratio, parse_quick, report
from scale import NAMES, make_spec, write_scene
from torch import nn

from geolearn.inference.computing import choose_blend, choose_setup
from geolearn.inference.engines import Engine
from geolearn.inference.options import TilingOptions
from geolearn.models import LinearProbe, Model, UNet
from geolearn.precision import Precision, casting

NETWORKS = {'unet': (UNet, 'resnet18', 1.4), 'vit_b': (LinearProbe, 'dofa_base', 1.5)}
"""Models, their backbones, and how many times faster than the fastest peer they are to be."""

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


def make_job(
    model: Model, scene: Scene, name: str, *, engine: Engine = 'torch', precision: Precision | None = None
) -> Callable[[], object]:
    """Return what maps a scene with geolearn."""
    given = {'bands': NAMES, 'sensor': 'Sentinel-2', 'device': 'cpu', 'overwrite': True}
    given |= {'engine': engine, 'mixed_precision': precision}
    return lambda: model.predict_raster(scene.path, scene.folder / f'{name}.tif', **given)


def measure_engines(model: Model) -> None:
    """Let the fastest engine in bfloat16 be known, as after a large map."""
    tiling = TilingOptions(engine='auto', mixed_precision='bf16', device='cpu')
    blend = choose_blend(model.network, tiling)
    choose_setup(model.spec, model.network, (2**14, 2**14), tiling, blend=blend, graph=model.onnx_graph)


def compare(name: str, folder: Path, side: int, rounds: int) -> dict[str, Check]:
    """Time maps of one network and hold them against the whole image."""
    kind, backbone, bar = NETWORKS[name]
    torch.manual_seed(0)
    spec = make_spec(kind.__name__, backbone)
    model = kind.of(spec, kind.build(spec).eval())
    folder.mkdir()
    scene = Scene(write_scene(folder / 'scene.tif', side), model.network, folder)
    jobs: dict[str, Callable[[], object]] = {'geolearn': make_job(model, scene, 'geolearn')}
    installed = [peer for peer in PEERS if importlib.util.find_spec(MODULES.get(peer, peer))]
    jobs |= {peer: lambda peer=peer: PEERS[peer](scene) for peer in installed}
    if name == 'vit_b' and installed:  # making the graph of so large a network takes as long as a small comparison
        measure_engines(model)
        jobs['fast'] = make_job(model, scene, 'fast', engine='auto', precision='bf16')
        half = Scene(scene.path, Half(model.network), folder / 'half')
        half.folder.mkdir()
        jobs |= {f'{peer} in bf16': lambda peer=peer: PEERS[peer](half) for peer in installed}
    seconds = interleave(jobs, rounds=rounds, rest=0.5)
    with torch.inference_mode():
        whole = model.network(scene.read())[0].argmax(0).numpy() + 1
    agreement = {job: scene.agreement(job, whole) for job in jobs if not job.endswith('bf16')}
    for job in jobs:
        took = float(np.median(seconds[job]))
        shown = f', as the whole {agreement[job]:.2%}' if job in agreement else ''
        print(f'{name:6} {job:22} {took:6.1f} s {side**2 / 1e6 / took:6.2f} Mpx/s{shown}')
    if not installed:
        return {f'{"fast" if name == "vit_b" else "speedup"}_{name}': Check(None, bar, at_least=True)}
    best = min(installed, key=lambda peer: float(np.median(seconds[peer])))
    if name != 'vit_b':
        return {
            f'speedup_{name}': Check(median_ratio(seconds, best, 'geolearn'), bar, at_least=True),
            f'agreement_{name}': Check(agreement['geolearn'] - agreement[best], 0.0, at_least=True),
        }
    best_half = min((f'{peer} in bf16' for peer in installed), key=lambda job: float(np.median(seconds[job])))
    return {
        f'fast_{name}': Check(median_ratio(seconds, best, 'fast'), bar, at_least=True),
        f'agreement_{name}': Check(agreement['fast'] - agreement[best], 0.0, at_least=True),
        f'default_{name}': Check(median_ratio(seconds, best, 'geolearn')),
        f'same_precision_{name}': Check(median_ratio(seconds, best_half, 'fast')),
    }


def main() -> None:
    """Run all comparisons."""
    quick = parse_quick(__doc__)
    warnings.filterwarnings('ignore')  # of the peers
    with tempfile.TemporaryDirectory() as folder:
        os.environ['GEOLEARN_CACHE'] = folder  # what an earlier run measured does not count
        checks: dict[str, Check] = {}
        for name in NETWORKS:
            checks |= compare(name, Path(folder) / name, 512 if quick else 2048, 1 if quick else 3)
    report(checks)


if __name__ == '__main__':
    main()
