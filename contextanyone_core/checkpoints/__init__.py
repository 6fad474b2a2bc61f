"""Checkpoints derived from others: initial checkpoints for training, conversion of tensor names and dtypes."""
