"""Policies around the libraries that retry and that break circuits."""
