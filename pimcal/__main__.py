"""`python -m pimcal` is `pimcal`."""

from pimcal.cli.app import main

if __name__ == "__main__":
    main()
