"""Small folders in the layouts of published data sets, with random pixels."""

import json
import warnings

import numpy as np
import rasterio
from affine import Affine
from rasterio.errors import NotGeoreferencedWarning

SIDE = 32
PLACE = Affine(10, 0, 500_000, 0, -10, 4_000_000)


def write(path, pixels, *, driver='GTiff', place=PLACE, crs='EPSG:32610', **options):
    """Write pixels (bands, height, width), or (height, width)."""
    pixels = pixels[None] if pixels.ndim == 2 else pixels
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = pixels.shape
    profile = {'driver': driver, 'count': count, 'height': height, 'width': width, 'dtype': pixels.dtype, **options}
    where = {} if place is None else {'transform': place, 'crs': crs}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', NotGeoreferencedWarning)  # pictures without a place
        with rasterio.open(path, 'w', **profile, **where) as dst:
            dst.write(pixels)
    return path


def shifted(number):
    """A place of its own for each image, so that none shares ground with another."""
    return Affine.translation(number * 1000, 0) @ PLACE


def burn_scars(root, train=6, valid=3, side=SIDE):
    """HLS Burn Scars: bright in the short-wave infrared where the mask is 1; a stripe of -1 at the left."""
    rng = np.random.default_rng(0)
    for number in range(train + valid):
        part = 'training' if number < train else 'validation'
        scar = np.zeros((side, side), np.int16)
        y, x = rng.integers(side // 8, side // 2, 2)
        scar[y : y + side // 3, x : x + side // 3] = 1
        image = rng.normal(0.12, 0.01, (6, side, side)).astype(np.float32)
        image[4:] += 0.2 * scar
        image[3] -= 0.08 * scar
        scar[:, 0] = -1
        image[:, :, 1] = -9999
        name = f'subsetted_512x512_HLS.S30.T10SDH.2020{100 + number}.v1.4'
        write(root / part / f'{name}_merged.tif', image, place=shifted(number))
        write(root / part / f'{name}.mask.tif', scar, place=shifted(number))
    return root


def sen1floods11(root):
    rng = np.random.default_rng(1)
    hand, lists = root / 'data' / 'flood_events' / 'HandLabeled', {'train': [], 'valid': [], 'test': [], 'bolivia': []}
    for number, part in enumerate(['train', 'train', 'train', 'valid', 'test', 'bolivia']):
        name = f'{"Bolivia" if part == "bolivia" else "Ghana"}_{100 + number}'
        label = rng.integers(-1, 2, (SIDE, SIDE)).astype(np.int16)
        for sensor, bands in (('S1Hand', 2), ('S2Hand', 13)):
            image = rng.normal(size=(bands, SIDE, SIDE)).astype(np.float32) if bands == 2 else None
            image = rng.integers(1, 3000, (13, SIDE, SIDE)).astype(np.int16) if image is None else image
            write(hand / sensor / f'{name}_{sensor}.tif', image, place=shifted(number))
        write(hand / 'LabelHand' / f'{name}_LabelHand.tif', label, place=shifted(number))
        lists[part].append(f'{name}_S1Hand.tif,{name}_LabelHand.tif')
    splits = root / 'splits' / 'flood_handlabeled'
    splits.mkdir(parents=True)
    for part, lines in lists.items():
        (splits / f'flood_{part}_data.csv').write_text('\n'.join(lines) + '\n')
    return root


def mados(root):
    rng = np.random.default_rng(2)
    waves = {10: (492, 560, 665, 833), 20: (704, 740, 783, 865, 1614, 2202), 60: (443,)}
    lists = {'train': ['Scene_0_1', 'Scene_0_2'], 'val': ['Scene_1_1'], 'test': ['Scene_1_2']}
    for scene in range(2):
        for crop in (1, 2):
            number = 2 * scene + crop
            place = shifted(number)
            for size, listed in waves.items():
                for wave in listed:
                    side, finer = 48 * 10 // size, size // 10
                    name = f'Scene_{scene}_L2R_rhorc_{wave}_{crop}.tif'
                    pixels = np.full((side, side), wave / 1000, np.float32) + rng.normal(0, 0.01, (side, side))
                    write(
                        root / f'Scene_{scene}' / str(size) / name,
                        pixels.astype(np.float32),
                        place=place @ Affine.scale(finer),
                    )
            label = rng.integers(0, 16, (48, 48)).astype(np.uint8)
            write(root / f'Scene_{scene}' / '10' / f'Scene_{scene}_L2R_cl_{crop}.tif', label, place=place)
    (root / 'splits').mkdir()
    for part, names in lists.items():
        (root / 'splits' / f'{part}_X.txt').write_text('\n'.join(names))
    return root


def landcover_ai(root):
    rng = np.random.default_rng(3)
    for part, count in (('train', 3), ('val', 1), ('test', 1)):
        names = [f'M-33-20-D-{part}_{number}' for number in range(count)]
        (root / 'output').mkdir(parents=True, exist_ok=True)
        (root / f'{part}.txt').write_text('\n'.join(names))
        for name in names:
            image = rng.integers(1, 255, (3, SIDE, SIDE)).astype(np.uint8)
            write(root / 'output' / f'{name}.jpg', image, driver='JPEG', place=None)
            mask = rng.integers(0, 5, (SIDE, SIDE)).astype(np.uint8)
            write(root / 'output' / f'{name}_m.png', mask, driver='PNG', place=None)
    return root


def ai4smallfarms(root):
    rng = np.random.default_rng(4)
    for number, part in enumerate(['train', 'train', 'validate', 'test']):
        home = root / 'sentinel-2-asia' / part
        write(home / 'images' / f'{number}.tif', rng.random((4, SIDE, SIDE)).astype(np.float32), place=shifted(number))
        mask = (rng.integers(0, 2, (SIDE, SIDE)) * 255).astype(np.uint8)
        write(home / 'masks' / f'{number}.tif', mask, place=shifted(number))
    return root


def levir_cd(root):
    rng = np.random.default_rng(5)
    for part, count in (('train', 2), ('val', 1), ('test', 1)):
        for number in range(count):
            name = f'{part}_{number + 1}.png'
            for date in 'AB':
                pixels = rng.integers(1, 255, (3, SIDE, SIDE)).astype(np.uint8)
                write(root / part / date / name, pixels, driver='PNG', place=None)
            label = (rng.integers(0, 2, (SIDE, SIDE)) * 255).astype(np.uint8)
            write(root / part / 'label' / name, label, driver='PNG', place=None)
    return root


EUROSAT = (
    'AnnualCrop Forest HerbaceousVegetation Highway Industrial Pasture PermanentCrop Residential River SeaLake'
).split()


def eurosat(root):
    rng, lists = np.random.default_rng(6), {'train': [], 'val': [], 'test': []}
    for kind, name in enumerate(EUROSAT):
        for number, part in enumerate(lists):
            pixels = rng.integers(1, 4000, (13, SIDE, SIDE)).astype(np.uint16)
            write(root / name / f'{name}_{number + 1}.tif', pixels, place=shifted(10 * kind + number))
            lists[part].append(f'{name}_{number + 1}.jpg')
    for part, names in lists.items():
        (root / f'eurosat-{part}.txt').write_text('\n'.join(names))
    return root


def xview(root):
    rng, features = np.random.default_rng(7), []
    for number in range(4):
        write(root / 'train_images' / f'{number}.tif', rng.integers(1, 255, (3, 64, 64)).astype(np.uint8), place=None)
        for kind, box in ((73, (4, 5, 20, 25)), (18, (50, 50, 70, 60)), (75, (1, 1, 9, 9))):
            facts = {'image_id': f'{number}.tif', 'type_id': kind, 'bounds_imcoords': ','.join(map(str, box))}
            features.append({'type': 'Feature', 'geometry': None, 'properties': facts})
    (root / 'xView_train.geojson').write_text(json.dumps({'type': 'FeatureCollection', 'features': features}))
    return root


def pastis(root):
    rng, features = np.random.default_rng(9), []
    for folder in ('DATA_S2', 'ANNOTATIONS'):
        (root / folder).mkdir(parents=True)
    days = [f'2018{month:02d}20' for month in (9, 10, 11, 12)] + [f'2019{month:02d}10' for month in range(1, 11)]
    for number, fold in enumerate((1, 2, 3, 4, 5), 10_000):
        count = len(days) - number % 2
        series = np.arange(count, dtype=np.int16)[:, None, None, None] * 100 + rng.integers(0, 50, (10, SIDE, SIDE))
        np.save(root / 'DATA_S2' / f'S2_{number}.npy', series.astype(np.int16))
        target = rng.integers(0, 20, (3, SIDE, SIDE)).astype(np.uint8)
        np.save(root / 'ANNOTATIONS' / f'TARGET_{number}.npy', target)
        dates = {str(position): int(day) for position, day in enumerate(days[:count])}
        features.append({'type': 'Feature', 'properties': {'ID_PATCH': number, 'Fold': fold, 'dates-S2': dates}})
    (root / 'metadata.geojson').write_text(json.dumps({'type': 'FeatureCollection', 'features': features}))
    return root


def spacenet7(root):
    rng = np.random.default_rng(8)
    place = Affine(4, 0, 1_000_000, 0, -4, 2_000_000)
    for area in ('L15-0331E-1257N_1327_3160_13', 'L15-0358E-1220N_1433_3310_13'):
        for month in ('2018_01', '2018_02'):
            name = f'global_monthly_{month}_mosaic_{area}'
            folder = root / 'train' / area
            pixels = rng.integers(1, 255, (3, SIDE, SIDE)).astype(np.uint8)
            write(folder / 'images_masked' / f'{name}.tif', pixels, place=place, crs='EPSG:3857')
            corners = [place @ corner for corner in ((4, 6), (14, 6), (14, 12), (4, 12), (4, 6))]
            shape = {'type': 'Polygon', 'coordinates': [[list(corner) for corner in corners]]}
            crs = {'type': 'name', 'properties': {'name': 'EPSG:3857'}}
            feature = {'type': 'Feature', 'geometry': shape, 'properties': {'Id': 1}}
            content = {'type': 'FeatureCollection', 'crs': crs, 'features': [feature]}
            (folder / 'labels_match').mkdir(exist_ok=True)
            (folder / 'labels_match' / f'{name}_Buildings.geojson').write_text(json.dumps(content))
    return root
