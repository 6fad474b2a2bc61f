"""Benchmarks against other models: time of a step, of a whole video, memory, and a run at full size (docs/SPEED.md)."""
