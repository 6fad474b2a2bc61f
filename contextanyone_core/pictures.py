"""Public import path of the functions that read and convert pictures (see the README)."""

from .media.image_io import images_to_frames, picture_to_images, read_picture

__all__ = ["images_to_frames", "picture_to_images", "read_picture"]
