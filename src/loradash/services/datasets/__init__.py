"""Datasets in the object store: uploaded, looked into, changed, fetched for trainings."""
