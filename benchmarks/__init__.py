"""Measurements beside other models: time of a step, of a whole video, and a run at full size (docs/SPEED.md)."""
