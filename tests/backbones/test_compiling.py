"""A compiled network gives what the network gives, for the images it was compiled for and for all others."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from affine import Affine
from torch import nn

from geolearn.backbones.backbone import PyramidBackbone, TokenBackbone
from geolearn.backbones.compiling import CompiledNetwork, compile_for_inference
from geolearn.backbones.dofa import DynamicPatchEmbed
from geolearn.backbones.trunk import ViT, ViTConfig
from geolearn.classes import ClassInfo
from geolearn.inference.encoding import ClassEncoding
from geolearn.inference.mapping import map_sources
from geolearn.inference.options import ReadOptions, TilingOptions
from geolearn.inference.source import Source
from geolearn.raster import GeoBox, RasterWriter, open_raster
from geolearn.tiling import make_grid

WAVELENGTHS = (0.49, 0.66, 0.84)


class Mean(nn.Module):
    """A network so small that compiling it takes little more than starting the compiler."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        return {'mean': x.mean(dim=(2, 3)) * self.weight, 'shape': tuple(x.shape)}


def small_backbone(form=TokenBackbone):
    torch.manual_seed(0)
    return form('dofa_base', ViT(ViTConfig(48, 2, 3), DynamicPatchEmbed(WAVELENGTHS, 48), 16))


def refuse(monkeypatch, error):
    """Let torch.compile give a function that fails when it is first called, as it does where compiling fails."""

    def compile_nothing(network, **options):
        def fail(x):
            raise error

        return fail

    monkeypatch.setattr(torch, 'compile', compile_nothing)


def return_instead(monkeypatch, change):
    """Let torch.compile give a function whose output is changed."""
    monkeypatch.setattr(torch, 'compile', lambda network, **options: lambda x: change(network(x)))


@pytest.fixture
def images():
    return torch.rand(2, len(WAVELENGTHS), 64, 48, generator=torch.Generator().manual_seed(1))


@pytest.mark.slow
@pytest.mark.parametrize('form', [TokenBackbone, PyramidBackbone])
def test_a_compiled_backbone_gives_the_same(form, images):
    network = small_backbone(form).eval()
    compiled = compile_for_inference(network, torch.zeros_like(images))
    assert compiled.reason is None
    assert compiled.seconds > 0
    for x in (images, images[:1], images[..., :32], images.to(memory_format=torch.channels_last)):
        with torch.no_grad():
            expected = network(x)
        torch.testing.assert_close(compiled(x), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_nothing_is_compiled_twice_whatever_mode_the_caller_is_in(images):
    from torch._dynamo.utils import counters

    compiled = compile_for_inference(small_backbone(), images)
    before = counters['stats']['unique_graphs']
    with torch.inference_mode():
        made_in_inference_mode = images.clone()
    for x in (images, made_in_inference_mode, images.clone().requires_grad_()):
        for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
            with mode():
                assert compiled(x).shape == (2, 13, 48)
    assert counters['stats']['unique_graphs'] == before


@pytest.mark.slow
def test_more_networks_of_a_class_than_the_tracer_allows_are_all_compiled(images):
    from torch._dynamo import config
    from torch._dynamo.utils import counters

    count, before = config.cache_size_limit + 2, counters['stats']['unique_graphs']
    networks = [compile_for_inference(Mean(), images) for _ in range(count)]
    assert [compiled.reason for compiled in networks] == [None] * count
    assert counters['stats']['unique_graphs'] == before + count


def test_where_there_is_no_compiler_the_network_itself_runs_and_the_log_says_why(monkeypatch, images, caplog):
    refuse(monkeypatch, RuntimeError('\nInvalidCxxCompiler: No working C++ compiler found\nSet TORCHDYNAMO_VERBOSE=1'))
    network = small_backbone().eval()
    with caplog.at_level(logging.WARNING, 'geolearn'):
        compiled = compile_for_inference(network, images)
    assert 'No working C++ compiler found; install one: g++ on Linux' in compiled.reason
    assert compiled.reason in caplog.text
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), network(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    'error', [RuntimeError('Windows not yet supported'), PermissionError(13, 'cache folder'), OSError()]
)
def test_whatever_stops_the_compiler_is_the_reason(monkeypatch, images, error):
    refuse(monkeypatch, error)
    reason = compile_for_inference(Mean(), images).reason
    assert reason == (str(error) or 'OSError')


