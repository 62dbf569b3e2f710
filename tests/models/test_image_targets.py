"""Images from images: translation between bands, and finer pixels than those of the input."""

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine

from geolearn.chips.export import export_training_data
from geolearn.chips.formats import open_chips
from geolearn.cli import main
from geolearn.errors import ChipFolderError, ExportError
from geolearn.metrics import ImageScores
from geolearn.models import PixelRegressor, load_model
from geolearn.models.evaluation.pixels import predict_values
from geolearn.prepare import prepare_data

pytestmark = pytest.mark.usefixtures('one_thread')

PLACE = Affine(10, 0, 500_000, 0, -10, 5_400_000)


def scene(side=128, seed=0):
    """Three bands of smooth land with sharp fields."""
    from scipy import ndimage

    rng = np.random.default_rng(seed)
    fields = np.kron(rng.uniform(60, 180, (side // 8, side // 8)), np.ones((8, 8)))
    smooth = ndimage.gaussian_filter(rng.normal(0, 40, (3, side, side)), (0, 3, 3))
    return (fields + 3 * smooth).clip(1, 255).astype(np.uint8)


@pytest.fixture(scope='module')
def pairs(tmp_path_factory, save):
    """Images of three bands, and of two others in pixels half as large."""
    folder = tmp_path_factory.mktemp('pairs') / 'chips'
    for name in ('images', 'images2'):
        (folder / name).mkdir(parents=True)
    whole = scene(128).astype(np.float32)
    coarse = whole.reshape(3, 64, 2, 64, 2).mean((2, 4))
    target = np.stack([300 - whole[0], 2 * whole[1] + 10])
    for number in range(16):
        row, col = divmod(number, 4)
        part = np.s_[:, 16 * row : 16 * row + 16, 16 * col : 16 * col + 16]
        fine = np.s_[:, 32 * row : 32 * row + 32, 32 * col : 32 * col + 32]
        place = PLACE @ Affine.translation(16 * col, 16 * row)
        save(folder / 'images' / f'{number:03}.tif', coarse[part].astype(np.uint8), names=['Red', 'Green', 'Blue'],
             transform=place)  # fmt: skip
        save(folder / 'images2' / f'{number:03}.tif', target[fine].astype(np.float32), names=['inverse', 'double'],
             transform=place @ Affine.scale(0.5))  # fmt: skip
    return folder


@pytest.fixture(scope='module')
def sharp(tmp_path_factory, save):
    """One scene as images alone, of which coarse ones are made, and the scene at half the resolution."""
    folder = tmp_path_factory.mktemp('sharp')
    pixels = scene(256, seed=1)
    raster = save(folder / 'scene.tif', pixels, names=['Red', 'Green', 'Blue'], transform=PLACE)
    chips = export_training_data(raster, None, folder / 'chips', 'Export_Tiles', tile_size=32)
    half = pixels.astype(np.float32).reshape(3, 128, 2, 128, 2).mean((2, 4)).round().astype(np.uint8)
    coarse = save(folder / 'coarse.tif', half, names=['Red', 'Green', 'Blue'], transform=PLACE @ Affine.scale(2))
    return chips, coarse, pixels


def prepare(folder, tmp_path, **options):
    usual = {'chip_size': 16, 'batch_size': 4, 'val_split_pct': 0.25, 'working_dir': tmp_path, 'target': 'images'}
    return prepare_data(folder, **(usual | options))


def test_pairs_are_read_as_they_lie(pairs, tmp_path):
    data = prepare(pairs, tmp_path, dataset_type='Pix2Pix', transforms=False)
    assert data.target_bands == ('inverse', 'double')
    images, target = next(iter(data.train_dl))
    assert images.shape[1:] == (3, 16, 16)
    assert target.shape[1:] == (2, 32, 32)
    # each coarse pixel is the mean of its four fine ones
    means = target.reshape(len(target), 2, 16, 2, 16, 2).mean((3, 5))
    assert torch.allclose(300 - means[:, 0], images[:, 0], atol=1)
    assert torch.allclose((means[:, 1] - 10) / 2, images[:, 1], atol=1)
    unpacked = prepare(pairs, tmp_path, dataset_type='Export_Tiles', transforms=False, pack=False)
    assert torch.equal(next(iter(unpacked.valid_dl))[1], next(iter(data.valid_dl))[1])
    # turned together
    turned = prepare(pairs, tmp_path, dataset_type='Pix2Pix')
    images, target = next(iter(turned.train_dl))
    means = target.reshape(len(target), 2, 16, 2, 16, 2).mean((3, 5))
    assert torch.allclose(300 - means[:, 0], images[:, 0], atol=1)


def test_pictures_show_whole_chips_in_finer_pixels(pairs, tmp_path):
    data = prepare(pairs, tmp_path, dataset_type='Pix2Pix', transforms=False, chip_size=8)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), torch.nn.Upsample(scale_factor=2))
    found = predict_values(network, data.valid_dl, [0, 1])
    assert found.images.shape[-2:] == (16, 16)
    assert found.truth.shape == found.predictions.shape == (2, 2, 32, 32)


def test_an_image_is_learned_from_its_own_larger_pixels(sharp, tmp_path):
    chips, _, _ = sharp
    data = prepare(chips, tmp_path, downsample=2, transforms={'scale_crop': (0.8, 1.2), 'cutmix_alpha': 1.0})
    images, target = next(iter(data.valid_dl))
    assert (images.shape[-1], target.shape[-1]) == (16, 32)
    assert torch.allclose(target.reshape(len(target), 3, 16, 2, 16, 2).mean((3, 5)), images, atol=0.51)
    assert next(iter(data.train_dl))[1].shape[-1] == 32
    assert data.cell_size['x'] == 20
    assert data.target_bands == ('Red', 'Green', 'Blue')
    data.show_batch()


@pytest.fixture(scope='module')
def sharpener(sharp, tmp_path_factory):
    folder = tmp_path_factory.mktemp('sharpener')
    data = prepare(sharp[0], folder, downsample=2)
    torch.manual_seed(0)
    model = PixelRegressor(data, 'test_resnet', pretrained=False, loss='l1')
    return model.fit(6, lr=3e-3, checkpoint=False)


def bicubic(coarse, times=2):
    image = torch.from_numpy(coarse)[None].float()
    return torch.nn.functional.interpolate(image, scale_factor=times, mode='bicubic', align_corners=False)[0].numpy()


def test_a_map_is_finer_and_lies_where_its_raster_lies(sharp, sharpener, tmp_path):
    _, coarse, truth = sharp
    out = sharpener.predict_raster(coarse, tmp_path / 'fine.tif', tile_size=64)
    with rasterio.open(out) as fine, rasterio.open(coarse) as src:
        assert (fine.width, fine.height, fine.count) == (2 * src.width, 2 * src.height, 3)
        assert fine.bounds == src.bounds
        assert fine.res == (10, 10)
        assert fine.descriptions == ('Red', 'Green', 'Blue')
        mapped, blurred = fine.read(), bicubic(src.read())
    # better than enlarging the raster, which a map that is shifted by a pixel would not be
    error = np.abs(mapped - truth).mean()
    assert error < 0.97 * np.abs(blurred - truth).mean()
    assert error < np.abs(np.roll(mapped, 1, 2) - truth).mean()
    # and the same in one tile, or of a part
    whole = sharpener.predict_raster(coarse, tmp_path / 'whole.tif', tile_size=128)
    part = sharpener.predict_raster(coarse, tmp_path / 'part.tif', bbox=(500_320, 5_398_720, 501_280, 5_399_680))
    with rasterio.open(whole) as one, rasterio.open(part) as other:
        whole_map = one.read()
        # tiles at the edge of the raster see missing pixels beyond it, and the one tile ends there: 16 fine pixels of
        # the map, half the coarsest stride of the network, are left out
        inner = np.s_[:, 16:-16, 16:-16]
        assert np.abs(whole_map - mapped)[inner].mean() < 0.3
        assert np.abs(whole_map - np.roll(mapped, 1, 2))[inner].mean() > 3
        row, col = one.index(other.transform.c + 1, other.transform.f - 1)
        cut = whole_map[:, row : row + other.height, col : col + other.width]
        assert np.abs(other.read() - cut)[:, 32:-32, 32:-32].mean() < 0.3
    with pytest.raises(ValueError, match="computed by engine='torch'"):
        sharpener.predict_raster(coarse, tmp_path / 'onnx.tif', engine='onnx')
    with pytest.raises(ExportError, match='finer than their inputs'):
        sharpener.save(tmp_path / 'x.dlpk', export='onnx', compute_metrics=False)


def test_missing_pixels_of_the_raster_are_missing_in_the_finer_map(sharpener, sharp, tmp_path, save):
    pixels = rasterio.open(sharp[1]).read()
    pixels[:, 10:14, 20:30] = 0
    holed = save(
        tmp_path / 'h.tif', pixels, names=['Red', 'Green', 'Blue'], transform=PLACE @ Affine.scale(2), nodata=0
    )
    mapped = rasterio.open(sharpener.predict_raster(holed, tmp_path / 'm.tif')).read(1)
    absent = np.zeros_like(mapped, bool)
    absent[20:28, 40:60] = True
    assert (np.isnan(mapped) == absent).all()


def test_a_saved_model_makes_the_same_map(sharpener, sharp, tmp_path):
    scores = sharpener.scores()
    assert {'psnr', 'ssim', 'rmse'} <= scores.keys()
    assert scores['psnr'] == pytest.approx(sharpener.history.epochs[-1]['psnr'], rel=1e-4)
    loaded = load_model(sharpener.save(tmp_path / 'fine.dlpk'))
    one, other = (
        rasterio.open(model.predict_raster(sharp[1], tmp_path / f'{name}.tif')).read()
        for name, model in (('one', sharpener), ('other', loaded))
    )
    assert np.array_equal(one, other)
    sharpener.report(tmp_path / 'report.html')
    assert 'SSIM' in (tmp_path / 'report.html').read_text()


def test_bands_become_other_bands(pairs, tmp_path):
    data = prepare(pairs, tmp_path, dataset_type='Pix2Pix')
    torch.manual_seed(0)
    model = PixelRegressor(data, 'test_resnet', pretrained=False).fit(6, lr=4e-3, checkpoint=False)
    assert model.scores()['r2'] > 0.5
    mapped = rasterio.open(
        model.predict_raster(pairs / 'images' / '005.tif', tmp_path / 'm.tif', resolution='training')
    )
    assert mapped.descriptions == ('inverse', 'double')
    assert mapped.shape == (32, 32)
    truth = rasterio.open(pairs / 'images2' / '005.tif').read()
    assert np.abs(mapped.read() - truth).mean() < np.abs(truth.mean((1, 2), keepdims=True) - truth).mean()
    model.show_results(rows=2)


def test_scores_are_those_of_torchmetrics():
    metrics = pytest.importorskip('torchmetrics.image')
    torch.manual_seed(0)
    truth = 100 * torch.rand(5, 3, 24, 20) + 1000
    guess = truth + 8 * torch.randn_like(truth)
    scores = ImageScores(span=120.0)
    for part in (slice(0, 2), slice(2, 5)):
        scores.add(guess[part], truth[part])
    found = scores.values()
    psnr = metrics.PeakSignalNoiseRatio(data_range=120.0)(guess, truth)
    ssim = metrics.StructuralSimilarityIndexMeasure(data_range=120.0)(guess.double(), truth.double())
    assert found['psnr'] == pytest.approx(float(psnr), rel=1e-5)
    assert found['ssim'] == pytest.approx(float(ssim), rel=1e-5)
    assert found['rmse'] == pytest.approx(8, rel=0.05)


def test_images_that_cannot_be_targets_are_refused(pairs, sharp, scene_chips, tmp_path):
    with pytest.raises(ChipFolderError, match='pass downsample=2'):
        prepare(sharp[0], tmp_path)
    with pytest.raises(ChipFolderError, match='downsample= has no place'):
        prepare(pairs, tmp_path, dataset_type='Pix2Pix', downsample=2)
    with pytest.raises(ChipFolderError, match="downsample=2 is for target='images'"):
        prepare_data(sharp[0], downsample=2)
    with pytest.raises(ChipFolderError, match='whole number in 1..16'):
        prepare(sharp[0], tmp_path, downsample=0)


def test_images_that_are_too_fine_to_be_learned_are_refused(save, tmp_path):
    for name, side in (('images', 4), ('images2', 68)):
        (tmp_path / name).mkdir()
        save(tmp_path / name / '1.tif', np.ones((1, side, side), np.uint8), transform=PLACE)
    (chip,) = open_chips(tmp_path, 'Pix2Pix', target='images').listing.chips
    with pytest.raises(ChipFolderError, match='17 times finer than its image, and at most 16'):
        chip.read_label((4, 4))


def test_infinities_are_no_data_of_coarse_images(save, tmp_path):
    (tmp_path / 'images').mkdir()
    pixels = np.ones((1, 4, 4), np.float32)
    pixels[0, 0, 0], pixels[0, 2:, 2:] = np.inf, -np.inf
    save(tmp_path / 'images' / '1.tif', pixels, transform=PLACE)
    (chip,) = open_chips(tmp_path, target='images', downsample=2).listing.chips
    means, valid, _ = chip.read_image()
    assert valid.tolist() == [[[True, True], [True, False]]]
    assert means[valid].tolist() == [1, 1, 1]


def test_the_command_line_trains_and_evaluates_models_of_images(sharp, sharpener, tmp_path, capsys):
    words = '--model PixelRegressor --backbone test_resnet --from-scratch --chip-size 16 --batch-size 4 --valid 0.25'
    out = tmp_path / 'own.dlpk'
    main(
        [
            'train',
            str(sharp[0]),
            str(out),
            *words.split(),
            '--epochs',
            '1',
            '--lr',
            '1e-3',
            '--images',
            '--downsample',
            '2',
        ]
    )
    assert 'psnr' in capsys.readouterr().out.lower()
    assert rasterio.open(load_model(out).predict_raster(sharp[1], tmp_path / 'm.tif')).res == (10, 10)
    path = sharpener.save(tmp_path / 'it.dlpk', compute_metrics=False)
    main(['evaluate', str(path), str(sharp[0]), '--valid', '0.25'])
    assert 'psnr' in capsys.readouterr().out.lower()
