"""The fixed layout of files on the machine that works. A process's folders belong to it alone."""

from pathlib import Path

from loradash.domain.ids import is_process_id
from loradash.domain.kinds import GENERATION, KINDS, TRAINING, kind_of_id
from loradash.errors import InvalidSettings, NotFound

CONFIG_FILE, LOG_FILE, EVENTS_FILE = "config.yaml", "log.txt", "events.jsonl"
LOSS_CURVE = "loss.png"
"""Files in a training's folder that are ours and not its engine's."""

_SHARED_FOLDERS = ("models/loras", "training_data")
"""In which a process of any kind may have a folder, beside that of its kind."""

_OTHER_FOLDERS = ("configs/training", "configs/generation", "logs", "run")


class Workspace:
    """Paths below one root; none of its methods leads out of it."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().absolute()

    def ensure(self) -> None:
        """Create the layout. Raises `InvalidSettings` if the root can't be written."""
        try:
            for folder in (*_process_folders(), *_OTHER_FOLDERS):
                (self.root / folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidSettings(
                f"workspace {self.root}: {error.strerror or error}",
                remedy="Set WORKSPACE_PATH to a folder that can be written.",
            ) from error

    def process(self, process_id: str) -> Path:
        """Folder of a process, whatever its kind. Raises `NotFound` for another text."""
        kind = kind_of_id(process_id)
        return self._of(kind.folder if kind else "", process_id)

    def training(self, process_id: str) -> Path:
        """Folder of a training. Raises `NotFound` for a text that isn't a process id."""
        return self._of(TRAINING.folder, process_id)

    def generation(self, process_id: str) -> Path:
        """Folder of a generation's images."""
        return self._of(GENERATION.folder, process_id) / "images"

    def lora(self, process_id: str) -> Path:
        """Folder for adapters that a generation has fetched."""
        return self._of("models/loras", process_id)

    def training_data(self, process_id: str) -> Path:
        """Folder for the datasets that a training has fetched."""
        return self._of("training_data", process_id)

    def process_ids(self) -> list[str]:
        """Ids of all processes that have a folder here, the oldest first."""
        names = {
            path.name
            for kind in _process_folders()
            if (self.root / kind).is_dir()
            for path in (self.root / kind).iterdir()
        }
        return sorted(name for name in names if is_process_id(name))

    def folders_of(self, process_id: str) -> list[Path]:
        """All folders that belong to a process."""
        return [self._of(kind, process_id) for kind in _process_folders()]

    def result_folders(self, process_id: str, result_type: str) -> list[Path]:
        """What we ourselves have made of a process's results of one type, or of all types.

        What its engine has written into a training's folder, only the engine knows.
        """
        training = self.training(process_id)
        by_type = {
            "lora": [self.lora(process_id)],
            "samples": [training / "samples.png"],
            "images": [self.generation(process_id).parent],
            "checkpoints": [self.lora(process_id)],
            "logs": [training / name for name in (LOSS_CURVE, LOG_FILE, EVENTS_FILE)],
            "all": self.folders_of(process_id),
        }
        return by_type[result_type]

    @property
    def logs(self) -> Path:
        """Folder of the server's and the generators' logs."""
        return self.root / "logs"

    @property
    def run(self) -> Path:
        """Folder that remembers the engines which are running."""
        return self.root / "run"

    def _of(self, kind: str, process_id: str) -> Path:
        if not is_process_id(process_id):
            raise NotFound(
                f"{process_id!r} isn't a process id",
                remedy="Process ids look like train_01k9x3q4zt8m2v7c0hde.",
            )
        folder = self.root / kind / process_id
        if folder.is_symlink():
            raise InvalidSettings(
                f"{folder} is a link", remedy="Remove it: a process's folders belong to it alone."
            )
        return folder


def _process_folders() -> tuple[str, ...]:
    return (*(kind.folder for kind in KINDS.values()), *_SHARED_FOLDERS)
