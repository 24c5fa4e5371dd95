"""Any sequence of operations leaves a store as a plain model of it in Python."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pimcal.errors import PimcalError
from pimcal.store import Key, Store
from pimcal.store.collect import collect_garbage

from .store_records import MODEL, check_whole, made, ticking

BOARDS = st.sampled_from(["board-1", "board-2"])
PLACES = st.integers(0, 1000)


class Model(RuleBasedStateMachine):
    """A store beside lists: `states`, `boards`, `pinned`, `gone` by place, and a stack of activations a board."""

    def __init__(self) -> None:
        super().__init__()
        self.temporary = tempfile.TemporaryDirectory()
        self.folder = Path(self.temporary.name) / "store"
        self.store = Store.create(self.folder, clock=ticking())
        self.ids: list[str] = []
        self.boards: list[str] = []
        self.states: list[str] = []
        self.pinned: set[int] = set()
        self.gone: set[int] = set()
        self.ended: list[int] = []  # retired and rejected ones, in the order in which that happened
        self.stacks: dict[str, list[int]] = {"board-1": [], "board-2": []}

    def teardown(self) -> None:
        self.store.close()
        self.temporary.cleanup()

    def refused(self, call: object, *arguments: object) -> None:
        try:
            call(*arguments)  # type: ignore[operator]
        except PimcalError:
            return
        raise AssertionError("this should have been refused")

    def active(self, board: str) -> int | None:
        return next((i for i, s in enumerate(self.states) if s == "active" and self.boards[i] == board), None)

    def end(self, place: int, state: str) -> None:
        self.states[place] = state
        self.ended = [*(other for other in self.ended if other != place), place]

    def switch(self, board: str, place: int) -> None:
        former = self.active(board)
        if former is not None:
            self.end(former, "retired")
        self.states[place] = "active"

    def before(self, board: str) -> int | None:
        """Where a rollback leads."""
        there = [i for i in self.stacks[board] if i not in self.gone and self.states[i] != "active"]
        return there[-1] if there else None

    @rule(board=BOARDS, value=st.integers(0, 3))
    def add(self, board: str, value: int) -> None:
        found = self.store.add_candidate(made(value, device=board), "new")
        active = self.active(board)
        assert found.parent == (None if active is None else self.ids[active])
        self.ids.append(found.id)
        self.boards.append(board)
        self.states.append("candidate")

    @precondition(lambda self: self.ids)
    @rule(place=PLACES)
    def activate(self, place: int) -> None:
        place %= len(self.ids)
        if place in self.gone:
            self.refused(self.store.activate, self.ids[place], "")
            return
        self.store.activate(self.ids[place], "asked")
        if self.states[place] != "active":
            self.switch(self.boards[place], place)
            self.stacks[self.boards[place]].append(place)

    @precondition(lambda self: self.ids)
    @rule(place=PLACES)
    def reject(self, place: int) -> None:
        place %= len(self.ids)
        if self.states[place] != "candidate":
            self.refused(self.store.reject, self.ids[place], "")
            return
        self.store.reject(self.ids[place], "worse")
        self.end(place, "rejected")

    @rule(board=BOARDS)
    def reject_leftovers(self, board: str) -> None:
        here = [i for i, state in enumerate(self.states) if state == "candidate" and self.boards[i] == board]
        left = [i for i in here if i not in self.pinned]
        found = self.store.reject_leftovers(Key(board, MODEL), "killed")
        assert [each.id for each in found] == [self.ids[i] for i in left]
        for place in left:
            self.end(place, "rejected")

    @rule(board=BOARDS)
    def rollback(self, board: str) -> None:
        place, stack = self.before(board), self.stacks[board]
        if place is None:
            self.refused(self.store.rollback, Key(board, MODEL), "")
            return
        assert self.store.rollback(Key(board, MODEL), "worse").id == self.ids[place]
        self.stacks[board] = stack[: len(stack) - stack[::-1].index(place)]
        self.switch(board, place)

    @precondition(lambda self: self.ids)
    @rule(place=PLACES, on=st.booleans())
    def pin(self, place: int, on: bool) -> None:
        place %= len(self.ids)
        call = self.store.pin if on else self.store.unpin
        if place in self.gone:
            self.refused(call, self.ids[place], "")
            return
        assert call(self.ids[place], "asked").pinned == on
        (self.pinned.add if on else self.pinned.discard)(place)

    @rule(keep=st.integers(0, 2))
    def collect(self, keep: int) -> None:
        expected = set()
        for board in self.stacks:
            for state in ("retired", "rejected"):
                here = [i for i in self.ended if self.states[i] == state and self.boards[i] == board]
                old = [i for i in here if i not in self.gone | self.pinned]
                expected |= set(old[: len(old) - keep] if keep else old)
        expected -= {self.before(board) for board in self.stacks}
        assert set(collect_garbage(self.store, keep, "room").generations) == {self.ids[i] for i in expected}
        self.gone |= expected
        needed = {row.sha256 for row in self.store.generations()}
        assert {path.stem for path in (self.folder / "tensors").iterdir()} == needed

    @rule()
    def open_again(self) -> None:
        self.store.close()
        self.store = Store.open(self.folder, clock=ticking())

    @invariant()
    def it_is_as_the_model(self) -> None:
        found = Store.open(self.folder, read_only=True).generations(collected=True)
        assert [each.id for each in found] == self.ids
        assert [each.state for each in found] == self.states
        assert {i for i, each in enumerate(found) if each.pinned} == self.pinned
        assert {i for i, each in enumerate(found) if each.collected_at is not None} == self.gone
        check_whole(self.folder)


TestStoreAgainstModel = Model.TestCase
TestStoreAgainstModel.settings = settings(max_examples=15, stateful_step_count=25, deadline=None)
