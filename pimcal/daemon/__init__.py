"""The daemon: owns one device, keeps it calibrated by its schedule, and answers to signals and a local socket."""
