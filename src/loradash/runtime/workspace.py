"""The fixed layout of files on the machine that works. A process's folders belong to it alone."""

from pathlib import Path

from loradash.domain.ids import is_process_id
from loradash.errors import InvalidSettings, NotFound

_FOLDERS = (
    "configs/training",
    "configs/generation",
    "output/training",
    "output/generation",
    "models/loras",
    "training_data",
    "logs",
)


class Workspace:
    """Paths below one root; none of its methods leads out of it."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().absolute()

    def ensure(self) -> None:
        """Create the layout. Raises `InvalidSettings` if the root can't be written."""
        try:
            for folder in _FOLDERS:
                (self.root / folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidSettings(
                f"workspace {self.root}: {error.strerror or error}",
                remedy="Set WORKSPACE_PATH to a folder that can be written.",
            ) from error

    def training(self, process_id: str) -> Path:
        """Folder of a training. Raises `NotFound` for a text that isn't a process id."""
        return self._of("output/training", process_id)

    def generation(self, process_id: str) -> Path:
        """Folder of a generation's images."""
        return self._of("output/generation", process_id) / "images"

    def lora(self, process_id: str) -> Path:
        """Folder for adapters that a generation has fetched."""
        return self._of("models/loras", process_id)

    def trainings(self) -> list[str]:
        """Ids of all trainings with a folder here, the newest first."""
        folder = self.root / "output/training"
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        return sorted((name for name in names if is_process_id(name)), reverse=True)

    def _of(self, kind: str, process_id: str) -> Path:
        if not is_process_id(process_id):
            raise NotFound(
                f"{process_id!r} isn't a process id",
                remedy="Process ids look like train_01k9x3q4zt8m2v7c0hde.",
            )
        return self.root / kind / process_id
