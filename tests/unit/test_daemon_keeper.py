"""What the daemon decides and does, on a clock that the tests move; and what others may do meanwhile."""

import json
import logging
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from random import Random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pimcal
from pimcal.backend import Backend
from pimcal.corrections import corrections_in_force
from pimcal.daemon.guests import MOST, Guests
from pimcal.daemon.keeper import Keeper
from pimcal.daemon.memory import Memory, memory_file
from pimcal.daemon.subject import Subject, images_for
from pimcal.daemon.watched import Abandoned, Watched
from pimcal.errors import DeviceBusyError, DeviceUnavailableError, StorageError
from pimcal.evaluation import evaluate
from pimcal.metrics import resolve_metric
from pimcal.recalibration.clock import Moment
from pimcal.recalibration.triggers import BUILT_IN, Trigger, Verdict
from pimcal.sources.data import load_batches
from pimcal.sources.models import load_model
from pimcal.sources.preprocess import load_preprocess
from pimcal.store import Store

HOUR_S, DAY_S = 3600.0, 86400.0
PROBING = {"every": "6h", "when": [{"probe_error": 0.02}]}


class Time:
    """A clock that stands still until it is told to go on."""

    def __init__(self):
        self.monotonic_s, self.wall_s = 1000.0, 1_800_000_000.0

    def now(self):
        return Moment(self.wall_s, self.monotonic_s)

    def goes_on(self, seconds):
        self.monotonic_s += seconds
        self.wall_s += seconds


@pytest.fixture(scope="module")
def subject(lab, tmp_path_factory):
    """`subject(recalibration, device settings)`: the lab's network on a drifting simulator."""
    data = load_batches(lab.data, load_preprocess("none"), None, 64).in_memory()
    model = load_model(f"{lab.network}:net", lab.folder / "weights.safetensors")
    folder = tmp_path_factory.mktemp("profiles")

    def make(recalibration, rate_per_s=4e-6, drift=None, images=images_for, **sections):
        drift = drift or {"kind": "linear", "rate_per_s": rate_per_s}
        device = {"noise": "mul", "eta0": 0.2, "drift": drift, "seed": 3}
        path = folder / "profile.yaml"
        content = {"schema": "pimcal/1", "backend": "gaussian", "device": device, "recalibration": recalibration}
        path.write_text(json.dumps(content | sections))
        profile = pimcal.load_profile(str(path))
        return Subject(profile, model, resolve_metric("accuracy"), lambda profile: images(profile, *data.split(64)))

    return make


class Room:
    """Opens keepers on one store, each on a device that was just opened."""

    def __init__(self, folder):
        self.time = Time()
        self.store = Store.create(folder, clock=lambda: self.time.wall_s)
        self.guests = Guests(lambda: None)
        self.guests.open()
        self.beat = lambda: None

    @contextmanager
    def keeper(self, subject, **options):
        with pimcal.open_device(subject.profile) as device:
            device.backend = Watched(device.backend, lambda: self.beat())
            net = pimcal.deploy(subject.model, device)
            triggers = options.pop("triggers", BUILT_IN)
            yield Keeper(net, subject, self.store, self.guests, self.time.now, triggers, generator=Random(0), **options)

    def goes_on(self, keeper, seconds):
        """Let time pass, doing what is due; what the decisions were."""
        end_s, kinds = self.time.monotonic_s + seconds, []
        while self.time.monotonic_s < end_s:
            wait_s = keeper.step()
            kinds.append(keeper.decision.kind)
            self.time.goes_on(min(max(wait_s, 0.0), end_s - self.time.monotonic_s))
        return kinds

    def reasons(self):
        return [event.reason for event in self.store.journal.history()]

    def active(self):
        (found,) = self.store.generations(states=["active"])
        return found


@pytest.fixture
def room(tmp_path):
    made = Room(tmp_path / "store")
    yield made
    made.store.close()


def accuracy(keeper):
    return evaluate(keeper.net, keeper.engine.held_out, keeper.subject.metric).value


# --- days


def test_over_days_it_holds_accuracy_and_looks_when_it_should(room, subject):
    with room.keeper(subject(PROBING)) as keeper:
        kinds = room.goes_on(keeper, 3 * DAY_S)
        assert kinds[0] == "calibrate"
        assert kinds.count("probe") == 12 - 1  # by hour 72 the twelfth is not due yet
        assert 2 <= keeper.notes.activations <= 12
        held = accuracy(keeper)
        with keeper.net.uncorrected():
            assert accuracy(keeper) < held - 0.1
    assert room.active().id == keeper.active.generation.id


