"""What a run of many hours leaves on disk and in its log, in seconds, by a clock of its own."""

import json
import re
from pathlib import Path

ITERATIONS, SECONDS = 36, 1200  # twelve hours


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_twelve_hours_keep_one_checkpoint_and_a_readable_log(make, tmp_path, monkeypatch, capfd, caplog) -> None:
    run, now, checkpoints, sizes = tmp_path / "run", [0.0], [], []
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])

    def an_iteration_has_passed(agent, metrics) -> None:
        now[0] += SECONDS
        checkpoints.append([path.name for path in (run / "training").glob("*")])
        sizes.append((size(run / "training"), size(run)))

    settings = {"iterations": ITERATIONS, "problems_per_iteration": 2, "save_iterations": 1, "num_slots": 8}
    settings |= {"validation_problems": 2, "validation_iterations": 12, "learning_rate": 0.03}
    make("grpo", run=run, **settings).learn(callback=an_iteration_has_passed, progress_bar=True)
    assert len(checkpoints) == ITERATIONS
    assert all(len(names) == 1 for names in checkpoints[1:]), "the newest, and never a leftover"
    updates = [int(names[0].removeprefix("step-")) for names in checkpoints[1:]]
    assert updates == sorted(updates)
    assert updates[-1] > ITERATIONS / 2
    trained, whole = zip(*sizes[1:], strict=True)
    assert max(trained) - min(trained) < 4096  # counters get longer, and nothing else
    first, second = whole[ITERATIONS // 2] - whole[0], whole[-1] - whole[ITERATIONS // 2]
    assert second < 1.1 * first, "what is logged grows by as much in each hour"
    assert whole[-1] < 2e6

    def refuse(token: str) -> None:
        raise AssertionError(f"{token} is no JSON")

    rows = [json.loads(line, parse_constant=refuse) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len({row["step"] for row in rows}) == len(rows) == ITERATIONS
    lines = capfd.readouterr().err.splitlines()
    shown = [line for line in lines if line.startswith("grpo: ")]
    assert ITERATIONS / 2 < len(shown) <= ITERATIONS + 1
    assert re.fullmatch(r"grpo: \d+ of 288 in 11:\d\d:\d\d, +\S+(it/s|s/it), \d\d:\d\d left", shown[-1])
    assert not any("\r" in line or len(line) > 120 for line in lines)
    alarms = [message.split(":")[1][:20] for message in caplog.messages]
    assert alarms, "this policy stops to explore"
    assert max(map(alarms.count, alarms)) <= 4, "what comes and goes is not said each time"
