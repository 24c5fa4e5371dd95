"""Profiles from files to validated models, and every mistake with its place."""

import copy
import os
import pickle
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import cache
from pathlib import Path
from textwrap import dedent

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

import pimcal_aihwkit
import pimcal_gaussian
from pimcal import ideal
from pimcal import registry as default_registry
from pimcal.errors import ConfigError, PimcalError, UsageError
from pimcal.hookspecs import RegisterTrigger, hookimpl
from pimcal.profile import Profile, ProfileError, list_profiles, load_profile, parse_override
from pimcal.profile.dump import block
from pimcal.profile.find import shipped, shipped_folder
from pimcal.recalibration.triggers import BUILT_IN, Verdict
from pimcal.registry import Registry

Write = Callable[..., str]


@cache
def registry() -> Registry:
    found = Registry()
    found.register_plugin(ideal)
    found.register_plugin(pimcal_gaussian)
    found.register_plugin(pimcal_aihwkit)
    return found


def settings_model(backend: str) -> type[BaseModel]:
    return registry().settings_model(backend)


def load(name: str | Path, overrides: Mapping[str, object] | None = None) -> Profile:
    return load_profile(name, overrides, settings_model)


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a profile into the working directory; its name is given back."""
    monkeypatch.chdir(tmp_path)

    def write(text: str | bytes, name: str = "p.yaml") -> str:
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(text if isinstance(text, bytes) else dedent(text).encode())
        return name

    return write


def lines_of(name: str, overrides: Mapping[str, object] | None = None) -> list[str]:
    with pytest.raises(ProfileError) as caught:
        load(name, overrides)
    assert len(caught.value.problems) == len(str(caught.value).splitlines())
    return str(caught.value).splitlines()


HEAD = "schema: pimcal/1\nbackend: gaussian\ndevice: {noise: mul, eta0: 0.1}\n"


# --- what a profile holds


def test_a_full_profile_is_read(write: Write) -> None:
    profile = load(
        write("""
            schema: pimcal/1
            backend: gaussian
            device: {noise: mul, eta0: 6e-2, drift: {kind: linear, rate_per_s: 1e-3}}
            tiles: {count: 16, rows: 256, cols: 128}
            io: {input_bits: 8, output_bits: 6}
            host: ["fc", "*.downsample.*"]
            references: {offset: 1, gain: 2}
            calibration: {method: ema, images: 4000, momentum: 0.99}
            gate: {max_drop: 0.005, repeats: 3, images: 500}
            recalibration:
              every: 90m
              cron: "0 */6 * * mon-fri"
              when: [{probe_error: 0.02}, {temperature_change_c: 5}]
              jitter: 30s
              cooldown: 10m
              max_per_hour: 4
              max_age: 30d
              quiet_hours: ["12:00-13:30", "22:00-06:00"]
              timezone: Europe/Berlin
        """)
    )
    assert (profile.schema_version, profile.backend, profile.name) == ("pimcal/1", "gaussian", "p")
    assert profile.settings == pimcal_gaussian_settings(noise="mul", eta0=0.06, drift=("linear", 1e-3))
    assert (profile.tiles.count, profile.tiles.rows, profile.tiles.cols) == (16, 256, 128)
    assert (profile.io.input_bits, profile.io.output_bits) == (8, 6)
    assert profile.host == ("fc", "*.downsample.*")
    assert (profile.references.offset, profile.references.gain) == (1, 2)
    assert (profile.calibration.method, profile.calibration.images, profile.calibration.momentum) == (
        "ema",
        4000,
        0.99,
    )
    assert (profile.gate.max_drop, profile.gate.repeats, profile.gate.images) == (0.005, 3, 500)
    schedule = profile.recalibration
    assert (schedule.every, schedule.max_age) == (timedelta(minutes=90), timedelta(days=30))
    assert (schedule.jitter, schedule.cooldown) == (timedelta(seconds=30), timedelta(minutes=10))
    assert schedule.when == ({"probe_error": 0.02}, {"temperature_change_c": 5.0})
    assert (schedule.cron, schedule.max_per_hour) == ("0 */6 * * mon-fri", 4)
    assert [(each.start_min, each.end_min) for each in schedule.quiet_hours] == [(720, 810), (1320, 360)]
    assert schedule.timezone == "Europe/Berlin"


def pimcal_gaussian_settings(noise: str, eta0: float, drift: tuple[str, float]) -> object:
    from pimcal_gaussian.settings import GaussianSettings

    return GaussianSettings.model_validate(
        {"noise": noise, "eta0": eta0, "drift": {"kind": drift[0], "rate_per_s": drift[1]}}
    )


def test_what_is_left_out_is_unbounded_floating_point_and_without_references(write: Write) -> None:
    profile = load(write("schema: pimcal/1\nbackend: ideal\n"))
    assert (profile.tiles.count, profile.tiles.rows, profile.tiles.cols) == (None, None, None)
    assert (profile.io.input_bits, profile.io.output_bits) == (None, None)
    assert (profile.references.offset, profile.references.gain) == (0, 0)
    assert (profile.calibration.method, profile.calibration.images, profile.calibration.momentum) == (
        "paired",
        64,
        0.999,
    )
    assert (profile.gate.max_drop, profile.gate.repeats, profile.gate.images) == (0.0, 1, None)
    assert profile.recalibration.every is None
    assert (profile.recalibration.quiet_hours, profile.recalibration.timezone) == ((), "UTC")


def test_one_window_of_quiet_hours_needs_no_list(write: Write) -> None:
    one = load(write(HEAD + "recalibration: {quiet_hours: 22:00-06:00}\n"))
    assert one.hash == load(write(HEAD + "recalibration: {quiet_hours: ['22:00-06:00']}\n", "q.yaml")).hash
    assert one.resolved()["recalibration"]["quiet_hours"] == ["22:00-06:00"]  # type: ignore[index, call-overload]


def test_a_trigger_of_a_plugin_is_accepted_and_suggested(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    class Plugin:
        @hookimpl
        def pimcal_register_triggers(self, register: RegisterTrigger) -> None:
            register("humidity_change", lambda now, before, limit: Verdict(False, "it is dry"))

    own = Registry()
    own.register_plugin(Plugin(), "weather")
    monkeypatch.setattr(default_registry, "default", lambda: own)
    text = HEAD + "recalibration: {when: [{humidity_change: -3}]}\n"
    assert load(write(text)).recalibration.when == ({"humidity_change": -3.0},)
    (line,) = lines_of(write(text.replace("humidity", "humidty")))
    assert line.startswith("p.yaml:4:25: recalibration.when.0.humidty_change: unknown trigger; did you mean 'humidity_")


def test_null_means_left_out(write: Write) -> None:
    spelled = load(write(HEAD + "tiles: {rows: null}\nio: null\ngate: {max_drop: ~}\n"))
    assert spelled.hash == load(write(HEAD, "q.yaml")).hash


def test_a_profile_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load("ideal").backend = "gaussian"


def test_a_profile_made_by_hand_says_that_it_lacks_its_settings() -> None:
    with pytest.raises(ConfigError, match="not made by load_profile"):
        _ = Profile.model_validate({"schema": "pimcal/1", "backend": "ideal"}).settings


def test_copies_and_pickles_are_equal() -> None:
    profile = load("gaussian_mul")
    assert copy.deepcopy(profile).hash == copy.copy(profile).hash == profile.hash


# --- mistakes


def test_all_mistakes_are_reported_at_once_each_with_its_place(write: Write) -> None:
    name = write("""\
        schema: pimcal/1
        backend: gaussian
        device:
          noise: mull
          eto0: 0.1
          sigma_temporal: -1
        tiles: {rows: 0, columns: 4}
        io:
          input_bits: "8"
        io: {}
        host: fc
        calibraton: {}
        """)
    assert lines_of(name) == [
        "p.yaml:3:1: device.eta0: needed, but not there",
        "p.yaml:4:10: device.noise: must be 'mul', 'add' or 'awgn' (got mull)",
        "p.yaml:5:3: device.eto0: unknown key; did you mean 'device.eta0'?",
        "p.yaml:6:19: device.sigma_temporal: must be greater than or equal to 0 (got -1)",
        "p.yaml:7:15: tiles.rows: must be greater than 0 (got 0)",
        "p.yaml:7:18: tiles.columns: unknown key; did you mean 'tiles.cols'?",
        'p.yaml:9:15: io.input_bits: must be a valid integer (got "8")',
        "p.yaml:10:1: io: key given twice, first in line 8",
        "p.yaml:11:7: host: must be a list (got fc)",
        "p.yaml:12:1: calibraton: unknown key; did you mean 'calibration'?",
    ]


CRON_MISTAKES = [
    (
        "*/90 * * * *",
        "'*/90' would mean minute 0 alone, as a step of 90 leaves 0 to 59 at once; write 0, or every: 90m",
    ),
    ("*/60 * * * *", "'*/60' would mean minute 0 alone"),
    ("0 */36 * * *", "'*/36' would mean hour 0 alone, as a step of 36 leaves 0 to 23 at once; write 0, or every: 36h"),
    ("0 */24 * * *", "'*/24' would mean hour 0 alone"),
    ("0 0 */40 * *", "'*/40' would mean day of the month 1 alone, as a step of 40 leaves 1 to 31"),
    ("0 0 1 */12 *", "'*/12' would mean month 1 alone"),
    ("0 0 * * */7", "'*/7' would mean day of the week 0 alone"),
    ("0 0 * * mon-fri/5", "'mon-fri/5' would mean day of the week 1 alone"),
    ("10-20/30 * * * *", "'10-20/30' would mean minute 10 alone, as a step of 30 leaves 10 to 20 at once"),
    ("0,*/99999 * * * *", "'*/99999' would mean minute 0 alone"),
    ("5/15 * * * *", "'5/15' steps from a single minute; write 5-59/15, or 5"),
    ("50-10 * * * *", "'50-10' runs backwards; write 50-59,0-10 in its place"),
    ("0 22-6 * * *", "'22-6' runs backwards; write 22-23,0-6 in its place"),
    ("0 0 * nov-feb *", "'nov-feb' runs backwards; write 11-12,1-2 in its place"),
    ("0 0 * * fri-sun", "'fri-sun' runs backwards; write 5-6,0 in its place"),
    ("0 0 * mon *", "'mon' is no month"),
    ("0 0 jan * *", "'jan' is no day of the month"),
    ("0 0 * * monday", "'monday' is no day of the week"),
    ("@daily", "a cron expression has five fields"),
]


@pytest.mark.parametrize(
    "cron",
    ["*/59 * * * *", "0 */23 * * *", "0 0 */30 * *", "0 0 1 */11 *", "0 0 * * */6", "0 0 * * 5-7", "0-30/30 * * * *"],
)
def test_a_cron_step_within_its_field_is_accepted(cron: str, write: Write) -> None:
    assert load(write(HEAD + f"recalibration: {{cron: '{cron}'}}\n")).recalibration.cron == cron


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + "refrences:\n", "p.yaml:4:1: refrences: unknown key; did you mean 'references'?"),
        (HEAD + "tiels: null\n", "p.yaml:4:1: tiels: unknown key; did you mean 'tiles'?"),
        (HEAD + "io: {output_bit: null}\n", "p.yaml:4:6: io.output_bit: unknown key; did you mean 'io.output_bits'?"),
        (HEAD + "recalibration: {evry: ~}\n", "p.yaml:4:17: recalibration.evry: unknown key; did you mean"),
        (HEAD + "io: null\ngate:\n  xyz:\n", "p.yaml:6:3: gate.xyz: unknown key; known: images, max_drop, repeats"),
        (
            "schema: pimcal/1\nbackend: gaussian\ndevice:\n  noise: mul\n  eta0: 1\n  sed: \n",
            "p.yaml:6:3: device.sed: unknown key; did you mean 'device.seed'?",
        ),
        (
            "schema: pimcal/1\nbackend: gaussian\ndevice: {noise: mul, eta0: 1, drift: {kind: linear, rate_per_s: 1, "
            "amplitude: null}}\n",
            "p.yaml:3:68: device.drift.amplitude: unknown key; known: kind, rate_per_s",
        ),
        (
            "schema: pimcal/1\nbackend: aihwkit\ndevice: {noise: {kind: pcm, drift: {nu_men: null}}}\n",
            "p.yaml:3:37: device.noise.drift.nu_men: unknown key; did you mean",
        ),
        ("extends: gaussian_mul\ntiels: null\n", "p.yaml:2:1: tiels: unknown key; did you mean 'tiles'?"),
        ("extends: gaussian_8bit\nio: {input_bitz: null}\n", "p.yaml:2:6: io.input_bitz: unknown key; did you mean"),
    ],
)
def test_null_does_not_excuse_an_unknown_key(text: str, message: str, write: Write) -> None:
    assert [line for line in lines_of(write(text)) if line.startswith(message)]


def test_null_in_an_override_does_not_excuse_an_unknown_key() -> None:
    assert lines_of("gaussian_mul", {"device.eto0": None, "tile": None}) == [
        "-O device.eto0=null: unknown key; did you mean 'device.eta0'?",
        "-O tile=null: unknown key; did you mean 'tiles'?",
    ]


def test_null_undoes_an_inherited_key_that_the_rest_no_longer_has(write: Write) -> None:
    write(HEAD.replace("0.1", "0.1, drift: {kind: linear, rate_per_s: 0.5}"), "base.yaml")
    text = "extends: base.yaml\ndevice: {drift: {kind: random_walk, step_s: 1, std: 0.1, rate_per_s: null}}\n"
    assert load(write(text)).resolved()["device"]["drift"] == {"kind": "random_walk", "step_s": 1.0, "std": 0.1}  # type: ignore[index, call-overload]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n", "p.yaml:1:1: a profile is a mapping (key: value)"),
        ("just text", "p.yaml:1:1: a profile is a mapping"),
        ("backend: ideal\n", "p.yaml:1:1: schema: needed, but not there"),
        ("schema: pimcal/1\n", "p.yaml:1:1: backend: needed, but not there"),
        ("schema: pimcal/2\nbackend: ideal\n", "p.yaml:1:9: schema: must be 'pimcal/1' (got pimcal/2)"),
        ("schema: pimcal/1\nbackend: 3\n", "p.yaml:2:10: backend: must be a valid string (got 3)"),
        ("schema: pimcal/1\nbackend: ideal\ndevice: 3\n", "p.yaml:3:9: device: must be a mapping"),
        (
            "schema: pimcal/1\nbackend: ideal\ndevice: {x: 1}\n",
            "p.yaml:3:10: device.x: unknown key; none is known",
        ),
        (HEAD + "tiles: 256\n", "p.yaml:4:8: tiles: must be a mapping (key: value) (got 256)"),
        (HEAD + "tiles: {rows: 256.5}\n", "p.yaml:4:15: tiles.rows: must be a valid integer (got 256.5)"),
        (HEAD + "tiles: {rows: true}\n", "p.yaml:4:15: tiles.rows: must be a valid integer (got true)"),
        (HEAD + "io: {output_bits: 17}\n", "p.yaml:4:19: io.output_bits: must be less than or equal to 16"),
        (HEAD + "io: {output_bits: 1}\n", "p.yaml:4:19: io.output_bits: must be greater than or equal to 2"),
        (HEAD + "host: [fc, 3]\n", "p.yaml:4:12: host.1: must be a valid string (got 3)"),
        (
            HEAD + "references: {gain: -1}\n",
            "p.yaml:4:20: references.gain: must be greater than or equal to 0",
        ),
        (HEAD + "tiles: {cols: 2}\nreferences: {gain: 2}\n", "p.yaml:5:13: references: no column is left"),
        (
            HEAD + "calibration: {method: pairs}\n",
            "p.yaml:4:23: calibration.method: must be 'paired', 'affine'",
        ),
        (HEAD + "gate: {max_drop: 1.5}\n", "p.yaml:4:18: gate.max_drop: must be less than or equal to 1"),
        (HEAD + "gate: {repeats: 0}\n", "p.yaml:4:17: gate.repeats: must be greater than 0"),
        (
            HEAD + "recalibration: {every: 15}\n",
            "p.yaml:4:24: recalibration.every: a duration is written with units",
        ),
        (HEAD + "recalibration: {every: 0s}\n", "p.yaml:4:24: recalibration.every: a duration above zero"),
        (HEAD + "recalibration: {every: 1m2h}\n", "recalibration.every: a duration is written with units"),
        (HEAD + "recalibration: {every: ''}\n", "recalibration.every: a duration is written with units"),
        (
            HEAD + "recalibration: {cron: '* * * *'}\n",
            "p.yaml:4:23: recalibration.cron: a cron expression has five",
        ),
        (HEAD + "recalibration: {cron: '60 * * * *'}\n", "'60' is no minute of a cron expression (0 to 59"),
        (HEAD + "recalibration: {cron: '* * 0 * *'}\n", "'0' is no day of the month"),
        (HEAD + "recalibration: {cron: '* * * dez *'}\n", "'dez' is no month"),
        (HEAD + "recalibration: {cron: '*/0 * * * *'}\n", "'*/0' is no minute"),
        *(
            (HEAD + f"recalibration: {{cron: '{cron}'}}\n", f"p.yaml:4:23: recalibration.cron: {message}")
            for cron, message in CRON_MISTAKES
        ),
        (
            HEAD + "recalibration: {cron: '*/10 * * * *', jitter: 10m}\n",
            "p.yaml:4:47: recalibration.jitter: must be shorter than the shortest time of cron (10m)",
        ),
        (HEAD + "recalibration: {when: [{a: 1, b: 2}]}\n", "p.yaml:4:24: recalibration.when.0: "),
        (
            HEAD + "recalibration: {when: [{a: x}]}\n",
            "p.yaml:4:28: recalibration.when.0.a: must be a valid number",
        ),
        (
            HEAD + "recalibration: {every: 1h, when: [{age_h: 9}, {probe_eror: 1}]}\n",
            "p.yaml:4:48: recalibration.when.1.probe_eror: unknown trigger; did you mean 'probe_error'?",
        ),
        (
            HEAD + "recalibration: {when: [{xyz: 1}]}\n",
            "p.yaml:4:25: recalibration.when.0.xyz: unknown trigger; known: age_h, link_errors_per_h, probe_error",
        ),
        (
            HEAD + "recalibration: {when: [{age_h: 0}]}\n",
            "p.yaml:4:32: recalibration.when.0.age_h: the limit must be above zero (got 0)",
        ),
        (
            HEAD + "recalibration: {when: [{age_h: 1}, {age_h: 2}]}\n",
            "p.yaml:4:37: recalibration.when.1.age_h: trigger given twice, first as recalibration.when.0",
        ),
        (
            HEAD + "recalibration: {when: [{probe_error: 0.1}]}\n",
            "p.yaml:4:25: recalibration.when.0.probe_error: nothing says when to probe; add recalibration.every or",
        ),
        (
            HEAD + "recalibration: {cron: '0 0 31 4,feb *'}\n",
            "p.yaml:4:23: recalibration.cron: never comes: none of its months has such a day",
        ),
        (
            HEAD + "recalibration: {every: 1h, jitter: 60m}\n",
            "p.yaml:4:36: recalibration.jitter: must be shorter than every (1h)",
        ),
        (
            HEAD + "recalibration: {max_age: 1h, cooldown: 2h}\n",
            "p.yaml:4:26: recalibration.max_age: must not be shorter than cooldown (2h)",
        ),
        (
            HEAD + "recalibration: {quiet_hours: [22:00-06:00, 6:00-7:00]}\n",
            "p.yaml:4:44: recalibration.quiet_hours.1: quiet hours are written",
        ),
        (
            HEAD + "recalibration: {quiet_hours: 25:00-06:00}\n",
            "p.yaml:4:30: recalibration.quiet_hours: quiet hours are written",
        ),
        (
            HEAD + "recalibration: {quiet_hours: 00:00-24:00}\n",
            "p.yaml:4:30: recalibration.quiet_hours: quiet hours that begin and end at one time",
        ),
        (
            HEAD + "recalibration: {quiet_hours: [22:00-12:00, 11:00-22:00]}\n",
            "p.yaml:4:30: recalibration.quiet_hours: together the quiet hours last the whole day",
        ),
        (HEAD + "recalibration: {quiet_hours: 22}\n", "p.yaml:4:30: recalibration.quiet_hours: must be a list"),
        (
            HEAD + "recalibration: {timezone: Europe/Berln}\n",
            "p.yaml:4:27: recalibration.timezone: not a time zone; names are those of the IANA database, as "
            "\"Europe/Berlin\"; did you mean 'Europe/Berlin'?",
        ),
        *(
            (HEAD + f"recalibration: {{timezone: {name}}}\n", "p.yaml:4:27: recalibration.timezone: not a time zone")
            for name in ("Europe", "../UTC", "/etc/localtime", "''", "'\\0'", "tzdata.zi")
        ),
        (
            "schema: pimcal/1\nbackend: gaussian\ndevice: {noise: mul, eta0: 1, drift: {kind: linear, rat_per_s: 1}}",
            "p.yaml:3:53: device.drift.rat_per_s: unknown key; did you mean 'device.drift.rate_per_s'?",
        ),
        (
            "schema: pimcal/1\nbackend: gaussian\ndevice: {noise: mul, eta0: 1, drift: {kind: cubic}}",
            "p.yaml:3:38: device.drift: Input tag 'cubic' found using 'kind'",
        ),
        (
            "schema: pimcal/1\nbackend: gaussian\ndevice: {noise: awgn, eta0: 1, granularity: tile}",
            "p.yaml:3:9: device: granularity 'tile' is for mul and add",
        ),
    ],
)
def test_a_mistake_is_named_with_its_place(text: str, message: str, write: Write) -> None:
    assert any(message in line for line in lines_of(write(text)))


def test_an_unknown_backend_is_reported_where_it_is_named_with_all_other_mistakes(write: Write) -> None:
    first, second = lines_of(write("schema: pimcal/1\nbackend: gausian\ntiles: {rows: 0}\n"))
    assert first.startswith("p.yaml:2:10: backend: unknown backend 'gausian'; did you mean 'gaussian'?")
    assert second.startswith("p.yaml:3:15: tiles.rows:")


def test_a_profile_error_is_a_configuration_error_that_survives_pickling(write: Write) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write("a: 1\n"))
    again = pickle.loads(pickle.dumps(caught.value))
    assert caught.value.exit_code == 78
    assert (str(again), again.problems) == (str(caught.value), caught.value.problems)  # type: ignore[attr-defined]


def test_a_truth_value_of_yaml_1_1_gets_a_hint(write: Write) -> None:
    class Settings(BaseModel):
        signed: bool

    with pytest.raises(ProfileError, match=r"device\.signed: must be a valid boolean, written true or false"):
        load_profile(write("schema: pimcal/1\nbackend: x\ndevice: {signed: no}\n"), settings_model=lambda _: Settings)


# --- finding profiles


def test_an_unknown_name_gets_a_suggestion_and_the_shipped_names() -> None:
    (line,) = lines_of("gausian_mul")
    assert "no profile is called 'gausian_mul'; did you mean 'gaussian_mul'?" in line
    assert all(name in line for name in shipped())


def test_a_missing_file_gets_a_suggestion(write: Write) -> None:
    write("", "other.yaml")
    (line,) = lines_of("gaussian_mull.yaml")
    assert line.startswith("gaussian_mull.yaml does not exist; did you mean 'gaussian_mul'?")


@pytest.mark.parametrize("name", ["", ".", "no/such/file", "\0", "\0.yaml", "x" * 5000, "x" * 5000 + ".yaml"])
def test_any_name_ends_in_an_error_that_says_what_there_is(name: str) -> None:
    (line,) = lines_of(name)
    assert "gaussian_mul" in line


def test_a_folder_is_no_profile(write: Write) -> None:
    write("", "folder.yaml/x")
    assert "folder.yaml is a folder, not a profile" in lines_of("folder.yaml")[0]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_says_so(write: Write) -> None:
    Path(write(HEAD)).chmod(0)
    assert lines_of("p.yaml") == ["p.yaml: cannot be read: Permission denied"]


def test_a_file_without_suffix_is_found_before_a_shipped_name(write: Write) -> None:
    write(HEAD, "ideal")
    assert load("ideal").backend == "gaussian"


@pytest.mark.parametrize("name", sorted(shipped()))
def test_shipped_profiles_are_valid_and_every_field_has_a_comment(name: str) -> None:
    assert load(name).name == name
    body = [line for line in shipped()[name].read_text().splitlines() if not line.startswith("#")]
    assert all("# " in line or line.endswith(":") for line in body)


def test_the_profiles_that_the_documentation_promises_are_shipped() -> None:
    listed = {profile.name: profile for profile in list_profiles()}
    boards = {"board_serial", "board_virtual", "board_qemu", "board_remote"}
    assert {"ideal", "gaussian_mul", "gaussian_add", "gaussian_awgn", "gaussian_8bit"} | boards <= set(listed)
    assert listed["gaussian_8bit"].backend == "gaussian"
    assert all(profile.description for profile in listed.values())
    assert shipped_folder().is_dir()


# --- extends


def test_a_profile_builds_on_another_key_by_key(write: Write) -> None:
    write(HEAD + "tiles: {rows: 256, cols: 256}\nhost: [fc, head]\nio: {input_bits: 8}\n", "base.yaml")
    profile = load(write("extends: base.yaml\ntiles: {rows: 128}\nhost: [stem]\nio: null\n"))
    assert (profile.tiles.rows, profile.tiles.cols) == (128, 256)
    assert profile.host == ("stem",)
    assert profile.io.input_bits is None
    assert profile.origin == {
        "schema": "base.yaml:1:9",
        "backend": "base.yaml:2:10",
        "device.noise": "base.yaml:3:17",
        "device.eta0": "base.yaml:3:28",
        "tiles.rows": "p.yaml:2:15",
        "tiles.cols": "base.yaml:4:26",
        "host": "p.yaml:3:7",
    }


def test_extended_files_are_looked_for_beside_the_file_that_names_them(write: Write) -> None:
    write(HEAD, "lab/chip.yaml")
    write("extends: chip.yaml\ndevice: {eta0: 0.2}\n", "lab/mine.yaml")
    profile = load("lab/mine.yaml", {"device.seed": 3})
    assert profile.origin["device.eta0"] == "lab/mine.yaml:2:16"
    assert profile.origin["device.noise"] == "lab/chip.yaml:3:17"
    assert profile.origin["device.seed"] == "-O device.seed=3"


def test_a_shipped_profile_can_be_extended_even_by_a_file_of_its_name(write: Write) -> None:
    profile = load(write("extends: gaussian_mul\ndevice: {eta0: 0.3}\n", "gaussian_mul.yaml"))
    assert profile.resolved()["device"] == load("gaussian_mul", {"device.eta0": 0.3}).resolved()["device"]


def test_another_backend_does_not_inherit_the_device_section(write: Write) -> None:
    profile = load(write("extends: gaussian_8bit\nbackend: ideal\n"))
    assert (profile.backend, profile.device, profile.tiles.rows) == ("ideal", {}, 256)
    assert load("gaussian_8bit", {"backend": "ideal"}).hash == profile.hash


def test_the_same_backend_named_again_inherits_the_device_section(write: Write) -> None:
    assert load(write("extends: gaussian_mul\nbackend: gaussian\n")).hash == load("gaussian_mul").hash


def test_a_circle_of_profiles_is_reported_with_its_chain(write: Write) -> None:
    write("extends: b.yaml\n", "a.yaml")
    write("extends: ./c.yaml\n", "b.yaml")
    write("x: 1\nextends: a.yaml\n", "c.yaml")
    assert lines_of("a.yaml") == ["c.yaml:2:10: extends: goes in a circle: a.yaml -> b.yaml -> c.yaml -> a.yaml"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a: 1\nextends: gausian_mul\n",
            "p.yaml:2:10: extends: no profile is called 'gausian_mul'; did you mean",
        ),
        ("extends: nowhere.yaml\n", "p.yaml:1:10: extends: nowhere.yaml does not exist"),
        ("extends: [a, b]\n", "p.yaml:1:10: extends: must be the name or the file of one profile"),
        ("extends: .\n", "p.yaml:1:10: extends: no profile is called '.'"),
    ],
)
def test_what_cannot_be_extended_is_reported_where_it_is_named(text: str, message: str, write: Write) -> None:
    assert lines_of(write(text))[0].startswith(message)


def test_mistakes_of_both_files_are_reported_together(write: Write) -> None:
    write(HEAD + "tiles: {rows: 0}\n", "base.yaml")
    lines = lines_of(write("extends: base.yaml\nio: {input_bits: 99}\nhost: [a]\nhost: [b]\n"))
    assert [line.partition(" ")[0] for line in lines] == ["base.yaml:4:15:", "p.yaml:2:18:", "p.yaml:4:1:"]


# --- overrides


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("device.eta0=0.1", ("device.eta0", 0.1)),
        ("device.eta0=1e-3", ("device.eta0", 1e-3)),
        ("references=null", ("references", None)),
        ("host=[fc, '*.head']", ("host", ["fc", "*.head"])),
        ("tiles={rows: 4, cols: 8}", ("tiles", {"rows": 4, "cols": 8})),
        ("a.b=x=y", ("a.b", "x=y")),
        ("a=no", ("a", "no")),
        ("a=''", ("a", "")),
    ],
)
def test_an_override_is_read_by_the_rules_of_a_profile(text: str, parsed: tuple[str, object]) -> None:
    assert parse_override(text) == parsed


@pytest.mark.parametrize("text", ["device.eta0", "=3", "a=", "a=[1, 2", "a=!x 3", "a=\0", "a={b: 1, b: 2}", "a=.inf"])
def test_a_broken_override_is_a_usage_error_that_repeats_it(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_override(text)
    assert str(caught.value).startswith(f"-O {text}: ")


def test_overrides_replace_add_and_remove(write: Write) -> None:
    name = write(HEAD + "references: {offset: 1, gain: 1}\nio: {input_bits: 8}\n")
    profile = load(name, {"device.eta0": 0.5, "references": None, "io": None, "tiles": {"rows": 4}})
    assert profile.resolved() == load(write(HEAD.replace("0.1", "0.5") + "tiles: {rows: 4}", "q.yaml")).resolved()


def test_an_unknown_key_in_an_override_gets_a_suggestion() -> None:
    assert lines_of("gaussian_mul", {"device.eto0": 0.1, "tile.rows": 4, "io": {"bits": 8}}) == [
        "-O device.eto0=0.1: unknown key; did you mean 'device.eta0'?",
        "-O io={bits: 8}: io.bits: unknown key; known: input_bits, output_bits",
        "-O tile.rows=4: tile: unknown key; did you mean 'tiles'?",
    ]


def test_a_wrong_value_in_an_override_is_reported_with_what_is_missing_in_the_file(write: Write) -> None:
    name = write("schema: pimcal/1\nbackend: gaussian\ndevice: {noise: mul}\n")
    assert lines_of(name, {"device.seed": "x", "backend": "gaussian"}) == [
        "-O device.seed=x: must be a valid integer (got x)",
        "p.yaml:3:1: device.eta0: needed, but not there",
    ]


@pytest.mark.parametrize("key", ["", ".", "device.", "a..b"])
def test_a_key_that_is_no_dotted_name_is_refused(key: str) -> None:
    with pytest.raises(ProfileError, match="names joined by dots"):
        load("ideal", {key: 1})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1 << 64, object(), {1}, [object()], "\ud800"])
def test_an_override_that_is_no_plain_data_is_refused(value: object) -> None:
    with pytest.raises(ProfileError, match=r"^-O host="):
        load("ideal", {"host": value})


def test_numbers_of_numpy_are_numbers() -> None:
    import numpy as np

    numpy = load("gaussian_mul", {"device.eta0": np.float32(0.5), "device.seed": np.int64(3)})
    assert numpy.hash == load("gaussian_mul", {"device.eta0": 0.5, "device.seed": 3}).hash


def test_a_profile_with_overrides_is_the_profile_loaded_with_them() -> None:
    base = load("gaussian_8bit")
    changed = base.with_overrides({"device.eta0": 0.3}).with_overrides({"tiles": None})
    assert changed == load("gaussian_8bit", {"device.eta0": 0.3, "tiles": None})
    assert changed.origin["device.eta0"] == "-O device.eta0=0.3"
    assert base.hash == load("gaussian_8bit").hash != changed.hash
    with pytest.raises(ProfileError, match=r"device\.eta0"):
        base.with_overrides({"device.eta0": -1})


# --- invariants


def test_the_hash_depends_on_values_not_on_how_they_are_written(write: Write) -> None:
    short = load(write("schema: pimcal/1\nbackend: gaussian\ndevice: {eta0: 1, noise: mul}\n"))
    long = load(
        write(
            """
            device: {noise: "mul", eta0: 1.0, seed: 0, granularity: element, drift: null}
            backend: gaussian
            schema: pimcal/1
            gate: {}
            """,
            "q.yaml",
        )
    )
    assert short.hash == long.hash
    assert short.with_overrides({"device.seed": 1}).hash != short.hash


changes = st.fixed_dictionaries(
    {},
    optional={
        "device.eta0": st.just(0.0) | st.floats(1e-9, 1e3),
        "device.seed": st.integers(0, 2**63 - 1),
        "device.drift": st.builds(lambda x: {"kind": "linear", "rate_per_s": x}, st.just(0.0) | st.floats(1e-12, 1e6)),
        "tiles.rows": st.integers(12, 10**9) | st.none(),
        "io.input_bits": st.integers(2, 16),
        "host": st.lists(st.text(), max_size=4),
        "references": st.fixed_dictionaries({"offset": st.integers(0, 9), "gain": st.integers(0, 9)}),
        "recalibration.every": st.from_regex(r"[0-9]{1,4}d[1-9][0-9]?h[0-9]{1,6}s", fullmatch=True),
        "recalibration.when": st.dictionaries(
            st.sampled_from(sorted(BUILT_IN.keys() - {"probe_error"})), st.floats(1e-9, 9), max_size=3
        ).map(lambda limits: [{name: limit} for name, limit in limits.items()]),
        "recalibration.quiet_hours": st.from_regex(r"(0[0-9]|1[0-1]):[0-5][0-9]-(1[2-9]):[0-5][0-9]", fullmatch=True),
        "recalibration.timezone": st.sampled_from(["UTC", "Asia/Kathmandu"]),
    },
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(changes=changes)
def test_a_resolved_profile_reads_back_as_the_same_profile(changes: dict[str, object], write: Write) -> None:
    profile = load("gaussian_mul", changes)
    for origin in (None, profile.origin):
        again = load(write(block(profile.resolved(), origin)))
        assert (again.hash, again.settings) == (profile.hash, profile.settings)


def outcome(action: Callable[[], Profile]) -> str:
    """The profile's hash or what a user reads; any other exception fails the test."""
    try:
        return action().hash
    except PimcalError as error:
        return str(error)