def test_without_drift_it_calibrates_once(room, subject):
    with room.keeper(subject(PROBING, rate_per_s=0.0)) as keeper:
        room.goes_on(keeper, 2 * DAY_S)
        assert keeper.notes.activations == 1


def test_a_schedule_without_probes_calibrates_each_time(room, subject):
    plan = {"every": "6h"}
    with room.keeper(subject(plan, gate={"max_drop": 1.0})) as keeper:
        kinds = room.goes_on(keeper, DAY_S + 60)
        assert kinds.count("calibrate") == 1 + 4
        assert keeper.notes.activations == 5


def test_an_upper_age_calibrates_anew(room, subject):
    plan = {"max_age": "10h"}
    with room.keeper(subject(plan, rate_per_s=0.0, gate={"max_drop": 1.0})) as keeper:
        room.goes_on(keeper, 21 * HOUR_S)
        assert keeper.notes.activations == 3


def test_calibrations_by_age_that_are_rejected_are_not_repeated_at_once(room, subject):
    with room.keeper(subject({"max_age": "1h"}, rate_per_s=0.0)) as keeper:
        kinds = room.goes_on(keeper, 10 * HOUR_S)
        assert 9 <= kinds.count("calibrate") <= 11
        assert 0 < keeper.notes.activations < 10


def test_drift_within_the_cooldown_is_seen_and_waits(room, subject):
    plan = {"every": "1h", "when": [{"probe_error": 0.02}], "cooldown": "20h"}
    with room.keeper(subject(plan, rate_per_s=2e-5)) as keeper:
        kinds = room.goes_on(keeper, 19 * HOUR_S)
        assert {"probe", "wait"} <= set(kinds)
        assert keeper.notes.activations == 1
        room.goes_on(keeper, 2 * HOUR_S)
        assert keeper.notes.activations == 2


def test_a_trigger_that_always_fires_is_not_followed_all_the_time(room, subject):
    triggers = {**BUILT_IN, "temperature_change_c": Trigger(lambda now, before, limit: Verdict(True, "always"))}
    plan = {"when": [{"temperature_change_c": 5}]}
    with room.keeper(subject(plan, rate_per_s=0.0), triggers=triggers) as keeper:
        kinds = room.goes_on(keeper, 6 * HOUR_S)
        assert 2 <= kinds.count("calibrate") <= 8
        assert keeper.notes.activations == 1


@pytest.mark.parametrize("days", [-40, 400, -0.04, 0.04])
def test_a_wall_clock_that_jumps_changes_nothing(room, subject, days):
    with room.keeper(subject(PROBING)) as keeper:
        room.goes_on(keeper, 7 * HOUR_S)
        room.time.wall_s += days * DAY_S
        kinds = room.goes_on(keeper, DAY_S)
        assert kinds.count("probe") == 4
        assert not keeper.notes.problems


def test_a_temperature_that_changes_has_it_looked_at(room, subject):
    warming = {"kind": "temperature", "amplitude_c": 10.0, "period_s": DAY_S, "eta0_per_c": 0.05}
    plan = {"when": [{"temperature_change_c": 4}]}
    with room.keeper(subject(plan, drift=warming)) as keeper:
        kinds = room.goes_on(keeper, DAY_S / 4)
        assert 3 <= kinds.count("calibrate") <= 4  # at the start, and by 10 degrees since
        assert any("temperature" in line for line in room.reasons())


# --- restarts


def test_a_restart_forgets_nothing(room, subject):
    with room.keeper(subject(PROBING)) as keeper:
        room.goes_on(keeper, DAY_S)
        history, engine = keeper.upkeep.history, keeper.engine
    room.time.goes_on(HOUR_S)
    with room.keeper(subject(PROBING)) as again:
        assert again.active.generation == keeper.active.generation
        assert again.net.active == keeper.active.record.id
        found = again.upkeep.history
        assert found.calibrated.at == history.calibrated.at
        assert found.attempts[-1].wall_s == history.attempts[-1].wall_s  # those older than an hour matter to no one
        assert again.engine.worth.level == engine.worth.level
        spot = next(iter(engine.accepted.tiles))
        assert torch.equal(again.engine.accepted.tiles[spot].answers, engine.accepted.tiles[spot].answers)


