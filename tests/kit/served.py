"""`paraclip serve` around a test, its runs there, and the server's API, pages and processes."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from paraclip.flows.cli import INTERRUPTED
from paraclip.flows.local_stack import password_file
from tests.kit.browser import chromium
from tests.kit.processes import free_port, with_variable
from tests.kit.waiting import eventually

REPOSITORY = Path(__file__).parents[2]
BUSY = 503
ENDED = ("Completed", "Failed", "Crashed", "Cancelled")
COLORS = {"red": 0xDC1E1E, "blue": 0x1E1EDC, "green": 0x1EC81E, "white": 0xF0F0F0}
COLORS |= {"black": 0x0A0A0A, "gray": 0x808080, "orange": 0xFA9614, "purple": 0x961EA0}
THINGS = {"ball": "sphere", "dog": "puppy", "car": "vehicle", "tree": "plant"}
THINGS |= {"house": "home", "boat": "vessel", "cup": "mug", "hat": "cap"}
HELD_OUT = 3
"""One image in this many is in the split that is evaluated."""


class Api:
    """Prefect's REST API, as far as these tests need it."""

    def __init__(self, url: str, login: str = "") -> None:
        self.url = url
        self.headers = {"Content-Type": "application/json"}
        if login:
            self.log_in(login)

    @property
    def variables(self) -> dict[str, str]:
        """Variables with which Prefect's own commands find the server."""
        return {"PREFECT_API_URL": f"{self.url}/api", "PREFECT_API_AUTH_STRING": self.login}

    def log_in(self, login: str) -> None:
        """Log in as this user; the password follows a colon."""
        self.login = login
        self.headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"

    def call(self, path: str, body: Any = None, patience: Sequence[int] = (1, 2, 4, 8)) -> Any:
        request = urllib.request.Request(f"{self.url}/api/{path}", headers=self.headers)
        data = None if body is None else json.dumps(body).encode()
        if data is not None:
            # A client of its own for each: tests call from several threads, and a client has one token.
            client = uuid.uuid4().hex
            request.add_header("Prefect-Csrf-Client", client)
            request.add_header("Prefect-Csrf-Token", self.call(f"csrf-token?client={client}", None, patience)["token"])
        for wait in (*patience, 0):
            try:
                with urllib.request.urlopen(request, data, timeout=60) as response:
                    return json.load(response)
            except urllib.error.HTTPError as error:
                # The database was locked; Prefect's own clients ask again, too.
                if error.code != BUSY or not wait:
                    raise
            time.sleep(wait)

    def deployment(self, flow: str) -> str:
        """The id of the deployment of a flow; with several configurations, that of the first one."""
        wanted = {"flows": {"name": {"any_": [flow]}}, "sort": "CREATED_DESC"}
        return self.call("deployments/filter", wanted)[-1]["id"]

    def run_deployment(self, name: str, settings: dict[str, Any] | None = None, *overrides: str) -> str:
        """Start a run and return its id; without settings, it has the deployment's own parameters."""
        parameters = {} if settings is None else {"parameters": {"settings": settings, "overrides": overrides}}
        return self.call(f"deployments/{self.deployment(name)}/create_flow_run", parameters)["id"]

    def state(self, run: str) -> str:
        return self.call(f"flow_runs/{run}")["state"]["name"]

    def runs(self) -> list[dict[str, Any]]:
        """All runs that have started, in the order of their starts, with the name of their flow."""
        wanted = {"flow_runs": {"state": {"type": {"not_any_": ["SCHEDULED"]}}}, "sort": "START_TIME_ASC"}
        flows = {flow["id"]: flow["name"] for flow in self.call("flows/filter", {})}
        return [{**run, "flow": flows[run["flow_id"]]} for run in self.call("flow_runs/filter", wanted)]

    def prefect(self, *arguments: str) -> str:
        """Run one of Prefect's own commands and return its output."""
        command = [sys.executable, "-W", "ignore", "-m", "prefect", *arguments]
        done = subprocess.run(
            command, env={**os.environ, **self.variables}, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @contextmanager
    def browser(self, *flags: str, logged_in: bool = True) -> Iterator[Any]:
        """A page of a browser that is logged in to the UI."""
        with chromium(*flags) as browser:
            user, _, password = self.login.partition(":")
            credentials = {"username": user, "password": password} if logged_in else None
            page = browser.new_context(http_credentials=credentials).new_page()
            page.set_default_timeout(180_000)
            if logged_in:
                page.goto(f"{self.url}/v2/dashboard")
                page.locator("input[type=password]").fill(self.login)
                page.keyboard.press("Enter")
                page.locator("input[type=password]").wait_for(state="detached")
            yield page

    def press_retry(self, run: str) -> None:
        """Press Retry in the UI, as a user would."""
        with self.browser() as page:
            page.goto(f"{self.url}/v2/runs/flow-run/{run}")
            page.get_by_role("button", name="Open menu").click()
            page.get_by_role("menuitem", name="Retry").click()
            page.get_by_role("alertdialog").get_by_role("button", name="Retry").click()
            page.locator("[data-sonner-toast]").get_by_text("scheduled for retry").wait_for()


def paraclip(*arguments: object, code: int = 0, variables: Mapping[str, str] | None = None) -> str:
    """Run a command with only these of Prefect's and this project's variables; returns its output."""
    command = [sys.executable, "-m", "paraclip.flows.cli", *map(str, arguments)]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=_environment(variables), timeout=300
    )
    assert done.returncode == code, done.stdout
    return done.stdout


