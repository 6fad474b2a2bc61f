"""Checkpoints written from others: initial ones for training, conversions of names and dtypes."""
