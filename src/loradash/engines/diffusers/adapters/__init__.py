"""Adapter files: layers, layouts, dimensions and makes, read without torch."""
