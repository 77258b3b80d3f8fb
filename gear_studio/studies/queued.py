"""A study asked for in a folder of Runs: the command line that does it, and its job in the folder's queue."""

from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from pathlib import Path

from gear_studio.devices import Device
from gear_studio.ranges import Seed, check
from gear_studio.studies.catalogue import Study, study_of
from gear_studio.studies.chains import SEEDS, chain_of, fit_to_world
from gear_studio.studies.world import World
from gear_studio.training.execution import Execution
from gear_studio.training.queue import Queue
from gear_studio.training.request import options_of

RUNS = Path("runs")


def folder_of(world: World, runs: Path = RUNS) -> Path:
    """Where the studies of a world lie in a folder of Runs, as OUT in `studies`."""
    return runs / f"studies-{world.name}"


def study_folders(runs: Path) -> list[Path]:
    """The folders in a folder of Runs that hold the studies' Runs."""
    return sorted(folder for folder in runs.glob("studies-*/runs") if folder.is_dir())


@dataclass(frozen=True)
class AskedStudy:
    """A study of the embedded world asked for in a folder of Runs. device: of its trainings; by default the
    one there is.

    Raises ValueError for a study or a budget that does not exist, and for seeds out of range."""

    name: str
    budget: str = "quick"
    seeds: tuple[Seed, ...] = SEEDS
    runs: Path = RUNS
    device: Device = None

    def __post_init__(self) -> None:
        check(self)
        object.__setattr__(self, "seeds", tuple(dict.fromkeys(self.seeds)) or SEEDS)
        _ = self.study

    @property
    def world(self) -> World:
        return World(budget=self.budget, execution=Execution(device=self.device))

    @cached_property
    def study(self) -> Study:
        return fit_to_world(study_of(self.name), self.world)

    @property
    def out(self) -> Path:
        return folder_of(self.world, self.runs)

    @property
    def job(self) -> str:
        """The name of its job in the queue, of equal studies alone the same."""
        return "-".join(["study", self.name, self.budget, *(f"s{seed}" for seed in self.seeds)])

    @property
    def makes(self) -> list[Path]:
        """The folders of its Runs, what several arms need first."""
        chains = [chain_of(arm) for arm in self.study.arms]
        links = [link for links in zip_longest(*chains) for link in links if link]
        names = dict.fromkeys(f"{link.name}-s{seed}" for seed in self.seeds for link in links)
        return [self.out / "runs" / name for name in names]

    def command(self, at_once: int | None = None) -> list[str]:
        """The words after `gear-studio`, without what they say anyway. at_once: trainings side by side."""
        words = ["study", self.name, *options_of(self.world)]
        if self.seeds != SEEDS:
            words += ["--seeds", *map(str, self.seeds)]
        if at_once is not None:
            words += ["--at-once", str(at_once)]
        return words if self.runs == RUNS else [*words, "--out", str(self.out)]

    def ask(self, queue: Queue) -> str:
        """Ask for it in the queue of its folder, or let it go on. Returns the job's name. Raises as
        `Queue.add_study`."""
        result = self.out / self.name / "record.json"  # which `write_study` writes last
        queue.add_study(self.job, self.command(queue.at_once), self.makes, result)
        return self.job
