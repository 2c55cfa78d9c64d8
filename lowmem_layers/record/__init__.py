"""What a run leaves on disk, and opening it again."""
