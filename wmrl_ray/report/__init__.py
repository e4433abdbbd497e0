"""Run directories -> one HTML page and its numbers. Reads files only: imports neither torch nor ray."""

from wmrl_ray.report.render import write_report

__all__ = ["write_report"]
