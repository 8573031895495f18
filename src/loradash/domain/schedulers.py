"""Schedulers (samplers): our names, and the names that other programs have for the same ones.

Capitals, spaces and signs don't count: "DPM++ 2M Karras", ``dpmpp_2m_karras`` and
``dpm++_2m_karras`` are one name. Sources: diffusers' table of A1111's and k-diffusion's samplers,
ComfyUI's ``samplers.py``, ``get_my_scheduler`` of kohya's sd-scripts, ``toolkit/sampler.py`` of
ai-toolkit.
"""

import difflib
import re
from typing import Annotated, Any, Literal, NamedTuple, cast, get_args

from pydantic import BeforeValidator

SchedulerName = Literal[
    "default",
    "ddim",
    "ddpm",
    "euler",
    "euler_karras",
    "euler_a",
    "heun",
    "heun_karras",
    "pndm",
    "dpm2",
    "dpm2_karras",
    "dpm2_a",
    "dpm2_a_karras",
    "dpm++_2m",
    "dpm++_2m_karras",
    "dpm++_sde",
    "dpm++_sde_karras",
    "dpm++_2s",
    "dpm++_2s_karras",
    "deis",
    "unipc",
    "lcm",
]
SCHEDULERS: tuple[str, ...] = get_args(SchedulerName)

MAX_STEPS = 500


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower().replace("++", "pp"))


_SAME = {
    "automatic": "default", "auto": "default",
    "ddimscheduler": "ddim", "ddpmscheduler": "ddpm",
    "eulerdiscrete": "euler", "eulerdiscretescheduler": "euler",
    "eulerancestral": "euler_a", "eulerancestraldiscretescheduler": "euler_a",
    "keulera": "euler_a", "keulerancestral": "euler_a",
    "heundiscretescheduler": "heun", "kheun": "heun",
    "pndmscheduler": "pndm", "plms": "pndm",
    "kdpm2": "dpm2", "kdpm2discretescheduler": "dpm2", "kdpm2karras": "dpm2_karras",
    "dpm2ancestral": "dpm2_a", "kdpm2a": "dpm2_a", "kdpm2ancestral": "dpm2_a",
    "kdpm2ancestraldiscretescheduler": "dpm2_a", "dpm2ancestralkarras": "dpm2_a_karras",
    "dpmsolverpp": "dpm++_2m", "dpmsolvermultistep": "dpm++_2m", "kdpmpp2m": "dpm++_2m",
    "dpmsolvermultistepscheduler": "dpm++_2m", "kdpmsolverpp": "dpm++_2m_karras",
    "dpmpp2msde": "dpm++_sde", "dpmpp2msdegpu": "dpm++_sde", "dpmpp2msdekarras": "dpm++_sde_karras",
    "dpmsingle": "dpm++_2s", "dpmsolversinglestepscheduler": "dpm++_2s",
    "deismultistepscheduler": "deis",
    "unipcmultistepscheduler": "unipc", "unipcbh2": "unipc",
    "lcmscheduler": "lcm", "customlcm": "lcm",
}  # fmt: skip
_SAME |= {_plain(name): name for name in SCHEDULERS}

# What isn't here under any name, and what comes nearest to it.
_NEAREST = {
    "keuler": "euler", "keulerkarras": "euler_karras",
    "lms": "euler", "klms": "euler", "lmsdiscretescheduler": "euler", "lmskarras": "euler_karras",
    "dpmsolver": "dpm++_2m", "kdpmsolver": "dpm++_2m_karras",
    "dpmfast": "dpm++_2m", "dpmadaptive": "dpm++_2m",
    "dpmpp2sa": "dpm++_2s", "dpmpp2sancestral": "dpm++_2s", "dpmpp2sakarras": "dpm++_2s_karras",
    "dpmpp2sancestralkarras": "dpm++_2s_karras",
    "dpmppsdegpu": "dpm++_sde", "dpmsolversdescheduler": "dpm++_sde",
    "dpmpp3msde": "dpm++_sde", "dpmpp3msdegpu": "dpm++_sde", "dpmpp3msdekarras": "dpm++_sde_karras",
    "heunpp2": "heun", "restart": "heun",
    "ipndm": "pndm", "ipndmscheduler": "pndm", "ipndmv": "pndm",
    "tcd": "lcm", "tcdscheduler": "lcm",
    "unipcbh1": "unipc",
    "edmeulerscheduler": "euler",
}  # fmt: skip
# For models that predict a flow; the base model's own scheduler is the one that fits it.
_OF_FLOW_MODELS = frozenset({
    "flowmatch", "flowmatcheulerdiscretescheduler", "flowmatcheuler", "flow", "meanflow",
    "flowmatchheundiscretescheduler", "customflowmatcheulerdiscretescheduler",
})  # fmt: skip


class FoundScheduler(NamedTuple):
    """A scheduler that was named, and what to say if it isn't quite what was meant."""

    name: SchedulerName
    note: str = ""


def find_scheduler(text: str) -> FoundScheduler:
    """Return the scheduler of this name, ours or another program's.

    Raises `ValueError` for a name that nobody uses.
    """
    plain = _plain(text)
    if text in SCHEDULERS:
        return FoundScheduler(cast(SchedulerName, text))
    if plain in _SAME:
        return FoundScheduler(cast(SchedulerName, _SAME[plain]))
    if plain in _NEAREST:
        name = cast(SchedulerName, _NEAREST[plain])
        return FoundScheduler(name, f"{text!r} isn't there; {name}, which comes nearest, is used")
    if plain in _OF_FLOW_MODELS:
        return FoundScheduler(
            "default", f"{text!r} is for flow models; the base model's own scheduler is used"
        )
    near = difflib.get_close_matches(plain, _SAME, n=1, cutoff=0.6)
    hint = f"; did you mean {_SAME[near[0]]!r}?" if near else ""
    raise ValueError(f"{text[:50]!r} isn't a scheduler{hint} (there are {', '.join(SCHEDULERS)})")


def scheduler_name(text: str) -> SchedulerName:
    """Return the scheduler of this name; an unheard-of one means the base model's own.

    For what was accepted before names were checked: a training of then must still be resumable.
    """
    try:
        return find_scheduler(text).name
    except ValueError:
        return "default"


def _known(value: Any) -> Any:
    return find_scheduler(value).name if isinstance(value, str) else value


AnySchedulerName = Annotated[SchedulerName, BeforeValidator(_known)]
