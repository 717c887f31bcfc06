"""The layers, their parameters, and their common life cycle."""
