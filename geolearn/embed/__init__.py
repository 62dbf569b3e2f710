"""Turn imagery into embeddings: vectors that describe an image, a polygon, or each token of a raster."""
