"""Names of arcgis.learn that geolearn has not, and what docs/from-arcgis.md says to use instead."""

_SEGMENTATION = '`UPerNet`, `SegFormer`, `FCN` and others are classes of their own; Prithvi is a backbone'
_NOTHING = 'there is no such thing in geolearn'
_HERE = 'it runs here'

PUBLIC = {
    'estimate_batch_size': '`model.estimate_batch_size()`; on CPUs too',
    'MMSegmentation': _SEGMENTATION,
    'TinyUNetClassifier': "`UnetClassifier(data, 'plain_unet', pretrained=False)` is a U-Net without a backbone",
    'YOLOv3': '`FCOS` and `RetinaNet` look at every place too',
    'DETReg': '`RTDetr` is of the same family',
    'RTDetrV2': '`RTDetr` is RT-DETR on any backbone, of the first version',
    'MMDetection': '`FasterRCNN`, `RetinaNet`, `FCOS`, `SingleShotDetector`, `RTDetr` and `MaskRCNN` are the detectors',
    'SamLoRA': 'low-rank updates work on every transformer, `adapt=Adaptation(lora_rank=8)`',
    'SiamMask': 'no video and no tracking',
    'ModelExtension': '`register_backbone` adds a network, a subclass of `Model` a task',
    'PSETAE': 'several dates per chip are read from folders or by bands, see `prepare_data`',
    **dict.fromkeys(
        (
            'MultiTaskRoadExtractor ConnectNet HEDEdgeDetector BDCNEdgeDetector MaXDeepLab SuperResolution Pix2Pix '
            'CycleGAN ImageCaptioner AutoDL'
        ).split(),
        _NOTHING,
    ),
    'classify_pixels': f'`UnetClassifier.predict_raster`: {_HERE}, on a raster of any size, and writes a GeoTIFF',
    'detect_objects': f'`FasterRCNN.detect_objects`: {_HERE}, and writes GeoPackage, GeoJSON, GeoParquet or Shapefile',
    'detect_change': f'`ChangeDetector.predict_raster`: {_HERE}, and writes a GeoTIFF',
    'classify_objects': f'`FeatureClassifier.classify_objects`: {_HERE}',
}
"""Names of the module."""

PREPARE_DATA = {
    'stratify': "`split='stratified'`",
    'imagery_type': "`bands='sentinel2_l2a'`, and only where the export does not name its bands",
    'do_normalize': "`normalize='minmax'` and others; training and prediction always do the same",
    'resize_to': 'chips keep their pixel size, larger ones are cropped; detectors take `resize_to=` themselves',
    'rgb_bands': 'display finds red, green and blue by wavelength',
    'norm_pct': 'statistics come from all chips',
    'collate_fn': _NOTHING,
}
"""Arguments of `prepare_data`."""

DATA = {
    'class_weight': '`class_weights`, counted from the label pixels of the training chips',
    'num_pixels_per_class': '`value_counts`, by label value',
}
"""Attributes of the data."""

_HEAD = '`head=RCNNOptions({name}=...)`; the other `rpn_` and `box_` numbers likewise, by the same names'

MODEL_ARGUMENTS = {
    'pyramid_sizes': "`decoder_options={'pyramid_sizes': (1, 2, 3, 6)}`",
    'unet_aux_loss': '`auxiliary_head=True`, for every class',
    'use_unet': (
        '`PSPNetClassifier` is the network of the paper, without a U-Net behind it; for that there is `UnetClassifier`'
    ),
    'pointrend': _NOTHING,
    'keep_dilation': 'DeepLab always has its dilated stride 16 where the backbone can be dilated',
    'mixup': ("`prepare_data(transforms={'cutmix_alpha': 1.0})`; blending two maps of classes gives no map of classes"),
    'pretrained_path': '`UnetClassifier.from_model(path, data)`',
    'attention_type': "`fusion='attention'`",
    'grids': '`anchor_sizes`: sizes of anchors in pixels; None takes them from the training boxes',
    'zooms': "`scales`: factors of each level's own size",
    'wd': '`weight_decay=`',
    'show_progress': _NOTHING,
    'framework': _NOTHING,
    'publish': 'upload the .dlpk yourself',
    'save_optimizer': 'checkpoints hold the optimizer, and `fit(resume=True)` continues',
    'thresh': '`threshold=`',
}
"""Arguments of models and their methods."""

MODEL_ATTRIBUTES = {
    'learn': "`model.learner`, which is fastai 2's Learner",
    'predict': (
        '`predict_raster` maps a raster; `FasterRCNN`, `FeatureClassifier` and `ChangeDetector` have `predict` too'
    ),
    'predict_video': 'no video and no tracking',
    'classify_features': '`FeatureClassifier.classify_objects`; rasters and layers are files',
    'predict_folder_and_create_layer': 'call `predict` for each file',
}
"""Attributes and methods of models."""


def explain_argument(call: str, name: str) -> str | None:
    """Return what to use instead of an argument that only arcgis.learn has.

    Args:
        call: Name of the function or method, or of the class.
        name: Of the argument.
    """
    if call == 'prepare_data':
        return PREPARE_DATA.get(name)
    if name.startswith(('rpn_', 'box_')):
        return _HEAD.format(name=name)
    return MODEL_ARGUMENTS.get(name)
