"""Ablations of the model on the character world: cells, the variants that they need, training, measuring, report."""
