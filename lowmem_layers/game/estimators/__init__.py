"""Estimators: which marginal contributions are averaged, with which weights."""
