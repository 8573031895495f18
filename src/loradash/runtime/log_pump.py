"""What an engine prints, line by line, while its log file grows."""

from pathlib import Path

from loradash.telemetry.masking import masked
from loradash.visible_text import visible_lines

MAX_LINE = 2000
MAX_BYTES_AT_ONCE = 256_000
_MAX_REST = 64_000
MAX_LINES = 20_000
"""Lines of one attempt; a library that prints without end must not fill the registry."""


class LogPump:
    """Reads a log file from where it ends now, as it grows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = path.stat().st_size if path.exists() else 0
        self._rest = b""
        self._count = 0

    def new_lines(self, *, at_end: bool = False) -> list[str]:
        """Return the lines that are complete by now; ``at_end`` also what has no line end.

        Of a line that was drawn over itself (progress bars), the last state counts.
        """
        if self._count > MAX_LINES:
            return []
        lines: list[bytes] = []
        while block := self._read():
            *complete, rest = (self._rest + block).split(b"\n")
            self._rest = rest[-_MAX_REST:]  # progress bars may never end their line
            lines += complete
            if not at_end:
                break
            if len(lines) > MAX_LINES:
                break
        if at_end and self._rest:
            lines, self._rest = [*lines, self._rest], b""
        texts = [text for line in lines if (text := _clean(line))]
        self._count += len(texts)
        if self._count > MAX_LINES:
            texts = texts[: max(0, len(texts) - (self._count - MAX_LINES))]
            texts.append(f"(more than {MAX_LINES} lines: the rest is in {self._path.name} only)")
        return texts

    def _read(self) -> bytes:
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                block = file.read(MAX_BYTES_AT_ONCE)
        except OSError:  # it isn't there yet; and no log is worth the work that it tells of
            return b""
        self._offset += len(block)
        return block


def _clean(line: bytes) -> str:
    text = line.rstrip(b"\r").rpartition(b"\r")[2].decode("utf-8", "replace").rstrip()
    text = visible_lines(text)
    return masked(text[: 2 * MAX_LINE])[:MAX_LINE]
