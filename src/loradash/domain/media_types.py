"""What kind of content a file has, by its name: one table for uploads, links and replies."""

from pathlib import PurePosixPath

UNKNOWN = "application/octet-stream"

_TYPES = {
    ".apng": "image/png",
    ".avif": "image/avif",
    ".avifs": "image/avif",
    ".bmp": "image/bmp",
    ".caption": "text/plain",
    ".dib": "image/bmp",
    ".gif": "image/gif",
    ".heic": "image/heif",
    ".heics": "image/heif",
    ".heif": "image/heif",
    ".heifs": "image/heif",
    ".hif": "image/heif",
    ".jfif": "image/jpeg",
    ".jpe": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".jpg": "image/jpeg",
    ".json": "application/json",
    ".jsonl": "application/jsonl",
    ".png": "image/png",
    ".tif": "image/tiff",
    ".tiff": "image/tiff",
    ".txt": "text/plain",
    ".webp": "image/webp",
    ".yaml": "application/yaml",
    ".yml": "application/yaml",
    ".zip": "application/zip",
}


def media_type(name: str) -> str:
    """Return the media type that belongs to a file name or key."""
    return _TYPES.get(PurePosixPath(name).suffix.lower(), UNKNOWN)
