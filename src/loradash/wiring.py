"""From settings to the concrete parts: the only place that names them.

Adding an engine is one folder below ``engines`` and one line in `make_engine`.
"""

from loradash.engines.diffusers.engine import DiffusersEngine
from loradash.runtime.supervisor import Limits
from loradash.runtime.warm_pipeline import WarmPipeline
from loradash.runtime.workspace import Workspace
from loradash.services.generation import GenerationService
from loradash.services.training import TrainingService
from loradash.settings import Settings
from loradash.storage.local import LocalStore


def make_engine(settings: Settings, threads: int = 0) -> DiffusersEngine:
    """Return the engine that trains and generates."""
    return DiffusersEngine(
        device=settings.device, threads=threads or settings.threads, offline=settings.offline
    )


def make_training(settings: Settings, threads: int = 0) -> TrainingService:
    """Return the training service."""
    return TrainingService(
        make_engine(settings, threads),
        Workspace(settings.workspace_path),
        LocalStore(settings.objects_path),
        _limits(settings, settings.training_timeout_s),
    )


def make_generation(settings: Settings, threads: int = 0) -> GenerationService:
    """Return the generation service; close it when done."""
    engine = make_engine(settings, threads)
    workspace = Workspace(settings.workspace_path)
    pipeline = WarmPipeline(
        engine, workspace.root / "logs" / "generator.txt", settings.idle_unload_s
    )
    return GenerationService(
        engine,
        pipeline,
        workspace,
        LocalStore(settings.objects_path),
        _limits(settings, settings.generation_timeout_s),
    )


def _limits(settings: Settings, timeout_s: float) -> Limits:
    return Limits(
        timeout_s=timeout_s, stall_s=settings.stall_timeout_s, grace_s=settings.stop_grace_s
    )