@contextmanager
def serving(
    root: Path,
    folder: Path,
    settings: Mapping[str, Any] | None = None,
    variables: Mapping[str, str] | None = None,
    port: int | None = None,
    code: int = INTERRUPTED,
) -> Iterator[Api]:
    """A local stack below `root` with a configuration deployed; Ctrl-C ends it, and it leaves nothing behind.

    With another `code` it ends by itself. Its output goes to `serve.log` in `folder`.
    """
    port, output = port or free_port(), folder / "serve.log"
    config = () if settings is None else ("-c", str(write_config(folder, settings)))
    options = "--root", str(root), "--port", str(port), "--folder", str(folder)
    with output.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "paraclip.flows.cli", "serve", *config, *options],
            stdout=log,
            stderr=log,
            env=_environment(variables),
        )
    try:
        text = eventually(lambda: _started(process, output), lambda: f"no worker: {output.read_text()}")
        assert f"UI: http://127.0.0.1:{port}" in text
        password = (variables or {}).get("PREFECT_SERVER_API_AUTH_STRING") or password_file(root).read_text().strip()
        yield Api(f"http://127.0.0.1:{port}", password)
    finally:
        if code == INTERRUPTED:
            process.send_signal(signal.SIGINT)
        ended = process.wait(120)
    assert ended == code, output.read_text()
    assert code != INTERRUPTED or not of_stack(root), "it left processes behind"


def _started(process: subprocess.Popen[bytes], output: Path) -> str | None:
    """What `serve` has written, once both workers work."""
    text = output.read_text()
    assert process.poll() is None, text
    return text if text.count("started!") == 2 else None


def _environment(variables: Mapping[str, str] | None) -> dict[str, str]:
    """This process's environment with only these of Prefect's and this project's variables."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "PARACLIP_"))}
    return {**environment, **(variables or {})}


def of_stack(root: Path, part: str = "") -> list[int]:
    """Processes of the stack below this root whose command line has `part`."""
    return with_variable("PREFECT_HOME", str(root / "prefect" / "server"), part)


def write_config(folder: Path, settings: Mapping[str, Any]) -> Path:
    """Write a configuration file with these settings."""
    path = folder / f"{settings['name']}.yaml"
    path.write_text(yaml.safe_dump(dict(settings)))
    return path


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write a file whole or not at all, because a run may read it at any moment."""
    draft = path.with_suffix(".new")
    draft.write_text("".join(json.dumps(row) + "\n" for row in rows))
    draft.replace(path)


def picture(color: str, number: int) -> Image.Image:
    """A background of this color with a square whose place stands for the thing."""
    red, green, blue = (COLORS[color] >> shift & 255 for shift in (16, 8, 0))
    image = Image.new("RGB", (32, 32), (red, green, blue))
    left, top = 8 * (number % 4), 16 * (number // 4)
    image.paste((255 - red, 30 * number, 255 - blue), (left, top, left + 8, top + 16))
    return image


def make_data(folder: Path) -> list[dict[str, Any]]:
    """64 tiny images with a caption each, paraphrases of these and of more, and paraphrased queries for the held-out
    ones."""
    (folder / "images").mkdir(parents=True)
    captions, paraphrases, paraphrased_queries = [], [], []
    for number, (color, thing) in enumerate((c, t) for c in COLORS for t in THINGS):
        image, caption, other = f"{number:02d}.png", f"a {color} {thing}", f"the {THINGS[thing]} is {color}"
        picture(color, list(THINGS).index(thing)).save(folder / "images" / image)
        held_out = number % HELD_OUT == 0
        captions.append({"image": image, "caption": caption, "split": "val" if held_out else "train"})
        for text in (caption, f"{caption} again"):
            row = {"image": image, "caption": text, "paraphrase_1": f"one {color} {thing} outside"}
            paraphrases.append(row | {"paraphrase_2": other})
        if held_out:
            paraphrased_queries.append({"image_id": image, "caption": caption, "paraphrased_query": other})
    write_lines(folder / "captions.jsonl", captions)
    write_lines(folder / "paraphrases.jsonl", paraphrases)
    write_lines(folder / "paraphrased_queries.jsonl", paraphrased_queries)
    return captions


def tiny_settings(name: str, root: Path, data: Path) -> dict[str, Any]:
    """Settings of a run over :func:`make_data` that takes seconds; its paraphrases are in a file."""
    paraphrased_queries = {
        "name": "paraphrased_queries",
        "kind": "paraphrased_retrieval",
        "path": "paraphrased_queries.jsonl",
    }
    return {
        "name": name,
        "data": {"root": str(data), "sources": [{"path": "captions.jsonl", "images": "images"}]},
        "paraphrase": {"engine": "file", "file": {"path": "paraphrases.jsonl"}, "filters": {"preset": "off"}},
        "model": {"base": "built-in", "text_width": 64, "text_layers": 1, "embed_dim": 32},
        "built_in_base": {"epochs": 1, "batch_size": 16},
        "finetune": {
            "recipe": "published",
            "learning_rate": 2e-4,
            "epochs": 60,
            "batch_size": 16,
            "precision": "fp32",
        },
        "evaluate": {
            "queries": None,
            "benchmarks": [paraphrased_queries, {"name": "captions", "kind": "retrieval"}],
        },
        "run": {"threads": 1, "root": str(root)},
    }
