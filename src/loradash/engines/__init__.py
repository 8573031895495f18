"""Engines: the programs that train and generate, each behind the same port."""