def test_a_restart_does_not_forget_which_changes_cost_nothing(room, subject):
    with room.keeper(subject(PROBING, rate_per_s=0.0)) as keeper:
        room.goes_on(keeper, HOUR_S)
        tolerant = replace(keeper.engine.sensitivity, gain=0.03)
        keeper.engine.sensitivity = tolerant
        keeper.run_now("look")
    with room.keeper(subject(PROBING, rate_per_s=0.0)) as again:
        assert again.engine.sensitivity == tolerant


def test_after_a_start_a_look_tells_whether_the_calibration_still_fits(room, subject):
    with room.keeper(subject(PROBING, rate_per_s=0.0)) as keeper:
        room.goes_on(keeper, HOUR_S)
    other = subject(PROBING, rate_per_s=0.0)
    with room.keeper(other) as again:
        again.step()
        assert (again.notes.last_look.outcome, again.notes.activations) == ("fine", 0)


@given(calls=st.integers(0, 400))
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_given_up_at_any_moment_what_was_in_force_is_in_force(subject, tmp_path_factory, calls):
    room = Room(tmp_path_factory.mktemp("room") / "store")
    with room.store, room.keeper(subject(PROBING, gate={"max_drop": 1.0})) as keeper:
        room.goes_on(keeper, HOUR_S)
        before, generation = corrections_in_force(keeper.net), room.active().id
        left = iter(range(calls))

        def beat():
            if next(left, None) is None:
                raise Abandoned

        room.beat = beat
        try:
            keeper.run_now("calibrate")
        except Abandoned:
            assert room.active().id in (generation, keeper.engine.active and room.active().id)
            after = corrections_in_force(keeper.net)
            if room.active().id == generation:
                for name, values in before.items():
                    assert all(torch.equal(value, after[name][key]) for key, value in values.items())
        room.beat = lambda: None
        keeper.follow_store()
        assert keeper.net.active == room.active().record_id


# --- a store that cannot be written


def test_where_no_record_can_be_written_what_was_in_force_is_served_on(room, subject):
    with room.keeper(subject(PROBING, rate_per_s=0.0, gate={"max_drop": 1.0})) as keeper:
        room.goes_on(keeper, HOUR_S)
        before, generation = corrections_in_force(keeper.net), room.active().id
        tensors = room.store.folder / "tensors"
        tensors.rename(room.store.folder / "elsewhere")
        tensors.write_text("in the way")
        keeper.run_now("calibrate")
        assert "what was in force stays in force" in keeper.notes.problems["store"]
        after = corrections_in_force(keeper.net)
        assert all(torch.equal(value, after[name][key]) for name in before for key, value in before[name].items())
        assert room.active().id == generation
        room.goes_on(keeper, 60)

        tensors.unlink()
        (room.store.folder / "elsewhere").rename(tensors)
        keeper.run_now("calibrate")
        assert not keeper.notes.problems
        assert room.active().id != generation


def test_no_call_of_a_backend_is_left_out():
    own = {name for name, value in vars(Backend).items() if callable(value) or isinstance(value, property)}
    assert {name for name in own if not name.startswith("__")} <= {*vars(Watched), "check_installation"}


# --- the answers on disk


def test_a_damaged_file_of_answers_is_told_and_taken_anew(room, subject, caplog):
    with room.keeper(subject(PROBING, rate_per_s=0.0)) as keeper:
        room.goes_on(keeper, HOUR_S)
        path = memory_file(room.store.folder, keeper.key)
        record = keeper.active.record.id
    assert Memory.load(path, record) is not None
    assert Memory.load(path, "another record") is None
    path.write_bytes(path.read_bytes()[:-100])
    with caplog.at_level(logging.WARNING), room.keeper(subject(PROBING, rate_per_s=0.0)) as keeper:
        assert keeper.engine.accepted is None
        assert str(path) in caplog.text
        keeper.step()
        assert keeper.engine.accepted is not None
        assert Memory.load(path, keeper.active.record.id) is not None


def test_a_file_of_answers_of_another_version_is_told_as_such(room, subject, caplog):
    with room.keeper(subject(PROBING, rate_per_s=0.0)) as keeper:
        room.goes_on(keeper, HOUR_S)
        path = memory_file(room.store.folder, keeper.key)
    torch.save({"record": keeper.active.record.id, "level": 0.9}, path)
    with caplog.at_level(logging.WARNING):
        assert Memory.load(path, keeper.active.record.id) is None
    assert "written by another version of pimcal" in caplog.text


