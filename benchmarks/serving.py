"""The explorer as a user starts it, for the benchmarks that visit it."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

APP = Path(__file__).parents[1] / "apps" / "explorer.py"


@contextmanager
def serve(port: int, *options: str) -> Iterator[subprocess.Popen]:
    """The explorer, up, in an empty folder of its own; ended afterwards. Exits where it ends by itself."""
    with tempfile.TemporaryFile() as log, tempfile.TemporaryDirectory() as folder:
        app = subprocess.Popen(
            [sys.executable, str(APP), "--port", str(port), *options], cwd=folder, stdout=log, stderr=log
        )
        try:
            while True:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=10)
                    break
                except OSError:
                    if app.poll() is not None:
                        sys.exit(f"the explorer ended with code {app.returncode}; start it alone to see why")
                    time.sleep(0.1)
            yield app
        finally:
            app.terminate()
            app.wait()


def find_chromium() -> str | None:
    """The browser that the tests use: the environment variable CHROMIUM, or one of this machine."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
