"""Uncertainty: errors, intervals, ranks, many questions at once, stopping early."""
