"""IBM aihwkit's models of analog tiles: conductance noise, drift, converters, and what compensates them."""

from pimcal.hookspecs import RegisterBackend, hookimpl


@hookimpl
def pimcal_register_backends(register: RegisterBackend) -> None:
    from pimcal_aihwkit.settings import AihwkitSettings

    register(name="aihwkit", backend="pimcal_aihwkit.backend:Aihwkit", settings=AihwkitSettings)
