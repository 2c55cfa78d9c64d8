"""One run from its options to its end: design, preparation, tiles, resuming, stopping, events."""
