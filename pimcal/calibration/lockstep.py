"""Run many batches through a model layer by layer: all wait at a measuring point until the last has come.

Each batch runs the model's own code in a greenlet, a stack of its own within the same thread. At a measuring point it
hands in its tensor and pauses. When no batch can go on, those that wait at the same point are measured together and
resume. So each layer is measured over the whole set, behind layers that are corrected already, whatever the model's
code looks like, and only the tensors alive at that point are held.

Greenlets, not threads: torch would start a pool of workers for each thread, and those get into each other's way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from greenlet import GreenletExit, getcurrent, greenlet
from torch import Tensor

Measure = Callable[[Any, dict[int, Tensor]], dict[int, Tensor]]


@dataclass(slots=True)
class _Runner:
    """One batch: its greenlet, and where it pauses with what."""

    index: int
    stack: greenlet
    key: Any = None
    value: Any = None


class Lockstep:
    """`meet` is called at measuring points, from inside the model; `run` drives the batches."""

    def __init__(
        self,
        measure: Measure,
        on_turn: Callable[[], None] = lambda: None,
        own: Callable[[int], None] = lambda batch: None,
    ) -> None:
        """`measure(key, tensors)` gives the tensors to go on with, both by the number of their batch; `on_turn` runs
        when another batch's turn comes; `own` lets the model be what that batch made of it, to go on or to unwind.
        """
        self._measure = measure
        self._on_turn = on_turn
        self._own = own
        self._current: _Runner | None = None
        self._unwinding = False
        self._inference_mode = False  # of the caller of run()

    @property
    def batch_index(self) -> int:
        """Which batch the calling code runs."""
        return 0 if self._current is None else self._current.index

    def meet(self, key: Any, value: Tensor) -> Tensor:
        """Hand in `value` at point `key`, wait for the others, and get the tensor to go on with."""
        if self._unwinding:  # a point in a finally block, on the way out
            raise GreenletExit
        if self._current is None:
            return self._measure(key, {0: value})[0]
        parent = getcurrent().parent
        assert parent is not None  # run() is what started this greenlet
        with _own_modes(), torch.inference_mode(self._inference_mode):
            resumed: Tensor = parent.switch((key, value))
        return resumed

    def run(self, call: Callable[[Any], Any], batches: Sequence[Any]) -> None:
        """Run `call` on every batch, without gradients.

        What one of them raises is raised here, after all others were unwound.
        """
        with torch.no_grad():
            if len(batches) == 1:
                self._own(0)
                call(batches[0])
                return
            self._inference_mode = torch.is_inference_mode_enabled()
            runners = [_Runner(i, greenlet(call), value=batch) for i, batch in enumerate(batches)]
            try:
                self._drive(runners)
            finally:
                self._unwind(runners)

    def _unwind(self, runners: list[_Runner]) -> None:
        self._current, self._unwinding = None, True
        with ExitStack() as todo:  # goes on with the others where one raises
            todo.callback(setattr, self, "_unwinding", False)
            for runner in runners:
                if runner.stack:  # started and not finished
                    todo.callback(runner.stack.throw, GreenletExit)
                    todo.callback(self._own, runner.index)  # the last to be asked is the first to be called

    def _drive(self, runners: list[_Runner]) -> None:
        ready = runners
        while ready:
            for runner in ready:
                self._turn(runner)
            waiting = [runner for runner in runners if not runner.stack.dead]
            ready = [runner for runner in waiting if runner.key == waiting[0].key]
            if ready:
                values = self._measure(ready[0].key, {runner.index: runner.value for runner in ready})
                for runner in ready:
                    runner.value = values[runner.index]

    def _turn(self, runner: _Runner) -> None:
        """Let a batch run to its next measuring point, or to its end."""
        self._on_turn()
        self._own(runner.index)
        self._current = runner
        value, runner.value = runner.value, None
        with _own_modes():
            paused = runner.stack.switch(value)
        self._current = None
        if not runner.stack.dead:
            runner.key, runner.value = paused


@contextmanager
def _own_modes() -> Iterator[None]:
    """Around a switch: torch's modes belong to a thread, and the other side may change them meanwhile."""
    grad, functions = torch.is_grad_enabled(), _function_modes()
    autocast = {kind: (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")}
    try:
        yield
    finally:
        torch.set_grad_enabled(grad)
        if functions != _function_modes():  # one side pauses in the midst of a function that a mode handles
            _set_function_modes(functions)
        for kind, (enabled, dtype) in autocast.items():
            torch.set_autocast_enabled(kind, enabled)
            torch.set_autocast_dtype(kind, dtype)


def _function_modes() -> list[Any]:
    return [torch._C._get_function_stack_at(i) for i in range(torch._C._len_torch_function_stack())]


def _set_function_modes(modes: list[Any]) -> None:
    while torch._C._len_torch_function_stack():
        torch._C._pop_torch_function_stack()
    for mode in modes:
        torch._C._push_on_torch_function_stack(mode)
