"""What a run will cost, before anything is paid: FLOPs, memory, time on named cards, and the sampled noise levels."""
