"""The object store in a bucket of any S3 provider."""
