"""Base models as files: what a folder, file or hub id holds, read without torch."""
