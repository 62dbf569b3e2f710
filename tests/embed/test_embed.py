import numpy as np
import pytest
import torch
from affine import Affine

import geolearn
from geolearn import from_rasters, prepare_data
from geolearn.backbones import create_backbone
from geolearn.bands import get_bands
from geolearn.embed import Embeddings, attention_maps, embed, embed_raster
from geolearn.embed.images import batch_size_of
from geolearn.errors import BackboneError, BandError, RasterError, UnknownNameError
from geolearn.raster.writing import write_raster

TINY = {'backbone': 'dofa_tiny', 'pretrained': False}
S2 = {'bands': ['B02', 'B03', 'B04', 'B08'], 'sensor': 'sentinel2_l2a', **TINY}

PLACE = {'transform': Affine(10, 0, 500_000, 0, -10, 5_200_000), 'crs': 'EPSG:32632'}


def test_a_pooled_vector_is_the_mean_of_the_grid(scene_pixels):
    grid = embed(scene_pixels, output='grid', **S2)
    assert grid.values.shape == (192, 7, 9)
    mean = embed(scene_pixels, **S2)
    assert mean.values.shape == (1, 192)
    assert np.allclose(mean.values[0], grid.values.mean(axis=(1, 2)), atol=1e-6)
    most = embed(scene_pixels, pooling='max', **S2)
    assert np.allclose(most.values[0], grid.values.max(axis=(1, 2)), atol=1e-6)


