"""Maps from file to file beside the tiling of other libraries, which run the very same network, with their defaults.

terratorch's `tiled_inference` works in memory: reading and writing around it are those of a plain script.
geoai's `predict_geotiff` works on files. torchgeo's `GridGeoSampler` gives windows: overlaps are averaged around it, as
its tutorials do. Prints seconds and the share of pixels whose class is that of one forward over the whole image, and
last one JSON object of {name: {value, bar, ok}}.

    speedup_<network>       seconds of the fastest peer / those of predict_raster with its defaults; null
                            where no peer is installed
    agreement_<network>     share of pixels of that map as in the whole image, less that of the fastest peer's
    half_<network>          the first with mixed_precision='bf16', which the peers do not offer for files; no bar
    auto_<network>          the first with engine='auto', which was measured as for a large map; null with --quick,
                            which spares making the graphs
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
from geolearn.inference.tiles import TilingOptions
from geolearn.models import LinearProbe, UNet
from geolearn.precision import Precision

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


PEERS: dict[str, Callable[[Scene], None]] = {
    'terratorch': map_terratorch,
    'geoai': map_geoai,
    'torchgeo': map_torchgeo,
}


def compare(name: str, folder: Path, side: int, rounds: int, *, auto: bool) -> dict[str, Check]:
    """Time maps of one network and hold them against the whole image."""
    kind, backbone, bar = NETWORKS[name]
    torch.manual_seed(0)
    spec = make_spec(kind.__name__, backbone)
    model = kind.of(spec, kind.build(spec).eval())
    folder.mkdir()
    scene = Scene(write_scene(folder / 'scene.tif', side), model.network, folder)

    if auto:
        blend, fastest = choose_blend(model.network, TilingOptions()), TilingOptions(engine='auto', device='cpu')
        choose_setup(spec, model.network, (2**14, 2**14), fastest, blend=blend, graph=model.onnx_graph)

    def ours(name: str, engine: Engine, precision: Precision | None = None) -> Callable[[], object]:
        given = {
            'mixed_precision': precision,
            'bands': NAMES,
            'sensor': 'Sentinel-2',
            'device': 'cpu',
            'engine': engine,
            'overwrite': True,
        }
        return lambda: model.predict_raster(scene.path, folder / f'{name}.tif', **given)

    installed = [peer for peer in PEERS if importlib.util.find_spec(peer)]
    jobs: dict[str, Callable[[], object]] = {
        'geolearn': ours('geolearn', 'torch'),
        'half': ours('half', 'torch', 'bf16'),
    }
    jobs |= {'auto': ours('auto', 'auto')} if auto else {}
    jobs |= {peer: lambda peer=peer: PEERS[peer](scene) for peer in installed}
    seconds = interleave(jobs, rounds=rounds, rest=0.5)
    with torch.inference_mode():
        whole = model.network(scene.read())[0].argmax(0).numpy() + 1
    agreement = {job: scene.agreement(job, whole) for job in jobs}
    for job in jobs:
        took = float(np.median(seconds[job]))
        print(f'{name:6} {job:11} {took:6.1f} s {side**2 / 1e6 / took:6.2f} Mpx/s, as the whole {agreement[job]:.2%}')
    if not installed:
        return {f'speedup_{name}': Check(None, bar, at_least=True)}
    best = min(installed, key=lambda peer: float(np.median(seconds[peer])))
    return {
        f'speedup_{name}': Check(median_ratio(seconds, best, 'geolearn'), bar, at_least=True),
        f'half_{name}': Check(median_ratio(seconds, best, 'half')),
        f'auto_{name}': Check(median_ratio(seconds, best, 'auto') if auto else None),
        f'agreement_{name}': Check(agreement['geolearn'] - agreement[best], 0.0, at_least=True),
    }


def main() -> None:
    """Run all comparisons."""
    quick = parse_quick(__doc__)
    warnings.filterwarnings('ignore')  # of the peers
    with tempfile.TemporaryDirectory() as folder:
        os.environ['GEOLEARN_CACHE'] = folder  # what an earlier run measured does not count
        checks: dict[str, Check] = {}
        for name in NETWORKS:
            checks |= compare(name, Path(folder) / name, 512 if quick else 2048, 1 if quick else 3, auto=not quick)
    report(checks)


if __name__ == '__main__':
    main()
