"""Pixel classifiers: any decoder on any backbone, judged by one confusion matrix, mapped over rasters."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from geolearn.backbones.adapt import DEFAULT_ADAPTATION, Adaptation
from geolearn.backbones.temporal import Temporal
from geolearn.chips.label import Task
from geolearn.data import ChipData
from geolearn.errors import BundleError
from geolearn.inference.encoding import ClassEncoding
from geolearn.losses import PixelLossOptions
from geolearn.models._describing import BackboneChoice
from geolearn.models.mapping import MapModel
from geolearn.models.pixels.base import PixelModel
from geolearn.models.pixels.judged import JudgedClassifier
from geolearn.models.pixels.options import PixelOptions
from geolearn.models.pixels.segmenter import Segmenter, build_segmenter
from geolearn.models.spec import ModelSpec

if TYPE_CHECKING:
    pass


class PixelClassifier(JudgedClassifier, PixelModel):
    """Label every pixel with a decoder on any backbone's maps; the subclasses name the decoder.

    Args:
        data: From `prepare_data`.
        backbone: Such as ``'dofa_base'`` or ``'resnet50'``; see `geolearn.list_backbones`. None takes the class's own.
        pretrained: Fill the backbone with its published weights.
        weights: A file or folder with the backbone's weights, or another model's .dlpk, instead of fetching them.
        wavelengths: Centre wavelength of each band in micrometres, where the data does not name the bands well; None
            for radar.
        ignore_classes: Label values to leave out, on top of those that `data` ignores.
        class_balancing: Weigh classes in the loss by their rarity among the training chips.
        focal_loss: Let pixels that are right already count less (Lin et al. 2017, arXiv:1708.02002); gamma is 2.
        dice_loss_fraction: Share of the dice loss in the whole, 0..1.
        dice_loss_average: Dice over all pixels together (``'micro'``) or by class (``'macro'``).
        loss: All that can be said of the loss, in place of the three before it.
        auxiliary_head: Train a small head on the map of stride 16 beside the decoder, with 0.4 of its loss.
        decoder_options: Passed to the decoder; see its class in `geolearn.decoders`.
        adapt: What of the backbone learns, how fast, and with low-rank updates or in full. The default trains all of
            it.
        temporal: How the maps of chips of several dates become one: ``'mean'``, ``'concat'`` or ``'ltae'``.
        resolution_m: Of the images in metres per pixel, for backbones whose positions depend on it.

    Raises:
        ChipFolderError: If the labels are not one class per pixel.
        UnknownNameError: If there is no such backbone.
        BackboneError: If there is, but it gives no maps that the decoder can use, cannot be adapted as `adapt` says, or
            states no mean and std for ``normalize='pretraining'``.
        BandError: If bands lack a wavelength that the backbone needs, or `wavelengths` do not fit.
        WeightsError: If weights cannot be had or do not fit.
        ValueError: If an option of loss or decoder makes no sense.
    """

    tasks = (Task.PIXELS,)
    default_backbone: ClassVar[str] = 'resnet50'

    def __init__(
        self,
        data: ChipData,
        backbone: str | None = None,
        *,
        pretrained: bool = True,
        weights: str | Path | None = None,
        wavelengths: Sequence[float | None] | None = None,
        ignore_classes: Sequence[int] = (),
        class_balancing: bool = False,
        focal_loss: bool = False,
        dice_loss_fraction: float = 0.0,
        dice_loss_average: Literal['micro', 'macro'] = 'micro',
        loss: PixelLossOptions | None = None,
        auxiliary_head: bool = False,
        decoder_options: Mapping[str, Any] | None = None,
        adapt: Adaptation = DEFAULT_ADAPTATION,
        temporal: Temporal = 'mean',
        resolution_m: float | None = None,
    ) -> None:
        name = self.default_backbone if backbone is None else backbone
        choice = BackboneChoice(name, pretrained, weights, wavelengths, adapt, temporal, resolution_m)
        short = PixelLossOptions(
            loss='focal' if focal_loss else 'cross_entropy',
            dice_fraction=dice_loss_fraction,
            dice_average=dice_loss_average,
        )
        if loss is not None and short != PixelLossOptions():
            raise ValueError('pass either loss, or focal_loss and dice_loss_fraction; loss holds what they say')
        options = PixelOptions(self.decoder, decoder_options or {}, loss or short, auxiliary_head=auxiliary_head)
        super().__init__(
            data, choice, options=options.to_json(), class_balancing=class_balancing, ignore_classes=ignore_classes
        )

    # -- what a task says

    @classmethod
    def build(cls, spec: ModelSpec, *, pretrained: bool = False, weights: str | Path | None = None) -> Segmenter:
        """Build the network that a spec describes."""
        if len(spec.class_infos) < 2:
            raise BundleError(f'the manifest is broken: {spec.model} needs 2 classes or more, found {spec.class_infos}')
        return build_segmenter(spec, cls._options(spec), len(spec.class_infos), pretrained=pretrained, weights=weights)

    # -- mapping

    def _map_model(self) -> MapModel:
        return MapModel(self.spec, self.network, ClassEncoding(self.spec.class_infos))
