"""Jobs on a cluster, by submitit's own local executor and by a stand-in for Slurm's commands."""

import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
from test_studies import PLUMBING, SMALL

from gear_studio import cli, commands
from gear_studio.errors import FailedError, InputError, NotInstalledError
from gear_studio.runs import Run
from gear_studio.studies import STUDIES, World
from gear_studio.training import slurm
from gear_studio.training.jobs import Job
from gear_studio.training.slurm import Cluster

submitit = pytest.importorskip("submitit")

SLURM = Cluster("slurm", gpus=0, cpus=1)
# Instead of a training: `NAME` writes a file of that name with the time, and fails where NAME.fails is there.
STAND_IN = """
import pathlib, sys, time
name = pathlib.Path(sys.argv[1])
name.write_text(str(time.time()))
print(name, "is at it", flush=True)
if name.with_suffix(".fails").exists():
    sys.exit("it went wrong")
name.with_suffix(".done").touch()
"""


@pytest.fixture
def locally(monkeypatch):
    """Jobs by submitit on this machine instead of Slurm."""

    def executor(cluster: Cluster, folder: Path) -> submitit.LocalExecutor:
        made = submitit.LocalExecutor(folder)
        made.update_parameters(timeout_min=10)
        return made

    monkeypatch.setattr(slurm, "new_executor", executor)


@pytest.fixture
def work(monkeypatch, tmp_path) -> dict[str, Job]:
    """Jobs b and c that need a, d that needs b, and e that needs d."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Cluster, "program", lambda self, words: [sys.executable, "-c", STAND_IN, *words])
    needs = {"a": [], "b": ["a"], "c": ["a"], "d": ["b"], "e": ["d"]}
    return {name: Job(name, [name], needed, Path(f"{name}.done").exists) for name, needed in needs.items()}


def times(*names: str) -> list[float]:
    return [float(Path(name).read_text()) for name in names]


def test_jobs_run_in_the_order_of_what_they_need(work, locally, capsys):
    slurm.run(list(work.values())[::-1], SLURM, Path("logs"), pause=0.05)
    a, b, c, d, e = times("a", "b", "c", "d", "e")
    assert a < min(b, c) and b < d < e
    said = capsys.readouterr().out
    assert re.search(r"a: job \d+, gear-studio a\n", said) and "e: done, 5 of 5" in said
    assert Path("logs/a.log").read_text() == "a is at it\n"
    assert not list(Path("logs").glob("*.submitted.json"))


def test_a_failed_job_is_said_and_what_hangs_on_it_is_not_started(work, locally, capsys):
    Path("b.fails").touch()
    with pytest.raises(FailedError) as failed:
        slurm.run(list(work.values()), SLURM, Path("logs"), pause=0.05)
    assert re.fullmatch(
        r"b failed: job \d+, finished; see logs/b.log, which ends with 'it went wrong'\. "
        r"Not started for that: d, e\. Run again to go on from there",
        str(failed.value),
    )
    assert Path("c.done").exists() and not Path("d").exists() and not Path("e").exists()
    assert "d: not started, it needs b" in capsys.readouterr().out

    Path("b.fails").unlink()
    before = times("a", "c")
    slurm.run(list(work.values()), SLURM, Path("logs"), pause=0.05)
    assert Path("e.done").exists() and times("a", "c") == before
    assert capsys.readouterr().out.count("finished before") == 2


def test_a_job_that_never_came_to_print_says_why(work, locally, monkeypatch):
    Path("logs").mkdir()
    Path("logs/a.log").write_text("of an earlier try\n")
    monkeypatch.setattr(Cluster, "program", lambda self, words: ["no-such-program"])
    with pytest.raises(FailedError, match=r"a failed: .*_log.err, which ends with .*'no-such-program'"):
        slurm.run([work["a"]], SLURM, Path("logs"), pause=0.05)


def test_at_most_so_many_are_submitted_together(work, locally, capsys):
    slurm.run([work["a"], work["b"], work["c"]], SLURM, Path("logs"), at_once=1, pause=0.05)
    said = capsys.readouterr().out
    assert said.index("b: done") < said.index("c: job")


# Ended in between. The signal is what it is asked to pause by; the second time it goes on.
PAUSES = """
import pathlib, signal, sys, time
there = pathlib.Path("paused")
def pause(*_):
    there.touch()
    sys.exit(1)
signal.signal(signal.SIGUSR1, pause)
print("it begins", flush=True)
for _ in range(0 if there.exists() else 600):
    time.sleep(0.1)
