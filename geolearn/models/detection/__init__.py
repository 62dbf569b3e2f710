"""Detectors: heads of torchvision and transformers on any backbone's pyramid, for images of any bands."""
