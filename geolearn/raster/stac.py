"""STAC items: which of their assets are bands, and what the items state of them."""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

from geolearn.bands import find_sensor
from geolearn.errors import RasterError
from geolearn.files import decode_text

RASTERS = ('image/tiff', 'image/vnd.stac.geotiff', 'image/jp2', 'image/x.geotiff', 'application/x-geotiff')
"""Beginnings of the media types of rasters."""

SUFFIXES = ('.tif', '.tiff', '.jp2', '.vrt', '.img')

NO_DATA_ROLES = frozenset('thumbnail overview visual metadata tilejson data-mask cloud snow-ice'.split())
"""Roles of assets that are no measurements."""

MOST_BYTES = 2**28

BASELINE, OFFSET = (4, 0), -1000.0
"""The processing baseline of Sentinel-2 since which stored values have an offset, and that offset."""


@dataclass(frozen=True)
class AssetBand:
    """What an item states of a band.

    Args:
        name: Its name: of the band, else of the asset.
        others: Other names that it may be asked for by: of the asset, and the common one.
        wavelength_um: Of its center, or None.
        scale: Factor of stored values, before `offset` is added.
        offset: Of values.
        nodata: Value of missing pixels, or None.
    """

    name: str
    others: tuple[str, ...] = ()
    wavelength_um: float | None = None
    scale: float = 1.0
    offset: float = 0.0
    nodata: float | None = None


@dataclass(frozen=True)
class Asset:
    """A raster of an item: what GDAL opens, and its bands in order."""

    href: str
    bands: tuple[AssetBand, ...]


@dataclass(frozen=True)
class Item:
    """A scene.

    Args:
        name: Its id.
        time: When it was taken, as the item writes it; empty where it does not.
        sensor: Whose bands these are, or None.
        assets: Rasters of measurements.
        product_offset: What has to be added to values that are read: of Sentinel-2 what the processing baseline says,
            0 where bands state an offset; None where it is not known.
    """

    name: str
    time: str
    sensor: str | None
    assets: tuple[Asset, ...]
    product_offset: float | None = None


def is_stac(source: object) -> bool:
    """Whether a source is a STAC item or several: of pystac or its client, a dictionary, or a .json file."""
    if isinstance(source, Mapping):
        return source.get('type') in ('Feature', 'FeatureCollection')
    if isinstance(source, str | Path):
        return str(source).lower().endswith(('.json', '.geojson')) and os.path.isfile(source)
    return type(source).__module__.partition('.')[0] in ('pystac', 'pystac_client')


def split_items(source: Any) -> list[tuple[str, dict[str, Any]]]:
    """Return the id of each item and the item as JSON, which is a source of its own, oldest first.

    Args:
        source: See `is_stac`.

    Raises:
        RasterError: If there is none.
    """
    content, base = _load(source)
    found = []
    for item in _features(content, _shown(source)):
        links = item.get('links') or []
        if base:  # relative places are counted from the file
            links = [{'rel': 'self', 'href': base}, *links]
        found.append((str(item.get('id')), {**item, 'links': links}))
    if not found:
        raise RasterError('the STAC collection holds no item; search a larger area or time')
    return sorted(found, key=lambda pair: str((pair[1].get('properties') or {}).get('datetime') or ''))


def read_items(source: Any) -> list[Item]:
    """Read items, oldest first, so that newer ones lie on top.

    Args:
        source: See `is_stac`. Of a search of pystac_client all results are fetched.

    Raises:
        RasterError: If there is none, or one names no raster.
    """
    content, base = _load(source)
    found = [_item(each, base) for each in _features(content, _shown(source))]
    if not found:
        raise RasterError('the STAC collection holds no item; search a larger area or time')
    return sorted(found, key=lambda item: item.time)


def _load(source: Any) -> tuple[Any, str]:
    """Return an item or a collection as JSON, and the folder that relative places are counted from."""
    if isinstance(source, str | Path):
        return _read_json(Path(source)), str(Path(source).absolute().parent) + os.sep
    return (source if isinstance(source, Mapping) else _as_dict(source)), ''


def _read_json(path: Path) -> Any:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise RasterError(f'{path} is larger than a collection of items is; pass a part of it')
        content = json.loads(decode_text(path.read_bytes()))
    except (OSError, ValueError) as error:
        if isinstance(error, RasterError):
            raise
        raise RasterError(f'cannot read {path} as a STAC item: {error}') from error
    if not isinstance(content, Mapping) or content.get('type') not in ('Feature', 'FeatureCollection'):
        raise RasterError(f'{path} is neither a STAC item nor a collection of items')
    return content


def _as_dict(source: Any) -> Any:
    """Return what an object of pystac or its client is in JSON."""
    kind = type(source).__name__
    if kind == 'ItemSearch':
        return source.item_collection_as_dict()
    if kind == 'ItemCollection':
        return source.to_dict()
    if kind == 'Item':
        found = source.to_dict(include_self_link=False)
        return {**found, 'links': [{'rel': 'self', 'href': source.get_self_href() or ''}]}
    raise RasterError(f'a {kind} is no source of a map; pass an Item, an ItemCollection or an ItemSearch')


def _shown(source: Any) -> str:
    return str(source) if isinstance(source, str | Path) else 'the collection'


