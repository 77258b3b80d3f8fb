"""What pyproject.toml cannot say: the app lies in apps/, and a wheel has it inside the package, where
`gear-studio explorer` finds it. A wheel is built from nothing, so that what was deleted is not in it."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithApps(build_py):
    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "gear_studio" / "apps"
            shutil.copytree("apps", target, ignore=lambda folder, names: {"__pycache__"} & set(names))


setup(cmdclass={"build_py": BuildWithApps})
