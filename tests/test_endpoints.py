"""The app's API: the examples of docs/api.md run as they stand there, and --mcp offers the same as tools."""

import ast
import asyncio
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from browsing import PATIENCE, serving
from gradio_client import Client
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client
from PIL import Image

from gear_studio import Run
from gear_studio.looking.pictures import Picture, pictures_of_source
from gear_studio.looking.view import Kept, View
from gear_studio.places import ZOO

PAGE = (Path(__file__).parents[1] / "docs" / "api.md").read_text()
TABS = ("sample", "prompt", "codebook", "alignment", "features", "edit", "convergence", "train", "open")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory):
    """The address of an explorer with --mcp, and the folder of its runs."""
    temporary = tmp_path_factory.mktemp("endpoints")
    shutil.copytree(ZOO / "gear", temporary / "runs" / "gear")
    shutil.copytree(ZOO / "gear", temporary / "runs-of-another" / "other")
    with serving(temporary, temporary / "runs", "--mcp") as address:
        yield address, temporary


def test_the_examples_of_the_page_on_python_ask_every_tab(served, tmp_path: Path, monkeypatch):
    address, temporary = served
    monkeypatch.chdir(tmp_path)
    section = PAGE.partition("## The explorer's API")[2]
    assert {f'api_name="/{tab}"' for tab in TABS} <= set(re.findall(r'api_name="/\w+"', section))
    code = "\n".join(re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL))
    code = code.replace("http://127.0.0.1:7860", address)
    names: dict = {}
    exec(code.replace("runs/other", str(temporary / "runs-of-another" / "other")), names)
    with Image.open(names["left"]) as sheet:
        assert sheet.width > 64
    assert len(names["answers"]) == 2 and all(len(tokens) == 64 for tokens in names["answers"])
    assert "other is in the lists of Codebook" in names["said"][0]
    client: Client = names["client"]
    seen = client.predict(run="warmup", pictures="photos", picture=2, token=5, tau=0.5, api_name="/codebook")
    view = View(Kept(), Run.from_pretrained("warmup"), Picture(pictures_of_source("photos"), 2))
    assert seen["figures"] == pytest.approx(view.figures, rel=1e-3)
    assert sum(seen["tokens"], []) == view.indices.tolist()
    assert seen["codes"][0]["code"] == int(view.indices[5])
    for asked, said in (
        ({"run": "none"}, "There is no run 'none'"),
        ({"run": "gear", "token": 64}, r"a token is one of 0\.\.63"),
        ({"run": "gear", "pictures": "none"}, "There are no pictures 'none'"),
    ):
        with pytest.raises(Exception, match=said):
            client.predict(**asked, api_name="/codebook")
    for name in ("study-start-smoke-s0", "mine"):
        client.predict(name, api_name="/stop_training")


def test_the_same_actions_are_tools_of_the_model_context_protocol(served):
    address, _ = served

    async def ask():
        async with (
            httpx.AsyncClient(timeout=PATIENCE / 1000) as patient,
            streamable_http_client(f"{address}/gradio_api/mcp/", http_client=patient) as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            tools = (await session.list_tools()).tools
            return tools, await session.call_tool("codebook", {"run": "gear", "token": 5})

    with ThreadPoolExecutor(1) as thread:  # in this one a browser's loop may be running
        tools, answer = thread.submit(asyncio.run, ask()).result()
    described = {tool.name: tool for tool in tools}
    assert {*TABS, "open_run", "train_study", "stop_training"} - {"open"} <= described.keys()
    codebook = described["codebook"]
    assert codebook.description.startswith("What a tokenizer makes of a picture")
    assert codebook.inputSchema["properties"]["token"]["description"].startswith("Which token's codes")
    assert not answer.isError and len(ast.literal_eval(answer.content[0].text)["tokens"]) == 8


def test_mcp_and_passwords_do_not_go_together(explorer, tmp_path: Path):
    (tmp_path / "visitors").write_text("ada:secret\n")
    with pytest.raises(SystemExit, match="--mcp asks for no password"):
        explorer.main(explorer.Options(mcp=True, auth=tmp_path / "visitors"))


def test_without_mcp_nothing_is_offered_there(address: str):
    assert httpx.post(f"{address}/gradio_api/mcp/", json={}).status_code == 404
