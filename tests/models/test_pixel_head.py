"""PixelHead: layers, forests and neighbors on the values of pixels, trained on polygons, saved as plain arrays."""

import warnings
from dataclasses import replace
from datetime import date

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine

from geolearn import PixelHead, export_training_data, from_arrays, from_rasters, load_model, prepare_data
from geolearn.backbones.scene import Scene, in_scene, scene_of
from geolearn.bundle import read_bundle, write_bundle
from geolearn.cli import main
from geolearn.errors import BackboneError, BundleError, ChipFolderError, NotTrainedError, RasterError, UnknownNameError

HEADS = ('linear', 'mlp', 'random_forest', 'knn')
PLACE = Affine(10, 0, 500_000, 0, -10, 5_000_000)


@pytest.fixture(scope='module')
def scene(tmp_path_factory):
    """A raster (6 bands, 64 x 96) of three classes that overlap a little, with sparse polygons of each."""
    geopandas, shapely = pytest.importorskip('geopandas'), pytest.importorskip('shapely')
    folder = tmp_path_factory.mktemp('scene')
    rng = np.random.default_rng(0)
    truth = np.kron(rng.integers(0, 3, (8, 12)), np.ones((8, 8), int))
    pixels = rng.normal(size=(3, 6))[truth].transpose(2, 0, 1) * 40 + rng.normal(0, 25, (6, 64, 96)) + 200
    pixels[:, :2, :3] = -1
    names = [f'E{band}' for band in range(6)]
    profile = {'driver': 'GTiff', 'count': 6, 'height': 64, 'width': 96, 'dtype': 'float32', 'nodata': -1}
    with rasterio.open(folder / 'scene.tif', 'w', **profile, crs='EPSG:32633', transform=PLACE) as dst:
        dst.write(pixels.astype(np.float32))
        dst.descriptions = names
    rows = [(r, c) for r in range(8) for c in range(12) if rng.random() < 0.6]
    shapes = [shapely.box(*(PLACE @ (8 * c + 2, 8 * r + 6)), *(PLACE @ (8 * c + 6, 8 * r + 2))) for r, c in rows]
    kinds = [('field', 'wood', 'lake')[truth[8 * r, 8 * c]] for r, c in rows]
    frame = geopandas.GeoDataFrame({'kind': kinds}, geometry=shapes, crs='EPSG:32633')
    return folder / 'scene.tif', frame, truth, pixels


@pytest.fixture(scope='module')
def data(scene):
    image, frame, _, _ = scene
    return from_rasters(
        image, frame, class_value_field='kind', chip_size=32, batch_size=4, split='polygons', val_split_pct=0.3
    )


@pytest.fixture(scope='module')
def models(data):
    """A trained model of each head."""
    made = {head: PixelHead(data, head) for head in HEADS}
    made['random_forest'] = PixelHead(data, 'random_forest', trees=12)
    return {head: model.fit() for head, model in made.items()}


def labelled(dataset):
    """Places (row, col) of the labelled pixels of a part, and how often each occurs."""
    found = []
    for name, (_, mask) in zip(dataset.names, dataset, strict=True):
        row, col = (int(part[1:]) for part in name.split('_')[:2])
        found += [(row + r, col + c) for r, c in np.argwhere(mask.numpy() != 255)]
    return found


