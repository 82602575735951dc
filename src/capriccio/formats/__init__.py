"""Foreign checkpoint layouts, in and out."""
