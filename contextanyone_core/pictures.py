"""The public import of reading and converting pictures, as the README uses it."""

from .media.image_io import images_to_frames, picture_to_images, read_picture

__all__ = ["images_to_frames", "picture_to_images", "read_picture"]
