"""The engines of this program by name, and what each of them can do.

Abilities are the protocols of `loradash.engines.engine`. They are looked for once, when the
program starts; whoever needs one asks here, and gets the engine or an error that says what is
missing.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, TypeVar

from loradash.domain.engine_use import BUILT_IN_ENGINE, EngineUse
from loradash.domain.schema import nearest
from loradash.engines.engine import (
    Engine,
    ExtendsTrainings,
    ResumesExactly,
    SamplesNow,
    SavesNow,
    StartsFromAdapters,
    Trains,
    WarmGenerator,
)
from loradash.errors import EngineUnavailable, InvalidConfig, InvalidRequest, InvalidSettings

_Ability = TypeVar("_Ability")


class Abilities(NamedTuple):
    """One engine, once for each thing that it can do; None for what it can't."""

    engine: Engine
    trains: Trains | None
    generates: WarmGenerator | None
    extends: ExtendsTrainings | None
    starts: StartsFromAdapters | None
    resumes_exactly: ResumesExactly | None
    saves_now: SavesNow | None
    samples_now: SamplesNow | None

    @property
    def use(self) -> EngineUse:
        """Its name and version."""
        return EngineUse(name=self.engine.name, version=self.engine.version)


def abilities_of(engine: Engine) -> Abilities:
    """Look for each ability."""
    return Abilities(
        engine,
        trains=engine if isinstance(engine, Trains) else None,
        generates=engine if isinstance(engine, WarmGenerator) else None,
        extends=engine if isinstance(engine, ExtendsTrainings) else None,
        starts=engine if isinstance(engine, StartsFromAdapters) else None,
        resumes_exactly=engine if isinstance(engine, ResumesExactly) else None,
        saves_now=engine if isinstance(engine, SavesNow) else None,
        samples_now=engine if isinstance(engine, SamplesNow) else None,
    )


class Engines:
    """Engines by name; the ``default`` is that of requests that name none."""

    def __init__(self, engines: Iterable[Engine], default: str = BUILT_IN_ENGINE) -> None:
        """Raises `InvalidSettings` if there is no engine of the default's name."""
        self._by_name = {engine.name: abilities_of(engine) for engine in engines}
        if default not in self._by_name:
            raise InvalidSettings(
                f"LORADASH_ENGINE: {self._unknown(default)}", remedy="Name one of those."
            )
        self.default = default

    @property
    def names(self) -> list[str]:
        """All names, in order."""
        return sorted(self._by_name)

    def choose(self, name: str | None) -> EngineUse:
        """Return the engine of a new process: the one that is named, or else the default.

        Raises `InvalidConfig` if there is none of that name.
        """
        name = name or self.default
        if name not in self._by_name:
            raise InvalidConfig(
                f"engine: {self._unknown(name)}",
                remedy="Name one of those, or leave engine out for the default.",
            )
        return self._by_name[name].use

    def trainer(self, name: str) -> Trains:
        """Return an engine that trains. Raises `EngineUnavailable`, `InvalidRequest`."""
        return _able(self._of(name).trains, name, "train", "Name another engine.")

    def generator(self, name: str) -> WarmGenerator:
        """Return an engine that generates. Raises `EngineUnavailable`, `InvalidRequest`."""
        return _able(self._of(name).generates, name, "generate", "Name another engine.")

    def extender(self, name: str, process_id: str) -> ExtendsTrainings:
        """Return an engine that gives finished trainings more steps.

        Raises `EngineUnavailable`, and `InvalidRequest` with what to do with this training.
        """
        remedy = f"Start from its adapter: `loradash train --from-adapter {process_id}`."
        return _able(self._of(name).extends, name, "extend trainings", remedy)

    def starter(self, name: str) -> StartsFromAdapters | None:
        """Return an engine that knows the settings of an adapter, or None if it doesn't."""
        return self._of(name).starts

    def use(self, name: str) -> EngineUse:
        """Return the engine that works for this name now. Raises `EngineUnavailable`."""
        return self._of(name).use

    def abilities(self, name: str) -> Abilities:
        """Return all that an engine can do. Raises `EngineUnavailable`."""
        return self._of(name)

    def adapters_in(self, folder: Path) -> list[Path]:
        """List the finished adapters in a training's folder, whichever engine has trained there."""
        return [
            one.path
            for able in self._by_name.values()
            if able.trains
            for one in able.trains.artifacts(folder)
            if one.kind == "lora"
        ]

    def _of(self, name: str) -> Abilities:
        if name not in self._by_name:
            raise EngineUnavailable(
                f"the process needs an engine that isn't here: {self._unknown(name)}",
                remedy="Run it with a loradash that has this engine.",
            )
        return self._by_name[name]

    def _unknown(self, name: str) -> str:
        names = self.names
        return f"{name!r} isn't one of {', '.join(names)}{nearest(name, names)}"


def _able(ability: _Ability | None, name: str, what: str, remedy: str) -> _Ability:
    if ability is None:
        raise InvalidRequest(f"the engine {name} can't {what}", remedy=remedy)
    return ability
