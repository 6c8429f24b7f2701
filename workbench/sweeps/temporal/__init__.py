"""Sweeps that run as Temporal workflows: the way to a server, embedded or not, and all that runs on it."""
