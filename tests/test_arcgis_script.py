"""Scripts as Esri's samples write them run with the import line changed; docs/from-arcgis.md names what exists."""

import inspect
import re
from pathlib import Path

import geopandas
import numpy as np
import pytest
import shapely
from affine import Affine

import geolearn
from geolearn.data import ChipData
from geolearn.models import Model
from geolearn.networks.detection.architecture import RCNNOptions

pytestmark = pytest.mark.usefixtures('one_thread')

GUIDE = Path(__file__).parents[1] / 'docs' / 'from-arcgis.md'

PIXELS = """
from arcgis.learn import prepare_data, UnetClassifier

data = prepare_data(path, class_mapping={1: 'Water', 2: 'Forest'}, chip_size=32, batch_size=4, val_split_pct=0.25,
                    working_dir=working_dir)
data.show_batch(rows=2)
model = UnetClassifier(data, backbone='test_resnet', ignore_classes=[0], class_balancing=True, focal_loss=True,
                       dice_loss_fraction=0.3, pretrained=False)
lr = model.lr_find()
model.fit(2, lr=lr, early_stopping=True, checkpoint=False)
model.unfreeze()
model.fit(epochs=1, lr=slice(lr / 10, lr), one_cycle=True, monitor='valid_loss')
model.plot_losses()
accuracy = model.accuracy()
iou = model.mIOU()
mean_iou = model.mIOU(mean=True)
table = model.per_class_metrics()
model.show_results(rows=2)
saved = model.save('landcover')
again = UnetClassifier.from_model(saved, data)
monitors = model.available_metrics
backbones = model.supported_backbones
other = UnetClassifier(data, backbone='test_resnet', ignore_classes=[0], focal_loss=True, dice_loss_fraction=0.3,
                       class_balancing=True, pretrained=False)
other.load('landcover')
"""

SHORT = """
from arcgis.learn import prepare_data, CLASS

data = prepare_data(path, chip_size=32, batch_size=4, val_split_pct=0.25, working_dir=working_dir)
model = CLASS(data, backbone='test_resnet', pretrained=False)
model.fit(1, lr=1e-3)
iou = model.mIOU()
model.show_results(rows=2)
saved = model.save('landcover')
again = CLASS.from_model(saved, data)
"""

CHIPS = """
from arcgis.learn import prepare_data, FeatureClassifier

data = prepare_data(path, chip_size=32, batch_size=4, val_split_pct=0.25, working_dir=working_dir)
data.show_batch(rows=2)
model = FeatureClassifier(data, backbone='test_resnet', mixup=True, oversample=True, pretrained=False)
lr = model.lr_find(allow_plot=False)
model.fit(1, lr=lr)
model.plot_losses()
accuracy = model.accuracy()
model.plot_confusion_matrix()
model.plot_hard_examples(num_examples=2)
model.show_results(rows=2)
saved = model.save('fields')
again = FeatureClassifier.from_model(saved)
"""

OBJECTS = """
from arcgis.learn import prepare_data, FasterRCNN

data = prepare_data(path, batch_size=2, chip_size=32, val_split_pct=0.25, working_dir=working_dir)
data.show_batch()
model = FasterRCNN(data, backbone='test_resnet', head=head, pretrained=False)
model.fit(1, lr=0.001, checkpoint=False)
precision = model.average_precision_score(detect_thresh=0.2, iou_thresh=0.1, mean=False)
model.show_results(rows=2)
saved = model.save('trees')
again = FasterRCNN.from_model(saved)
"""


def run(script, **given):
    """Run a script with the import line changed; returns what it names."""
    names = dict(given)
    exec(script.replace('from arcgis.learn import', 'from geolearn import'), names)
    return names


@pytest.fixture
def squares(save, tmp_path):
    """A raster of 128 pixels with bright squares on noise, and the squares as polygons."""
    rng = np.random.default_rng(3)
    image = rng.normal(60, 12, (3, 128, 128))
    shapes, kinds = [], []
    for row in range(4):
        for column in range(4):
            top, left = 32 * row + 8, 32 * column + 8
            kind = (row + column) % 2
            image[kind, top : top + 14, left : left + 14] = 210
            shapes.append(shapely.box(left, 128 - top - 14, left + 14, 128 - top))
            kinds.append(('ash', 'oak')[kind])
    place = Affine(1, 0, 0, 0, -1, 128)
    pixels = image.clip(0, 255).astype(np.uint8)
    raster = save(tmp_path / 'squares.tif', pixels, names=['Red', 'Green', 'Blue'], transform=place)
    return raster, geopandas.GeoDataFrame({'classname': kinds}, geometry=shapes, crs='EPSG:32633')


