"""Evaluate trained models on validation chips: metrics, and what figures are drawn from."""
