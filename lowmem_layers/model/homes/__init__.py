"""Homes: where packed weights live, and how they travel to the device that computes."""
