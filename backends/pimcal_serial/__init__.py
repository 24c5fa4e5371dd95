"""A PIM board on a serial port, or the virtual one: protocol, driver, simulator and reference firmware."""

from pimcal.hookspecs import RegisterBackend, hookimpl


@hookimpl
def pimcal_register_backends(register: RegisterBackend) -> None:
    from pimcal_serial.settings import SerialSettings

    register(name="serial", backend="pimcal_serial.backend:Serial", settings=SerialSettings)