# --- guests


def test_guests_get_what_is_in_force_while_a_candidate_is_tried(room, subject):
    asked: list[Future] = []

    class Asking:
        """Held-out images; each time they are looked at somebody asks for something."""

        def __init__(self, batches):
            self.batches = batches

        def __len__(self):
            return len(self.batches)

        def __getitem__(self, index):
            batch = self.batches[index]
            asked.append(room.guests.submit(corrections_in_force))
            return batch

    def images(profile, *both):
        found = images_for(profile, *both)
        return type(found)(found.calibration, Asking(found.held_out))

    with room.keeper(subject(PROBING, images=images, rate_per_s=1e-5, gate={"max_drop": 1.0})) as keeper:
        room.goes_on(keeper, HOUR_S)
        before = corrections_in_force(keeper.net)
        asked.clear()
        room.time.goes_on(5 * HOUR_S)
        keeper.run_now("calibrate")
        assert keeper.notes.activations == 2
        after = corrections_in_force(keeper.net)
        room.guests.serve(keeper.net)
    assert len(asked) > 10
    for future in asked[:-1]:
        for name, values in future.result(0).items():
            assert all(torch.equal(value, before[name][key]) for key, value in values.items())
    assert any(not torch.equal(before[name]["mean"], after[name]["mean"]) for name in before if "mean" in before[name])


def test_guests_are_served_in_the_middle_of_a_calibrations_measurements(room, subject):
    with room.keeper(subject(PROBING, rate_per_s=0.0, gate={"max_drop": 1.0})) as keeper:
        room.goes_on(keeper, HOUR_S)
        in_force, served, measured = corrections_in_force(keeper.net), [], []

        def beat():
            if not served and len(measured) < 40:
                measured.append(room.guests.submit(lambda net: served.append(corrections_in_force(net))))

        room.beat = beat
        before = keeper.notes.activations
        keeper.run_now("calibrate")
        room.beat = lambda: None
        assert keeper.notes.activations == before + 1
        assert measured[0].done()
        assert served[0].keys() == in_force.keys()
        for name, values in in_force.items():
            assert all(torch.equal(value, served[0][name][key]) for key, value in values.items())


def test_a_generation_that_somebody_goes_back_to_is_not_replaced_at_once(room, subject):
    weekly = {"every": "6h", "when": [{"probe_error": 0.02}], "max_age": "7d"}
    with room.keeper(subject(weekly)) as keeper:
        room.goes_on(keeper, 8 * DAY_S)
        first = room.store.generations(keeper.key)[0].id
        assert room.active().id != first
        room.store.activate(first, "by hand")
        activations = keeper.notes.activations
        room.goes_on(keeper, HOUR_S)
        assert room.active().id == first  # over a week old, and worse than what came later
        assert keeper.notes.activations == activations
        assert "accuracy" in keeper.notes.problems
        alerts = [event for event in room.store.journal.history(keeper.key) if event.kind == "alert"]
        assert any(event.details["kind"] == "accuracy" for event in alerts)


def test_a_generation_that_somebody_went_back_to_while_nobody_ran_is_not_replaced_at_once(room, subject):
    with room.keeper(subject(PROBING)) as keeper:
        room.goes_on(keeper, 4 * DAY_S)
        latest = room.active().id
    first = keeper.store.generations(keeper.key)[0].id
    while room.active().id != first:
        room.store.rollback(keeper.key, "worse in the field")
    with room.keeper(subject(PROBING)) as again:
        room.goes_on(again, HOUR_S)
        assert room.active().id == first != latest
        assert again.notes.activations == 0


def test_what_somebody_activates_while_nobody_runs_is_not_replaced_at_once(room, subject):
    with room.keeper(subject(PROBING)) as keeper:
        room.goes_on(keeper, 4 * DAY_S)
    first = room.store.generations(keeper.key)[0].id
    room.store.activate(first, "by hand")
    with room.keeper(subject(PROBING)) as again:
        room.goes_on(again, HOUR_S)
        assert room.active().id == first
        assert again.notes.activations == 0


