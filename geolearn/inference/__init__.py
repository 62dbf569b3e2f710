"""Trained networks on rasters of any size."""