def _features(source: Mapping[str, Any], shown: str) -> Iterator[Mapping[str, Any]]:
    listed = source.get('features') if source['type'] == 'FeatureCollection' else [source]
    for item in listed or ():
        if not isinstance(item, Mapping) or not isinstance(item.get('assets'), Mapping):
            name = (item.get('id') if isinstance(item, Mapping) else item) or 'its first feature'
            raise RasterError(f'{shown}: {name} is no STAC item: it has no assets, and so is no raster')
        yield item


def _item(item: Mapping[str, Any], base: str) -> Item:
    properties = item.get('properties') or {}
    links = [link for link in item.get('links') or () if isinstance(link, Mapping) and link.get('rel') == 'self']
    base = base or (str(links[0].get('href') or '') if links else '')
    sensor = next(
        (found for key in ('constellation', 'platform') if (found := find_sensor(str(properties.get(key) or '')))), None
    )
    assets = [(str(key), asset) for key, asset in item['assets'].items() if _is_raster(asset)]
    described = [(key, asset) for key, asset in assets if _stated(asset, 'eo:bands') or _stated(asset, 'bands')]
    named = [(key, asset) for key, asset in described if any(_name(band) for band in _rows(asset))]
    kept, taken = [], set[str]()
    # files of one band go before those of several, which repeat them (composites)
    for key, asset in sorted(named or assets, key=lambda pair: len(_rows(pair[1])) > 1):
        bands = _bands(key, asset)
        if not {band.name for band in bands} & taken:
            taken |= {band.name for band in bands}
            kept.append((key, Asset(_join(base, str(asset['href'])), bands)))
    if not kept:
        raise RasterError(f'the item {item.get("id")} has no raster among its assets: {", ".join(item["assets"])}')
    order = list(item['assets'])
    kept.sort(key=lambda pair: order.index(pair[0]))
    time = properties.get('datetime') or properties.get('start_datetime') or ''
    offset = None
    if sensor is not None and sensor.startswith('sentinel2'):
        chosen = {key for key, _ in kept}
        rows = [row for key, asset in assets if key in chosen for row in _rows(asset)]
        stated = any(key in row for row in rows for key in ('offset', 'raster:offset'))
        offset = 0.0 if stated else _product_offset(properties)  # what is stated is added as it is read
    return Item(str(item.get('id')), str(time), sensor, tuple(asset for _, asset in kept), offset)


def _product_offset(properties: Mapping[str, Any]) -> float | None:
    """Return the offset of Sentinel-2 by the processing baseline, 0 where the files were freed of it."""
    if properties.get('earthsearch:boa_offset_applied') is True:
        return 0.0
    for key in ('s2:processing_baseline', 'processing:version'):
        if found := re.match(r'N?(\d\d?)\.?(\d\d)$', str(properties.get(key) or '')):
            return OFFSET if (int(found[1]), int(found[2])) >= BASELINE else 0.0
    return None


def _is_raster(asset: Any) -> bool:
    if not isinstance(asset, Mapping) or not isinstance(asset.get('href'), str):
        return False
    if NO_DATA_ROLES & {str(role) for role in asset.get('roles') or ()}:
        return False
    kind = str(asset.get('type') or '').lower()
    return kind.startswith(RASTERS) if kind else asset['href'].lower().partition('?')[0].endswith(SUFFIXES)


def _stated(asset: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    rows = asset.get(key)
    return [row if isinstance(row, Mapping) else {} for row in rows] if isinstance(rows, list) else []


def _rows(asset: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what is stated of each band: by the extensions eo and raster, or by STAC 1.1 itself."""
    parts = [_stated(asset, key) for key in ('raster:bands', 'eo:bands', 'bands')]
    count = max(map(len, parts), default=0) or 1
    rows: list[dict[str, Any]] = [
        {key: asset[key] for key in ('nodata', 'raster:scale', 'raster:offset') if key in asset} for _ in range(count)
    ]
    for part in parts:
        for row, more in zip(rows, part):
            row |= more
    return rows


def _name(row: Mapping[str, Any]) -> str:
    return str(row.get('name') or row.get('common_name') or row.get('eo:common_name') or '')


def _bands(key: str, asset: Mapping[str, Any]) -> tuple[AssetBand, ...]:
    rows = _rows(asset)
    found = []
    for number, row in enumerate(rows, 1):
        name = _name(row) or (key if len(rows) == 1 else f'{key}_{number}')
        common = str(row.get('common_name') or row.get('eo:common_name') or '')
        others = tuple(other for other in ((key,) if len(rows) == 1 else ()) + (common,) if other and other != name)
        found.append(
            AssetBand(
                name,
                others,
                _number(row, ('center_wavelength', 'eo:center_wavelength'), None),
                _number(row, ('scale', 'raster:scale'), 1.0) or 1.0,
                _number(row, ('offset', 'raster:offset'), 0.0) or 0.0,
                _number(row, ('nodata',), None),
            )
        )
    return tuple(found)


def _number(row: Mapping[str, Any], keys: Sequence[str], default: float | None) -> float | None:
    for key in keys:
        value = row.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if value in ('nan', 'inf', '-inf'):
            return float(value)
    return default


def _join(base: str, href: str) -> str:
    """Return what GDAL opens; relative places are counted from the item."""
    if href.startswith('file://'):
        return href.removeprefix('file://')
    if '://' in href or href.startswith('/') or not base:
        return href
    return urljoin(base, href) if '://' in base else os.path.normpath(os.path.join(os.path.dirname(base), href))
