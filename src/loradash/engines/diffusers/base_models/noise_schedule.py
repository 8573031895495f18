"""A base model's noise schedule as its config describes it, and what can't be followed of it.

The betas are those of DDPM (arXiv 2006.11239): so many variances, each between 0 and 1.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from loradash.engines.diffusers.base_models.findings import Finding
from loradash.engines.diffusers.base_models.parts import SCHEDULER_CONFIG

_FILE = f"scheduler/{SCHEDULER_CONFIG}"
_PREDICTIONS = ("epsilon", "v_prediction")
_SHAPES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid")
_MAX_TIMESTEPS = 100_000
_OWN = "use the scheduler's config as the model's author published it"


def schedule_findings(config: Mapping[str, Any], ordinary: str) -> Iterator[Finding]:
    """Return what of a scheduler's config can't be trained or drawn with.

    ``ordinary`` is the remedy for a model of another kind.
    """
    kind = config.get("_class_name")
    if isinstance(kind, str) and kind.startswith("FlowMatch"):
        yield Finding(f"{_FILE} is of a {kind}, which is for flow models", ordinary)
        return
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in _PREDICTIONS:
        yield Finding(
            f"{_FILE}: prediction_type {prediction!r} can't be trained",
            "use a model that predicts noise (epsilon) or velocity (v_prediction)",
        )
    timesteps = config.get("num_train_timesteps", 1000)
    if not (type(timesteps) is int and 1 <= timesteps <= _MAX_TIMESTEPS):
        yield Finding(f"{_FILE}: num_train_timesteps {timesteps!r} isn't a number of steps", _OWN)
    yield from _beta_findings(config, timesteps)


def _beta_findings(config: Mapping[str, Any], timesteps: object) -> Iterator[Finding]:
    betas = config.get("trained_betas")
    if betas is not None:
        if not (isinstance(betas, list) and betas and all(_is_variance(beta) for beta in betas)):
            yield Finding(f"{_FILE}: trained_betas aren't numbers between 0 and 1", _OWN)
        elif len(betas) != timesteps:
            yield Finding(
                f"{_FILE}: there are {len(betas)} trained_betas for {timesteps} timesteps", _OWN
            )
        return
    shape = config.get("beta_schedule", "linear")
    if shape not in _SHAPES:
        yield Finding(f"{_FILE}: beta_schedule {shape!r} isn't known", _OWN)
    for key in ("beta_start", "beta_end"):
        if key in config and not _is_variance(config[key]):
            yield Finding(f"{_FILE}: {key} {config[key]!r} isn't a number between 0 and 1", _OWN)


def _is_variance(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1
