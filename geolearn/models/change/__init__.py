"""Change detectors: a class per pixel of what changed between two dates."""
