"""The tools: their parameters, and the command lines that these become."""

from typing import Any

from processing.core.ProcessingConfig import ProcessingConfig
from qgis.core import (
    QgsProcessing,
    QgsProcessingAlgorithm,
    QgsProcessingException,
    QgsProcessingLayerPostProcessorInterface,
    QgsProcessingParameterBoolean,
    QgsProcessingParameterDefinition,
    QgsProcessingParameterEnum,
    QgsProcessingParameterField,
    QgsProcessingParameterFile,
    QgsProcessingParameterFileDestination,
    QgsProcessingParameterFolderDestination,
    QgsProcessingParameterNumber,
    QgsProcessingParameterRasterDestination,
    QgsProcessingParameterRasterLayer,
    QgsProcessingParameterString,
    QgsProcessingParameterVectorDestination,
    QgsProcessingParameterVectorLayer,
)

from geolearn_provider import command

MODELS = (
    'UNet',
    'DeepLab',
    'UPerNet',
    'SegFormer',
    'FPN',
    'PSPNet',
    'FasterRCNN',
    'MaskRCNN',
    'RetinaNet',
    'RotatedFCOS',
)
FORMATS = ('Classified_Tiles', 'RCNN_Masks', 'PASCAL_VOC_rectangles', 'KITTI_rectangles', 'Labeled_Tiles')

_WHOLE, _REAL = QgsProcessingParameterNumber.Integer, QgsProcessingParameterNumber.Double


