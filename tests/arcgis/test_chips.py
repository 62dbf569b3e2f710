"""Chips around features are classified in ArcGIS Pro as in geolearn."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from affine import Affine

from geolearn.arcgis import raster_functions
from geolearn.models import FeatureClassifier
from geolearn.onnx import OnnxModel
from geolearn.prepare import prepare_data

pytestmark = pytest.mark.usefixtures('one_thread')

NAMES = ['water', 'forest', 'field']


@pytest.fixture
def model(tmp_path, save):
    """A classifier of chips of 32 pixels that has not learned anything."""
    folder = tmp_path / 'chips'
    (folder / 'images').mkdir(parents=True)
    (folder / 'labels').mkdir()
    rng = np.random.default_rng(0)
    for index in range(6):
        place = {'transform': Affine(10, 0, 320 * index, 0, -10, 0)}
        save(folder / 'images' / f'{index:09d}.tif', rng.integers(1, 900, (3, 32, 32)).astype(np.uint16), **place)
        text = f'<annotation><object><name>{1 + index % 3}</name></object></annotation>'
        (folder / 'labels' / f'{index:09d}.xml').write_text(text)
    emd = {
        'MetaDataMode': 'Labeled_Tiles',
        'ImageSpaceUsed': 'MAP_SPACE',
        'Classes': [{'Value': 1 + i, 'Name': name, 'Color': [40, 90, 60 * i]} for i, name in enumerate(NAMES)],
        'InputRastersProps': {'RasterCount': 1, 'SensorName': 'Sentinel-2', 'BandNames': ['Blue', 'Green', 'Red']},
        'BlackenAroundFeature': True,
        'CropTileMode': 'Variable_Size',
    }
    (folder / 'esri_model_definition.emd').write_text(json.dumps(emd))
    data = prepare_data(folder, chip_size=32, batch_size=3, val_split_pct=0.34, transforms=False)
    torch.manual_seed(0)
    made = FeatureClassifier(data, 'test_resnet', pretrained=False)
    torch.nn.init.normal_(made.network.head[1].weight)
    return made


def classify(pro, chips, masks=None):
    masks = [np.ones(chip.shape, 'u1') for chip in chips] if masks is None else masks
    told = json.loads(pro.function.vectorize(rasters_pixels=chips, rasters_mask=masks)['output_vectors'])
    assert told['fields'] == json.loads(pro.function.getFields())['fields']
    return [feature['attributes'] for feature in told['features']]


def test_chips_get_what_predict_gives_in_their_order(model, open_in_pro, tmp_path):
    pro = open_in_pro(model.save(tmp_path / 'm.dlpk'), batch_size=4)
    assert pro.emd['InferenceFunction'] == 'GeolearnClassifyObjects.py'
    assert next(iter(pro.parameters)) == 'rasters'
    rng = np.random.default_rng(1)
    chips = [(rng.integers(1, 300, (3, 32, 32)) * (1 + i % 3)).astype(np.uint16) for i in range(9)]
    rows = classify(pro, chips)
    for row, chip in zip(rows, chips):
        names, confidences = model.predict(chip, device='cpu')
        assert row['Label'] == names[0]
        assert row['Confidence'] == pytest.approx(100 * max(confidences.values()), abs=0.02)
    assert [row['OID'] for row in rows] == list(range(1, 10))
    assert len({row['Confidence'] for row in rows}) == 9


def test_smaller_chips_are_filled_up_and_larger_ones_cut_and_empty_ones_have_no_label(model, open_in_pro, tmp_path):
    pro = open_in_pro(model.save(tmp_path / 'm.dlpk'))
    large = np.random.default_rng(2).integers(1, 900, (3, 50, 40)).astype(np.uint16)
    filled = np.full((3, 32, 32), np.nan, np.float32)
    filled[:, :20, :10] = large[:, :20, :10]
    empty = np.zeros_like(large, 'u1')
    rows = classify(pro, [large[:, :20, :10], large, large], [np.ones((3, 20, 10)), np.ones_like(large), empty])
    for row, chip in zip(rows, [filled, large[:, 9:41, 4:36]]):
        assert row['Confidence'] == pytest.approx(100 * max(model.predict(chip).confidences.values()), abs=0.02)
    assert (rows[2]['Label'], rows[2]['Confidence']) == (None, None)


def test_how_chips_were_cut_in_training_is_told(model, open_in_pro, tmp_path):
    configuration = open_in_pro(model.save(tmp_path / 'm.dlpk')).configuration
    assert (configuration['CropSizeFixed'], configuration['BlackenAroundFeature']) == (0, 1)
    assert (configuration['tx'], configuration['ty'], configuration['padding']) == (32, 32, 0)


@pytest.mark.parametrize('multi_label', [False, True])
def test_chips_are_classified_by_the_graph_where_torch_is_missing(
    model, open_in_pro, tmp_path, monkeypatch, multi_label
):
    model.spec = replace(model.spec, options=model.spec.options | {'multi_label': multi_label})
    path, network = model.save(tmp_path / 'm.dlpk'), model.network.eval()
    chips = [np.full((3, 20, 32), 90 * i, np.uint16) for i in range(1, 4)]
    expected = classify(open_in_pro(path), chips)

    def run(_, given):
        with torch.inference_mode():
            return [network(torch.from_numpy(given['images'])).numpy()]

    graph = OnnxModel(model.spec, model.graph_facts(network), SimpleNamespace(run=run))
    monkeypatch.setattr(raster_functions, 'find_spec', lambda name: None)
    monkeypatch.setattr(raster_functions, 'load_graph', lambda path: graph)
    found = classify(open_in_pro(path), chips)
    assert [row['Label'] for row in found] == [row['Label'] for row in expected]
    confidences = [row['Confidence'] for row in expected]
    assert [row['Confidence'] for row in found] == pytest.approx(confidences, abs=0.011)
