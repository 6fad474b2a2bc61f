"""Metrics on any videos (identity, text, motion, copying, faces, a judge), their statistics and tables."""
