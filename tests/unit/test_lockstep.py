"""Batches that wait for one another: order, values, and that nobody is left behind."""

import contextlib
import gc

import pytest
import torch
from greenlet import GreenletExit, greenlet

from pimcal.calibration.lockstep import Lockstep


class Log:
    """A measure that notes who met where and adds 1 to what it was given."""

    def __init__(self):
        self.meetings = []

    def __call__(self, key, tensors):
        self.meetings.append((key, sorted(tensors)))
        return {batch: tensor + 1 for batch, tensor in tensors.items()}


@pytest.fixture(autouse=True)
def nobody_left_behind():
    yield
    gc.collect()
    assert not [stack for stack in gc.get_objects() if type(stack) is greenlet and stack and stack.parent]


@pytest.mark.parametrize("batches", [1, 2, 5])
def test_all_batches_meet_at_each_point_before_any_goes_on(batches):
    log, out = Log(), {}
    lockstep = Lockstep(log)

    def model(x):
        a = lockstep.meet("a", x)
        b = lockstep.meet("b", a * 10)
        out[lockstep.batch_index] = b

    lockstep.run(model, [torch.tensor(float(i)) for i in range(batches)])

    everyone = list(range(batches))
    assert log.meetings == [("a", everyone), ("b", everyone)]
    assert {i: float(b) for i, b in out.items()} == {i: (i + 1) * 10 + 1 for i in everyone}


def test_only_one_batch_runs_at_any_time_and_each_turn_is_announced():
    running, turns = [], []
    lockstep = Lockstep(Log(), on_turn=lambda: turns.append(len(running)))

    def model(x):
        for key in "abc":
            running.append(x)
            assert running == [x]
            running.remove(x)
            lockstep.meet(key, x)

    lockstep.run(model, [torch.zeros(()), torch.ones(())])

    assert turns == [0] * 8  # two batches, three points and the end


def test_batches_that_take_different_ways_meet_where_their_ways_cross():
    log = Log()
    lockstep = Lockstep(log)

    def model(x):
        if x > 0:
            x = lockstep.meet("only positive", x)
        lockstep.meet("both", x)

    lockstep.run(model, [torch.tensor(1.0), torch.tensor(-1.0), torch.tensor(2.0)])

    assert log.meetings[0] == ("only positive", [0, 2])
    assert log.meetings[1] == ("both", [0, 1, 2])


def test_a_batch_that_never_meets_anyone_still_runs():
    seen = []
    lockstep = Lockstep(Log())

    lockstep.run(seen.append, [1, 2, 3])

    assert seen == [1, 2, 3]


@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["before", "between", "after"])
def test_what_one_batch_raises_is_raised_and_all_others_are_unwound(error, where):
    lockstep, unwound = Lockstep(Log()), []

    def model(x):
        try:
            if where == "before" and x == 1:
                raise error
            lockstep.meet("a", x)
            if where == "between" and x == 1:
                raise error
            lockstep.meet("b", x)
            if where == "after" and x == 1:
                raise error
        finally:
            unwound.append(int(x))

    with pytest.raises(type(error)) as caught:
        lockstep.run(model, [torch.tensor(i) for i in range(4)])
    assert caught.value is error
    assert set(unwound) >= {0, 1} if where == "before" else set(unwound) == {0, 1, 2, 3}


def test_what_the_measure_raises_unwinds_all_batches():
    def measure(key, tensors):
        raise KeyboardInterrupt

    lockstep, unwound = Lockstep(measure), []

    def model(x):
        try:
            lockstep.meet("a", x)
        finally:
            unwound.append(int(x))

    with pytest.raises(KeyboardInterrupt):
        lockstep.run(model, [torch.tensor(i) for i in range(3)])
    assert sorted(unwound) == [0, 1, 2]


def test_a_model_that_calls_its_layers_while_it_is_unwound_does_not_hang():
    lockstep = Lockstep(Log())

    def model(x):
        try:
            lockstep.meet("a", x)
            if x == 0:
                raise ValueError("bad image")
        finally:
            lockstep.meet("b", x)

    with pytest.raises(ValueError, match="bad image"):
        lockstep.run(model, [torch.tensor(i) for i in range(3)])


def test_a_failure_while_one_batch_is_unwound_leaves_no_other_behind():
    lockstep, unwound = Lockstep(Log()), []

    def model(x):
        try:
            lockstep.meet("a", x)
            raise ValueError("bad image")
        finally:
            unwound.append(int(x))
            if x == 1:
                raise OSError("cannot tidy up")

    with pytest.raises(OSError, match="cannot tidy up") as caught:
        lockstep.run(model, [torch.tensor(i) for i in range(4)])
    assert sorted(unwound) == [0, 1, 2, 3]
    assert isinstance(caught.value.__context__, GreenletExit)


def modes():
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize(
    "mode",
    [torch.enable_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16), contextlib.nullcontext],
    ids=["grad", "inference", "autocast", "none"],
)
@pytest.mark.parametrize("outside", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("failing", [False, True])
def test_torchs_modes_belong_to_each_batch(mode, outside, failing):
    lockstep, seen = Lockstep(Log()), []

    def model(x):
        seen.append(("outside", modes()))
        with mode():
            for point in "ab":
                seen.append(("inside", modes()))
                lockstep.meet(point, x)
            seen.append(("inside", modes()))
            if failing and x == 1:
                raise ValueError("bad image")
        seen.append(("outside", modes()))
        lockstep.meet("c", x)
        seen.append(("outside", modes()))

    with outside():
        before = modes()
        with contextlib.suppress(ValueError):
            lockstep.run(model, [torch.tensor(i) for i in range(3)])
        assert modes() == before

    for where in ("outside", "inside"):
        assert len({found for place, found in seen if place == where}) == 1


def test_no_gradients_are_recorded():
    weight, lockstep, grads = torch.ones((), requires_grad=True), Lockstep(Log()), []

    for batches in (1, 2):
        lockstep.run(lambda x: grads.append((x * weight).requires_grad), [torch.ones(())] * batches)

    assert grads == [False] * 3


def test_outside_a_run_a_point_is_measured_alone():
    log = Log()

    assert float(Lockstep(log).meet("a", torch.zeros(()))) == 1.0
    assert log.meetings == [("a", [0])]
