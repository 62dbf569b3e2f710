"""Colors and names of classes: those given beside labels, and those chosen by name."""

import json

import numpy as np
import pytest
import rasterio
from affine import Affine

from geolearn import prepare_data
from geolearn.chips.export import export_training_data
from geolearn.chips.formats.styles import read_raster_style, styled_classes
from geolearn.classes import DISTINCT, color_classes, color_distances, named_color
from geolearn.errors import ChipFolderError
from geolearn.raster import open_raster

PLACE = Affine(10, 0, 500_000, 0, -10, 5_400_000)
CRS = 'EPSG:32633'
RASTER_QML = """<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>
<qgis><pipe><rasterrenderer type="paletted"><colorPalette>
<paletteEntry value="1" color="#0a141e" label="Pond" alpha="255"/><paletteEntry value="2" color="#ff8040" label="Barn"/>
</colorPalette></rasterrenderer></pipe></qgis>"""
TABLE = """<PAMDataset><PAMRasterBand band="1"><GDALRasterAttributeTable>
<FieldDefn index="0"><Name>Value</Name><Type>0</Type><Usage>5</Usage></FieldDefn>
<FieldDefn index="1"><Name>Count</Name><Type>0</Type><Usage>1</Usage></FieldDefn>
<FieldDefn index="2"><Name>ClassName</Name><Type>2</Type><Usage>2</Usage></FieldDefn>
<FieldDefn index="3"><Name>Red</Name><Type>0</Type><Usage>6</Usage></FieldDefn>
<FieldDefn index="4"><Name>Green</Name><Type>0</Type><Usage>7</Usage></FieldDefn>
<FieldDefn index="5"><Name>Blue</Name><Type>0</Type><Usage>8</Usage></FieldDefn>
<Row index="0"><F>1</F><F>9</F><F>Pond</F><F>10</F><F>20</F><F>30</F></Row>
<Row index="1"><F>2</F><F>9</F><F>Barn</F><F>255</F><F>128</F><F>64</F></Row>
</GDALRasterAttributeTable></PAMRasterBand></PAMDataset>"""
VECTOR_QML = """<qgis><renderer-v2 type="categorizedSymbol" attr="value"><categories>
<category symbol="0" value="1" label="Pond"/><category symbol="1" value="2" label="Barn"/></categories><symbols>
<symbol name="0" type="fill"><layer class="SimpleFill"><prop k="color" v="10,20,30,255"/></layer></symbol>
<symbol name="1" type="fill"><layer class="SimpleFill"><Option type="Map">
<Option name="color" type="QString" value="255,128,64,255,rgb:1,0.5,0.25,1"/></Option></layer></symbol>
</symbols></renderer-v2></qgis>"""
GIVEN = [(1, 'Pond', (10, 20, 30)), (2, 'Barn', (255, 128, 64))]


def rows(infos):
    return [(info.value, info.name, info.color) for info in infos if info.value]


@pytest.fixture
def image(tmp_path, save):
    pixels = np.random.default_rng(0).integers(1, 200, (3, 16, 16)).astype(np.uint8)
    return save(tmp_path / 'image.tif', pixels, transform=PLACE, crs=CRS)


@pytest.fixture
def labels(tmp_path, save):
    values = np.ones((1, 16, 16), np.uint8)
    values[:, :, 8:] = 2
    return save(tmp_path / 'labels.tif', values, transform=PLACE, crs=CRS)


def style(labels, kind):
    if kind == 'color table':
        with rasterio.open(labels, 'r+') as dst:
            dst.write_colormap(1, {0: (0, 0, 0), 1: (10, 20, 30), 2: (255, 128, 64)})
    elif kind == 'qml':
        labels.with_suffix('.qml').write_text(RASTER_QML)
    elif kind == 'clr':
        labels.with_suffix('.clr').write_text('1 10 20 30 255 Pond\n2 255 128 64 Barn\n')
    else:
        (labels.parent / f'{labels.name}.aux.xml').write_text(TABLE)


@pytest.mark.parametrize('kind', ['color table', 'qml', 'clr', 'attribute table'])
def test_styles_beside_label_rasters_are_kept(tmp_path, image, labels, kind):
    style(labels, kind)
    out = export_training_data(image, labels, tmp_path / 'e', tile_size=8)
    emd = json.loads((out / 'esri_model_definition.emd').read_text())
    found = [(row['Value'], row['Name'], tuple(row['Color'])) for row in emd['Classes']]
    assert found == ([(1, '1', (10, 20, 30)), (2, '2', (255, 128, 64))] if kind == 'color table' else GIVEN)


