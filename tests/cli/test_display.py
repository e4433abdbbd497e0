"""The live panel and the JSON lines."""

from __future__ import annotations

import io
import json

from rich.console import Console

from wmrl_ray.cli import display as display_module
from wmrl_ray.cli.display import JsonLines, LivePanel, make_display, sparkline
from wmrl_ray.run.config import RunConfig
from wmrl_ray.run.events import Event

CONFIG = RunConfig(algorithm="bc", dataset="wmrl/pointmaze/umaze-v0", num_updates=1000)


def text_of(panel: LivePanel) -> str:
    console = Console(width=120, file=io.StringIO(), force_terminal=False)
    console.print(panel.render())
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_sparkline_spans_the_lowest_to_the_highest_value():
    assert sparkline([0.0, 50.0, 100.0]) == "▁▅█"
    assert sparkline([3.0, 3.0]) == "▄▄"
    assert sparkline([0.0, float("nan"), 1.0]) == "▁ █"
    assert sparkline([]) == ""


def test_the_panel_shows_progress_speed_losses_and_evaluations():
    panel = LivePanel(CONFIG, "runs/x")
    assert "starting" in text_of(panel)
    panel.on_event(Event("start", 0, 1000, {}))
    panel.on_event(Event("update", 500, 1000, {"loss/actor": 0.25, "q/mean": 7.0, "time/updates_per_s": 123.0}))
    panel.on_event(Event("eval", 400, 1000, {"eval/score_mean": 20.0, "eval/score_std": 5.0, "eval/success_mean": 0.5}))
    panel.on_event(Event("eval", 500, 1000, {"eval/score_mean": 80.0, "eval/score_std": 2.0, "eval/success_mean": 0.9}))
    panel.on_event(Event("checkpoint", 500, 1000, {}))
    text = text_of(panel)
    for part in (
        "500 of 1,000",
        "123 updates/s",
        "left",
        "actor 0.25",
        "score 80.0 ± 2.0",
        "success 90%",
        "▁█",
        "checkpoint at 500",
    ):
        assert part in text, f"{part!r} is not in\n{text}"
    assert "q/mean" not in text


def test_without_reference_scores_the_panel_shows_returns():
    panel = LivePanel(CONFIG, "runs/x")
    panel.on_event(Event("eval", 100, 1000, {"eval/return_mean": 12.5, "eval/return_std": 1.0}))
    assert "return 12.5 ± 1.0" in text_of(panel)


def test_the_time_left_is_the_sessions_average_and_counts_down(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(display_module.time, "monotonic", lambda: now[0])
    panel = LivePanel(CONFIG, "runs/x")
    panel.on_event(Event("start", 200, 1000, {}))  # a resumed run
    assert panel.seconds_left() is None
    now[0] = 110.0
    panel.on_event(Event("update", 300, 1000, {}))
    assert panel.seconds_left() == 70.0  # 100 updates in 10 s, 700 to go
    now[0] = 115.0
    assert panel.seconds_left() == 65.0


def test_brackets_in_a_dataset_name_are_shown_as_they_are():
    config = RunConfig(algorithm="bc", dataset="[red]x[/red]", num_updates=1000)
    assert "[red]x[/red]" in text_of(LivePanel(config, "runs/[x]"))


def test_json_lines_hold_one_event_each_and_stay_valid_json():
    stream = io.StringIO()
    with JsonLines(stream) as lines:
        lines.on_event(Event("start", 0, 10, {}))
        lines.on_event(Event("update", 5, 10, {"loss/actor": 1 / 3, "q/mean": float("nan")}))
    start, update = (json.loads(line) for line in stream.getvalue().splitlines())
    assert start == {"event": "start", "update": 0, "total": 10}
    assert update == {"event": "update", "update": 5, "total": 10, "loss/actor": 0.333333, "q/mean": None}


def test_the_panel_is_for_terminals_only(monkeypatch):
    monkeypatch.setattr("sys.stdout", io.StringIO())
    assert isinstance(make_display(CONFIG, "runs/x"), JsonLines)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert isinstance(make_display(CONFIG, "runs/x"), LivePanel)
    assert isinstance(make_display(CONFIG, "runs/x", as_json=True), JsonLines)