class _Style(QgsProcessingLayerPostProcessorInterface):
    """Gives a loaded layer the style that geolearn wrote beside it."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    def postProcessLayer(self, layer: Any, context: Any, feedback: Any) -> None:
        layer.loadNamedStyle(self._path)
        layer.triggerRepaint()


class _Tool(QgsProcessingAlgorithm):
    """What all tools share: a program to run, progress, errors, cancelling, styles."""

    NAME = TITLE = HELP = ''
    OUTPUT = 'OUTPUT'

    def __init__(self) -> None:
        super().__init__()
        self._styles: list[_Style] = []  # QGIS keeps no reference

    def name(self) -> str:
        return self.NAME

    def displayName(self) -> str:
        return self.TITLE

    def shortHelpString(self) -> str:
        return self.HELP

    def createInstance(self) -> '_Tool':
        return type(self)()

    def words(self, parameters: Any, context: Any, feedback: Any) -> tuple[list[str], dict[str, str]]:
        """Return the words of the command line, and the files that it writes by output."""
        raise NotImplementedError

    def processAlgorithm(self, parameters: Any, context: Any, feedback: Any) -> dict[str, str]:
        try:
            words, outputs = self.words(parameters, context, feedback)
            program = command.find_program(ProcessingConfig.getSetting(command.SETTING) or '')
            feedback.pushCommandInfo(' '.join(command.shlex.quote(word) for word in (program, *words)))
            command.run_command(
                program, words, on_line=feedback.pushInfo, on_progress=feedback.setProgress,
                is_cancelled=feedback.isCanceled,
            )  # fmt: skip
        except command.CommandError as error:
            raise QgsProcessingException(str(error)) from error
        for path in outputs.values():
            style = command.style_of(path)
            if style and context.willLoadLayerOnCompletion(path):
                self._styles.append(_Style(style))
                context.layerToLoadOnCompletionDetails(path).setPostProcessor(self._styles[-1])
        return outputs

    def add(self, parameter: Any, *, advanced: bool = False, help: str = '') -> None:
        """Add a parameter."""
        if advanced:
            parameter.setFlags(parameter.flags() | QgsProcessingParameterDefinition.FlagAdvanced)
        if help:
            parameter.setHelp(help)
        self.addParameter(parameter)

    def add_more(self) -> None:
        """Add the parameter for options that have none of their own."""
        more = QgsProcessingParameterString('MORE', 'More options of the command line', optional=True)
        self.add(more, advanced=True, help='As "geolearn COMMAND --help" lists them, such as --resume')

    def add_reading(self, *, scale: bool = True) -> None:
        """Add how a raster is read."""
        if scale:
            number = QgsProcessingParameterNumber('SCALE', 'Factor on pixel values', _REAL, optional=True)
            self.add(number, advanced=True, help='So that values are in the units of the training chips')
        bands = QgsProcessingParameterString('BANDS', "Names of the raster's bands", optional=True)
        self.add(
            bands, advanced=True, help='In file order, with blanks between, where the file names none: B02 B03 B04'
        )
        nodata = QgsProcessingParameterString('NODATA', 'Value of missing pixels', optional=True)
        self.add(nodata, advanced=True, help='Where the file declares none, such as 0')

    def text(self, parameters: Any, name: str, context: Any) -> str:
        return str(self.parameterAsString(parameters, name, context) or '')

    def number(self, parameters: Any, name: str, context: Any) -> Any:
        """Return a number, None where it is not given."""
        if parameters.get(name) is None:
            return None
        return self.parameterAsDouble(parameters, name, context)

    def raster(self, parameters: Any, context: Any) -> str:
        """Return the file of a raster layer.

        Raises:
            QgsProcessingException: If the layer is no file that GDAL reads.
        """
        layer = self.parameterAsRasterLayer(parameters, 'RASTER', context)
        if layer is None or layer.providerType() != 'gdal':
            raise QgsProcessingException('The raster must be a file; save the layer first (Export, Save As).')
        return str(layer.source())

    def reading(self, parameters: Any, context: Any) -> dict[str, str]:
        """Return how a raster is read."""
        return {name: self.text(parameters, name.upper(), context) for name in ('bands', 'nodata', 'more')}


class ExportChips(_Tool):
    """Cut a raster and labels into training chips."""

    NAME, TITLE = 'exportchips', 'Export training data'
    HELP = 'Cuts a raster and polygons (or boxes) into chips, the squares that models are trained on.'

    def initAlgorithm(self, config: Any = None) -> None:
        self.add(QgsProcessingParameterRasterLayer('RASTER', 'Raster'))
        self.add(QgsProcessingParameterVectorLayer('LABELS', 'Labels', [QgsProcessing.TypeVectorAnyGeometry]))
        self.add(QgsProcessingParameterField('FIELD', 'Field of the class', '', 'LABELS', optional=True))
        self.add(QgsProcessingParameterEnum('FORMAT', 'Format', FORMATS, defaultValue=0))
        self.add(QgsProcessingParameterNumber('TILE_SIZE', 'Side of a chip in pixels', _WHOLE, 256, minValue=16))
        self.add(QgsProcessingParameterNumber('STRIDE', 'Pixels from chip to chip', _WHOLE, optional=True, minValue=1))
        self.add(QgsProcessingParameterString('SENSOR', 'Sensor, such as Sentinel-2', optional=True))
        self.add_reading(scale=False)
        self.add_more()
        self.add(QgsProcessingParameterFolderDestination(self.OUTPUT, 'Folder for the chips'))

    def words(self, parameters: Any, context: Any, feedback: Any) -> tuple[list[str], dict[str, str]]:
        out = self.text(parameters, self.OUTPUT, context)
        labels, layer = self.parameterAsCompatibleSourceLayerPathAndLayerName(
            parameters, 'LABELS', context, ['gpkg', 'shp', 'geojson'], 'gpkg', feedback
        )
        stride = self.number(parameters, 'STRIDE', context)
        words = command.export_words(
            self.raster(parameters, context), labels, out,
            layer=layer, field=self.text(parameters, 'FIELD', context),
            format=FORMATS[self.parameterAsEnum(parameters, 'FORMAT', context)],
            tile_size=self.parameterAsInt(parameters, 'TILE_SIZE', context),
            stride=None if stride is None else int(stride), sensor=self.text(parameters, 'SENSOR', context),
            **self.reading(parameters, context),
        )  # fmt: skip
        return words, {self.OUTPUT: out}


class Train(_Tool):
    """Train a model on chips."""

    NAME, TITLE = 'train', 'Train a model'
    HELP = (
        'Trains a model on a folder of chips and writes a .dlpk. The log shows the metrics of each epoch. Pretrained '
        'weights are fetched from the internet, unless they are on this machine or switched off.'
    )

    def initAlgorithm(self, config: Any = None) -> None:
        folder = QgsProcessingParameterFile.Folder
        self.add(QgsProcessingParameterFile('CHIPS', 'Folder of chips', folder))
        self.add(QgsProcessingParameterEnum('MODEL', 'Model', MODELS, defaultValue=0))
        self.add(QgsProcessingParameterString('BACKBONE', 'Backbone', 'resnet34', optional=True))
        self.add(QgsProcessingParameterBoolean('PRETRAINED', 'Begin with published weights', True))
        self.add(QgsProcessingParameterNumber('EPOCHS', 'Epochs', _WHOLE, 10, minValue=1))
        rate = QgsProcessingParameterNumber('LR', 'Learning rate (empty: searched for)', _REAL, optional=True)
        self.add(rate, advanced=True)
        self.add(QgsProcessingParameterNumber('CHIP_SIZE', 'Side of the training images', _WHOLE, 224, minValue=16))
        batch = QgsProcessingParameterNumber('BATCH_SIZE', 'Batch size', _WHOLE, optional=True, minValue=2)
        self.add(batch, advanced=True)
        ignored = QgsProcessingParameterString('IGNORE', 'Classes to ignore', optional=True)
        self.add(ignored, help='Values or names, with blanks between; 0 where labels are sparse')
        blocks = QgsProcessingParameterNumber('BLOCK_SIZE', 'Validate on blocks of this side', _REAL, optional=True)
        self.add(blocks, help='In map units; empty for chips at random')
        self.add_more()
        self.add(QgsProcessingParameterFileDestination(self.OUTPUT, 'Model', 'Deep learning package (*.dlpk)'))
        report = QgsProcessingParameterFileDestination('REPORT', 'Report', 'HTML (*.html)', optional=True)
        report.setCreateByDefault(False)
        self.add(report)

    def words(self, parameters: Any, context: Any, feedback: Any) -> tuple[list[str], dict[str, str]]:
        outputs = {self.OUTPUT: self.parameterAsFileOutput(parameters, self.OUTPUT, context)}
        report = self.parameterAsFileOutput(parameters, 'REPORT', context)
        batch = self.number(parameters, 'BATCH_SIZE', context)
        words = command.train_words(
            [self.text(parameters, 'CHIPS', context)], outputs[self.OUTPUT],
            model=MODELS[self.parameterAsEnum(parameters, 'MODEL', context)],
            backbone=self.text(parameters, 'BACKBONE', context),
            epochs=self.parameterAsInt(parameters, 'EPOCHS', context), lr=self.number(parameters, 'LR', context),
            chip_size=self.parameterAsInt(parameters, 'CHIP_SIZE', context),
            batch_size=None if batch is None else int(batch),
            ignore_classes=self.text(parameters, 'IGNORE', context),
            block_size=self.number(parameters, 'BLOCK_SIZE', context),
            pretrained=self.parameterAsBool(parameters, 'PRETRAINED', context), report=report,
            more=self.text(parameters, 'MORE', context),
        )  # fmt: skip
        return words, outputs | ({'REPORT': report} if report else {})


class _WithModel(_Tool):
    """Tools that use a model on a raster."""

    def add_inputs(self) -> None:
        self.add(QgsProcessingParameterFile('MODEL', 'Model (.dlpk)', extension='dlpk'))
        self.add(QgsProcessingParameterRasterLayer('RASTER', 'Raster'))


class ClassifyPixels(_WithModel):
    """Map a raster."""

    NAME, TITLE = 'classifypixels', 'Classify pixels'
    HELP = (
        'Maps a raster with a trained model. The map has the colors and names of its classes. Bands are found by name.'
    )

    def initAlgorithm(self, config: Any = None) -> None:
        self.add_inputs()
        self.add_reading()
        self.add_more()
        self.add(QgsProcessingParameterRasterDestination(self.OUTPUT, 'Map'))

    def words(self, parameters: Any, context: Any, feedback: Any) -> tuple[list[str], dict[str, str]]:
        out = self.parameterAsOutputLayer(parameters, self.OUTPUT, context)
        model, raster = self.text(parameters, 'MODEL', context), self.raster(parameters, context)
        scale = self.number(parameters, 'SCALE', context)
        return command.predict_words(model, raster, out, scale=scale, **self.reading(parameters, context)), {
            self.OUTPUT: out
        }


class DetectObjects(_WithModel):
    """Find objects in a raster."""

    NAME, TITLE = 'detectobjects', 'Detect objects'
    HELP = 'Finds objects in a raster with a trained detector, and writes a layer with class, score and size of each.'

    def initAlgorithm(self, config: Any = None) -> None:
        self.add_inputs()
        least = QgsProcessingParameterNumber('THRESHOLD', 'Least score', _REAL, 0.5, minValue=0, maxValue=1)
        self.add(least)
        self.add_reading()
        self.add_more()
        polygons = QgsProcessing.TypeVectorPolygon
        self.add(QgsProcessingParameterVectorDestination(self.OUTPUT, 'Objects', polygons))

    def words(self, parameters: Any, context: Any, feedback: Any) -> tuple[list[str], dict[str, str]]:
        out = self.parameterAsOutputLayer(parameters, self.OUTPUT, context)
        words = command.detect_words(
            self.text(parameters, 'MODEL', context), self.raster(parameters, context), out,
            threshold=self.number(parameters, 'THRESHOLD', context), scale=self.number(parameters, 'SCALE', context),
            **self.reading(parameters, context),
        )  # fmt: skip
        return words, {self.OUTPUT: out}


class Embed(_Tool):
    """Turn a raster into embeddings."""

    NAME, TITLE = 'embed', 'Embed a raster'
    HELP = 'Writes what a backbone makes of each patch of a raster: a raster with a band for each feature.'

    def initAlgorithm(self, config: Any = None) -> None:
        self.add(QgsProcessingParameterRasterLayer('RASTER', 'Raster'))
        self.add(QgsProcessingParameterString('BACKBONE', 'Backbone', 'dofa_base'))
        self.add(QgsProcessingParameterString('SENSOR', 'Sensor, such as Sentinel-2', optional=True))
        self.add(QgsProcessingParameterBoolean('PRETRAINED', 'Use published weights', True))
        self.add_reading(scale=False)
        self.add_more()
        self.add(QgsProcessingParameterRasterDestination(self.OUTPUT, 'Embeddings'))

    def words(self, parameters: Any, context: Any, feedback: Any) -> tuple[list[str], dict[str, str]]:
        out = self.parameterAsOutputLayer(parameters, self.OUTPUT, context)
        words = command.embed_words(
            self.raster(parameters, context), out,
            backbone=self.text(parameters, 'BACKBONE', context), sensor=self.text(parameters, 'SENSOR', context),
            pretrained=self.parameterAsBool(parameters, 'PRETRAINED', context), **self.reading(parameters, context),
        )  # fmt: skip
        return words, {self.OUTPUT: out}


ALGORITHMS = (ExportChips, Train, ClassifyPixels, DetectObjects, Embed)
