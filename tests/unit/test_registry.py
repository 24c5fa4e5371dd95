"""Backends and plugins as installed distributions: real modules and metadata on sys.path."""

import logging
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from textwrap import dedent

import pytest

from pimcal import events
from pimcal.errors import ConfigError, MissingExtraError
from pimcal.hookspecs import hookimpl
from pimcal.ideal import Ideal, IdealSettings
from pimcal.recalibration.triggers import BUILT_IN, Trigger, Verdict
from pimcal.registry import Registry

BACKEND = """
    from pimcal.hookspecs import hookimpl
    from pimcal.ideal import IdealSettings

    @hookimpl
    def pimcal_register_backends(register):
        register(name="{name}", backend="pimcal.ideal:Ideal", settings=IdealSettings)
"""


class Site:
    """A folder on sys.path into which a test installs distributions."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def install(
        self,
        name: str,
        modules: Mapping[str, str],
        entries: Mapping[str, str],
        group: str = "pimcal",
        requires: str = "",
    ) -> None:
        for module, source in modules.items():
            (self.folder / f"{module}.py").write_text(dedent(source))
        info = self.folder / f"{name.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{requires}")
        lines = [f"{entry} = {target}" for entry, target in entries.items()]
        (info / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines]) + "\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield Site(tmp_path)
    for name in set(sys.modules) - before:
        if name.startswith("site_"):
            del sys.modules[name]


class Plugin:
    """An object with the hook implementations that a test gives it."""

    def __init__(self, **hooks: Callable[..., None]) -> None:
        for name, function in hooks.items():
            setattr(self, name, hookimpl(function))


def offers(*names: str) -> Plugin:
    def pimcal_register_backends(register):
        for name in names:
            register(name=name, backend=Ideal, settings=IdealSettings)

    return Plugin(pimcal_register_backends=pimcal_register_backends)


def test_a_backend_is_listed_without_being_loaded_and_loaded_when_named(site):
    site.install("alpha", {"site_alpha": BACKEND.format(name="alpha")}, {"alpha": "site_alpha"})
    registry = Registry()
    assert "alpha" in registry.backend_names()
    assert "site_alpha" not in sys.modules
    assert registry.settings_model("alpha") is IdealSettings
    assert registry.backend_class("alpha") is Ideal


def test_a_broken_backend_does_not_disturb_the_others(site):
    site.install("broken", {"site_broken": "raise RuntimeError('no luck')"}, {"broken": "site_broken"})
    site.install("alpha", {"site_alpha": BACKEND.format(name="alpha")}, {"alpha": "site_alpha"})
    registry = Registry()
    assert registry.backend_class("alpha") is Ideal
    with pytest.raises(ConfigError, match=r"broken 1\.0.*RuntimeError: no luck"):
        registry.settings_model("broken")


def test_settings_are_read_without_importing_the_backend_class(site):
    lazy = BACKEND.format(name="lazy").replace("pimcal.ideal:Ideal", "site_lazy_class:Missing")
    site.install("lazy", {"site_lazy": lazy}, {"lazy": "site_lazy"})
    registry = Registry()
    assert registry.settings_model("lazy") is IdealSettings
    with pytest.raises(ConfigError, match="site_lazy_class"):
        registry.backend_class("lazy")


def test_neither_listing_nor_the_settings_of_the_shipped_backends_import_torch():
    script = """
        import sys
        import pimcal.events, pimcal.ideal, pimcal.plain, pimcal_gaussian
        from pimcal.registry import Registry
        registry = Registry()
        registry.backend_names()
        for module in (pimcal.ideal, pimcal.plain, pimcal_gaussian):
            registry.register_plugin(module)
        names = [name for name in ("ideal", "plain", "gaussian") if registry.settings_model(name)]
        print(names, "torch" in sys.modules)
    """
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}\n{dedent(script)}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "['ideal', 'plain', 'gaussian'] False"


def test_an_unknown_backend_is_refused_with_a_suggestion_and_the_known_ones():
    registry = Registry()
    registry.register_plugin(offers("alpha", "omega"))
    with pytest.raises(ConfigError, match=r"unknown backend 'alhpa'; did you mean 'alpha'\?.*alpha.*omega"):
        registry.settings_model("alhpa")
    with pytest.raises(ConfigError, match=r"unknown backend 'xyz' \(known: .*omega"):
        registry.backend_class("xyz")


def test_two_distributions_with_one_backend_name_are_both_named(site):
    for name in ("first", "second"):
        module = f"site_{name}"
        site.install(name, {module: BACKEND.format(name="same")}, {"same": module})
    registry = Registry()
    assert registry.backend_names().count("same") == 1
    with pytest.raises(ConfigError, match=r"backend 'same'.*(first 1\.0.*second 1\.0|second 1\.0.*first 1\.0)"):
        registry.settings_model("same")


def test_a_program_that_registers_an_installed_backends_name_is_refused(site):
    site.install("alpha", {"site_alpha": BACKEND.format(name="alpha")}, {"alpha": "site_alpha"})
    registry = Registry()
    registry.register_plugin(offers("alpha"))
    with pytest.raises(ConfigError, match=r"backend 'alpha': .*running program.*alpha 1\.0"):
        registry.settings_model("alpha")


def test_two_plugins_with_one_backend_name_leave_the_first_usable():
    registry = Registry()
    registry.register_plugin(offers("alpha"), "one")
    with pytest.raises(ConfigError, match="two plugins claim backend 'alpha'"):
        registry.register_plugin(offers("beta", "alpha"), "two")
    assert registry.backend_class("alpha") is Ideal
    assert "beta" not in registry.backend_names()


def test_two_plugins_of_one_name_are_refused_but_one_may_register_twice():
    registry = Registry()
    first = offers("alpha")
    registry.register_plugin(first, "mine")
    registry.register_plugin(first, "mine")
    with pytest.raises(ConfigError, match="two plugins claim plugin 'mine'"):
        registry.register_plugin(offers("beta"), "mine")


def test_one_module_may_offer_two_backends_under_two_entry_points(site):
    source = BACKEND.format(name="alpha") + BACKEND.format(name="beta").splitlines()[-1] + "\n"
    site.install("both", {"site_both": source}, {"alpha": "site_both", "beta": "site_both"})
    registry = Registry()
    assert registry.settings_model("beta") is registry.settings_model("alpha") is IdealSettings


def test_an_entry_point_that_registers_another_name_is_explained(site):
    site.install("alpha", {"site_alpha": BACKEND.format(name="other")}, {"alpha": "site_alpha"})
    with pytest.raises(ConfigError, match="registers no backend of that name"):
        Registry().settings_model("alpha")


@pytest.mark.parametrize(
    ("requires", "advice"),
    [
        ("Requires-Dist: site-nowhere>=1; python_version > '3' and extra == 'sim'\n", r"'alpha\[sim\]'"),
        ("", "needs the library site_nowhere, which is not installed"),
    ],
)
def test_a_missing_library_is_named_with_the_extra_that_brings_it(site, requires, advice):
    site.install("alpha", {"site_alpha": "import site_nowhere.inner"}, {"alpha": "site_alpha"}, requires=requires)
    with pytest.raises(ConfigError, match=advice) as caught:
        Registry().settings_model("alpha")
    assert "alpha 1.0" in str(caught.value)


def test_a_backend_may_name_the_missing_extra_itself(site):
    source = "from pimcal.errors import MissingExtraError\nraise MissingExtraError('x', 'aihwkit', 'aihwkit')"
    site.install("alpha", {"site_alpha": source}, {"alpha": "site_alpha"})
    with pytest.raises(MissingExtraError, match=r"pip install 'pimcal\[aihwkit\]'"):
        Registry().settings_model("alpha")


def test_a_distribution_without_its_own_module_should_be_reinstalled(site):
    site.install("alpha", {}, {"alpha": "site_alpha"})
    with pytest.raises(ConfigError, match="no module site_alpha; reinstall"):
        Registry().settings_model("alpha")


def test_a_class_that_is_no_backend_and_settings_that_are_no_model_are_refused():
    registry = Registry()
    registry.register_plugin(
        Plugin(pimcal_register_backends=lambda register: register(name="a", backend=dict, settings=IdealSettings))
    )
    with pytest.raises(ConfigError, match="no subclass"):
        registry.backend_class("a")
    with pytest.raises(ConfigError, match="pydantic"):
        registry.register_plugin(
            Plugin(pimcal_register_backends=lambda register: register(name="b", backend=Ideal, settings=dict))
        )
    assert "b" not in registry.backend_names()


def test_a_hook_with_a_wrong_argument_is_refused():
    with pytest.raises(ConfigError, match="wrong"):
        Registry().register_plugin(Plugin(pimcal_on_event=lambda wrong: None))


def test_one_broken_plugin_is_warned_of_and_the_rest_load(site, caplog):
    site.install(
        "good",
        {"site_good": "", "site_bad": "import site_nowhere"},
        {"bad": "site_bad", "good": "site_good"},
        group="pimcal.plugins",
    )
    registry = Registry()
    with caplog.at_level(logging.WARNING):
        names = registry.plugins()
    assert "good" in names
    assert "bad" not in names
    assert "plugin 'bad' (module site_bad of good 1.0) needs the library site_nowhere" in caplog.text


def test_two_plugins_of_one_entry_point_name_are_both_named(site):
    for name in ("first", "second"):
        site.install(name, {f"site_{name}": ""}, {"same": f"site_{name}"}, group="pimcal.plugins")
    with pytest.raises(ConfigError, match=r"plugin 'same'.*first 1\.0"):
        Registry().plugins()


def test_metrics_are_found_by_name_and_two_of_one_name_are_refused():
    def pimcal_register_metrics(register):
        register("top2", max)

    registry = Registry()
    registry.register_plugin(Plugin(pimcal_register_metrics=pimcal_register_metrics), "one")
    assert registry.metrics()["top2"] is max
    registry.register_plugin(Plugin(pimcal_register_metrics=pimcal_register_metrics), "two")
    with pytest.raises(ConfigError, match="metric 'top2'"):
        registry.metrics()


def test_triggers_are_found_by_name_beside_those_of_pimcal_and_two_of_one_name_are_refused():
    def never(now, before, limit):
        return Verdict(False, "never")

    probing = Trigger(never, needs_probe=True)

    def pimcal_register_triggers(register):
        register("never", never)
        register("probing", probing)

    registry = Registry()
    registry.register_plugin(Plugin(pimcal_register_triggers=pimcal_register_triggers), "one")
    assert registry.triggers() == {**BUILT_IN, "never": Trigger(never), "probing": probing}
    registry.register_plugin(Plugin(pimcal_register_triggers=pimcal_register_triggers), "two")
    with pytest.raises(ConfigError, match=r"two plugins claim trigger 'never': module .*test_registry"):
        registry.triggers()


def test_a_trigger_cannot_take_the_place_of_one_of_pimcal():
    registry = Registry()
    registry.register_plugin(Plugin(pimcal_register_triggers=lambda register: register("age_h", max)), "mine")
    with pytest.raises(ConfigError, match=r"trigger 'age_h' \(module .*pimcal has a trigger of this name; rename it"):
        registry.triggers()


def test_commands_are_added_to_the_application_that_is_passed():
    registry = Registry()
    registry.register_plugin(Plugin(pimcal_register_commands=lambda app: app.append("mine")))
    app: list[str] = []
    registry.register_commands(app)  # type: ignore[arg-type]
    assert "mine" in app


def test_every_listener_gets_an_event_even_where_one_fails(caplog):
    heard: list[events.Event] = []

    def fail(event):
        raise RuntimeError("no luck")

    registry = Registry()
    registry.register_plugin(Plugin(pimcal_on_event=lambda event: heard.append(event)), "before")
    registry.register_plugin(Plugin(pimcal_on_event=fail), "broken")
    registry.register_plugin(Plugin(pimcal_on_event=lambda event: heard.append(event)), "after")
    event = events.RecordActivated("r1")
    registry.notify(event)
    assert heard == [event, event]
    assert "plugin 'broken'" in caplog.text
    assert "no luck" in caplog.text
