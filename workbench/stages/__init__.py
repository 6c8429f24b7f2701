"""Stages as pure functions: records and protocols in, records out; no store, no server, no torch."""
