"""From one clip of a person to the manifest of a personal model, its training, and the sheet that shows it."""
