"""Sizes and numbers of things as people read them."""


def size_text(size_bytes: float) -> str:
    """Return a size such as ``9.2 MB``, in powers of 1000 as disks and downloads are counted."""
    for unit in ("B", "kB", "MB"):
        if size_bytes < 999.95 or (unit == "B" and size_bytes < 1000):
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} GB"


def counted(number: int, noun: str) -> str:
    """Return a number of things such as ``1 image`` or ``1,200 images``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
