"""Divide chips into training, validation and test chips without leaks."""
