"""Networks of object detectors: anchors, heads and how they are built."""
