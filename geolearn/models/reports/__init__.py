"""Write the report of a model from values: its spec, data, history and evaluation."""