def test_a_script_of_pixel_classification_runs(scene_chips, tmp_path):
    found = run(PIXELS, path=str(scene_chips), working_dir=tmp_path)
    assert list(found['iou'])[:2] == ['Water', 'Forest']
    assert found['mean_iou'] == pytest.approx(np.nanmean([*found['iou'].values()]))
    assert 0 <= found['mean_iou'] <= 1
    assert 0 <= found['accuracy'] <= 1
    assert {'precision', 'recall', 'f1'} <= set(found['table'].columns)
    assert found['saved'] == tmp_path / 'models' / 'landcover' / 'landcover.dlpk'
    assert found['again'].accuracy() == found['other'].accuracy() == pytest.approx(found['accuracy'])
    assert {'valid_loss', 'accuracy', 'miou', 'dice'} <= set(found['monitors'])
    assert {'dofa_base', 'plain_unet'} <= set(found['backbones'])


@pytest.mark.parametrize('name', [pytest.param('DeepLab', marks=pytest.mark.slow), 'PSPNetClassifier'])
def test_the_other_pixel_classes_go_by_the_same_script(name, scene_chips, tmp_path):
    found = run(SHORT.replace('CLASS', name), path=str(scene_chips), working_dir=tmp_path)
    assert set(found['iou']) == set(found['data'].classes)
    assert isinstance(found['again'], getattr(geolearn, name))


def test_a_script_of_chip_classification_runs(squares, tmp_path):
    chips = geolearn.export_training_data(*squares, tmp_path / 'chips', 'Labeled_Tiles', tile_size=32)
    found = run(CHIPS, path=chips, working_dir=tmp_path)
    assert found['data'].classes == ['ash', 'oak']
    assert 0 <= found['accuracy'] <= 1
    assert type(found['again']).__name__ == 'FeatureClassifier'


def test_a_script_of_detection_runs(squares, tmp_path):
    chips = geolearn.export_training_data(*squares, tmp_path / 'chips', 'PASCAL_VOC_rectangles', tile_size=32)
    few = RCNNOptions(rpn_pre_nms_top_n_train=40, rpn_pre_nms_top_n_test=40, rpn_post_nms_top_n_test=20)
    found = run(OBJECTS, path=chips, working_dir=tmp_path, head=few)
    assert set(found['precision']) == {'ash', 'oak'}
    assert type(found['again']).__name__ == 'FasterRCNN'


def test_an_option_of_arcgis_that_is_not_there_is_an_error_and_not_ignored(scene_data):
    with pytest.raises(TypeError, match='pointrend'):
        geolearn.DeepLab(scene_data, backbone='test_resnet', pretrained=False, pointrend=True)


# -- the guide

ROWS = [
    [cell.strip() for cell in line.strip('|\n').split('|')]
    for line in GUIDE.read_text(encoding='utf-8').splitlines()
    if re.match(r'\| `', line)
]
FORMATS = GUIDE.read_text(encoding='utf-8').partition('## Export formats')[2].partition('\n## ')[0]


def there(name):
    """Whether a name such as `prepare_data(seed)`, `Model.fit(lr)` or `ChipData.path` exists in geolearn."""
    path, _, parameter = name.rstrip(')').partition('(')
    first, *rest = path.split('.')
    thing = {'Model': Model, 'ChipData': ChipData}.get(first) or getattr(geolearn, first, None)
    for part in rest:
        fields = getattr(thing, '__dataclass_fields__', {})
        thing = fields.get(part) or getattr(thing, part, None)
    return thing is not None and (not parameter or parameter in inspect.signature(thing).parameters)


@pytest.mark.parametrize('row', ROWS, ids=lambda row: row[0])
def test_what_the_guide_says_to_exist_exists(row):
    theirs, ours, verdict = row
    word = re.match(r'same|differs|not there', verdict)
    assert word, 'each row begins with one of three words'
    assert (word[0] == 'not there') == (not ours), 'what is not there names nothing'
    assert word[0] != 'differs' or ':' in verdict, 'what differs says why'
    if theirs in re.findall(r'^\| (`.*?`)', FORMATS, re.MULTILINE):
        return
    if ours:
        assert there(ours.strip('`')), ours
    if word[0] == 'same':
        assert last(theirs) == last(ours)
    if word[0] == 'not there' and theirs.startswith('`prepare_data('):
        assert not there(theirs.strip('`')), f'{theirs} exists'


def last(name):
    """The part of a name that a script types, without the object before the dot."""
    return name.strip('`').rpartition('.')[2]


def test_the_guide_names_the_formats_that_are_read():
    from geolearn.chips.formats import FORMATS as known

    said = dict(re.findall(r'^\| `(\w+)` \| (\S*)', FORMATS, re.MULTILINE))
    assert {name for name, ours in said.items() if ours != '|'} <= set(known)


def test_the_guide_names_every_public_class_of_models():
    text = GUIDE.read_text(encoding='utf-8')
    public = [name for name in geolearn.__all__ if inspect.isclass(thing := getattr(geolearn, name))
              and issubclass(thing, Model)]  # fmt: skip
    assert [name for name in public if f'`{name}`' not in text and name not in ('UNet', 'PSPNet')] == []
