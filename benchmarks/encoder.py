"""Encoders against peers and the machine's matrix rate, forward and training; windowed against global attention.

The peers are torchgeo's DOFA and terratorch's Prithvi; without terratorch (Python 3.12), timm's plain ViT of its shape.
Printed lines name the peer's library. On a CUDA device everything runs under autocast to bfloat16, on larger batches.

--model, --part and --size choose, and may be repeated. Prints, as its last line, one JSON object of
{name: {value, bar, ok}}; <model> is dofa, prithvi_100M or prithvi_300M:

    speedup_<model>_<px>      images/s of the compiled encoder over the peer's; dofa: null without torchgeo
    eager_<model>_<px>        the same, not compiled
    matmul_share_<model>_<px> share of the device's matrix rate, measured in the same rounds
    peer_share_<model>_<px>   the peer's own share: no speed-up can exceed one over it
    products_<model>_<px>     images/s of the blocks' linear layers alone, as plain matrix products, over the peer's:
                              the speed-up if all else cost nothing and packed weights gained nothing
    compile_s_<model>_<px>    seconds to compile, and break_even_<model>_<px>, images that win them back from eager
    training_<model>_<px>     the peer's time for a training step over geolearn's
    windowed_flatness         windowed blocks' time per pixel over that at 512 px, the worst of the sizes
    windowed_speedup_<px>     the whole encoder with four global blocks against all-global
    memory_...                peak memory of a forward pass in MB, windowed and global
"""

import argparse
import importlib.util
import os
import statistics
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from _measure import Check, child_peak_mb, interleave, median_ratio, peak_mb, report
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from geolearn.backbones import compile_for_inference, create_backbone
from geolearn.backbones.vit import choose_window, windowed_states
from geolearn.bands import get_bands

ON_GPU = torch.cuda.is_available()
DEVICE = 'cuda' if ON_GPU else 'cpu'

SPEEDUP_BAR = 1.3
SHARE_BAR = 0.8
TRAINING_BAR = 1.0  # no slower, within what one machine's noise leaves of a ratio of 1
WINDOW_BARS = {1024: 1.35, 1536: 1.75, 2048: 1.95}
PARTS = ('forward', 'training', 'windows')


