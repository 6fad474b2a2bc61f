"""Poses as keypoints: reading, resampling, fitting to another body, drawing, and estimating them from pictures."""
