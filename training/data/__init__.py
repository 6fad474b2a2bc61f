"""Data that training reads: manifests, checked and cached, and pools of encoded pairs of the character world."""
