"""Gaussian noise on the weights of a simulated array: multiplicative, additive, or by form factor."""

from pimcal.hookspecs import RegisterBackend, hookimpl


@hookimpl
def pimcal_register_backends(register: RegisterBackend) -> None:
    from pimcal_gaussian.settings import GaussianSettings

    register(name="gaussian", backend="pimcal_gaussian.backend:Gaussian", settings=GaussianSettings)
