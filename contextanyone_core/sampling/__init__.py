"""Noise schedules, guidance, samplers, and the ways in which a model is conditioned on references."""
