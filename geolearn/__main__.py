"""python -m geolearn."""

from geolearn.cli import main

main()
