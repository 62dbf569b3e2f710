"""Detectors: torchvision's heads on any backbone's pyramid, for images of any bands."""
