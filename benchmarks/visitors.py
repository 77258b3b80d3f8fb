"""How the explorer serves many at once: `python benchmarks/visitors.py [--visitors N] [--pictures N]`.

Each visitor is a session of its own that speaks Gradio's protocol as a page does, without a browser, which
would take the cores that the app needs. All come at the same moment, and each looks at one picture after
another in the tab *Codebook*, none at one that another has looked at; a picture counts when its last view has
arrived. First they take their time to look, then they do not. Then all ask once more and close their pages at
once: what the app computes after that is for nobody.
"""

import argparse
import json
import os
import random
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import stored
from serving import serve

PORT = 7898
URL = f"http://127.0.0.1:{PORT}"
API = f"{URL}/gradio_api"
TICK = os.sysconf("SC_CLK_TCK")


class Visitor:
    """A page: a session, and the stream on which its answers arrive."""

    def __init__(self, config: dict, number: int):
        self.session = f"visitor-{number}"
        self.client = httpx.Client(timeout=600, limits=httpx.Limits(max_connections=None))
        named = {each["id"]: each["props"].get("elem_id") for each in config["components"]}
        self.run = next(
            each["props"]["value"] for each in config["components"] if named[each["id"]] == "tokenizer-run"
        )

        def function(name: str, target: str) -> int:
            """The event whose function has this name and gives out to, or listens to, `target`."""
            for each in config["dependencies"]:
                touched = {named.get(output) for output in each["outputs"]}
                touched |= {event for _, event in each["targets"]}
                if each["api_name"].rstrip("_0123456789") == name and target in touched:
                    return each["id"]
            raise LookupError(f"the explorer has no event {name} of {target}; this benchmark is outdated")

        self.read, self.fill = function("read", "load"), function("_fill", "codebook-status")

    def ask(self, function: int, data: list, address: str = "") -> str:
        body = {"fn_index": function, "data": data, "session_hash": self.session}
        answer = self.client.post(f"{API}/queue/join{address}", json=body).raise_for_status()
        return answer.json()["event_id"]

    def answers(self) -> Iterator[dict]:
        with self.client.stream("GET", f"{API}/queue/data", params={"session_hash": self.session}) as stream:
            for line in stream.iter_lines():
                if line.startswith("data:"):
                    yield json.loads(line[5:])

    def wait_for(self, event: str, stream: Iterator[dict]) -> None:
        for said in stream:
            if said.get("event_id") == event and said["msg"] == "process_completed":
                if not said["success"]:
                    raise RuntimeError(f"the explorer answered {said['output']}")
                return
        raise RuntimeError("the stream of answers ended early")

    def choose(self, picture: int, stream: Iterator[dict] | None = None) -> Iterator[dict]:
        """Open the address of a picture, as a link does."""
        event = self.ask(self.read, [], f"?tab=codebook&picture={picture}")
        stream = stream or self.answers()
        self.wait_for(event, stream)
        return stream

    def look(self) -> str:
        """Ask for all views of the picture. States are the session's; they are not sent."""
        return self.ask(self.fill, [self.run, "no other", None, 0.1, None, None])


def used(process: int) -> tuple[float, float]:
    """Seconds of CPU time, and memory in MiB, of a process."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    status = Path(f"/proc/{process}/status").read_text()
    memory = int(status.partition("VmRSS:")[2].split()[0]) / 1024
    return (int(fields[11]) + int(fields[12])) / TICK, memory


def visit(visitors: list[Visitor], first: int, pictures: int, pause: float) -> list[list[float]]:
    """Seconds that each visitor waits for each picture, of those from number `first` on. pause: seconds that
    they look at one on average, from half to one and a half of it."""
    together = threading.Barrier(len(visitors))
    waited: list[list[float]] = [[] for _ in visitors]

    def look(number: int) -> None:
        stream, rng = None, random.Random(number)
        together.wait()
        for picture in range(pictures):
            stream = visitors[number].choose(first + picture * len(visitors) + number, stream)
            begun = time.perf_counter()
            visitors[number].wait_for(visitors[number].look(), stream)
            waited[number].append(time.perf_counter() - begun)
            time.sleep(pause * rng.uniform(0.5, 1.5))

    threads = [threading.Thread(target=look, args=(number,)) for number in range(len(visitors))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return waited


def close_all(visitors: list[Visitor], first: int, process: int) -> float:
    """Seconds of CPU time that the app still takes when all have asked and closed their pages."""
    streams = [visitor.choose(first + number) for number, visitor in enumerate(visitors)]
    for visitor in visitors:
        visitor.look()
    for stream in streams:
        next(stream)
        stream.close()
    begun = before = used(process)[0]
    while True:
        time.sleep(1)
        now = used(process)[0]
        if now - before < 0.1:
            return now - begun
        before = now


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--visitors", type=int, default=20)
    parser.add_argument("--pictures", type=int, default=5, help="that each looks at, one after another")
    parser.add_argument("--pause", type=float, default=10, help="seconds between two pictures, on average")
    stored.add_store(parser)
    options = parser.parse_args()
    around, rows = stored.circumstances(), []
    stored.say(around)

    def add(what: str, times: list[float], **more: float) -> None:
        worst = statistics.quantiles(times, n=20)[-1] if len(times) > 1 else times[0]
        rows.append({"what": what, "seconds": stored.spread(times), "95th percentile": worst, **more})
        print(
            f"{what}: median {statistics.median(times):.2f} s, 95th percentile {worst:.2f} s",
            more,
            flush=True,
        )

    with serve(PORT, "--read-only") as app:
        config = httpx.get(f"{URL}/config").json()
        alone = Visitor(config, -1)
        alone.wait_for(alone.look(), stream := alone.choose(0))  # has the models read
        time.sleep(20)  # the background has surveyed by then
        times = []
        for picture in range(1, 1 + options.pictures):
            alone.choose(picture, stream)
            begun = time.perf_counter()
            alone.wait_for(alone.look(), stream)
            times.append(time.perf_counter() - begun)
        add("one visitor alone", times, megabytes=used(app.pid)[1])
        for turn, pause in enumerate((options.pause, 0.0), start=1):
            visitors = [Visitor(config, turn * 1000 + number) for number in range(options.visitors)]
            waited = visit(visitors, turn * options.visitors * options.pictures, options.pictures, pause)
            means = [statistics.mean(each) for each in waited]
            add(
                f"{options.visitors} at once, {pause:.0f} s between two pictures",
                sum(waited, []),
                fastest=min(means),
                slowest=max(means),
                megabytes=used(app.pid)[1],
            )
        rest = close_all(visitors, 300, app.pid)
        print(f"all asked and closed at once: the app works on for {rest:.1f} s of CPU time")
    rows.append({"what": "all ask and close their pages: the app works on", "seconds": stored.spread([rest])})
    stored.store("visitors", rows, around, options.store)


if __name__ == "__main__":
    main()
