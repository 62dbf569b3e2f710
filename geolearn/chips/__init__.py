"""Exported training folders, in and out."""
