"""What raster functions share, and that of pixels: without torch they run the ONNX graph of the bundle."""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from geolearn import errors, extras
from geolearn.bundle import GraphOutput
from geolearn.classes import ClassInfo
from geolearn.inference import reading
from geolearn.inference.options import ReadOptions, TilingOptions
from geolearn.networks.spec import ModelSpec
from geolearn.onnx import OnnxModel
from geolearn.onnx import load_model as load_graph
from geolearn.raster.embeddings import dequantize_alphaearth
from geolearn.raster.nodata import as_float32, missing

if TYPE_CHECKING:
    import torch

    from geolearn.models import Model

POLYGON = 4
"""ArcGIS's number of that type of geometry."""

Ring = list[list[float]]

_TYPES = {int: 'esriFieldTypeInteger', float: 'esriFieldTypeDouble', str: 'esriFieldTypeString'}


def list_fields(columns: Mapping[str, type], *, shape: bool = True) -> list[dict[str, str]]:
    """Return Esri's fields: the number of the row, the columns, and the geometry where there is one."""
    typed = {'OID': 'esriFieldTypeOID'} | {name: _TYPES[kind] for name, kind in columns.items()}
    if shape:
        typed['Shape'] = 'esriFieldTypeGeometry'
    return [{'name': name, 'type': kind, 'alias': name} for name, kind in typed.items()]


def fields_text(columns: Mapping[str, type]) -> str:
    """Return the fields of features with these columns as Esri's text."""
    return json.dumps({'fields': list_fields(columns)})


def feature_set(columns: Mapping[str, type], rows: Sequence[Mapping[str, Any]], shapes: Sequence[list[Ring]]) -> str:
    """Return features with their polygons, in pixels of a block, as Esri's text.

    Args:
        columns: Type of each attribute.
        rows: Attributes of each feature.
        shapes: Rings of each feature.
    """
    features = [
        {'attributes': {'OID': number, **row}, 'geometry': {'rings': rings}}
        for number, (row, rings) in enumerate(zip(rows, shapes), 1)
    ]
    return _text(list_fields(columns), features, geometryType='esriGeometryPolygon')


def attribute_table(classes: Sequence[ClassInfo]) -> str:
    """Return the attribute table of a raster of class values as Esri's text."""
    columns = {'Value': int, 'Class': str, 'Red': int, 'Green': int, 'Blue': int}
    rows = [dict(zip(columns, (info.value, info.name, *info.color))) for info in classes]
    features = [{'attributes': {'OID': number, **row}} for number, row in enumerate(rows, 1)]
    return _text(list_fields(columns, shape=False), features)


def _text(fields: list[dict[str, str]], features: list[dict[str, Any]], **more: str) -> str:
    aliases = {field['name']: field['alias'] for field in fields}
    header = {'displayFieldName': '', 'fieldAliases': aliases, **more, 'fields': fields}
    return json.dumps({**header, 'features': features}, allow_nan=False)