"""


def test_at_its_time_limit_a_job_pauses_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    executor = submitit.LocalExecutor("submitit")
    executor.update_parameters(timeout_min=1, signal_delay_s=57)
    job = executor.submit(slurm.Work([sys.executable, "-c", PAUSES], str(tmp_path / "log"), 1))
    assert job.result() is None and Path("paused").exists()
    assert Path("log").read_text() == "it begins\n" * 2


# Slurm's commands, as far as submitit asks them: a job is a process of this machine.
SBATCH = """#!/bin/bash
number=$(( $(ls $HERE/*.job 2>/dev/null | wc -l) + 7 ))
cp "$1" $HERE/$number.job
SLURM_JOB_ID=$number SLURM_JOB_NODELIST=node setsid bash "$1" > /dev/null 2>&1 &
echo $! > $HERE/$number.pid
echo "Submitted batch job $number"
"""
SRUN = """#!/bin/bash
while [[ "$1" == --* ]]; do [[ "$1" == --output || "$1" == --error ]] && shift; shift; done
exec "$@"
"""
SACCT = """#!/bin/bash
echo "JobID|State|NodeList"
for file in $HERE/*.pid; do
  kill -0 $(cat $file) 2> /dev/null && state=RUNNING || state=COMPLETED
  echo "$(basename $file .pid)|$state|node"
done
"""


@pytest.fixture
def fake_slurm(tmp_path, monkeypatch) -> Path:
    for name, text in {"sbatch": SBATCH, "srun": SRUN, "sacct": SACCT}.items():
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{Path('/usr/bin')}:/bin")
    monkeypatch.setenv("HERE", str(tmp_path))
    return tmp_path


def test_slurm_is_asked_for_what_is_said(work, fake_slurm):
    cluster = Cluster("slurm", "gpu", 1.5, 2, 6, ("account=lab", "--mem=64G"))
    slurm.run([work["a"], work["b"]], cluster, Path("logs"), pause=0.05)
    assert times("a") < times("b")
    asked = (fake_slurm / "7.job").read_text()
    for option in (
        "partition=gpu",
        "time=90",
        "gpus-per-node=2",
        "cpus-per-task=6",
        "account=lab",
        "mem=64G",
        "job-name=a",
        "signal=USR2@300",
    ):
        assert f"#SBATCH --{option}\n" in asked
    assert "--cpus-per-task=6" in asked.split("srun")[1]


WATCH = """
import sys
from pathlib import Path
from gear_studio.training import slurm
from gear_studio.training.jobs import Job
program = [sys.executable, "-c", "import time, pathlib; time.sleep(4); pathlib.Path('long.done').touch()"]
slurm.Cluster.program = lambda *_: program
slurm.run([Job("long", ["long"], [], Path("long.done").exists)], slurm.Cluster("slurm"), Path("logs"))
"""


def test_a_job_goes_on_without_who_submitted_it_and_is_found_again(fake_slurm, monkeypatch):
    monkeypatch.chdir(fake_slurm)
    first = subprocess.Popen([sys.executable, "-c", WATCH])
    ticket = Path("logs/long.submitted.json")
    deadline = time.monotonic() + 60
    while not ticket.exists():
        assert time.monotonic() < deadline and first.poll() is None
        time.sleep(0.05)
    first.kill()
    first.wait()
    assert json.loads(ticket.read_text()) == {"job": "7"}
    second = subprocess.run([sys.executable, "-c", WATCH], capture_output=True, text=True, timeout=60)
    assert "long: job 7 is on the cluster already" in second.stdout and "long: done, 1 of 1" in second.stdout
    assert len(list(fake_slurm.glob("*.job"))) == 1 and not ticket.exists()


# What is asked for


def test_several_gpus_are_started_as_accelerate_does():
    assert Cluster().program(["train", "x"])[1:] == ["-m", "gear_studio", "train", "x"]
    words = Cluster(gpus=4).program(["train", "x"])[1:]
    assert words[:5] == ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "4"]
    assert words[-4:] == ["-m", "gear_studio", "train", "x"]


@pytest.mark.parametrize(
    ("cluster", "message"),
    [
        (Cluster(partition="gpu"), "--partition is for --launcher slurm; add that, or leave it out"),
        (Cluster(gpus=8), "--gpus is for --launcher slurm"),
        (
            Cluster("slurm", sbatch=("exclusive",)),
            "--sbatch 'exclusive' is no NAME=VALUE, such as account=lab",
        ),
    ],
)
def test_options_that_cannot_be_are_refused(cluster, message, tmp_path):
    with pytest.raises(InputError, match=re.escape(message)):
        slurm.run([], cluster, tmp_path / "logs")
    assert not (tmp_path / "logs").exists()


def test_without_submitit_or_slurm_it_says_so_in_one_line(monkeypatch, tmp_path):
    words = ["gear-studio", "study", "lambda", "--budget", "smoke", "--launcher", "slurm", "--out", "out"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="finds no Slurm here .* on a login node of the cluster, or leave"):
        cli.main()
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(NotInstalledError, match=r"needs submitit; install it with .*'gear-studio\[slurm\]'"):
        slurm.new_executor(SLURM, tmp_path)


def test_an_option_that_slurm_refuses_is_named(work, fake_slurm):
    (fake_slurm / "bin" / "sbatch").write_text(
        "#!/bin/sh\necho 'invalid partition specified: x' >&2; exit 1\n"
    )
    with pytest.raises(FailedError, match="a could not be submitted .*invalid partition specified: x"):
        slurm.run([work["a"]], Cluster("slurm", "x"), Path("logs"), pause=0.05)


# `gear-studio ...`, which measures little.
HURRIED = """
import sys
from gear_studio import cli
from gear_studio.analysis import fidelity
fidelity.AGREEMENT_SAMPLES = 24
cli.run(sys.argv[1:])
"""


@tiny.minutes
def test_a_study_ends_in_its_table(locally, monkeypatch, tmp_path, capsys):
    alone = replace(PLUMBING, arms=PLUMBING.arms[:1])  # a warm-up, a generator on it, its evaluation
    monkeypatch.setitem(STUDIES, "plumbing", alone)
    monkeypatch.setattr(Cluster, "program", lambda self, words: [sys.executable, "-c", HURRIED, *words])
    asked = {"world": World(budget="smoke"), "seeds": (0,), "out": tmp_path, "set": SMALL}
    commands.study("plumbing", cluster=SLURM, **asked)
    assert (tmp_path / "plumbing" / "table.csv").is_file() and "plumbing" in capsys.readouterr().out
    runs = [Run(folder) for folder in (tmp_path / "runs").iterdir()]
    assert len(runs) == 2 and all(run.finished for run in runs)
    commands.study("plumbing", cluster=SLURM, **asked)
    assert capsys.readouterr().out.count("finished before") == 3
