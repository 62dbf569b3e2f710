"""A model behind HTTP, for programs and for a map in the browser: rasters in, maps and layers of objects out."""