def test_code_that_computes_something_else_is_not_used(monkeypatch, images):
    return_instead(monkeypatch, lambda found: {**found, 'mean': found['mean'] * 1.001})
    compiled = compile_for_inference(Mean(), images)
    assert 'differs by 0.001 of its largest value' in compiled.reason
    torch.testing.assert_close(compiled(images)['mean'], 2 * images.mean(dim=(2, 3)))


def test_code_that_gives_not_a_number_is_not_used(monkeypatch, images):
    return_instead(monkeypatch, lambda found: {**found, 'mean': found['mean'] * torch.nan})
    assert 'differs by inf' in compile_for_inference(Mean(), images).reason


def test_not_a_number_where_the_network_gives_it_is_right(monkeypatch, images):
    return_instead(monkeypatch, lambda found: found)
    images[0, 0, 3, 3] = torch.nan
    assert compile_for_inference(Mean(), images).reason is None


def test_training_further_changes_the_network_and_not_what_was_compiled(monkeypatch, images):
    return_instead(monkeypatch, lambda found: found)
    network = Mean().train()
    compiled = compile_for_inference(network, images)
    with torch.no_grad():
        network.weight.fill_(5)
    for x in (images, images[:1]):
        torch.testing.assert_close(compiled(x)['mean'], 2 * x.mean(dim=(2, 3)))
    assert network.training
    assert network.weight.requires_grad


def test_generated_kernels_are_generated_once(monkeypatch, images):
    return_instead(monkeypatch, lambda found: found)
    network = small_backbone()
    compiled = compile_for_inference(network, images)
    assert isinstance(compiled._network.trunk.patch_embed, nn.Conv2d)
    assert isinstance(network.trunk.patch_embed, DynamicPatchEmbed)


def test_half_precision_is_held_to_what_it_can(monkeypatch, images):
    return_instead(monkeypatch, lambda found: found)
    network = small_backbone().eval().to(torch.bfloat16)
    compiled = compile_for_inference(network, images.bfloat16())
    assert compiled.reason is None
    assert compiled(images.bfloat16()).dtype == torch.bfloat16


def test_images_that_the_network_cannot_take_are_its_own_error(images):
    with pytest.raises(RuntimeError, match='channels'):
        compile_for_inference(small_backbone(), images[:, :2])


def test_a_map_by_a_compiled_network_is_the_same_map(monkeypatch, tmp_path):
    shapes = []

    def record(network, **options):
        return lambda x: shapes.append(tuple(x.shape)) or network(x)

    monkeypatch.setattr(torch, 'compile', record)
    box = GeoBox((60, 200), transform=Affine(10, 0, 400000, 0, -10, 5400000), crs='EPSG:32633')
    rows = np.random.default_rng(0).integers(1, 99, (2, 60, 200)).astype('uint16')
    with RasterWriter(tmp_path / 'scene.tif', box, dtype='uint16', count=2) as writer:
        writer.write(0, rows)
    classes = tuple(ClassInfo(value, f'class {value}', (value, 0, 0)) for value in (1, 2))
    with open_raster(tmp_path / 'scene.tif') as src:
        grid = make_grid((60, 200), tile_size=32, halo=4)
        network, tiling = nn.Conv2d(2, 2, 3, padding=1), TilingOptions(batch_size=5)
        given = ([Source(src, (1, 2))], network, ClassEncoding(classes), grid)
        plain = map_sources(*given, tmp_path / 'plain.tif', read=ReadOptions(), tiling=tiling)
        assert not shapes
        tiling = replace(tiling, compile=True)
        compiled = map_sources(*given, tmp_path / 'compiled.tif', read=ReadOptions(), tiling=tiling)
    assert len(grid.rows) * len(grid.cols) == 6
    # on a CPU tiles are computed one by one, so that the map does not depend on the batch size
    assert set(shapes) == {(1, 2, *grid.tile_shape)}
    assert plain.read_bytes() == compiled.read_bytes()


def test_it_is_offered_beside_create_backbone():
    from geolearn import backbones

    assert backbones.compile_for_inference is compile_for_inference
    assert backbones.CompiledNetwork is CompiledNetwork
