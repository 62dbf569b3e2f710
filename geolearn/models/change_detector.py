"""ChangeDetector: what changed between two dates, pixel by pixel."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from geolearn.adaptation import DEFAULT_ADAPTATION, Adaptation
from geolearn.arguments import record_arguments
from geolearn.backbones.custom import ModuleBackbone
from geolearn.chips.label import Task
from geolearn.data import ChipData
from geolearn.decoders import get_decoder
from geolearn.device import choose_device
from geolearn.errors import BundleError, RasterError
from geolearn.inference import images, map_progress
from geolearn.inference.encoding import Output, ProbabilityType
from geolearn.inference.options import NoData, ReadOptions, Resolution, Scale
from geolearn.inference.plan import Blend
from geolearn.losses import PixelLossOptions
from geolearn.models import new_spec, pixel_classifiers, registry
from geolearn.models.raster_use import CLASS_MAP_OPTIONS, RASTERS, RasterUse
from geolearn.models.reports.report import TaskReport
from geolearn.networks.network import build_backbone
from geolearn.networks.segmentation import ChangeOptions, Fusion, PixelOptions, Segmenter, SiameseBackbone, put_decoder
from geolearn.networks.spec import ModelSpec
from geolearn.precision import Precision
from geolearn.raster.nodata import missing
from geolearn.raster.reading import RasterPath

if TYPE_CHECKING:
    import pandas as pd

DATES = 2


@registry.register_model
class ChangeDetector(pixel_classifiers.PixelClassifier):
    """Classify what changed between two dates: one encoder for both, a fusion of their maps, any decoder on it.

    Args:
        data: From `prepare_data`: pairs of images with a class per pixel of what changed, two classes or more.
        backbone: Such as ``'resnet18'`` or ``'dofa_base'``; see `geolearn.list_backbones`.
        fusion: ``'difference'`` of the dates' maps; ``'concat'``, both side by side, for changes that have a direction;
            ``'attention'``, the difference after attention over both dates.
        decoder: One of `geolearn.decoders.DECODERS`.
        pretrained: Fill the backbone with its published weights.
        weights: A file or folder with the backbone's weights, or another model's .dlpk, instead of fetching them.
        wavelengths: Center wavelength of each band in micrometers, where the data does not name the bands well; None
            for radar.
        ignore_classes: Label values to ignore, on top of those that `data` ignores.
        class_balancing: Weigh classes in the loss by their rarity among the training chips; changes are rare.
        loss: What training minimizes, by options or name, or a module or function of logits and indices; None takes
            cross-entropy.
        auxiliary_head: Train a small head on the map of stride 16 beside the decoder, with 0.4 of its loss.
        decoder_options: Passed to the decoder; see its class in `geolearn.decoders`.
        adapt: What of the backbone is trained, how fast, and with low-rank updates or in full.
        resolution_m: Of the images in meters per pixel, for backbones whose positions depend on it.

    Raises:
        ChipFolderError: If the chips are no pairs of images with what changed between them.
        UnknownNameError: If there is no such backbone or decoder.
        BackboneError: If there is, but it gives no maps that the decoder can use, or cannot be adapted as `adapt` says.
        BandError: If bands lack a wavelength that the backbone needs, or `wavelengths` do not fit.
        WeightsError: If weights cannot be had or do not fit.
        ValueError: If an option is not valid.
    """

    tasks = (Task.CHANGE,)
    raster_use = RasterUse('maps what changed', RASTERS, CLASS_MAP_OPTIONS)
    needs_every_date = True
    decoder = 'unet'
    default_backbone = 'resnet18'

    def __init__(
        self,
        data: ChipData,
        backbone: str | ModuleBackbone | None = None,
        *,
        fusion: Fusion = 'difference',
        decoder: str = 'unet',
        pretrained: bool = True,
        weights: str | Path | None = None,
        wavelengths: Sequence[float | None] | None = None,
        ignore_classes: Sequence[int] = (),
        class_balancing: bool = False,
        loss: PixelLossOptions | str | nn.Module | Callable[..., Tensor] | None = None,
        auxiliary_head: bool = False,
        decoder_options: Mapping[str, Any] | None = None,
        adapt: Adaptation = DEFAULT_ADAPTATION,
        resolution_m: float | None = None,
    ) -> None:
        arguments = record_arguments(type(self), locals())
        name = self.default_backbone if backbone is None else backbone
        config = new_spec.BackboneConfig(name, pretrained, weights, wavelengths, adapt, resolution_m=resolution_m)
        chosen, custom = new_spec.choose_loss(loss, PixelLossOptions)
        pixels = PixelOptions(decoder, decoder_options or {}, chosen, auxiliary_head=auxiliary_head)
        options = ChangeOptions(fusion, pixels)
        self._create(
            data,
            config,
            options=options.to_json(),
            arguments=arguments,
            loss=custom,
            class_balancing=class_balancing,
            ignore_classes=ignore_classes,
        )

    # -- what a task defines

    @classmethod
    def build(cls, spec: ModelSpec, *, pretrained: bool = False, weights: str | Path | None = None) -> Segmenter:
        """Build the network that a spec describes."""
        if len(spec.class_infos) < 2 or spec.dates != DATES:
            raise BundleError(
                f'the manifest is broken: {spec.model} needs 2 classes or more and 2 dates, found '
                f'{len(spec.class_infos)} and {spec.dates}'
            )
        options = ChangeOptions.from_json(spec.options, decoder=cls.decoder)
        decoder = get_decoder(options.pixels.decoder)
        single = build_backbone(
            replace(spec, dates=1, acquired=()),
            pretrained=pretrained,
            weights=weights,
            form=decoder.form,
            strides=decoder.strides,
        )
        return put_decoder(spec, options.pixels, SiameseBackbone(single, options.fusion), len(spec.class_infos))

    @classmethod
    def emd_fields(cls, spec: ModelSpec) -> dict[str, Any]:
        """Return the keys of Esri's model definition that belong to change detectors."""
        fusion = ChangeOptions.from_json(spec.options, decoder=cls.decoder).fusion
        return super().emd_fields(spec) | {'attention_type': 'PAM' if fusion == 'attention' else fusion}

    def _task_report(self) -> TaskReport:
        report = super()._task_report()
        fusion = ChangeOptions.from_json(self.spec.options, decoder=self.decoder).fusion
        return replace(report, task='change detection', settings={'fusion of the dates': fusion, **report.settings})

    # -- evaluation

    def precision_recall_score(self) -> 'pd.DataFrame':
        """Precision, recall and F1 of each kind of change on the validation chips; NaN where undefined."""
        changes = [info.name for info in self.spec.class_infos if info.value != 0]
        return self.per_class_metrics().loc[changes, ['precision', 'recall', 'f1']]

    # -- mapping

    def use_on_raster(self, sources: Sequence[Any], dst: str | Path, options: Mapping[str, Any]) -> Path:
        """Map what changed between two rasters, with the options of `predict_raster`."""
        if len(sources) != DATES:
            raise RasterError(f'a ChangeDetector needs two rasters, before and after, got {len(sources)}')
        before, after = sources
        return self.predict_raster(before, after, dst, **options)

    def predict(
        self,
        before: images.Image,
        after: images.Image,
        *,
        bands: Sequence[str] | None = None,
        sensor: str | None = None,
        scale: Scale | None = None,
        offset: float = 0.0,
        nodata: NoData = None,
        resolution: Resolution | None = None,
        device: str | None = None,
    ) -> np.ndarray:
        """Classify what changed between two small images; larger ones are for `predict_raster`.

        Args:
            before: Array (bands, H, W), bands as in training and NaN where there is no data; or a raster file.
            after: The same of the later date; files lie on one grid.
            bands: Names of the files' bands in their order, where they name none or wrong ones.
            sensor: Whose names the bands have, such as ``'Sentinel-2'`` for ``'B04'``.
            scale: Multiplies pixel values, where they are not in the units of the training chips.
            offset: Is added after that.
            nodata: Value that marks missing pixels where files do not say so, or one for each band.
            resolution: Side of the pixels to resample files to, in units of their CRS, or ``'training'``.
            device: Torch device; None means CUDA where there is one.

        Returns:
            Class values (H, W), and the map's NoData value where a date has no data.

        Raises:
            RasterError: If bands, units or grids do not fit, or there is no data.
            ValueError: If arrays have other shapes.
        """
        read = ReadOptions(bands, sensor, scale, offset, nodata, resolution, self.spec.is_radar)
        pair = images.load_dates([before, after], self.spec, read).pixels
        encoding, target = self.encoding, choose_device(device)
        network = self.network.to(target).eval()
        with torch.inference_mode():
            mapped = encoding.encode(network(pair[None].to(target)))[0]
        mapped[missing(pair.numpy(), every_date=self.needs_every_date)] = encoding.nodata
        return mapped

    def predict_raster(  # type: ignore[override]  # a pair of rasters takes the place of one
        self,
        before: RasterPath,
        after: RasterPath,
        dst: str | Path,
        *,
        bands: Sequence[str] | None = None,
        sensor: str | None = None,
        scale: Scale | None = None,
        offset: float = 0.0,
        nodata: NoData = None,
        resolution: Resolution | None = None,
        dates: Sequence[date | str] | None = None,
        aoi: Any = None,
        bbox: Sequence[float] | None = None,
        bbox_crs: str | int | None = None,
        outputs: Sequence[Output] = ('classes',),
        probability_dtype: ProbabilityType = 'uint8',
        layout: Literal['files', 'bands'] = 'files',
        tile_size: int | None = None,
        halo: int | None = None,
        blend: Blend | None = None,
        augment: bool | Literal['flips'] = False,
        batch_size: int | None = None,
        device: str | None = None,
        compile: bool = False,
        mixed_precision: Precision | bool | None = None,
        max_memory: int | None = None,
        overwrite: bool = False,
        cog: bool = True,
        resume: bool = False,
        part: tuple[int, int] | None = None,
        merge_parts: bool = False,
        client: Any = None,
        progress: map_progress.ProgressFn | None = None,
    ) -> Path:
        """Map what changed between two rasters of any size to a GeoTIFF of class values.

        Pixels without data at one of the dates come out as NoData. See `PixelClassifier.predict_raster` for memory,
        bands, units and the arguments that are not here.

        Args:
            before: A raster, or several that make one mosaic.
            after: The same of the later date, on the same grid to within a tenth of a pixel.
            dst: GeoTIFF to write; it appears only when it is whole.
            bands: Names of the rasters' bands in file order, where the files name none or wrong ones.
            sensor: Whose names the bands have, such as ``'Sentinel-2'`` for ``'B04'``.
            scale: Multiplies pixel values of both, where they are not in the units of the training chips.
            offset: Is added after that.
            nodata: Value that marks missing pixels where the file does not say so, or one for each band of the file.
            resolution: Side of the pixels to resample to while reading, in units of the raster's CRS, or
                ``'training'``. Without it, rasters whose pixels are over 1.5 times larger or smaller than in training
                are refused.
            dates: When the two were taken, for networks that read it; None takes what the files state.
            aoi: Area to map, the rest is NoData: a vector file or GeoDataFrame, which is reprojected; or a geometry in
                the raster's CRS. The map ends where the area does.
            bbox: Left, bottom, right, top of the part to map, in the raster's CRS or `bbox_crs`.
            bbox_crs: CRS of `bbox`, such as ``'EPSG:4326'``; None for the raster's.
            outputs: What to write: ``'classes'``, ``'probabilities'`` (a band for each class) and ``'confidence'`` (the
                highest probability). The first goes to `dst`, others to files beside it, such as
                ``map_confidence.tif``. Probabilities are calibrated where `calibrate` was called.
            probability_dtype: Of probabilities and confidence: ``'uint8'`` in steps of 0.004, which the file states as
                its scale, 255 for NoData; ``'float16'`` or ``'float32'``, NaN for NoData.
            layout: ``'bands'`` puts all outputs into one file of `probability_dtype`, classes first.
            tile_size: Side of the tiles in pixels; None takes 512, or the chip size if larger, for convolutions; for
                backbones with a position grid the chip size, or twice of it with ``blend='crop'``.
            halo: Half of what neighboring tiles share, at least; None takes 32, or an eighth of the chip size for
                backbones with a position grid.
            blend: How neighboring tiles meet: ``'hann'`` lets outputs fade into each other over what tiles share,
                ``'crop'`` cuts in the middle of it. None takes ``'hann'`` for backbones with a position grid, where
                lines would show; it computes each pixel 1.8 times, 1.3 times with ``'crop'``.
            augment: Test-time augmentation: the mean over 8 flips and turns of each tile, at 8 times the cost, or
                ``'flips'``, over 4 flips at 4 times the cost.
            batch_size: Tiles computed together; None takes 1 on a CPU, where a map is the same for any, and else 4.
            device: Torch device; None means CUDA where there is one.
            compile: Compile the network first: up to a minute, then convolutions run 1.1 to 1.4 times as fast.
            mixed_precision: ``'bf16'`` computes matrix products and convolutions in half precision: on graphics cards,
                and on CPUs with instructions for it, 1.6 to 1.9 times as fast; about 1 pixel of 100 to 500 gets another
                class.
                ``'fp16'`` is for CUDA alone, True takes the better of them on a GPU. None computes in float32.
            max_memory: Bytes that rows and tiles may take, besides the network and what it computes; None for 160 MiB,
                or 72 MiB where a raster is stored in tiles and ``blend`` is ``'crop'``. Wider rasters are mapped in
                parts side by side, at the cost of reading some blocks twice.
            overwrite: Replace files that exist.
            cog: Write cloud-optimized GeoTIFFs, with overviews; False writes plain ones.
            resume: Continue a run that was killed or failed, from what is kept in the folder ``<dst>.part``; the map is
                the same to the byte as that of a run without a break.
            part: Compute one of several parts of the map alone, for machines that share a disk: ``(3, 40)`` is the
                third of forty. It stays in the folder ``<dst>.part``, which is returned; the same call again does only
                what is missing.
            merge_parts: Write the map, once all its parts are computed: the same to the byte as that of one machine.
            client: A `dask.distributed.Client`: its workers, which see the same disk, compute the map in blocks. A
                block that fails is tried again twice. The map is the same to the byte, and the same call again does
                only what is missing.
            progress: Called with a `geolearn.inference.map_progress.MapProgress` after each batch of tiles (on a
                cluster: after each block), and twice a second while the files are made.

        Returns:
            The path written.

        Raises:
            RasterError: If bands, units or grids do not fit, which tells how far they are apart, or reading or writing
                fails; no part of `dst` is left.
        """
        return super().predict_raster(
            [before, after],
            dst,
            bands=bands,
            sensor=sensor,
            scale=scale,
            offset=offset,
            nodata=nodata,
            resolution=resolution,
            dates=dates,
            aoi=aoi,
            bbox=bbox,
            bbox_crs=bbox_crs,
            outputs=outputs,
            probability_dtype=probability_dtype,
            layout=layout,
            tile_size=tile_size,
            halo=halo,
            blend=blend,
            augment=augment,
            batch_size=batch_size,
            device=device,
            compile=compile,
            mixed_precision=mixed_precision,
            max_memory=max_memory,
            overwrite=overwrite,
            cog=cog,
            resume=resume,
            part=part,
            merge_parts=merge_parts,
            client=client,
            progress=progress,
        )