words = st.sampled_from(
    [
        *(
            "schema",
            "pimcal/1",
            "backend",
            "gaussian",
            "ideal",
            "device",
            "noise",
            "mul",
            "eta0",
            "tiles",
            "rows",
        ),
        *(
            "host",
            "extends",
            "gaussian_mul",
            "p.yaml",
            "recalibration",
            "when",
            "cron",
            "every",
            "1h",
            "drift",
        ),
        *("0.1", "-3", "null", "true", "1e999", ".nan", ": ", ":\n  ", "\n", "- ", "{", "}", "[", "]", ", "),
        *("&a", "*a", "!x", "'", '"', "#", "\t", "\\", "|", ">", "---\n", "\0", "\u2028"),
    ]
)
near_yaml = st.lists(words, max_size=40).map(lambda parts: "".join(parts).encode())
sensible = st.lists(words, max_size=8).map(lambda parts: (HEAD + "".join(parts)).encode())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)
@given(data=st.binary(max_size=300) | near_yaml | sensible)
def test_any_bytes_end_in_a_profile_or_a_pimcal_error(data: bytes, write: Write) -> None:
    assert outcome(lambda: load(write(data)))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.text(max_size=40) | st.lists(words, max_size=6).map("=".join))
def test_any_override_ends_in_a_profile_or_a_pimcal_error(text: str) -> None:
    assert outcome(lambda: load("gaussian_mul", dict([parse_override(text)])))


def test_hardware_hash_follows_the_hardware_and_not_the_procedure() -> None:
    profile = load("gaussian_mul")
    procedure = profile.with_overrides({"calibration.images": 8, "gate.max_drop": 0.1, "recalibration.every": "1h"})
    assert procedure.hardware_hash == profile.hardware_hash
    assert procedure.hash != profile.hash
    for key, value in {"device.eta0": 0.5, "references.offset": 2, "io.input_bits": 4, "host": ["fc"]}.items():
        assert profile.with_overrides({key: value}).hardware_hash != profile.hardware_hash, key


def test_hardware_hash_does_not_follow_the_way_to_a_board() -> None:
    profile = load("board_serial")
    for key, value in {"device.port": "/dev/ttyACM9", "device.baud": 921600, "device.margin_s": 1.5}.items():
        assert profile.with_overrides({key: value}).hardware_hash == profile.hardware_hash, key
    assert profile.with_overrides({"device.serial_number": "PIM-2"}).hardware_hash != profile.hardware_hash