@pytest.mark.parametrize('kind', ['color table', 'qml', 'clr', 'attribute table'])
def test_styles_of_labels_of_chips_are_kept(tmp_path, save, kind):
    for index in range(4):
        values = np.full((1, 8, 8), 1 + index % 2, np.uint8)
        for name in ('images', 'labels'):
            (tmp_path / 'c' / name).mkdir(parents=True, exist_ok=True)
        save(tmp_path / f'c/images/{index}.tif', values * 7)
        style(save(tmp_path / f'c/labels/{index}.tif', values), kind)
    data = prepare_data(tmp_path / 'c', chip_size=8, batch_size=2, val_split_pct=0.5)
    assert [row[::2] for row in rows(data.class_infos)] == [row[::2] for row in GIVEN]
    assert kind == 'color table' or data.classes == ['Pond', 'Barn']


def test_a_style_beside_vector_labels_is_kept(tmp_path, image):
    geopandas = pytest.importorskip('geopandas')
    shapely = pytest.importorskip('shapely')
    boxes = [shapely.box(500_000, 5_399_840, 500_080, 5_400_000), shapely.box(500_080, 5_399_840, 500_160, 5_400_000)]
    path = tmp_path / 'fields.gpkg'
    geopandas.GeoDataFrame({'value': [1, 2]}, geometry=boxes, crs=CRS).to_file(path)
    path.with_suffix('.qml').write_text(VECTOR_QML)
    out = export_training_data(image, path, tmp_path / 'e', tile_size=8)
    emd = json.loads((out / 'esri_model_definition.emd').read_text())
    assert [(row['Value'], row['Name'], tuple(row['Color'])) for row in emd['Classes']] == GIVEN


def test_a_broken_style_gives_no_colors(tmp_path, image, labels):
    labels.with_suffix('.qml').write_text('<qgis><paletteEntry')
    (labels.parent / f'{labels.name}.aux.xml').write_bytes(b'\xff\xfe\x00')
    assert export_training_data(image, labels, tmp_path / 'e', tile_size=8).is_dir()


@pytest.mark.parametrize(
    ('names', 'of'),
    [
        (
            'Water|Open Water|Permanent water bodies|Sea and ocean|Inland waters|SeaLake|River|Gewässer|'
            "Wasserfläche|Eau|Plan d'eau|Agua|Cuerpos de agua|Acqua|Corpi idrici, acque|Água|Wody|Vatten|Vand|Lakes",
            'blue',
        ),
        (
            'Trees|Tree cover|Deciduous Forest|Coniferous forest|Broad-leaved forest|Mixed Forest|Laubwald|Nadelwald|'
            'Forêt|Bosque|Bosco|Floresta|Lasy|Skog|Grassland|Grünland|Pasture/Hay|Prairie|Shrub/Scrub|Low vegetation',
            'green',
        ),
        (
            'Built-up|Built area|Developed, High Intensity|Continuous urban fabric|Industrial or commercial units|'
            'Building|Buildings|Siedlung|Gebäude|Bâtiments|Zona urbana|Edifici|Edificado|Zabudowa|Impervious surfaces',
            'red',
        ),
    ],
)
def test_usual_names_have_the_usual_colors(names, of):
    for name in names.split('|'):
        color = named_color(name)
        assert color is not None, name
        assert ('red', 'green', 'blue')[int(np.argmax(color))] == of, (name, color)
        assert sorted(color)[-1] > sorted(color)[-2], name


def test_others_are_told_apart_from_what_their_names_hold():
    assert named_color('Cloud shadow') != named_color('Cloud')
    assert named_color('Herbaceous wetland') == named_color('Inland marshes') != named_color('Herbaceous')
    assert named_color('Transitional woodland-shrub') == named_color('Shrubland') != named_color('Woodland')
    assert min(named_color('Snow and ice')) > 230
    for nothing in ('1', 'class 7', 'Zzz', 'plateau', 'seat', 'commerzzz'):
        assert named_color(nothing) is None, nothing


def test_classes_of_one_kind_have_colors_of_their_own():
    infos = color_classes((value, f'Forest {value}', None) for value in range(12))
    assert len({info.color for info in infos}) == 12
    assert all(np.argmax(info.color) == 1 for info in infos)
    assert color_classes([(1, 'Water', (1, 2, 3))])[0].color == (1, 2, 3)


# --- lossy labels


