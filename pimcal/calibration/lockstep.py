"""Run many batches through a model layer by layer: all wait at a measuring point until the last has come.

Each batch runs the model's own code in a thread of its own, and only one of them runs at any time. At a measuring
point a batch hands in its tensor and pauses. When no batch can go on, those that wait at the same point are measured
together and resume. So each layer is measured over the whole set, behind layers that are corrected already, whatever
the model's code looks like, and only the tensors alive at that point are held.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Measure = Callable[[Any, dict[int, Tensor]], dict[int, Tensor]]


class _AbandonedError(BaseException):
    """Unwinds a paused batch when another one failed."""


@dataclass(slots=True)
class _Runner:
    """One batch's thread: `wake` lets it go on, `key` and `value` say where it pauses."""

    index: int = 0
    wake: threading.Event = field(default_factory=threading.Event)
    key: Hashable = None
    value: Tensor | None = None
    done: bool = False
    error: BaseException | None = None
    abandoned: bool = False
    thread: threading.Thread | None = None


class Lockstep:
    """`meet` is called at measuring points, from inside the model; `run` drives the batches."""

    def __init__(self, measure: Measure, on_turn: Callable[[], None] = lambda: None) -> None:
        """`measure(key, tensors)` gives the tensors to go on with, both by the number of their batch; `on_turn` runs
        when another batch's turn comes.
        """
        self._measure = measure
        self._on_turn = on_turn
        self._local = threading.local()
        self._paused = threading.Event()

    @property
    def batch_index(self) -> int:
        """Which batch the calling code runs."""
        runner: _Runner | None = getattr(self._local, "runner", None)
        return 0 if runner is None else runner.index

    def meet(self, key: Hashable, value: Tensor) -> Tensor:
        """Hand in `value` at point `key`, wait for the others, and get the tensor to go on with."""
        runner: _Runner | None = getattr(self._local, "runner", None)
        if runner is None:
            return self._measure(key, {0: value})[0]
        runner.key, runner.value = key, value
        self._pause(runner)
        assert runner.value is not None
        value, runner.value = runner.value, None
        return value

    def run(self, call: Callable[[Any], Any], batches: Sequence[Any]) -> None:
        """Run `call` on every batch. What one of them raises is raised here, after all others were unwound."""
        if len(batches) == 1:
            with torch.no_grad():
                call(batches[0])
            return
        runners = [_Runner(i) for i in range(len(batches))]
        try:
            for runner, batch in zip(runners, batches, strict=True):
                thread = threading.Thread(target=self._body, args=(runner, call, batch), daemon=True)
                thread.start()
                runner.thread = thread
            self._drive(runners)
        finally:
            self._unwind(runners)

    def _drive(self, runners: list[_Runner]) -> None:
        ready = list(runners)
        while ready:
            for runner in ready:
                self._on_turn()
                self._give_turn(runner)
                if runner.error is not None:
                    raise runner.error
            waiting = [runner for runner in runners if not runner.done]
            ready = [runner for runner in waiting if runner.key == waiting[0].key] if waiting else []
            if ready:
                values = self._measure(ready[0].key, {r.index: r.value for r in ready if r.value is not None})
                for runner in ready:
                    runner.value = values[runner.index]

    def _give_turn(self, runner: _Runner) -> None:
        self._paused.clear()
        runner.wake.set()
        self._paused.wait()

    def _pause(self, runner: _Runner) -> None:
        if not runner.abandoned:  # a model may call its layers while it is unwound
            self._paused.set()
            runner.wake.wait()
            runner.wake.clear()
        if runner.abandoned:
            raise _AbandonedError

    def _body(self, runner: _Runner, call: Callable[[Any], Any], batch: Any) -> None:
        self._local.runner = runner
        runner.wake.wait()
        runner.wake.clear()
        try:
            if not runner.abandoned:
                with torch.no_grad():  # grad mode belongs to a thread
                    call(batch)
        except _AbandonedError:
            pass
        except BaseException as error:  # handed to the caller of run()
            runner.error = error
        finally:
            runner.done = True
            self._paused.set()

    def _unwind(self, runners: list[_Runner]) -> None:
        for runner in runners:
            runner.abandoned = True
            runner.wake.set()
            if runner.thread is not None:
                runner.thread.join()
