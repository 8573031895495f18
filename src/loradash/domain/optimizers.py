"""Optimizers by name: what each is called elsewhere, which settings it takes, and its defaults.

Names and settings are ai-toolkit's (``toolkit/optimizer.py``), which passes them on to the
libraries that the built-in engine uses, too. Where a default is given here, it is the library's,
or ai-toolkit's where that differs.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

OptimizerName = Literal[
    "adamw", "adam", "adamw8bit", "adam8bit", "lion", "lion8bit", "prodigy", "prodigy8bit",
    "adafactor", "adagrad",
]  # fmt: skip

LEAST_OWN_RATE = 0.1
"""A smaller rate is meant for an ordinary optimizer, not for one that finds its own."""


@dataclass(frozen=True)
class OptimizerKind:
    """One optimizer, whatever the size of its state."""

    settings: frozenset[str]
    defaults: dict[str, Any] = field(default_factory=dict)
    own_rate: bool = False
    """It finds the learning rate itself, and multiplies it by the one that is given (1)."""


_ADAM = frozenset({"betas", "eps", "weight_decay", "amsgrad"})

_KINDS = {
    "adamw": OptimizerKind(
        _ADAM, {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2}
    ),
    "adam": OptimizerKind(_ADAM, {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}),
    "lion": OptimizerKind(
        frozenset({"betas", "weight_decay", "decoupled_weight_decay"}),
        {"betas": (0.9, 0.99), "weight_decay": 0.0},
    ),
    "prodigy": OptimizerKind(
        frozenset({
            "betas", "beta3", "eps", "weight_decay", "decouple", "use_bias_correction",
            "safeguard_warmup", "d0", "d_coef", "growth_rate", "slice_p",
        }),
        {"eps": 1e-6},
        own_rate=True,
    ),
    "adafactor": OptimizerKind(
        frozenset({
            "eps", "clip_threshold", "decay_rate", "beta1", "weight_decay", "scale_parameter",
            "relative_step", "warmup_init",
        }),
        {"relative_step": False, "scale_parameter": False, "warmup_init": False},
    ),
    "adagrad": OptimizerKind(
        frozenset({"lr_decay", "weight_decay", "initial_accumulator_value", "eps"})
    ),
}  # fmt: skip

_OTHER_NAMES = {"adamw8": "adamw8bit", "adam8": "adam8bit"}
_FOREIGN = {
    "dadaptation": "DAdaptation is no longer maintained; use prodigy, which comes from it",
    "automagic": "it is ai-toolkit's own; use adamw, or prodigy, which finds the rate itself",
    "ademamix": "AdEMAMix isn't available here; use adamw",
    "schedulefree": "schedule-free optimizers aren't available here; use adamw or prodigy",
    "came": "CAME isn't available here; use adafactor",
    "sgd": "SGD isn't available here; use adamw",
    "rmsprop": "RMSprop isn't available here; use adamw",
    "prodigyplus": "it isn't available here; use prodigy",
}


def optimizer_name(value: Any) -> Any:
    """Return the name that is used here for one of ai-toolkit's, in any case.

    Those that only other trainers have keep their names: an engine may have them.
    Raises `ValueError` for a name that no trainer is known to have.
    """
    if not isinstance(value, str):
        return value
    name = value.strip().lower()
    if foreign_optimizer(name):
        return name
    compact = _compact(name)
    if compact.startswith("prodigy"):  # its UI writes prodigyopt
        return "prodigy8bit" if compact.startswith("prodigy8bit") else "prodigy"
    known = _OTHER_NAMES.get(compact, compact)
    if known not in _NAMES:
        raise ValueError(f"input should be {', '.join(map(repr, _NAMES[:-1]))} or {_NAMES[-1]!r}")
    return known


_NAMES = get_args(OptimizerName)


def foreign_optimizer(name: str) -> str | None:
    """Why an optimizer that other trainers have isn't in the built-in engine; None for its own."""
    compact = _compact(name)
    for start, reason in _FOREIGN.items():
        if compact.startswith(start) or (start == "schedulefree" and start in compact):
            return f"{name}: {reason}"
    return None


def _compact(name: str) -> str:
    return name.replace("_", "").replace("-", "")


def kind_of(name: str) -> OptimizerKind:
    """The kind of an optimizer; one with a state of 8 bits is of the same kind.

    One that only other trainers have may have any of the settings.
    """
    every = frozenset().union(*(kind.settings for kind in _KINDS.values()))
    return _KINDS.get(name.removesuffix("8bit"), OptimizerKind(every))


def foreign_settings(name: str, given: set[str]) -> list[str]:
    """Those settings that this optimizer doesn't have, in order."""
    return sorted(given - kind_of(name).settings)


def optimizers_with(setting: str) -> list[str]:
    """Names of the optimizers that have a setting."""
    return [name for name, kind in _KINDS.items() if setting in kind.settings]
