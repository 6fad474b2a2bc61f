"""Poses as keypoints: reading, resampling, fitting to another body, drawing, and estimation from pictures."""
