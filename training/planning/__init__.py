"""The cost of a run before it starts: FLOPs, memory, time on named cards, and the sampled noise levels."""