def box_rings(left: float, top: float, right: float, bottom: float) -> list[Ring]:
    """Return the ring of a box, clockwise on the image, as Esri wants outer rings."""
    return [[[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]]


def corner_rings(corners: Sequence[Sequence[float]]) -> list[Ring]:
    """Return the ring of an oriented box by its corners (4, 2), clockwise on the image."""
    points = [list(corner) for corner in corners]
    return [[*points, points[0]]]


def outline_rings(outline: Any) -> list[Ring]:
    """Return the rings of a shapely polygon or several: outer ones clockwise on the image, holes the other way."""
    shapely = extras.require('shapely', extra='vector', to='outline objects')
    rings: list[Ring] = []
    for part in shapely.get_parts(outline):
        # rows count downwards, so what shapely calls counter-clockwise is clockwise on the image
        turned = shapely.geometry.polygon.orient(part, sign=1.0)
        rings += [[list(point) for point in ring.coords] for ring in (turned.exterior, *turned.interiors)]
    return rings


NOT_GIVEN = ('', '#', 'None')
"""What an argument that its user left empty may come as."""

MOST_FREE_GPU, CPU = -2, -1
"""ArcGIS's numbers for devices; 0 and above are GPUs."""


class Tiling(NamedTuple):
    """The side of the blocks that are requested, and the padding at each edge that gives context only; in pixels."""

    side: int
    padding: int


class RasterFunction:
    """A bundle's model, called by ArcGIS Pro. Names of methods, arguments and results are ArcGIS's."""

    home: ClassVar[str] = ''
    """The Python file in the bundle, beside the .emd."""
    model_types: ClassVar[tuple[str, ...]] = ()
    """Esri's ModelType of the models that it runs."""
    graph_output: ClassVar[GraphOutput | None] = None
    """What the ONNX graph gives that is run where torch is missing; None where torch is needed."""
    raster: ClassVar[str] = 'raster'
    """What ArcGIS calls the input; pixels come as ``<raster>_pixels``."""

    def __init__(self) -> None:
        self.name = 'geolearn'
        self.description = 'Runs a model of geolearn'
        self._emd: dict[str, Any] = {}
        self._model: Model | None = None
        self._graph: OnnxModel | None = None
        self._tiling = Tiling(0, 0)
        self._read = ReadOptions()
        self._units_checked = False
        self._trained_scene: Any = None

    # -- what ArcGIS calls

    def initialize(self, **arguments: Any) -> None:
        """Load the model.

        Args:
            arguments: ``model``, the path of the .emd or its text; ``device``, the number of a GPU, -1 for the CPU, or
                -2 for the GPU that has most memory free. Without a model, nothing happens.

        Raises:
            BundleError: If the bundle is broken, or holds another kind of model.
        """
        if 'model' not in arguments:
            return
        given = str(arguments['model'])
        is_text = given.lstrip().startswith('{')
        path = Path(self.home).parent if is_text else Path(given)
        # of its own, because users may change ExtractBands in it
        self._emd = json.loads(given if is_text else path.read_text(encoding='utf-8'))
        self._load(path, int(arguments.get('device', MOST_FREE_GPU)))

    def getParameterInfo(self) -> list[dict[str, Any]]:
        """Return what the tool asks its user for, as ArcGIS describes parameters."""
        listed = [
            {'name': self.raster, 'dataType': self.raster, 'required': True, 'displayName': 'Raster'},
            {'name': 'model', 'dataType': 'string', 'required': True, 'displayName': 'Model definition'},
            {'name': 'device', 'dataType': 'numeric', 'required': False, 'displayName': 'Device'},
        ]
        described = [parameter | {'description': parameter['displayName']} for parameter in listed]
        loaded = self._model is not None or self._graph is not None
        return [*described, *self._parameters()] if loaded else described

    def getConfiguration(self, **scalars: str) -> dict[str, Any]:
        """Take what the user said, as text, and return what blocks are wanted.

        Raises:
            BundleError: If the .emd asks for another number of bands than the model takes.
            ValueError: If an argument makes no sense.
        """
        spec, bands = self._spec, self._emd['ExtractBands']
        if len(bands) != spec.dates * len(spec.bands):
            raise errors.BundleError(
                f'ExtractBands in the .emd are {bands}; the model takes {spec.dates * len(spec.bands)} bands: '
                f'{", ".join(band.name for band in spec.bands)}' + (f', at {spec.dates} dates' * (spec.dates > 1))
            )
        self._read = ReadOptions(scale=read_number(scalars, 'scale'), offset=read_number(scalars, 'offset') or 0.0)
        side, padding = (
            int(usual if (given := read_number(scalars, name)) is None else given)
            for name, usual in zip(('tile_size', 'padding'), self._tiling)
        )
        if not 0 <= 2 * padding < side:
            raise ValueError(f'padding must be at least 0 and under half of tile_size {side}, got {padding}')
        self._tiling = Tiling(side, padding)
        self._set_scene(scalars)
        return {
            'extractBands': tuple(bands),
            'padding': padding,
            'tx': side - 2 * padding,
            'ty': side - 2 * padding,
            'fixedTileSize': 1,
            # of the input raster: all but its pixel type and its attribute table
            'inheritProperties': 2 | 4 | 8,
            'inputMask': True,
        }

    def _load(self, path: Path, device: int) -> None:
        """Load the model onto a device of ArcGIS's numbers, or its graph where torch is missing."""
        if find_spec('torch') is None:
            self._load_graph(path)
            return
        from geolearn.backbones.scene import scene_of
        from geolearn.models import load_model

        model = load_model(path)
        if model.emd_fields(model.spec)['ModelType'] not in self.model_types:
            raise errors.BundleError(
                f'{type(self).__name__} does not run a {type(model).__name__}; save the model again'
            )
        model.network.to(find_device(device)).eval()
        self._model = model
        self._tiling = self._usual_tiling()
        self._trained_scene = scene_of(model.network.backbone)

    def _load_graph(self, path: Path) -> None:
        if self.graph_output is None:
            raise errors.BundleError(
                f'{type(self).__name__} needs torch, which this environment lacks; install torch in it'
            )
        graph = load_graph(path)
        if graph.facts.output != self.graph_output:
            raise errors.BundleError(f'{type(self).__name__} does not run a {graph.spec.model}')
        if graph.facts.dates or graph.facts.location is not None:
            raise errors.BundleError(
                f'{graph.spec.backbone} reads when or where images are, which its graph holds as constants of '
                'the training; install torch in this environment'
            )
        self._graph = graph
        self._tiling = self._usual_tiling()

    # -- what the kinds of functions say

    def _usual_tiling(self) -> Tiling:
        """Return how blocks are cut unless the user says otherwise."""
        if self._graph is not None:
            return Tiling(self._graph.facts.tile_size, self._graph.facts.halo)
        from geolearn.inference import computing

        return Tiling(*computing.choose_tile(self._spec, self._loaded.network, TilingOptions()))

    def _parameters(self) -> list[dict[str, Any]]:
        """Return the parameters of this kind of function."""
        return [
            describe('tile_size', 'GPLong', self._tiling.side, 'Side of the blocks in pixels'),
            describe('padding', 'GPLong', self._tiling.padding, 'Pixels of context around each block'),
            *self._unit_parameters(),
        ]

    def _unit_parameters(self) -> list[dict[str, Any]]:
        known = self._trained_scene
        dates = 'When the images were taken, such as 2024-05-01, with commas between'
        place = 'Latitude and longitude of about the middle of the raster in degrees, such as 48.1, 11.6'
        return [
            describe('scale', 'GPString', '', 'Factor of the pixel values; 1 where they are in the units of training'),
            describe('offset', 'GPDouble', 0, 'Added after scaling'),
            *([describe('dates', 'GPString', '', dates)] if known and known.dates else []),
            *([describe('location', 'GPString', '', place)] if known and known.location is not None else []),
        ]

    def _set_scene(self, scalars: dict[str, str]) -> None:
        """Let the network know when and where the raster is, as far as it reads that.

        Raises:
            ValueError: If its user did not say it, or not as it must be.
        """
        if self._trained_scene is None:  # of a graph, which reads nothing of it
            return
        from geolearn.backbones.scene import Scene, set_scene

        known, name = self._trained_scene, self._spec.backbone
        days = [part for part in re.split(r'[\s,;]+', str(scalars.get('dates', ''))) if part]
        if len(days) != len(known.dates):
            raise ValueError(
                f'{name} reads when images were taken: fill in dates, {len(known.dates)} of them such as '
                f'2024-05-01 with commas between, got {len(days)}'
            )
        place = [part for part in re.split(r'[\s,;]+', str(scalars.get('location', ''))) if part]
        if known.location is not None and len(place) != 2:
            raise ValueError(f'{name} reads where images lie: fill in location, such as 48.1, 11.6, got {place}')
        location = None if known.location is None else (float(place[0]), float(place[1]))
        dates = tuple(date.fromisoformat(day) for day in days)
        set_scene(self._loaded.network.backbone, Scene(dates, location))

    # -- inside

    @property
    def _spec(self) -> ModelSpec:
        return self._loaded.spec if self._graph is None else self._graph.spec

    @property
    def _loaded(self) -> 'Model':
        if self._model is None:
            raise errors.BundleError('no model is loaded; call initialize(model=<path of the .emd>) first')
        return self._model

    def _read_block(self, pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Return an image ([dates,] bands, h, w) in the model's units, NaN where there is no data.

        Args:
            pixels: (bands, h, w); of models of several dates all bands of the first date, then all of the next.
            mask: The same shape, 0 where there is no data.

        Raises:
            RasterError: If values are in other units than the training chips.
        """
        spec = self._spec
        shape = (spec.dates, len(spec.bands), *pixels.shape[-2:])
        stored = np.asarray(pixels).reshape(shape)
        known = np.broadcast_to(mask, pixels.shape).reshape(shape) != 0
        method = spec.product.dequantize if spec.product else None
        if method is not None and stored.dtype.kind in 'iu':
            if method != 'alphaearth':
                raise errors.RasterError(
                    f'blocks hold codes of {spec.product}, without the scale of each pixel; pass vectors'
                )
            stored = dequantize_alphaearth(stored)
        values = as_float32(np.where(known, stored, np.float32(np.nan)))
        present = [~missing(date, every_date=True) for date in values]
        if any(date.any() for date in present) and not self._units_checked:
            for date, there in zip(values, present):
                reading.check_units(date[:, there], spec, self._read)
            # one raster is in one unit, and single blocks may be odd
            self._units_checked = True
        image = as_float32(self._read.to_model_units(values))
        return image if spec.dates > 1 else image[0]


class VectorFunction(RasterFunction):
    """A raster function whose results are polygons with attributes; subclasses write `vectorize`."""

    columns: ClassVar[dict[str, type]] = {}
    """Attributes by name."""

    def getFields(self) -> str:
        """Return the attributes as Esri's text."""
        return fields_text(self.columns)

    def getGeometryType(self) -> int:
        """Return ArcGIS's number of polygons."""
        return POLYGON


def find_device(number: int) -> 'torch.device':
    """Return the device that ArcGIS means; the CPU where there is no GPU."""
    import torch

    from geolearn.device import choose_device

    if number == CPU or not torch.cuda.is_available():
        return choose_device('cpu')
    if number == MOST_FREE_GPU:
        number = max(range(torch.cuda.device_count()), key=lambda gpu: torch.cuda.mem_get_info(gpu)[0])
    return choose_device(f'cuda:{number}')


def describe(name: str, kind: str, value: Any, text: str, *, domain: tuple[str, ...] = ()) -> dict[str, Any]:
    """Describe a parameter that may be left out, as ArcGIS does."""
    what = {'name': name, 'dataType': kind, 'required': False, 'value': value}
    return what | ({'domain': domain} if domain else {}) | {'displayName': name, 'description': text}


def read_number(scalars: dict[str, str], name: str) -> float | None:
    """Return an argument that came as text, or None where its user left it empty.

    Raises:
        ValueError: If it is not a number.
    """
    text = str(scalars.get(name, '')).strip()
    if text in NOT_GIVEN:
        return None
    try:
        return float(text)
    except ValueError:
        raise ValueError(f'{name} must be a number, got {text!r}') from None


class ClassifyPixels(RasterFunction):
    """Pixel classifiers and change detectors; before and after are the first and the last bands of one raster."""

    model_types = ('ImageClassification',)
    graph_output: ClassVar[GraphOutput | None] = 'classes'

    def updateRasterInfo(self, **arguments: Any) -> dict[str, Any]:
        """Say that the output has one band of class values, and what they mean."""
        info = arguments['output_info']
        info['bandCount'] = 1
        info['pixelType'] = 'u1' if max(row.value for row in self._spec.class_infos) <= 255 else 'i4'
        info['rasterAttributeTable'] = attribute_table(self._spec.class_infos)
        return arguments

    def updatePixels(self, tlc: Any, shape: Any, props: dict[str, Any], **blocks: Any) -> dict[str, Any]:
        """Classify a block.

        Args:
            tlc: Its upper left corner; not needed.
            shape: Of the input; not needed.
            props: Of the output; its ``pixelType`` is.
            blocks: ``raster_pixels`` (bands, h, w) and ``raster_mask``, 0 where there is no data.

        Returns:
            The blocks with ``output_pixels`` (1, h - 2 * padding, w - 2 * padding), and ``output_mask`` likewise, 0
            where the input has no data.
        """
        image = self._read_block(blocks['raster_pixels'], blocks['raster_mask'])
        every_date = self._loaded.needs_every_date if self._graph is None else self._graph.facts.every_date
        absent = missing(image, every_date=every_date)
        mapped = self._classify(image, absent)
        edge = self._tiling.padding
        inner = tuple(slice(edge, length - edge) for length in absent.shape)
        blocks['output_pixels'] = mapped[inner][None].astype(props['pixelType'], copy=False)
        blocks['output_mask'] = (~absent[inner])[None].astype('u1')
        return blocks

    def _classify(self, image: np.ndarray, absent: np.ndarray) -> np.ndarray:
        """Return class values (h, w) of an image, NoData where it is absent."""
        if self._graph is not None:
            mapped = np.full(absent.shape, self._graph.nodata, self._graph.facts.dtype)
            if not absent.all():
                mapped = self._graph.encode(self._graph.run(image[None]))[0]
                mapped[absent] = self._graph.nodata
            return mapped
        import torch

        from geolearn.device import device_of
        from geolearn.inference.encoding import ClassEncoding

        network, encoding = self._loaded.network, ClassEncoding(self._spec.class_infos)
        mapped = np.full(absent.shape, encoding.nodata, encoding.dtype)
        if not absent.all():
            device = device_of(network)
            with torch.inference_mode():
                mapped = encoding.encode(network(torch.from_numpy(image)[None].to(device)))[0]
            mapped[absent] = encoding.nodata
        return mapped
