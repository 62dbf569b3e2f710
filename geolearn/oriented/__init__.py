"""Oriented boxes: their one convention, minimum rectangles, exact overlaps and non-maximum suppression."""
