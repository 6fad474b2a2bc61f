"""What the miniature consists of: one module per trained part."""
