"""What the README shows in Python runs as it stands there."""

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_the_examples_run_one_after_the_other(capsys):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    names: dict = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)
    assert names["hard"].shape == names["soft"].shape == (16, 64, 128)
    assert names["pictures"].shape == (4, 3, 64, 64)
    estimate, protocol = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"0\.\d+ \[-?0\.\d+, 0\.\d+\], chance -?0\.\d+", estimate)
    assert "16 images (shapes, val)" in protocol and "256 drawn" in protocol
