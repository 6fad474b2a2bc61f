"""Reading and writing pictures and videos; contact sheets."""
