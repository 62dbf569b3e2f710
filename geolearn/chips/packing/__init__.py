"""Chips as one memory-mapped file: read, packed, stored, measured."""