@pytest.mark.filterwarnings('ignore::rasterio.errors.NotGeoreferencedWarning')
@pytest.mark.parametrize('suffix', ['.jpg', '.tif'])
def test_lossy_labels_are_refused(tmp_path, save, image, suffix):
    values = np.ones((1, 16, 16), np.uint8)
    values[:, :, 8:] = 200
    for name in ('images', 'labels'):
        (tmp_path / 'c' / name).mkdir(parents=True)
    options = {'driver': 'JPEG'} if suffix == '.jpg' else {'compress': 'jpeg', 'transform': PLACE, 'crs': CRS}
    for index in range(3):
        save(tmp_path / f'c/images/{index}.tif', values)
        path = tmp_path / f'c/labels/{index}{suffix}'
        with rasterio.open(path, 'w', height=16, width=16, count=1, dtype='uint8', **options) as dst:
            dst.write(values)
    with pytest.raises(ChipFolderError, match='lossy compression .*PNG or TIFF'):
        prepare_data(tmp_path / 'c', chip_size=8)
    if suffix == '.tif':
        with pytest.raises(ChipFolderError, match='lossy compression'):
            export_training_data(image, path, tmp_path / 'e', tile_size=8)


# --- texts that are whole numbers


def test_texts_of_digits_keep_their_values(tmp_path, image):
    geopandas = pytest.importorskip('geopandas')
    shapely = pytest.importorskip('shapely')
    boxes = [shapely.box(500_000 + 40 * at, 5_399_840, 500_040 + 40 * at, 5_400_000) for at in range(4)]
    frame = geopandas.GeoDataFrame({'code': ['1', '2', '10', '10']}, geometry=boxes, crs=CRS)
    out = export_training_data(image, frame, tmp_path / 'e', tile_size=8, class_value_field='code')
    emd = json.loads((out / 'esri_model_definition.emd').read_text())
    assert [(row['Value'], row['Name']) for row in emd['Classes']] == [(1, '1'), (2, '2'), (10, '10')]


def test_a_feature_of_value_0_is_left_out_and_noted_or_a_class(tmp_path, image, caplog):
    geopandas = pytest.importorskip('geopandas')
    shapely = pytest.importorskip('shapely')
    boxes = [shapely.box(500_000 + 40 * at, 5_399_840, 500_040 + 40 * at, 5_400_000) for at in range(4)]
    frame = geopandas.GeoDataFrame({'value': [1, 2, 0, -9999]}, geometry=boxes, crs=CRS)
    with pytest.raises(ChipFolderError, match=r'holds -9999; .*unlabelled=\[-9999\]'):
        export_training_data(image, frame, tmp_path / 'e', tile_size=8)
    out = export_training_data(image, frame, tmp_path / 'zero', tile_size=8, unlabelled=[-9999])
    data = prepare_data(out, chip_size=8, batch_size=2, val_split_pct=0.5)
    assert dict(data.value_counts) == {0: 64, 1: 64, 2: 64}
    caplog.clear()
    out = export_training_data(image, frame, tmp_path / 'none', tile_size=8, unlabelled=[-9999, 0])
    assert dict(prepare_data(out, chip_size=8, batch_size=2, val_split_pct=0.5).value_counts) == {1: 64, 2: 64}
    out = export_training_data(image, frame.iloc[:3], tmp_path / 'plain', tile_size=8)
    assert '1 features of value 0, which means unlabelled, were left out; pass unlabelled=[] if 0 is' in caplog.text


@pytest.mark.parametrize('of', ['file', 'band'])
def test_names_in_tags_of_the_file_or_of_its_band_are_kept(tmp_path, save, of):
    labels = save(tmp_path / 'l.tif', np.array([[1, 2], [2, 7]], np.uint8))
    with rasterio.open(labels, 'r+') as dst:
        dst.update_tags(*([] if of == 'file' else [1]), class_1='water', class_7='built-up', CLASS='x')
    with open_raster(labels) as src:
        found = styled_classes([1, 2, 7], read_raster_style(src, labels))
    assert [info.name for info in found] == ['water', '2', 'built-up']


@pytest.mark.parametrize(
    'names', [['ship', 'car', 'building'], ['car', 'house', 'water', 'plane'], ['a', 'b', 'c', 'd', 'e', 'f']]
)
def test_classes_without_a_usual_color_are_told_apart_by_everybody(names):
    colors = [info.color for info in color_classes((value, name, None) for value, name in enumerate(names, 1))]
    apart = color_distances(colors, colors)
    own = [position for position, name in enumerate(names) if named_color(name) is None]
    others = [[apart[at, other] for other in range(len(names)) if other != at] for at in own]
    assert min(map(min, others)) >= (DISTINCT if len(names) < 5 else 0.08)
    for name, color in zip(names, colors):
        assert color == (named_color(name) or color)
    # red and green of one lightness are one color to many
    assert (
        color_distances([(200, 60, 60)], [(110, 110, 40)])[0, 0] < 0.1 < color_distances([(0, 0, 200)], [(200, 60, 60)])
    )
