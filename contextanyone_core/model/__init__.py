"""The paper's model: rotary positions, attention, blocks, transformer, losses, mixed precision."""
