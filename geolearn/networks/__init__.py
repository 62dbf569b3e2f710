"""Networks: from a `ModelSpec` to a torch module that normalizes, runs a backbone and puts a head on it."""
