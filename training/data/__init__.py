"""Data that training reads: pools of encoded pairs of the character world."""
