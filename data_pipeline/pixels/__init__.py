"""Stages that read pixels: shots, cheap scores, hashes."""