@dataclass(frozen=True)
class Case:
    """An encoder to measure: its name, bands and shape; `depth` may be cut below the published one."""

    label: str
    name: str
    bands: tuple[str, ...]
    dim: int
    depth: int
    heads: int

    def build(self) -> nn.Module:
        """The encoder at random weights, in its native form."""
        torch.manual_seed(0)
        bands = get_bands('sentinel2_l2a', self.bands)
        backbone = create_backbone(self.name, bands, pretrained=False, form='tokens')
        backbone.trunk.blocks = backbone.trunk.blocks[: self.depth]
        return backbone.to(DEVICE)

    def build_peer(self, size: int) -> tuple[str, nn.Module | None]:
        """The peer's library, and the peer as a module of images alone of one size; None where it is not installed."""
        if self.label == 'dofa':
            return 'torchgeo', build_torchgeo(self, size) if importlib.util.find_spec('torchgeo') else None
        if importlib.util.find_spec('terratorch'):
            return 'terratorch', build_terratorch(self)
        shape = {'embed_dim': self.dim, 'depth': self.depth, 'num_heads': self.heads}
        return 'timm', VisionTransformer(size, 16, len(self.bands), num_classes=0, global_pool='', **shape).to(DEVICE)

    def images(self, size: int) -> Tensor:
        """A batch of random images: one on a CPU, as many on a GPU as keep it busy."""
        batch = max(1, 64 * 224**2 // size**2) if ON_GPU else 1
        return torch.rand(batch, len(self.bands), size, size, device=DEVICE)

    def flop(self, x: Tensor) -> float:
        """Multiply-adds x 2 of the matrix products for these images."""
        tokens = (x.shape[-1] // 16) ** 2
        linear = self.depth * 2 * tokens * 12 * self.dim**2
        attention = self.depth * 4 * tokens**2 * self.dim
        return len(x) * (linear + attention + 2 * tokens * len(self.bands) * 256 * self.dim)


DOFA_BANDS = ('B4', 'B3', 'B2', 'B5', 'B6', 'B7', 'B8', 'B11', 'B12')
HLS_BANDS = ('B2', 'B3', 'B4', 'B8A', 'B11', 'B12')
CASES = (
    Case('dofa', 'dofa_base', DOFA_BANDS, 768, 12, 12),
    Case('prithvi_100M', 'prithvi_v1_100M', HLS_BANDS, 768, 12, 12),
    Case('prithvi_300M', 'prithvi_v2_300M', HLS_BANDS, 1024, 24, 16),
)


def build_torchgeo(case: Case, size: int) -> nn.Module:
    """torchgeo's DOFA, with a forward of its features from images alone."""
    from torchgeo.models import DOFA

    wavelengths = [band.wavelength_um for band in get_bands('sentinel2_l2a', case.bands)]
    net = DOFA(size, embed_dim=case.dim, depth=case.depth, num_heads=case.heads, num_classes=0, global_pool=True)
    net.forward = partial(net.forward_features, wavelengths=wavelengths)
    return net.to(DEVICE)


def build_terratorch(case: Case) -> nn.Module:
    """terratorch's Prithvi, made for 224 pixels as published; like geolearn's it interpolates positions elsewhere."""
    from terratorch.models.backbones.prithvi_mae import PrithviViT

    torch.set_float32_matmul_precision('highest')  # the import lowers it for all that runs after
    net = PrithviViT(in_chans=len(case.bands), embed_dim=case.dim, depth=case.depth, num_heads=case.heads)
    net.forward = lambda x: net.forward_features(x)[-1]
    return net.to(DEVICE)


def wait() -> None:
    """Let the GPU finish, so that clocks tell the truth."""
    if ON_GPU:
        torch.cuda.synchronize()


def autocast() -> torch.autocast:
    return torch.autocast(DEVICE, torch.bfloat16, enabled=ON_GPU)


def infer(forward: Callable[[Tensor], object], x: Tensor) -> None:
    """Run forward once, as inference does."""
    with torch.inference_mode(), autocast():
        forward(x)
    wait()


def multiply(repeats: int, a: Tensor, b: Tensor) -> None:
    for _ in range(repeats):
        a @ b
    wait()


def matmul_job() -> tuple[Callable[[], None], float]:
    """A job that multiplies square matrices, and its floating-point operations."""
    n, repeats, dtype = (8192, 8, torch.bfloat16) if ON_GPU else (1024, 8, torch.float32)
    a, b = (torch.rand(n, n, device=DEVICE, dtype=dtype) for _ in range(2))
    return partial(multiply, repeats, a, b), repeats * 2.0 * n**3


def multiply_linears(weights: Sequence[Tensor], hidden: Tensor, tokens: Tensor) -> None:
    """Run tokens (n, D) and hidden tokens (n, 4 D) through linear layers, whichever fits."""
    for weight in weights:
        F.linear(tokens if weight.shape[1] == tokens.shape[1] else hidden, weight)


def linears_job(net: nn.Module, x: Tensor) -> Callable[[], None]:
    """A job that runs the linear layers of a trunk's blocks and nothing else, on as many tokens as x has."""
    weights = [layer.weight for layer in net.trunk.blocks.modules() if isinstance(layer, nn.Linear)]
    dim, count = weights[0].shape[1], len(x) * ((x.shape[-1] // 16) ** 2 + 1)
    tokens, hidden = (torch.rand(count, width, device=DEVICE) for width in (dim, 4 * dim))
    return partial(infer, partial(multiply_linears, weights, hidden), tokens)


def compare_forward(case: Case, size: int, rounds: int) -> dict[str, Check]:
    """Forward passes of the compiled encoder, the plain one and the peer, beside plain matrix products."""
    net, (library, peer), x = case.build().eval(), case.build_peer(size), case.images(size)
    with autocast():
        compiled = compile_for_inference(net, x)
    product, product_flop = matmul_job()
    jobs = {'compiled': partial(infer, compiled, x), 'eager': partial(infer, net, x), 'matmul': product}
    jobs['linears'] = linears_job(net, x)
    if peer is not None:
        jobs[library] = partial(infer, peer.eval(), x)
    seconds = interleave(jobs, rounds=rounds)

    def share(name: str) -> float:
        return statistics.median(case.flop(x) / a * b / product_flop for a, b in zip(seconds[name], seconds['matmul']))

    key = f'{case.label}_{size}'
    saved = (statistics.median(seconds['eager']) - statistics.median(seconds['compiled'])) / len(x)
    bar = SPEEDUP_BAR if case.label == 'dofa' and peer is not None else None
    checks = {
        f'speedup_{key}': Check(peer and median_ratio(seconds, library, 'compiled'), bar, at_least=True),
        f'eager_{key}': Check(peer and median_ratio(seconds, library, 'eager')),
        f'matmul_share_{key}': Check(share('compiled'), SHARE_BAR, at_least=True),
        f'peer_share_{key}': Check(peer and share(library)),
        f'products_{key}': Check(peer and median_ratio(seconds, library, 'linears')),
        f'compile_s_{key}': Check(compiled.seconds),
        f'break_even_{key}': Check(compiled.seconds / saved if saved > 0 else None),
    }
    for name in jobs.keys() - {'matmul', 'linears'}:
        say(f'{key} forward, {name}: {len(x) / statistics.median(seconds[name]):.2f} images/s')
    rate = product_flop / statistics.median(seconds['matmul']) / 1e9
    say(f'{key} matrix rate {rate:.0f} GFLOP/s; {compiled.reason or "compiled"}', checks)
    torch._dynamo.reset()  # lets go of the frozen weights
    return checks


def make_step(net: nn.Module, x: Tensor) -> Callable[[], None]:
    """A training step: forward, a mean square, backward, plain descent."""
    optimizer = torch.optim.SGD((p for p in net.parameters() if p.requires_grad), lr=1e-6)
    net.train()

    def step() -> None:
        with autocast():
            loss = net(x).float().square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        wait()

    return step


def compare_training(case: Case, size: int, rounds: int) -> dict[str, Check]:
    """Training steps of the encoder and its peer, neither compiled."""
    (library, peer), x = case.build_peer(size), case.images(size)
    if peer is None:
        return {f'training_{case.label}_{size}': Check(None)}
    seconds = interleave({'geolearn': make_step(case.build(), x), library: make_step(peer, x)}, rounds=rounds)
    check = Check(median_ratio(seconds, library, 'geolearn'), TRAINING_BAR, at_least=True)
    times = ', '.join(f'{name} {statistics.median(values):.2f} s' for name, values in seconds.items())
    say(f'{case.label}_{size} training step: {times}', {f'training_{case.label}_{size}': check})
    return {f'training_{case.label}_{size}': check}


def compare_blocks(sizes: tuple[int, ...], rounds: int) -> dict[str, Check]:
    """Two windowed blocks at each size, sizes in turn: their time per pixel should not depend on it."""
    blocks = CASES[0].build().eval().trunk.blocks[:2]
    jobs = {}
    for size in sizes:
        grid, side = torch.rand(1, size // 16, size // 16, CASES[0].dim, device=DEVICE), choose_window(size // 16)
        jobs[str(size)] = partial(
            infer, partial(windowed_states, blocks, window=(side, side), global_at=(), layers=[1]), grid
        )
    seconds = interleave(jobs, rounds=rounds)
    ratios = [median_ratio(seconds, str(size), str(sizes[0])) / (size / sizes[0]) ** 2 for size in sizes[1:]]
    say('windowed blocks, time per pixel over that at 512 px: ' + ', '.join(f'{ratio:.2f}' for ratio in ratios))
    return {'windowed_flatness': Check(max(*ratios, *(1 / ratio for ratio in ratios)), 1.25)}


def window_jobs(size: int, depth: int) -> dict[str, Callable[[], None]]:
    """ViT-B's blocks over a grid, a third of them global or all."""
    blocks = CASES[0].build().eval().trunk.blocks[:depth]
    grid, side = torch.rand(1, size // 16, size // 16, CASES[0].dim, device=DEVICE), choose_window(size // 16)
    run = partial(windowed_states, blocks, global_at=tuple(range(2, depth, 3)), layers=[depth - 1])
    forms = {'windowed': (side, side), 'global': None}
    return {name: partial(infer, partial(run, window=window), grid) for name, window in forms.items()}


def compare_windows(sizes: tuple[int, ...], depth: int, rounds: int) -> dict[str, Check]:
    """The encoder's blocks, windowed with every third one global against all global, in time and memory."""
    checks: dict[str, Check] = {}
    for size in sizes:
        jobs = window_jobs(size, depth)
        seconds = interleave(jobs, rounds=rounds)
        check = Check(median_ratio(seconds, 'global', 'windowed'), WINDOW_BARS.get(size), at_least=True)
        times = ', '.join(f'{name} {statistics.median(seconds[name]):.2f} s' for name in jobs)
        say(f'{size} px, {depth} blocks: {times}', {f'windowed_speedup_{size}': check})
        checks[f'windowed_speedup_{size}'] = check
    for form in ('windowed', 'global'):
        peak = child_peak_mb(__file__, '--child', form, str(sizes[-1]), str(depth))
        checks[f'memory_{form}_{sizes[-1]}_mb'] = Check(peak)
    return checks


def say(line: str, checks: dict[str, Check] | None = None) -> None:
    """Print at once what was measured, with the machine's load: others may be at work on it."""
    figures = ', '.join(f'{name} {check.to_json()["value"]}' for name, check in (checks or {}).items())
    load = f' [load {os.getloadavg()[0]:.1f}]' if hasattr(os, 'getloadavg') else ''
    print(line + (f': {figures}' if figures else '') + load, flush=True)


@dataclass(frozen=True)
class Plan:
    """What to measure; quick keeps the smallest size, five of DOFA's blocks and three of the others'.

    With fewer blocks DOFA's kept kernels count for more: its quick speed-up is higher than that of the whole encoder.
    """

    quick: bool
    models: Sequence[str]
    parts: Sequence[str]
    sizes: Sequence[int]

    def measure(self) -> Iterator[dict[str, Check]]:
        """Measure one thing after the other."""
        for case in CASES:
            if self.quick:
                case = replace(case, depth=5 if case.label == 'dofa' else 3)
            for size in self.sizes if case.label in self.models else ():
                rounds = 3 if self.quick else {224: 15, 512: 7}.get(size, 3)
                if 'forward' in self.parts:
                    yield compare_forward(case, size, rounds)
                if 'training' in self.parts:
                    yield compare_training(case, size, 2 if self.quick else max(2, rounds // 2))
        if 'windows' in self.parts:
            yield compare_blocks((512, 1024) if self.quick else (512, 1024, 1536), rounds=2 if self.quick else 5)
            # three blocks, two of them windowed, stand for twelve
            sizes = (1024,) if self.quick else (512, 1024, 1536, 2048)
            yield compare_windows(sizes, depth=3 if self.quick else 12, rounds=1 if self.quick else 2)


def read_plan() -> Plan:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--quick', action='store_true', help='smaller sizes, same checks, under 2 minutes')
    parser.add_argument('--model', action='append', choices=[case.label for case in CASES], help='only this one')
    parser.add_argument('--part', action='append', choices=PARTS, help='only this one')
    parser.add_argument('--size', action='append', type=int, help='image side in pixels; only this one')
    given = parser.parse_args()
    sizes = given.size or ((224,) if given.quick else (224, 512, 1024))
    return Plan(given.quick, given.model or [case.label for case in CASES], given.part or PARTS, sizes)


def main() -> None:
    """Measure and report."""
    warnings.filterwarnings('ignore', module='torchgeo')
    checks: dict[str, Check] = {}
    for found in read_plan().measure():
        checks |= found
    report(checks)


if __name__ == '__main__':
    if sys.argv[1:2] == ['--child']:
        window_jobs(int(sys.argv[3]), int(sys.argv[4]))[sys.argv[2]]()
        print(peak_mb())
    else:
        main()
