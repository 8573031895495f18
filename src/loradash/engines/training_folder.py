"""The layout of a training's folder that our own engines share.

An engine with another layout has its own: nobody but an engine knows how its files are called.
"""

from pathlib import Path

from loradash.engines.engine import Artifact, Checkpoint
from loradash.engines.job_files import files_in
from loradash.engines.training_files import (
    ADAPTER_FOLDER,
    CHECKPOINTS_FOLDER,
    JOB_FILE,
    SAMPLES_FOLDER,
)


class TrainingFolder:
    """The parts of `Trains` that are about files; see there."""

    def job_file(self, folder: Path) -> Path:
        """See `Trains.job_file`."""
        return folder / JOB_FILE

    def checkpoint_folder(self, folder: Path) -> Path:
        """See `Trains.checkpoint_folder`."""
        return folder / CHECKPOINTS_FOLDER

    def checkpoints(self, folder: Path) -> list[Checkpoint]:
        """See `Trains.checkpoints`: they appear by a rename, so whatever has the name is whole."""
        found = sorted(folder.glob(f"{CHECKPOINTS_FOLDER}/step-*"))
        return [Checkpoint(one, files_in(one)) for one in found]

    def has_checkpoint(self, folder: Path) -> bool:
        """See `Trains.has_checkpoint`."""
        return bool(self.checkpoints(folder))

    def artifacts(self, folder: Path) -> list[Artifact]:
        """See `Trains.artifacts`."""
        found = [Artifact("lora", path) for path in files_in(folder / ADAPTER_FOLDER)]
        found += [Artifact("sample", path) for path in files_in(folder / SAMPLES_FOLDER)]
        if (path := folder / JOB_FILE).is_file():
            found.append(Artifact("job", path))
        return found

    def images(self, folder: Path) -> list[Path]:
        """See `WarmGenerator.images`."""
        return list(files_in(folder))
