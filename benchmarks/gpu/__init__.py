"""What a graphics card's owner can measure with one command: `python -m benchmarks.gpu`; see `__main__`."""
