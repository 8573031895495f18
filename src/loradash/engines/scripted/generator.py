"""The scripted generator: reads requests as lines on stdin, and draws pictures of their seeds."""

import json
import queue
import threading
import time
from pathlib import Path

from loradash.engines.scripted.channel import Channel, log
from loradash.engines.scripted.misbehaviour import FAILURE, ScriptedFailure, before_step, begin
from loradash.engines.scripted.plan import DrawingPlan
from loradash.engines.stop_signal import StopSignal, stdin_lines

_POLL_S = 0.2


def run_generator(channel: Channel, stop: StopSignal) -> int:
    """Draw for one request after the other until stdin ends; return the exit code."""
    log("the scripted engine draws: pictures of colours and words")
    plans: queue.SimpleQueue[DrawingPlan | None] = queue.SimpleQueue()
    cancelled: set[str] = set()
    threading.Thread(target=_read, args=(plans, cancelled), name="stdin", daemon=True).start()
    channel.send("ready", loaded_base_model=None)
    while not stop.requested:
        try:
            plan = plans.get(timeout=_POLL_S)
        except queue.Empty:
            continue
        if plan is None:
            break
        channel.request_id = plan.request_id
        _draw(plan, channel, stop, cancelled)
        channel.request_id = ""
        channel.send("ready", loaded_base_model="scripted")
    return 0


def _read(plans: "queue.SimpleQueue[DrawingPlan | None]", cancelled: set[str]) -> None:
    try:
        for line in stdin_lines():
            document = json.loads(line)
            if document["type"] == "cancel":
                cancelled.add(document["request_id"])
            else:
                plans.put(DrawingPlan.from_document(document))
    finally:  # also after a line that isn't a request: then it ends
        plans.put(None)


def _draw(plan: DrawingPlan, channel: Channel, stop: StopSignal, cancelled: set[str]) -> None:
    from loradash.engines.scripted.drawing import draw  # takes longer than the rest

    folder = Path(plan.folder)
    folder.mkdir(parents=True, exist_ok=True)
    begin(plan.orders, stop)
    drawn = plan.total - len(plan.pictures)
    channel.send("phase", phase="generating", done=drawn, total=plan.total)
    for picture in plan.pictures:
        began_s = time.monotonic()
        try:
            before_step(picture.index + 1, plan.orders, folder, channel, stop)
        except ScriptedFailure as error:
            channel.send("failed", code=FAILURE, message=str(error), resumable=True)
            return
        if not plan.orders.ignore_stop and (stop.requested or plan.request_id in cancelled):
            channel.send("stopped")
            return
        path = folder / picture.name
        draw(picture, path)
        channel.send(
            "image", index=picture.index, path=str(path), prompt=picture.prompt, seed=picture.seed,
            duration_s=time.monotonic() - began_s,
        )  # fmt: skip
        drawn += 1
        channel.send("phase", phase="generating", done=drawn, total=plan.total)
    channel.send("done")
