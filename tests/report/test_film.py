"""The moving Fig. 2: what is filmed, how long, and that the green dot is where the intent points."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.report.conftest import CARD
from tests.report.test_report import Page
from wmrl_ray.config import ConfigError
from wmrl_ray.envs import maze_layout
from wmrl_ray.report.film import FPS, HOLD, MOVING, Film, plan_film
from wmrl_ray.report.render import read_report
from wmrl_ray.report.runs import Run
from wmrl_ray.video import write_video

MAZE = "wmrl/PointMaze-UMaze-v0"
WITH = {
    "name": "wmrl/pointmaze/umaze-intents-manager-v0",
    "sha256": "cd" * 32,
    "env_id": f"intents:/data/.managers/0123:{MAZE}",
    "base_name": "wmrl/pointmaze/umaze-v0",
    "base_sha256": CARD["sha256"],
}
STEPS = 30


def save_episode(run: Path, path: np.ndarray, intended: np.ndarray | None = None) -> None:
    """One episode: path [T+1, 2] and, for a Worker with intents, intended states [T+1, 4]."""
    obs = np.concatenate([path, np.zeros_like(path)], 1).astype(np.float32)
    arrays = {"obs": obs, "offsets": np.array([0, len(obs)]), "returns": np.zeros(1)}
    if intended is not None:
        arrays["intended"] = intended.astype(np.float32)
    np.savez(run / "trajectories.npz", **arrays)


@pytest.fixture
def runs(tmp_path, write_run) -> Path:
    """BC in the U maze, without intents (11 states) and with (31 states): these point from the left to the right, then up."""
    corridor = np.stack([np.linspace(-1, 1, STEPS + 1), np.full(STEPS + 1, -1.0)], 1)
    save_episode(write_run("plain", trajectories=False), corridor[:11])
    intended = np.zeros((STEPS + 1, 4))
    intended[:, 0] = np.linspace(-1.2, 1.2, STEPS + 1)
    intended[:, 1] = 1.0
    intended[20:, 3] = -3.0  # from here on with a velocity, down: a line of 0.9 m
    save_episode(write_run("worker", card=WITH, trajectories=False), corridor, intended)
    return tmp_path / "runs"


def decode(path: Path) -> np.ndarray:
    """Frames [F, h, w, 3] of a video."""
    import imageio_ffmpeg

    reader = imageio_ffmpeg.read_frames(str(path))
    width, height = next(reader)["size"]
    return np.stack([np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader])


def green(frame: np.ndarray) -> np.ndarray:
    """[h, w] bool: where the intent's green is."""
    red, green, blue = np.moveaxis(frame.astype(int), -1, 0)
    return (green > red + 60) & (green > blue + 40)


def to_metres(frame: np.ndarray):
    """(rows, columns) of the right panel -> (x, y), read off the outer walls' grey: the U maze is 5 m wide and high."""
    spread = frame.max(-1).astype(int) - frame.min(-1)
    right = np.arange(frame.shape[1]) >= frame.shape[1] // 2
    walls = (spread < 25) & (np.abs(frame.mean(-1) - 192) < 12) & right
    rows, columns = np.where(walls.sum(1) > 60)[0], np.where(walls.sum(0) > 60)[0]
    (top, bottom), (left, right) = (rows[0], rows[-1] + 1), (columns[0], columns[-1] + 1)
    return lambda r, c: (-2.5 + 5 * (c + 0.5 - left) / (right - left), 2.5 - 5 * (r + 0.5 - top) / (bottom - top))


def film_of(runs: Path) -> Film:
    return plan_film(read_report([runs]).groups)


def test_the_panels_are_the_worker_without_and_with_intents(runs):
    film = film_of(runs)
    assert [(panel.label, len(panel.path), panel.intended is None) for panel in film.panels] == [
        ("bc, without intents", 11, True),
        ("bc, with intents", 31, False),
    ]
    assert (film.dataset, film.left_out) == (WITH["name"], [])


def lengths_of(film: Film) -> list[tuple[str, int]]:
    return [(panel.label, len(panel.path)) for panel in film.panels]


@pytest.mark.parametrize("recorded", [True, False])  # which dataset the intents were put behind; by its name before
def test_the_baseline_is_of_the_same_data_not_of_another_in_the_same_maze(tmp_path, write_run, recorded):
    diverse = {"name": "wmrl/pointmaze/umaze-diverse-v0", "sha256": "12" * 32}
    states = np.zeros((40, 4))
    save_episode(write_run("a-diverse", card=diverse, trajectories=False), states[:5, :2])
    save_episode(write_run("play", trajectories=False), states[:6, :2])
    card = WITH if recorded else {key: value for key, value in WITH.items() if not key.startswith("base_")}
    save_episode(write_run("worker", card=card, trajectories=False), states[:, :2], states)
    both = tmp_path / "runs"
    assert lengths_of(film_of(both)) == [("bc, without intents", 6), ("bc, with intents", 40)]
    (both / "play" / "trajectories.npz").unlink()
    assert lengths_of(film_of(both)) == [("bc, with intents", 40)]


def test_the_baseline_has_the_same_seed_where_there_is_one(tmp_path, write_run):
    states = np.zeros((40, 4))
    for seed in (0, 1, 2):
        save_episode(write_run(f"plain-{seed}", seed=seed, trajectories=False), states[: 5 + seed, :2])
    save_episode(write_run("worker", seed=2, card=WITH, trajectories=False), states[:, :2], states)
    assert lengths_of(film_of(tmp_path / "runs"))[0] == ("bc, without intents", 7)
    (tmp_path / "runs/plain-2/trajectories.npz").unlink()
    assert lengths_of(film_of(tmp_path / "runs"))[0] == ("bc, without intents (seed 0, not 2)", 5)


