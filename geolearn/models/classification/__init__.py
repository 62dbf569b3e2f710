"""Classifiers of whole chips, and of the ground around polygons."""
