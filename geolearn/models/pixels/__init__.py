"""Models that give every pixel a class or a value."""
