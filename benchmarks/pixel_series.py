"""Presto at a batch of 4096 pixels, and OlmoEarth nano and base, each beside a plain form of what its authors run.

Usage: python benchmarks/pixel_series.py [--pixels 4096] [--skip presto|olmoearth]

Presto's authors sort the tokens of every batch by their mask and gather those that are kept, attend with
`scaled_dot_product_attention`, and norm the mean of all tokens; that is written out here. OlmoEarth is compared with
the class of the package olmoearth-pretrain-minimal, at random values, in one run, runs taking turns.
"""

import argparse
import time
from collections.abc import Callable
from datetime import date

import torch
from torch import Tensor, nn

from geolearn.backbones import create_backbone
from geolearn.backbones.calendar import Calendar
from geolearn.backbones.olmoearth_bands import SENSORS
from geolearn.backbones.presto import GROUPS, Presto
from geolearn.bands import Band

ROUNDS = 3


def take_turns(runs: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Time each of some functions, in turns; return the best seconds of each."""
    best = dict.fromkeys(runs, float('inf'))
    with torch.inference_mode():
        for run in runs.values():
            run()
        for _ in range(ROUNDS):
            for name, run in runs.items():
                started = time.perf_counter()
                run()
                best[name] = min(best[name], time.perf_counter() - started)
    return best


class PlainPresto(nn.Module):
    """Presto as its authors run it: the tokens of a batch at once, sorted by their mask."""

    def __init__(self, trunk: Presto) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, x: Tensor, mask: Tensor, calendar: Calendar, place: Tensor) -> Tensor:
        """Encode pixels (n, T, bands) with a mask of the same shape, 1 where values are missing."""
        trunk = self.trunk
        tokens, _ = trunk._tokens(x, calendar, place)
        masks = [mask[:, : 1 if name == 'SRTM' else None, list(at)].amax(dim=2) for name, at in trunk.groups.items()]
        hidden = torch.cat(masks, dim=1)
        first, rest = tokens[:, :1], tokens[:, 1:]
        order = hidden.argsort(dim=1, stable=True)
        kept = int((hidden == 0).sum(dim=1)[0])
        rest = rest.gather(1, order[..., None].expand_as(rest))[:, :kept]
        y = torch.cat([first, rest], dim=1)
        for block in trunk.blocks:
            y = block(y)
        return trunk.norm(y.mean(dim=1))


def measure_presto(label: str, bands: tuple[Band, ...], pixels: int) -> None:
    """Compare Presto on some bands with its plain form."""
    year = [date(2021, month, 10) for month in range(1, 13)]
    net = create_backbone('presto', bands, pretrained=False, strides=None, dates=year, location=(48, 16)).eval()
    trunk = net.trunk
    assert isinstance(trunk, Presto)
    plain, calendar, place = PlainPresto(trunk), Calendar.of(year), torch.tensor([[48.0, 16.0]])
    x = torch.rand(pixels, 12, len(bands))
    mask = torch.zeros_like(x)
    best = take_turns(
        {
            'geolearn': lambda: trunk.encode_all(x, calendar, place),
            'plain': lambda: plain(x, mask, calendar, place),
        }
    )
    with torch.inference_mode():
        apart = (trunk.encode_all(x[:64], calendar, place) - plain(x[:64], mask[:64], calendar, place)).abs().max()
    ratio = best['plain'] / best['geolearn']
    print(
        f'Presto, {label}, 12 months, {pixels} pixels: {best["geolearn"]:.2f} s, '
        f'{pixels / best["geolearn"]:.0f} pixels/s; '
        f'plain {best["plain"]:.2f} s: {ratio:.2f} x as fast; apart {apart:.1e}',
        flush=True,
    )


def measure_olmoearth(size: str, side: int, count: int) -> None:
    """Compare OlmoEarth v1 with the authors' class on Sentinel-2 of one date."""
    import olmoearth_pretrain_minimal as minimal
    from olmoearth_pretrain_minimal.olmoearth_pretrain_v1.utils.datatypes import MaskedOlmoEarthSample

    net = create_backbone(f'olmoearth_v1_{size}', SENSORS['sentinel2_l2a'], pretrained=False, form='tokens').eval()
    reference = minimal.OlmoEarthPretrain_v1(size, 'v1').model.encoder.eval()
    x = torch.rand(count, 12, side, side)
    sample = MaskedOlmoEarthSample(
        sentinel2_l2a=x.permute(0, 2, 3, 1)[:, :, :, None].contiguous(),
        sentinel2_l2a_mask=torch.zeros(count, side, side, 1, 3),
        timestamps=torch.tensor([[[3, 4, 2021]]]).expand(count, -1, -1),
    )
    best = take_turns(
        {
            'geolearn': lambda: net(x),
            'reference': lambda: reference(sample, patch_size=8, input_res=10, fast_pass=True),
        }
    )
    ratio = best['reference'] / best['geolearn']
    print(
        f'OlmoEarth v1 {size}, {count} x {side} px: {best["geolearn"]:.3f} s; authors {best["reference"]:.3f} s: '
        f'{ratio:.2f} x as fast',
        flush=True,
    )


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--pixels', type=int, default=4096)
    parser.add_argument('--skip', choices=['presto', 'olmoearth'])
    arguments = parser.parse_args()
    if arguments.skip != 'presto':
        every = tuple(band for name, group in GROUPS.items() if name != 'dynamic_world' for band in group)
        measure_presto('all bands', every, arguments.pixels)
        measure_presto('Sentinel-2', every[2:12], arguments.pixels)
    if arguments.skip != 'olmoearth':
        measure_olmoearth('nano', 128, 4)
        measure_olmoearth('base', 64, 1)


if __name__ == '__main__':
    main()