def test_the_grid_is_what_the_backbone_gives(scene_pixels):
    found = embed(scene_pixels, output='grid', normalize=((900, 1400, 1900, 2400), (300,) * 4), **S2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = create_backbone('dofa_tiny', get_bands('sentinel2_l2a', S2['bands']), pretrained=False, form='tokens')
    mean = np.array([900, 1400, 1900, 2400]).reshape(4, 1, 1)
    image = torch.from_numpy(((scene_pixels - mean) / 300).astype(np.float32))
    with torch.inference_mode():
        tokens = net.eval()(image[None])[0]
        states = net.trunk.hidden_states(image[None])
    assert np.allclose(found.vectors, tokens[1:], atol=1e-5)
    given = {'normalize': ((900, 1400, 1900, 2400), (300,) * 4), **S2}
    assert np.allclose(embed(scene_pixels, pooling='cls', **given).values[0], tokens[0], atol=1e-5)
    earlier = embed(scene_pixels, output='grid', layer=1, **given)
    assert np.allclose(earlier.vectors, states[1][0, 1:], atol=1e-5)
    assert earlier.source.layer == 1


@pytest.mark.parametrize('side', [5, 16, 33, 300])
def test_images_of_any_size_are_embedded(side):
    image = np.random.default_rng(0).uniform(100, 3000, (4, side, side + 3)).astype(np.float32)
    grid = embed(image, output='grid', **S2)
    assert grid.values.shape == (192, -(-side // 16), -(-(side + 3) // 16))
    assert np.isfinite(grid.values).all()
    assert np.allclose(embed(image, **S2).values[0], grid.values.mean(axis=(1, 2)), atol=1e-5)


@pytest.mark.parametrize('kind', ['arrays', 'rasters'])
def test_statistics_of_several_images_are_those_of_all_in_any_order(kind, tmp_path):
    rng = np.random.default_rng(0)
    arrays = [rng.uniform(low, low + 1500, (4, 32, 16)).astype(np.float32) for low in (500, 900, 700)]
    images = arrays
    if kind == 'rasters':
        images = [tmp_path / f'{number}.tif' for number in range(3)]
        for path, pixels in zip(images, arrays):
            write_raster(path, pixels, band_names=S2['bands'], **PLACE)
    given = {**(S2 if kind == 'arrays' else TINY | {'sensor': 'sentinel2_l2a'}), 'normalize': 'dataset'}
    found, turned = embed(images, **given), embed(images[::-1], **given)
    assert found.source == turned.source
    assert np.allclose(found.values, turned.values[::-1], atol=1e-6)
    assert found.source.mean == pytest.approx([float(np.mean([a[band] for a in arrays])) for band in range(4)])


def test_batches_of_images_are_as_large_as_is_fast_on_the_device():
    cpu, gpu = torch.device('cpu'), torch.device('cuda')
    assert [batch_size_of((side, side), None, cpu) for side in (16, 64, 224, 512)] == [256, 49, 4, 1]
    assert [batch_size_of((side, side), None, gpu) for side in (64, 224, 1024)] == [196, 16, 1]
    assert batch_size_of((224, 224), 7, cpu) == 7


def test_many_images_are_those_one_by_one(scene_pixels):
    chips = np.stack([scene_pixels[:, :32, 32 * i : 32 * i + 32] for i in range(4)])
    given = {**S2, 'normalize': ((1500,) * 4, (700,) * 4)}
    many = embed(chips, names=['a', 'b', 'c', 'd'], batch_size=3, **given)
    one = np.concatenate([embed(chip, **given) for chip in chips])
    assert np.allclose(many, one, atol=1e-5)
    assert many.names == ('a', 'b', 'c', 'd')
    assert embed(torch.from_numpy(chips.astype(np.float32)), **given).names == ('0', '1', '2', '3')
    mixed = embed([chips[0], scene_pixels], **given)
    assert np.allclose(mixed.values[0], many.values[0], atol=1e-5)
    grids = embed(chips, output='grid', **given)
    assert grids.values.shape == (4, 192, 2, 2)
    with pytest.raises(ValueError, match='different shapes'):
        embed([chips[0], scene_pixels], output='grid', **given)


def test_tokens_without_data_are_nan_and_take_no_part(scene_pixels):
    image = scene_pixels.astype(np.float32)
    image[:, :48, :32] = np.nan
    image[0, 60, 60] = np.nan
    grid = embed(image, output='grid', **S2)
    assert np.isnan(grid.values[:, :3, :2]).all()
    assert np.isfinite(grid.values).sum() == 192 * (63 - 6)
    assert np.allclose(embed(image, **S2).values[0], np.nanmean(grid.values, axis=(1, 2)), atol=1e-6)
    marked = scene_pixels.copy()
    marked[:, :48, :32] = 65535
    marked[0, 60, 60] = 65535
    assert np.allclose(embed(marked, output='grid', nodata=65535, **S2), grid, atol=1e-4, equal_nan=True)
    hidden = np.ma.masked_array(scene_pixels, mask=np.isnan(image))
    assert np.allclose(embed(hidden, output='grid', **S2), grid, atol=1e-4, equal_nan=True)
    with pytest.raises(RasterError, match='no pixel holds data'):
        embed(np.full((4, 32, 32), np.nan), **S2)


def test_a_large_image_is_cut_into_images_of_the_context(scene_pixels):
    large = np.tile(scene_pixels, (1, 1, 2))
    grid = embed(large, output='grid', context=64, **S2)
    assert grid.values.shape == (192, 7, 18)
    assert np.isfinite(grid.values).all()
    assert np.allclose(embed(large, context=64, **S2).values[0], grid.values.mean(axis=(1, 2)), atol=1e-5)
    with pytest.raises(ValueError, match='larger than the 64 px that the backbone sees has no one class token'):
        embed(large, pooling='cls', context=64, **S2)


def test_values_that_look_normalized_are_refused(scene_pixels):
    given = {**S2, 'normalize': ((1500,) * 4, (700,) * 4)}
    scores = (scene_pixels - scene_pixels.mean((1, 2), keepdims=True)) / scene_pixels.std((1, 2), keepdims=True)
    with pytest.raises(RasterError, match=r"look normalized already, like standard scores.*normalize='none'"):
        embed(scores, **given)
    low, high = (f(scene_pixels.astype(float), axis=(1, 2), keepdims=True) for f in (np.min, np.max))
    with pytest.raises(RasterError, match='bands stretched to 0..1'):
        embed((scene_pixels - low) / (high - low), **given)
    # rounded, or cut to whole numbers, they still are
    for whole in (scores.round().astype(np.int16), (scene_pixels > 1500).astype(np.uint8)):
        with pytest.raises(RasterError, match='look normalized already'):
            embed(whole, **given)
    # what the messages advise works
    free = embed(scores, **S2 | {'normalize': 'none'})
    assert free.source.scaling.startswith('nothing')
    assert np.isfinite(embed(scores, check_values=False, **given)).all()
    # dark water and reflectance 0..1 are raw
    embed(scene_pixels // 900, **given)
    embed(scene_pixels / np.float32(10_000), **given)


def test_units_of_reflectance_do_not_matter_to_the_statistics_of_the_weights(scene_pixels):
    whole = embed(scene_pixels, normalize='pretraining', **S2)
    for scaled in (scene_pixels / np.float32(10_000), scene_pixels / np.float32(10)):
        assert np.allclose(embed(scaled, normalize='pretraining', **S2), whole, atol=1e-4)
    assert 'mean and std of the pretraining of dofa_tiny' in whole.source.scaling


def test_bands_are_named_or_have_wavelengths(scene_pixels):
    by_name = embed(scene_pixels, **S2)
    waves = [band.wavelength_um for band in get_bands('sentinel2_l2a', S2['bands'])]
    by_wave = embed(scene_pixels, wavelengths=waves, **TINY)
    assert np.allclose(by_wave, by_name, atol=1e-6)
    assert by_wave.source.wavelengths_um == tuple(waves)
    colors = embed(scene_pixels, bands=['blue', 'green', 'red', 'nir'], **TINY)
    assert colors.source.bands == ('blue', 'green', 'red', 'nir')
    embed(np.random.default_rng(0).normal(-14, 4, (2, 32, 32)), bands=['VV', 'VH'], **TINY)
    with pytest.raises(BandError, match='pass bands= with their names'):
        embed(scene_pixels, **TINY)
    with pytest.raises(BandError, match='found 4 bands in the array, but 2 are named'):
        embed(scene_pixels, bands=['red', 'nir'], **TINY)
    with pytest.raises(BandError, match='found 2 wavelengths for 4 bands'):
        embed(scene_pixels, wavelengths=[0.5, 0.6], **TINY)


def test_arguments_that_are_not_valid_are_named(scene_pixels):
    with pytest.raises(UnknownNameError, match="unknown output 'pool'"):
        embed(scene_pixels, output='pool', **S2)
    with pytest.raises(UnknownNameError, match="unknown pooling 'median'"):
        embed(scene_pixels, pooling='median', **S2)
    with pytest.raises(BackboneError, match='layer must be a number from 0 to'):
        embed(scene_pixels, layer=99, **S2)
    conv = {**S2, 'backbone': 'resnet18'}
    with pytest.raises(BackboneError, match="resnet18 has no class token; pass pooling='mean'"):
        embed(scene_pixels, pooling='cls', **conv)
    with pytest.raises(ValueError, match=r'images are \(bands, height, width\)'):
        embed(scene_pixels[0], **S2)
    with pytest.raises(TypeError, match='a dict holds no images'):
        embed({}, **S2)
    for size in (0, -1):
        with pytest.raises(ValueError, match='batch_size must be a number of images above 0'):
            embed(scene_pixels, batch_size=size, **S2)
    with pytest.raises(BandError, match='B02 is named twice'):
        embed(scene_pixels[:3], **S2 | {'bands': ['B02', 'B02', 'B04']})


def test_images_with_bands_last_are_told_from_others_and_the_advice_works(scene_pixels):
    for last in (np.moveaxis(scene_pixels, 0, -1), np.moveaxis(scene_pixels[None], 1, -1)):
        with pytest.raises(BandError, match=r'pass np\.moveaxis\(image, -1, -3\)'):
            embed(last, **S2)
        assert np.array_equal(embed(np.moveaxis(last, -1, -3), **S2), embed(scene_pixels, **S2))


def test_a_convolutional_network_gives_its_maps(scene_pixels):
    conv = {**S2, 'backbone': 'resnet18'}
    grid = embed(scene_pixels, output='grid', **conv)
    assert grid.values.shape == (512, 4, 5)
    assert (
        embed(scene_pixels, output='grid', layer=0, **conv).source.stride
        == 112 // embed(scene_pixels, output='grid', layer=0, **conv).values.shape[1]
    )


def test_a_raster_gives_what_its_pixels_give(scene, scene_pixels):
    given = {**TINY, 'normalize': ((1500,) * 4, (700,) * 4)}
    grid = embed(scene, output='grid', sensor='sentinel2_l2a', **given)
    assert np.allclose(grid, embed(scene_pixels, output='grid', **S2 | given), atol=1e-5)
    assert grid.geobox.transform == Affine(160, 0, 500_000, 0, -160, 5_200_000)
    assert grid.geobox.crs is not None
    pooled = embed([scene, scene], names=['one', 'two'], sensor='sentinel2_l2a', **given)
    assert np.allclose(pooled.values[1], grid.values.mean(axis=(1, 2)), atol=1e-5)
    assert len(pooled.geometries) == 2
    some = embed(scene, bands=['B04', 'B08'], sensor='sentinel2_l2a', **TINY)
    assert some.source.bands == ('B04', 'B08')
    with pytest.raises(RasterError, match='pass bands= with the names of all 4 bands'):
        embed(scene, bands=['B11'], sensor='sentinel2_l2a', **TINY)


def test_rasters_in_other_units_than_the_first_are_refused(scene, scene_pixels, tmp_path):
    place = {'transform': Affine(10, 0, 500_000, 0, -10, 5_200_000), 'crs': 'EPSG:32632'}
    names = ('B02', 'B03', 'B04', 'B08')
    write_raster(tmp_path / 'b.tif', (scene_pixels / 10_000).astype('float32'), band_names=names, **place)
    with pytest.raises(RasterError, match='other units'):
        embed([scene, tmp_path / 'b.tif'], sensor='sentinel2_l2a', **TINY)


NANO = {'backbone': 'vit_nano', 'pretrained': False}


def test_a_height_model_is_embedded_and_gaps_of_either_kind_are_missing(tmp_path):
    heights = np.random.default_rng(0).uniform(500, 900, (1, 48, 40)).astype(np.float32)
    heights[:, :16, :8] = -9999
    heights[:, 40:, 32:] = np.nan
    path = tmp_path / 'dem.tif'
    write_raster(path, heights, transform=PLACE['transform'], crs=None, nodata=-9999, band_names=['elevation'])
    grid = embed(path, output='grid', **NANO)
    assert grid.geobox.crs is None
    assert grid.source.bands == ('elevation',)
    missing = np.isnan(grid.values).all(axis=0)
    assert list(zip(*missing.nonzero())) == [(0, 0), (1, 0), (5, 4)]
    assert np.isfinite(grid.values[:, ~missing]).all()
    same = embed(heights, output='grid', bands=['elevation'], nodata=-9999, **NANO)
    np.testing.assert_allclose(same.values, grid.values, atol=1e-5)
    with pytest.raises(BandError, match=r'dofa_tiny needs a wavelength for every band'):
        embed(path, 'dofa_tiny', pretrained=False)


def test_a_raster_of_one_column_is_a_column_of_tokens(scene_pixels, tmp_path):
    write_raster(tmp_path / 'thin.tif', scene_pixels[:, :, :1], **PLACE, band_names=S2['bands'])
    given = {'sensor': 'sentinel2_l2a', **NANO}
    grid = embed(tmp_path / 'thin.tif', output='grid', **given)
    assert grid.values.shape == (128, 14, 1)
    assert np.isfinite(grid.values).all()
    written = Embeddings.load(embed_raster(tmp_path / 'thin.tif', tmp_path / 'grid.tif', **given))
    np.testing.assert_allclose(written.values, grid.values, atol=1e-5)
    write_raster(tmp_path / 'one.tif', scene_pixels[:, :1, :1], **PLACE, band_names=S2['bands'])
    with pytest.raises(BandError, match=r'hold one value in all chips or images .* pass normalize=\(means, stds\)'):
        embed(tmp_path / 'one.tif', **given)
    assert embed(tmp_path / 'one.tif', normalize=((1500,) * 4, (700,) * 4), **given).values.shape == (1, 128)


def test_embeddings_are_not_embedded_again(scene, tmp_path):
    vectors = np.random.default_rng(0).normal(size=(64, 32, 32))
    vectors /= np.linalg.norm(vectors, axis=0)
    codes = np.rint(np.sign(vectors) * np.sqrt(np.abs(vectors)) * 127.5).astype(np.int8)
    path = tmp_path / 'codes.tif'
    names = [f'A{number:02d}' for number in range(64)]
    write_raster(path, codes, **PLACE, nodata=-128, band_names=names)
    message = 'holds AlphaEarth as int8 codes, which are embeddings already; train PixelHead'
    for use in (embed, attention_maps):
        with pytest.raises(RasterError, match=message):
            use(path, **NANO)
    with pytest.raises(RasterError, match=message):
        embed_raster(path, tmp_path / 'again.tif', **NANO)
    assert not (tmp_path / 'again.tif').exists()
    write_raster(tmp_path / 'labels.tif', np.indices((32, 32))[:1].astype(np.uint8) % 2 + 1, **PLACE)
    chips = from_rasters(path, tmp_path / 'labels.tif', dequantize='alphaearth', chip_size=16, split='random')
    with pytest.raises(RasterError, match='the chip folder .* holds AlphaEarth'):
        embed(chips, **NANO)
    grid = embed_raster(scene, tmp_path / 'grid.tif', sensor='sentinel2_l2a', **NANO)
    with pytest.raises(RasterError, match=r'grid.tif holds what vit_nano made of an image; .*Embeddings\.load'):
        embed(grid, **NANO)


def test_the_function_and_its_package_share_a_name():
    assert geolearn.embed is embed
    assert Embeddings is geolearn.Embeddings


def test_places_of_chips_are_their_outlines(scene):
    geopandas = pytest.importorskip('geopandas')
    frame = embed(scene, sensor='sentinel2_l2a', **TINY).to_geopandas()
    assert isinstance(frame, geopandas.GeoDataFrame)
    assert frame.total_bounds.tolist() == [500_000, 5_200_000 - 1120, 500_000 + 1440, 5_200_000]


@pytest.mark.real_data
def test_real_weights_embed_real_chips(shared):
    """Galileo nano on EuroSAT's patches of a lake, a field and pasture."""
    names = ['B2', 'B3', 'B4', 'B5', 'B6', 'B7', 'B8', 'B11', 'B12']
    stored = get_bands('sentinel2_l1c', ['B1', *names[:7], 'B9', 'B10', 'B11', 'B12', 'B8A'])
    data = prepare_data(shared / 'data' / 'eurosat_ms', bands=stored, extract_bands=names)
    found = embed(data, 'galileo_nano', weights=shared / 'weights' / 'galileo_nano')
    assert (found.values.shape, found.source.bands) == ((3, 128), tuple(names))
    lake = next(name for name in found.names if 'Lake' in name)
    assert found.names[-1 if found.names[0] == lake else 0] != lake
    assert 'Lake' not in found.nearest(next(n for n in found.names if 'Pasture' in n), 1).names[0]
