"""Dataset folders: images, captions, buckets. Torch-free, used by the services and by engines."""
