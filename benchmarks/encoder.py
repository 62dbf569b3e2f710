"""DOFA-base against torchgeo's DOFA and the machine's matrix rate; windowed against global attention.

Prints, as its last line, one JSON object of {name: {value, bar, ok}}.

    speedup_224, speedup_512     images/s of geolearn's DOFA-base over torchgeo's; null without torchgeo
    matmul_share_224, _512       share of the machine's float32 matrix rate, measured in the same rounds
    windowed_flatness            windowed blocks' time per pixel over that at 512 px, the worst of the sizes
    windowed_speedup_1024, _1536 the whole encoder with four global blocks against all-global
    memory_...                   peak memory of a forward pass in MB, windowed and global
"""

import importlib.util
import statistics
import sys
from collections.abc import Callable
from functools import partial

import torch
from _measure import Check, child_peak_mb, interleave, median_ratio, parse_quick, peak_mb, report

from geolearn.backbones import create_backbone
from geolearn.backbones.vit import choose_window, run_windowed
from geolearn.bands import get_bands

BANDS = get_bands('sentinel2_l2a', ['B4', 'B3', 'B2', 'B5', 'B6', 'B7', 'B8', 'B11', 'B12'])
WAVELENGTHS = [band.wavelength_um for band in BANDS]
DIM, DEPTH = 768, 12


def make_trunk() -> torch.nn.Module:
    """DOFA-base at random weights, native and windowed in one."""
    torch.manual_seed(0)
    return create_backbone('dofa_base', BANDS, pretrained=False, form='tokens').trunk.eval()


def make_peer(size: int) -> torch.nn.Module | None:
    """torchgeo's DOFA-base for one image size, or None where torchgeo is not installed."""
    if importlib.util.find_spec('torchgeo') is None:
        return None
    from torchgeo.models import DOFA

    return DOFA(img_size=size, embed_dim=DIM, depth=DEPTH, num_heads=12, num_classes=0, global_pool=True).eval()


def flop(size: int) -> float:
    """Multiply-adds x 2 of the native encoder's matrix products for one image."""
    tokens = (size // 16) ** 2
    linear = DEPTH * 2 * tokens * 12 * DIM**2
    attention = DEPTH * 4 * tokens**2 * DIM
    return linear + attention + 2 * tokens * len(BANDS) * 256 * DIM


def matmul_rate(n: int = 1024) -> tuple[object, float]:
    """A job that multiplies two square matrices, and its floating-point operations."""
    a, b = torch.rand(n, n), torch.rand(n, n)
    repeats = 8
    return (lambda: [a @ b for _ in range(repeats)]), repeats * 2.0 * n**3


def inference(forward: Callable[[torch.Tensor], object], x: torch.Tensor) -> object:
    """Run under inference mode, which also lets DOFA keep its generated kernel."""
    with torch.inference_mode():
        return forward(x)


def compare_with_peer(sizes: tuple[int, ...], rounds: int) -> dict[str, Check]:
    """Forward passes of one image, interleaved with the peer's and with plain matrix products."""
    checks: dict[str, Check] = {}
    trunk = make_trunk()
    for size in sizes:
        x = torch.rand(1, len(BANDS), size, size)
        product, product_flop = matmul_rate()
        jobs = {'geolearn': partial(inference, trunk.tokens, x), 'matmul': product}
        peer = make_peer(size)
        if peer is not None:
            jobs['torchgeo'] = partial(inference, partial(peer.forward_features, wavelengths=WAVELENGTHS), x)
        seconds = interleave(jobs, rounds=rounds)
        for name in jobs.keys() - {'matmul'}:
            print(f'{size} px, {name}: {1 / statistics.median(seconds[name]):.2f} images/s')
        share = statistics.median(
            flop(size) / a * b / product_flop for a, b in zip(seconds['geolearn'], seconds['matmul'])
        )
        checks[f'matmul_share_{size}'] = Check(share)
        ratio = None if peer is None else median_ratio(seconds, 'torchgeo', 'geolearn')
        checks[f'speedup_{size}'] = Check(ratio, None if ratio is None else 1.0, at_least=True)
    return checks


def compare_windows(sizes: tuple[int, ...], rounds: int) -> dict[str, Check]:
    """The whole encoder, windowed blocks with four global ones against all global, in time and memory."""
    trunk = make_trunk()
    checks: dict[str, Check] = {}
    bars = {1024: 1.35, 1536: 1.75}
    for size in sizes:
        x = torch.rand(1, len(BANDS), size, size)
        forms = {'windowed': partial(trunk.last_map, window=None), 'global': partial(trunk.last_map, window=0)}
        seconds = interleave({name: partial(inference, form, x) for name, form in forms.items()}, rounds=rounds)
        ratio = median_ratio(seconds, 'global', 'windowed')
        print(f'{size} px: ' + ', '.join(f'{name} {statistics.median(seconds[name]):.2f} s' for name in forms))
        checks[f'windowed_speedup_{size}'] = Check(ratio, bars.get(size), at_least=True)
    for form in ('windowed', 'global'):
        checks[f'memory_{form}_{sizes[-1]}_mb'] = Check(child_peak_mb(__file__, '--child', form, str(sizes[-1])))
    return checks


def compare_blocks(sizes: tuple[int, ...], rounds: int) -> dict[str, Check]:
    """Two windowed blocks at each size, sizes in turn: their time per pixel should not depend on it."""
    blocks = make_trunk().blocks[:2]
    jobs = {}
    for size in sizes:
        grid, side = torch.rand(1, size // 16, size // 16, DIM), choose_window(size // 16)
        run = partial(run_windowed, blocks, window=(side, side), global_at=())
        jobs[str(size)] = partial(inference, run, grid)
    seconds = interleave(jobs, rounds=rounds)
    first = sizes[0]
    ratios = [median_ratio(seconds, str(size), str(first)) / (size / first) ** 2 for size in sizes[1:]]
    print('windowed blocks, time per pixel over that at 512 px: ' + ', '.join(f'{ratio:.2f}' for ratio in ratios))
    return {'windowed_flatness': Check(max(*ratios, *(1 / ratio for ratio in ratios)), 1.25)}


def one_forward(form: str, size: int) -> None:
    """Run one windowed or global forward pass."""
    trunk = make_trunk()
    x = torch.rand(1, len(BANDS), size, size)
    inference(lambda y: trunk.last_map(y, None if form == 'windowed' else 0), x)


def main() -> None:
    """Measure and report."""
    quick = parse_quick(__doc__)
    checks = compare_with_peer((224,) if quick else (224, 512), rounds=3 if quick else 7)
    checks |= compare_blocks((512, 1024) if quick else (512, 1024, 1536), rounds=3 if quick else 5)
    checks |= compare_windows((1024,) if quick else (512, 1024, 1536), rounds=1 if quick else 3)
    report(checks)


if __name__ == '__main__':
    if sys.argv[1:2] == ['--child']:
        one_forward(sys.argv[2], int(sys.argv[3]))
        print(peak_mb())
    else:
        main()
