"""Servers of models that the workbench starts itself, and the load it puts on them."""
