"""Ablations of the model on the character world: plan, model variants, training, measurement, report."""
