"""Cut rasters into chips: where the chips lie, what their labels are, and the threads that do the work."""
