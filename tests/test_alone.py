"""Two commands that write to one folder: neither loses what the other wrote."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jdmctl.errors import JdmError
from jdmctl.training.alone import alone

HOLD = """
import sys
from pathlib import Path
from jdmctl.training.alone import alone
with alone(Path(sys.argv[1])):
    print("held", flush=True)
    input()
"""
KEEP = """
import sys
from pathlib import Path
from jdmctl.cli.evaluate import keep
from jdmctl.evaluation.results import Row
for number in range(20):
    keep([Row("w", "c", f"{sys.argv[1]} {number}", 1, "m", 1.0, 1.0, 1.0, [0], 1, "c")], Path(sys.argv[2]))
"""


def start(code: str, *words: str) -> subprocess.Popen:
    pipe = subprocess.PIPE
    root = Path(__file__).parents[1]
    return subprocess.Popen([sys.executable, "-c", code, *words], cwd=root, stdin=pipe, stdout=pipe, text=True)


def test_a_folder_is_held_by_one_process_until_it_ends_however_it_ends(tmp_path):
    holder = start(HOLD, str(tmp_path / "run"))
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(JdmError, match="another jdmctl is at work in .*run"), alone(tmp_path / "run"):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with alone(tmp_path / "run"):
        pass
    assert not any((tmp_path / "run").iterdir())


def test_rows_that_two_commands_keep_at_once_are_all_there(tmp_path):
    results = tmp_path / "results" / "mine.json"
    for process in [start(KEEP, name, str(results)) for name in "ab"]:
        assert process.wait() == 0
    assert results.read_text().count('"method"') == 40


def test_a_run_that_is_under_way_is_not_resumed_beside_itself(jdmctl_command, in_tiny_world, tmp_path):
    settings = ("training.num_steps=1", "training.batch_size=2", "fake_score.warmup_min_steps=0",
                "fake_score.warmup_max_steps=0", "data.num_samples=4", "data.num_validation_samples=2")  # fmt: skip
    run = tmp_path / "run"
    words = [word for change in settings for word in ("--set", change)]
    with alone(run):
        code, _, told = jdmctl_command("add-control", "tiny/softedge", "--output", run, "--device", "cpu", *words)
    assert code == 1 and "another jdmctl is at work" in told
    assert not any(run.iterdir())
