"""The paper's model, readable from top to bottom: positions, attention, blocks, transformer, losses."""
