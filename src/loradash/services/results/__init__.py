"""Results: list, fetch, link, zip, delete, keep."""