def test_random_vectors_are_no_baseline_and_what_is_not_shown_is_not_read(runs, write_run, monkeypatch):
    card = {"name": "wmrl/pointmaze/umaze-random3-v0", "sha256": "34" * 32, "env_id": f"random-intents:3:{MAZE}"}
    save_episode(write_run("a-random", card=card, trajectories=False), np.zeros((5, 2)))
    save_episode(write_run("iql", "iql", trajectories=False), np.zeros((5, 2)))
    report, read = read_report([runs]), []
    trajectories = Run.trajectories
    monkeypatch.setattr(Run, "trajectories", lambda run: read.append(run.path.name) or trajectories(run))
    assert lengths_of(plan_film(report.groups)) == [("bc, without intents", 11), ("bc, with intents", 31)]
    assert sorted(read) == ["plain", "worker"]


def test_the_video_shows_the_green_dot_where_the_intent_points(runs, tmp_path):
    film = film_of(runs)
    write_video(tmp_path / "fig2.mp4", film.frames(), FPS)
    frames = decode(tmp_path / "fig2.mp4")
    assert len(frames) == STEPS + 1 + HOLD  # short: every step has a frame, and the last one stays
    middle = frames.shape[2] // 2
    metres = to_metres(frames[0])
    for step in (0, 7, 19):
        shown = green(frames[step])
        assert not shown[:, :middle].any()  # nothing beside the Worker without intents
        x, y = metres(*(index.mean() for index in np.where(shown)))
        assert (x, y) == pytest.approx((-1.2 + 2.4 * step / STEPS, 1.0), abs=0.06)
    rows, columns = np.where(green(frames[25]))
    low = metres(rows.max(), columns[rows == rows.max()].mean())
    assert low == pytest.approx((-1.2 + 2.4 * 25 / STEPS, 1.0 - 0.9), abs=0.08)  # the end of the velocity's line
    assert np.abs(frames[-1].astype(int) - frames[STEPS]).mean() < 1


def test_a_worker_whose_episode_has_ended_stays_while_the_other_goes_on(runs):
    frames = list(film_of(runs).frames())
    middle = frames[0].shape[1] // 2
    assert (frames[10][:, :middle] == frames[25][:, :middle]).all()
    assert (frames[9][:, :middle] != frames[10][:, :middle]).any()
    assert (frames[10][:, middle:] != frames[25][:, middle:]).any()


@pytest.mark.parametrize("length", [2, 200, 201, 202, 999, 2001])
def test_a_long_episode_is_a_film_of_seconds_that_ends_with_its_end(runs, length):
    film = film_of(runs)
    path = np.zeros((length, 4))
    times = Film(film.dataset, [film.panels[1]._replace(path=path, intended=path)], film.layout, []).times
    assert times[0] == 0 and (times[-HOLD - 1 :] == length - 1).all() and times[-HOLD - 2] < length - 1
    assert len(set(np.diff(times[: -HOLD - 1]))) <= 1
    assert min(length, MOVING // 2) <= len(times) - HOLD <= MOVING


def test_progress_is_told_after_every_frame(runs):
    told = []
    frames = list(film_of(runs).frames(lambda done, total: told.append((done, total))))
    assert told == [(i, len(frames)) for i in range(1, len(frames) + 1)]


def test_a_pair_goes_before_a_worker_alone_and_what_is_left_out_is_named(runs, write_run):
    alone = WITH | {
        "name": "a-medium-intents",
        "sha256": "ef" * 32,
        "env_id": "intents:/data/.managers/4567:wmrl/PointMaze-Medium-v0",
    }
    states = np.zeros((5, 4))
    save_episode(write_run("alone", card=alone, trajectories=False), states[:, :2], states)
    film = film_of(runs)
    assert (film.dataset, film.left_out) == (WITH["name"], ["a-medium-intents"])


def test_the_command_films_and_the_page_shows_it_offline(runs, tmp_path, capsys):
    from wmrl_ray.cli.app import app

    film, out = tmp_path / "fig2.mp4", tmp_path / "page.html"
    app(["report", str(runs), "-o", str(out), "--video", str(film)], standalone_mode=False)
    assert f"{film}   (dataset: {WITH['name']})" in capsys.readouterr().out
    assert len(decode(film)) == STEPS + 1 + HOLD
    page = Page()
    page.feed(out.read_text())
    page.close()
    assert page.open == []
    (source,) = page.fetched
    assert source.startswith("data:video/mp4;base64,")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fig2.mp4", "page.html", "page.json", "runs"]


def test_without_intents_there_is_no_video_and_nothing_is_written(tmp_path, write_run):
    from wmrl_ray.cli.app import app

    run = write_run("bc-0")
    with pytest.raises(ConfigError, match="no video: none of these runs .* `wmrl intents DATASET --manager RUN`"):
        app(["report", str(run), "-o", str(tmp_path / "page.html"), "--video", str(tmp_path / "f.mp4")], standalone_mode=False)
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_a_video_that_is_none_is_refused_at_the_door(tmp_path, write_run):
    from wmrl_ray.cli.app import app

    with pytest.raises(ConfigError, match=r"--video f\.gif must end in one of \.mp4, \.mkv"):
        app(["report", str(write_run("bc-0")), "--video", "f.gif"], standalone_mode=False)


def test_the_maze_of_the_fixture_is_the_u_maze():
    layout = maze_layout(WITH["env_id"])
    assert layout is not None and layout.bounds == (-2.5, 2.5, -2.5, 2.5)