def test_what_somebody_chose_waits_for_the_end_of_quiet_hours(room, subject):
    quiet = {**PROBING, "quiet_hours": ["00:00-23:59"]}
    with room.keeper(subject(quiet, gate={"max_drop": 1.0})) as keeper:
        keeper.run_now("calibrate")
        first = room.active().id
        keeper.run_now("calibrate")
        assert room.active().id != first
        room.store.activate(first, "by hand")
        before = keeper.net.device.cost.mvms
        room.time.wall_s += HOUR_S - (room.time.wall_s % DAY_S)  # an hour after midnight
        room.goes_on(keeper, HOUR_S)
        assert keeper.active.generation.id == first
        assert keeper.net.device.cost.mvms == before


def test_an_active_generation_that_does_not_fit_is_begun_anew_once(room, subject):
    with room.keeper(subject(PROBING, rate_per_s=0.0)) as keeper:
        room.goes_on(keeper, HOUR_S)
        unfit = room.active().id
    other = subject({"every": "6h"}, rate_per_s=1e-9, gate={"max_drop": 1.0})
    with room.keeper(other, anew=True) as again:
        kinds = room.goes_on(again, HOUR_S)
        assert kinds.count("calibrate") == 1
        mine = room.active().id
        assert mine != unfit
        room.store.activate(unfit, "by mistake")
        room.goes_on(again, HOUR_S)
        assert again.net.active == again.active.record.id
        assert "stays in force" in again.notes.problems["generation"]
        assert again.active.generation.id == mine


def test_a_store_that_cannot_be_read_for_a_moment_leaves_nothing_half_taken_up(room, subject, monkeypatch):
    with room.keeper(subject(PROBING)) as keeper:
        room.goes_on(keeper, DAY_S)
        first = room.store.generations(keeper.key)[0].id
        room.store.activate(first, "by hand")

        def fails(*_, **__):
            raise StorageError("locked")

        with monkeypatch.context() as moment:
            moment.setattr("pimcal.daemon.keeper.remembered", fails)
            keeper.follow_store()
        assert keeper.upkeep.engine is keeper.engine
        assert "generation" in keeper.notes.problems
        keeper.follow_store()
        assert keeper.active.generation.id == first
        assert keeper.upkeep.engine is keeper.engine
        assert not keeper.notes.problems


def test_a_device_that_was_opened_within_the_cooldown_is_looked_at_after_it(room, subject):
    plan = {"when": [{"temperature_change_c": 5}], "cooldown": "1h"}
    with room.keeper(subject(plan, rate_per_s=1e-4)) as keeper:
        room.goes_on(keeper, HOUR_S / 4)
        generation = room.active().id
    with room.keeper(subject(plan, rate_per_s=1e-4)) as again:
        room.goes_on(again, HOUR_S / 4)
        assert again.notes.looks == 0
        room.goes_on(again, HOUR_S)
        assert again.notes.looks > 0
    assert room.store.generations(again.key)[0].id == generation


def test_what_guests_cost_is_not_counted_as_calibration(room, subject):
    with room.keeper(subject(PROBING, rate_per_s=0.0)) as keeper:
        room.goes_on(keeper, HOUR_S)
        batch = keeper.engine.held_out[0][0]
        keeper.run_now("look")
        alone = room.store.journal.runs()[-1].mvms
        room.guests.submit(lambda net: net(batch))
        room.guests.serve(keeper.net)
        keeper.run_now("look")
        assert room.store.journal.runs()[-1].mvms == alone
        assert room.guests.cost.mvms > 0


def test_a_guest_that_fails_fails_alone(room, subject):
    with room.keeper(subject(PROBING)) as keeper:
        failing = room.guests.submit(lambda net: 1 / 0)
        fine = room.guests.submit(lambda net: "fine")
        room.guests.serve(keeper.net)
        assert isinstance(failing.exception(0), ZeroDivisionError)
        assert fine.result(0) == "fine"

        lost = room.guests.submit(lambda net: net.device.close() or net(torch.zeros(1, 1, 6, 6)))
        with pytest.raises(DeviceUnavailableError):
            room.guests.serve(keeper.net)
        assert isinstance(lost.exception(0), DeviceUnavailableError)


def test_guests_are_turned_away_when_there_are_too_many_or_no_device():
    guests = Guests(lambda: None)
    with pytest.raises(DeviceUnavailableError, match="not open yet"):
        guests.submit(lambda net: None)
    guests.open()
    waiting = [guests.submit(lambda net: None) for _ in range(MOST)]
    with pytest.raises(DeviceBusyError, match="try again later"):
        guests.submit(lambda net: None)
    guests.close("it is lost")
    for future in waiting:
        with pytest.raises(DeviceUnavailableError, match="it is lost"):
            future.result(0)
