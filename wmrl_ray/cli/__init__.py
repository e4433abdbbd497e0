"""The `wmrl` command. Every command imports what it needs when it runs: `wmrl --help` loads neither torch nor ray."""

from wmrl_ray.cli.app import main

__all__ = ["main"]