def test_no_polygon_is_trained_on_and_validated_on(data, scene):
    _, frame, truth, _ = scene
    train, valid = labelled(data.train_ds), labelled(data.valid_ds)
    assert not set(train) & set(valid)
    assert len(set(train)) == len(train)
    # every polygon is 4 x 4 pixels, and whole in one part
    assert len(train) + len(valid) == 16 * len(frame) - 0
    assert all(len({(r // 8, c // 8) for r, c in part}) * 16 == len(part) for part in (train, valid))
    assert {truth[place] for place in train} == {truth[place] for place in valid} == {0, 1, 2}
    assert data.classes == ['field', 'lake', 'wood']
    assert not any('share ground' in note for note in data.notes)


@pytest.mark.parametrize('head', HEADS)
def test_a_head_learns_is_saved_without_pickle_and_maps_like_its_network(head, models, scene, tmp_path):
    image, _, truth, pixels = scene
    model = models[head]
    assert model.history.epochs[-1]['accuracy'] > 0.85
    assert model.mIOU(mean=True) > 0.7
    path = model.save(tmp_path / 'm.dlpk')
    assert not any(name.endswith(('.pkl', '.pth', '.joblib')) for name in read_bundle(path).extras)
    again = load_model(path)
    result = again.predict_raster(
        image, tmp_path / 'map.tif', outputs=('classes', 'probabilities'), probability_dtype='float32', cog=False
    )
    whole = again.predict_raster(image, tmp_path / 'tiles.tif', tile_size=32, cog=False)
    with rasterio.open(result) as src, rasterio.open(tmp_path / 'map_probabilities.tif') as shares:
        mapped, given = src.read(1), shares.read()
        assert src.tags()['HALO'] == '0'
    assert (mapped == rasterio.open(whole).read(1)).all()  # tiles need no context
    assert (mapped[:2, :3] == rasterio.open(result).nodata).all()
    with torch.inference_mode():
        logits = model.network(torch.from_numpy(pixels.astype(np.float32))[None])
    expected = logits.softmax(1)[0].numpy()
    known = pixels[0] != -1
    np.testing.assert_allclose(given[:, known], expected[:, known], atol=1e-5)
    names = {'field': 0, 'wood': 1, 'lake': 2}
    values = {info.value: names[info.name] for info in model.spec.class_infos}
    assert (np.vectorize(values.get)(mapped[known]) == truth[known]).mean() > 0.85


def test_forest_and_neighbors_equal_those_of_scikit_learn(data, models):
    """Arrays give what scikit-learn's own objects give, on values that training never saw."""
    ensemble, neighbors = pytest.importorskip('sklearn.ensemble'), pytest.importorskip('sklearn.neighbors')
    images = torch.randn(2, 6, 16, 20) * 60 + 200
    for head, reference in (
        ('random_forest', ensemble.RandomForestClassifier(12, random_state=42)),
        ('knn', neighbors.KNeighborsClassifier(5)),
    ):
        network = models[head].network
        rows, labels = training_pixels(data, network)
        reference.fit(rows, labels)
        with torch.inference_mode():
            found = network(images).softmax(1).permute(0, 2, 3, 1).reshape(-1, 3).numpy()
            values = network.values(images).permute(0, 2, 3, 1).reshape(-1, 6).numpy()
        np.testing.assert_allclose(found, reference.predict_proba(values), atol=1e-6)


def training_pixels(data, network):
    """Values and labels of the training pixels, in the order of the chips."""
    rows, labels = [], []
    for image, mask in data.train_ds.__class__(data.train_ds.store, data.split.train, data.valid_ds.config):
        known = mask != 255
        rows.append(network.values(image[None])[0].permute(1, 2, 0)[known])
        labels.append(mask[known])
    return torch.cat(rows).numpy(), torch.cat(labels).long().numpy()


def test_forests_agree_at_their_thresholds_and_lack_classes(tmp_path):
    """Values that lie on thresholds go the same way; a class that no pixel has gets probability 0."""
    ensemble = pytest.importorskip('sklearn.ensemble')
    rng = np.random.default_rng(1)
    images = rng.integers(0, 6, (4, 3, 16, 16)).astype(np.float32)
    masks = (images[:, 0] + images[:, 1] > 5).astype(np.uint8) * 2
    masks[3, 0, 0] = 1
    data = from_arrays(images, masks, split={'valid': ['000000003']}, working_dir=tmp_path)
    model = PixelHead(data, 'random_forest', trees=7).fit()
    rows, labels = training_pixels(data, model.network)
    reference = ensemble.RandomForestClassifier(7, random_state=42).fit(rows, labels)
    with torch.inference_mode():
        found = model.network(torch.from_numpy(images)).softmax(1).permute(0, 2, 3, 1).reshape(-1, 3).numpy()
        values = model.network.values(torch.from_numpy(images)).permute(0, 2, 3, 1).reshape(-1, 3).numpy()
    np.testing.assert_allclose(found[:, [0, 2]], reference.predict_proba(values), atol=1e-6)
    assert found[:, 1].max() < 1e-6


@pytest.mark.parametrize('head', HEADS[2:])
def test_forests_and_neighbors_become_onnx_graphs(head, data, scene, tmp_path):
    pytest.importorskip('onnxruntime')
    image = scene[0]
    model = PixelHead(data, head, trees=2).fit(max_pixels=100)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        path = model.save(tmp_path / 'm.dlpk', compute_metrics=False, export='onnx')
    again = load_model(path)
    ours = again.predict_raster(image, tmp_path / 'torch.tif', cog=False)
    graph = again.predict_raster(image, tmp_path / 'onnx.tif', engine='onnx', cog=False)
    assert (rasterio.open(ours).read() == rasterio.open(graph).read()).mean() > 0.999


def test_training_again_gives_the_same_and_untrained_forests_are_not_saved(data, models, tmp_path):
    for head in ('linear', 'mlp'):
        other = PixelHead(data, head).fit()
        for name, value in models[head].network.state_dict().items():
            torch.testing.assert_close(other.network.state_dict()[name], value)
    with pytest.raises(NotTrainedError, match='call fit'):
        PixelHead(data, 'knn').save(tmp_path / 'x.dlpk')


def test_a_forest_that_leads_nowhere_is_refused(models, tmp_path):
    path = models['random_forest'].save(tmp_path / 'm.dlpk', compute_metrics=False)
    bundle = read_bundle(path)
    for name, value in (('head.child', 10**6), ('head.feature', 99), ('head.roots', -1)):
        weights = {key: tensor.clone() for key, tensor in bundle.weights.items()}
        weights[name][0] = value
        write_bundle(tmp_path / 'b.dlpk', replace(bundle, weights=weights))
        with pytest.raises(BundleError, match='not there|without nodes'):
            load_model(tmp_path / 'b.dlpk')


def test_what_does_not_fit_is_refused(data, scene):
    image, frame, _, _ = scene
    with pytest.raises(UnknownNameError, match='random_forest'):
        PixelHead(data, 'forest')
    with pytest.raises(ValueError, match="hidden= is for head='mlp'"):
        PixelHead(data, 'linear', hidden=(8,))
    with pytest.raises(ValueError, match="epochs= does not apply to head='knn'"):
        PixelHead(data, 'knn').fit(epochs=3)
    with pytest.raises(NotTrainedError, match='without a Learner'):
        PixelHead(data).lr_find()
    options = {'class_value_field': 'kind', 'chip_size': 32, 'split': 'polygons'}
    with pytest.raises(ChipFolderError, match='two places of a class at least'):
        from_rasters(image, frame[:1], **options)
    with pytest.raises(ChipFolderError, match='makes 0, which they are, a class'):
        from_rasters(image, frame, unlabelled=[-1], **options)


def test_the_command_line_trains_a_head(scene, tmp_path, capsys):
    image, frame, _, _ = scene
    chips = export_training_data(image, frame, tmp_path / 'chips', tile_size=32, class_value_field='kind')
    common = ['train', str(chips), str(tmp_path / 'm.dlpk'), '--model', 'PixelHead', '--ignore-classes', '0']
    main([*common, '--head', 'knn', '--neighbors', '3', '--valid', '0.4'])
    assert load_model(tmp_path / 'm.dlpk').spec.options['neighbors'] == 3
    for wrong in ('--from-scratch', '--ema'):
        with pytest.raises(SystemExit):
            main([*common, wrong])
        assert f'{wrong} does not apply to PixelHead' in capsys.readouterr().err


@pytest.fixture
def months(tmp_path, write_export, save):
    """Chips of three months of ten Sentinel-2 bands, whose classes differ in when they are green; a raster of each."""
    rng = np.random.default_rng(0)
    names = ['B2', 'B3', 'B4', 'B5', 'B6', 'B7', 'B8', 'B8A', 'B11', 'B12']
    dates = ['2021-04-05', '2021-06-04', '2021-08-03']
    truth = rng.integers(0, 2, (4, 16, 16))
    series = np.full((3, 4, 10, 16, 16), 1500.0)
    for when in range(3):
        series[when, :, 6:8] += 2500 * (truth == (when > 0))[:, None]
    series += rng.normal(0, 100, series.shape)
    series[1, :, :, 4:6] = 0
    images, labels = series.astype(np.uint16), (truth + 1).astype(np.uint8)
    place = Affine(10, 0, 500_000, 0, -10, 5_000_000)
    emd = {'geolearn': {'dates': dates}}
    folder = write_export(
        tmp_path / 'e', list(images[0]), list(labels), band_names=names, emd=emd, sensor='Sentinel-2 L2A'
    )
    for when in range(3):
        for path, image in zip(sorted((folder / 'images').iterdir()), images[when]):
            target = folder / ('images', 'images2', 'images3')[when]
            target.mkdir(exist_ok=True)
            save(target / path.name, image, names=names, nodata=0, transform=place, crs='EPSG:32633')
        save(tmp_path / f'{when}.tif', images[when, 0], names=names, nodata=0, transform=place, crs='EPSG:32633')
    return folder, [tmp_path / f'{when}.tif' for when in range(3)], labels


def test_heads_on_presto_are_trained_saved_and_mapped(months, shared, tmp_path, one_thread):
    folder, rasters, labels = months
    data = prepare_data(folder, chip_size=16, batch_size=2, val_split_pct=0.5, transforms=False)
    file = shared / 'weights' / 'presto' / 'default_model.pt'
    model = PixelHead(data, backbone='presto', weights=file)
    assert model.spec.acquired == ('2021-04-05', '2021-06-04', '2021-08-03')
    assert model.spec.location == pytest.approx((45.15, 15.0), abs=0.01)
    assert model.spec.normalization.mean == (0.0,) * 10
    assert model.spec.normalization.std == (10_000.0,) * 10
    forest = PixelHead(data, 'random_forest', trees=10, backbone='presto', weights=file).fit(max_pixels=200)
    again = load_model(model.fit().save(tmp_path / 'm.dlpk', compute_metrics=False, export=()))
    for trained in (model, again, forest):
        assert trained.network.backbone.trunk.pos_embed.shape == (1, 24, 64)
        days = model.spec.acquired
        with rasterio.open(trained.predict_raster(rasters, tmp_path / 'map.tif', dates=days, overwrite=True)) as dst:
            found = dst.read(1)
        assert (found == labels[0]).mean() > 0.97  # in the rows of which a month is missing too


def test_a_head_keeps_the_shape_of_its_weights_and_their_license(months, shared, tmp_path, one_thread, caplog):
    folder, rasters, _ = months
    data = prepare_data(folder, chip_size=16, batch_size=2, val_split_pct=0.5, transforms=False)
    state = torch.load(shared / 'weights' / 'presto' / 'default_model.pt', map_location='cpu', weights_only=True)
    names = [name for name in state if name.endswith('pos_embed')]
    torch.save(state | {name: torch.cat([state[name]] * 3, dim=1) for name in names}, tmp_path / 'long.pt')
    model = PixelHead(data, backbone='presto', weights=tmp_path / 'long.pt', location=(10.0, 15.0)).fit()
    path = model.save(tmp_path / 'm.dlpk', compute_metrics=False, export=())
    assert load_model(path).network.backbone.trunk.pos_embed.shape[1] == 72
    assert read_bundle(path).manifest['weights_license'] == 'MIT'
    model.predict_raster(rasters, tmp_path / 'map.tif', dates=model.spec.acquired)
    assert 'km from the place 10.00, 15.00' in caplog.text


def test_a_map_takes_dates_and_place_of_its_own_raster(months, tmp_path, one_thread):
    folder, rasters, _ = months
    data = prepare_data(folder, chip_size=16, batch_size=2, val_split_pct=0.5, transforms=False)
    model = PixelHead(data, backbone='presto', pretrained=False).fit(1)
    trained, dst = scene_of(model.network.backbone), tmp_path / 'map.tif'
    needed = (
        "presto reads when images were taken.*pass dates=\\['2021-04-05', '2021-06-04', '...'\\], one for each date"
    )
    with pytest.raises(RasterError, match=needed):
        model.predict_raster(rasters, dst)
    options = {'outputs': ('probabilities',), 'probability_dtype': 'float32', 'overwrite': True}
    for wrong, message in (
        (['2023-04-01'], 'takes images of 3 dates, got dates=2023-04-01'),
        (['2023-04-01', '2023-04-01', '2023-06-01'], 'the date 2023-04-01 is repeated'),
        (['2023-04-01', '2023-13-01', '2023-06-01'], "texts such as '2024-05-01', got '2023-13-01'"),
    ):
        with pytest.raises(ValueError, match=message):
            model.predict_raster(rasters, dst, dates=wrong, **options)
    south = []
    for month, path in zip((10, 11, 12), rasters):
        with rasterio.open(path) as src:
            pixels, names, profile = src.read(), src.descriptions, src.profile | {'crs': 'EPSG:32733'}
        south.append(tmp_path / f'south{month}.tif')
        with rasterio.open(south[-1], 'w', **profile) as copy:
            copy.write(pixels)
            copy.descriptions = names
            copy.update_tags(ns='IMAGERY', ACQUISITIONDATETIME=f'2023-{month}-03 10:20:31')
    stated = rasterio.open(model.predict_raster(south, dst, **options)).read()
    given = [date(2023, 10, 3), date(2023, 11, 3), date(2023, 12, 3)]
    assert np.array_equal(stated, rasterio.open(model.predict_raster(south, dst, dates=given, **options)).read())
    assert scene_of(model.network.backbone) == trained  # of the chips again
    as_trained = rasterio.open(model.predict_raster(rasters, dst, dates=model.spec.acquired, **options)).read()
    assert np.abs(as_trained - stated).max() > 1e-4
    pixels = np.stack([rasterio.open(path).read() for path in south]).astype(np.float32)
    images = torch.from_numpy(np.where(pixels == 0, np.nan, pixels))[None]
    with in_scene(model.network.backbone, Scene(tuple(given), (-45.15, 15.0))), torch.inference_mode():
        assert np.allclose(stated, model.network(images).softmax(1)[0].numpy(), atol=1e-4)
    with pytest.raises(ValueError, match="which its graph holds as constants; pass engine='torch'"):
        model.predict_raster(south, dst, engine='onnx', **options)


def test_dates_are_refused_where_the_network_reads_none(models, scene, tmp_path):
    with pytest.raises(ValueError, match='does not read when images were taken; leave dates out, got 2024-05-01'):
        models['linear'].predict_raster(scene[0], tmp_path / 'map.tif', dates=['2024-05-01'])


def test_a_head_on_presto_asks_for_dates_and_refuses_other_backbones(scene, data, shared):
    file = shared / 'weights' / 'presto' / 'default_model.pt'
    with pytest.raises(BackboneError, match='computes with values in the units of its pretraining'):
        PixelHead(data, backbone='presto', weights=file)
    with pytest.raises(BackboneError, match='sees more than one pixel'):
        PixelHead(data, backbone='plain_unet', pretrained=False)
    with pytest.raises(ValueError, match='location= does not apply to PixelHead without a backbone'):
        PixelHead(data, location=(1.0, 2.0))
