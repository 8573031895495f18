"""The use cases that this program has, whoever asks for them."""

from dataclasses import dataclass

from loradash.services.adapters.service import AdapterService
from loradash.services.datasets.editing import DatasetEditor
from loradash.services.datasets.store import DatasetStore
from loradash.services.datasets.upload_sessions import UploadSessions
from loradash.services.generation.service import GenerationService
from loradash.services.processes.service import ProcessService
from loradash.services.processes.starting import ProcessStarter
from loradash.services.results.results import Results
from loradash.services.system.health import HealthService
from loradash.services.system.log_files import LogFiles
from loradash.services.training.service import TrainingService


@dataclass(frozen=True)
class Services:
    """One object for each subject."""

    starting: ProcessStarter
    training: TrainingService
    generation: GenerationService
    processes: ProcessService
    results: Results
    adapters: AdapterService
    datasets: DatasetStore
    uploads: UploadSessions
    dataset_editor: DatasetEditor
    health: HealthService
    log_files: LogFiles
    records_in_store: bool = False
    """The records lie in the object store, where all workers see them, and not in a database."""
