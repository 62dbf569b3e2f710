"""DOFA-base against torchgeo's DOFA and the machine's matrix rate; windowed against global attention.

Prints, as its last line, one JSON object of {name: {value, bar, ok}}.

    speedup_224, speedup_512     images/s of geolearn's DOFA-base over torchgeo's (absent without torchgeo)
    matmul_share_224, _512       share of the machine's float32 matrix rate, measured in the same rounds
    windowed_flatness            windowed blocks' time per pixel at the largest size over that at 512 px, or its inverse
    windowed_speedup_1024, _1536 the whole encoder with four global blocks against all-global
    memory_...                   peak memory of a forward pass in MB, windowed and global
"""

import importlib.util
import resource
import sys

import torch
from _measure import Check, child_peak_mb, interleave, median_ratio, parse_quick, report

from geolearn.backbones import create_backbone
from geolearn.backbones.vit import choose_window
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


@torch.inference_mode()
def compare_with_peer(sizes: tuple[int, ...], rounds: int) -> dict[str, Check]:
    """Forward passes of one image, interleaved with the peer's and with plain matrix products."""
    checks: dict[str, Check] = {}
    trunk = make_trunk()
    for size in sizes:
        x = torch.rand(1, len(BANDS), size, size)
        product, product_flop = matmul_rate()
        jobs = {'ours': lambda x=x: inference(trunk.tokens, x), 'matmul': product}
        peer = make_peer(size)
        if peer is not None:
            jobs['peer'] = lambda x=x, peer=peer: inference(lambda y: peer.forward_features(y, WAVELENGTHS), x)
        seconds = interleave(jobs, rounds=rounds)
        best_rate = product_flop / min(seconds['matmul'])
        ours = sorted(seconds['ours'])[rounds // 2]
        checks[f'matmul_share_{size}'] = Check(flop(size) / ours / best_rate)
        print(f'{size} px: {1 / ours:.2f} images/s, matrix rate {best_rate / 1e9:.0f} GFLOP/s')
        if peer is not None:
            checks[f'speedup_{size}'] = Check(median_ratio(seconds, 'peer', 'ours'), 1.0, at_least=True)
    return checks


def inference(forward: object, x: torch.Tensor) -> object:
    """Run under inference mode, which also lets DOFA keep its generated kernel."""
    with torch.inference_mode():
        return forward(x)  # type: ignore[operator]


def compare_windows(sizes: tuple[int, ...], rounds: int) -> dict[str, Check]:
    """Whole encoders and single blocks, windowed and global."""
    trunk = make_trunk()
    block = trunk.blocks[0]
    per_pixel: dict[int, float] = {}
    checks: dict[str, Check] = {}
    bars = {1024: 1.35, 1536: 1.75}
    for size in sizes:
        x = torch.rand(1, len(BANDS), size, size)
        grid = torch.rand(1, size // 16, size // 16, DIM)
        side = choose_window(size // 16)
        jobs = {
            'windowed': lambda x=x: inference(lambda y: trunk.last_map(y, None), x),
            'global': lambda x=x: inference(lambda y: trunk.last_map(y, 0), x),
            'block': lambda grid=grid, side=side: inference(lambda y: block(y, (side, side)), grid),
        }
        seconds = interleave(jobs, rounds=rounds)
        per_pixel[size] = sorted(seconds['block'])[rounds // 2] / size**2
        ratio = median_ratio(seconds, 'global', 'windowed')
        print(
            f'{size} px: windowed encoder {ratio:.2f} x faster, windowed block {per_pixel[size] * 1e9:.0f} ns per pixel'
        )
        if size in bars:
            checks[f'windowed_speedup_{size}'] = Check(ratio, bars[size], at_least=True)
        for form in ('windowed', 'global'):
            peak = child_peak_mb(__file__, '--child', form, str(size))
            checks[f'memory_{form}_{size}_mb'] = Check(peak)
    spread = [value / per_pixel[sizes[0]] for value in per_pixel.values()]
    checks['windowed_flatness'] = Check(max(*spread, 1 / min(spread)), 1.25)
    return checks


def one_forward(form: str, size: int) -> None:
    """Run one windowed or global forward pass."""
    trunk = make_trunk()
    x = torch.rand(1, len(BANDS), size, size)
    inference(lambda y: trunk.last_map(y, None if form == 'windowed' else 0), x)


def main() -> None:
    """Measure and report."""
    quick = parse_quick(__doc__)
    checks = compare_with_peer((224,) if quick else (224, 512), rounds=5 if quick else 7)
    checks |= compare_windows((512, 1024) if quick else (512, 1024, 1536), rounds=2 if quick else 3)
    report(checks)


if __name__ == '__main__':
    if sys.argv[1:2] == ['--child']:
        one_forward(sys.argv[2], int(sys.argv[3]))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    else:
        main()
