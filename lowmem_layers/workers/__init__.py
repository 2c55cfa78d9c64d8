"""A run's tiles on several devices and hosts: each worker holds the model, one process hands out tiles and records."""
