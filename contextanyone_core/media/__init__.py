"""Pictures and videos in and out, contact sheets."""
