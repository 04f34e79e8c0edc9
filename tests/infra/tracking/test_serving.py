"""The champion behind ``mlflow models serve``, asked over HTTP."""

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from shutil import copy2
from typing import Any

import pytest
import torch
from PIL import Image

from tests.infra.tracking.test_registry import NAME, record, send
from tokenbridge.infra.tracking.logged_model import EXAMPLE, MAX_ROWS, MAX_STEPS
from tokenbridge.infra.tracking.registry import CHAMPION, Registry
from tokenbridge.infra.tracking.store import connect, default_uri
from tokenbridge.sampling.pipeline import TokenBridgePipeline

pytestmark = pytest.mark.pipeline
PATIENCE = 120  # seconds
Row = dict[str, Any]


@pytest.fixture(scope="session")
def address(empty_database: Path, pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a server of the champion, by its alias."""
    root = tmp_path_factory.mktemp("served")
    copy2(empty_database, root / "mlflow.db")
    record(root, pipeline_folder)
    send(root)
    registry = Registry(connect(root))
    registry.point(CHAMPION, registry.version(NAME))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    model = ["-m", f"models:/{NAME}@{CHAMPION}", "--env-manager", "local"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with (root / "server.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "models", "serve", *model, "-h", "127.0.0.1", "-p", str(port)],
            env={**os.environ, "MLFLOW_TRACKING_URI": default_uri(root), "PATH": path},
            cwd=root,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_until_up(server, f"http://127.0.0.1:{port}", root / "server.log")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def wait_until_up(server: subprocess.Popen[bytes], address: str, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(f"{address}/ping", timeout=5)
            return
        except OSError:
            time.sleep(0.2)
    raise TimeoutError(log.read_text()[-2000:])


def ask(address: str, *rows: Row) -> tuple[int, Any]:
    """Status and answer."""
    body = json.dumps({"dataframe_records": rows}).encode()
    request = urllib.request.Request(f"{address}/invocations", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def images(address: str, *rows: Row) -> list[bytes]:
    """Pixels of the images, which must be PNG."""
    status, answer = ask(address, *rows)
    assert status == 200, answer
    pictures = [Image.open(io.BytesIO(base64.b64decode(text))) for text in answer["predictions"]]
    assert {picture.format for picture in pictures} == {"PNG"}
    return [picture.tobytes() for picture in pictures]


def expected(folder: Path, label: str, seed: int, **settings: Any) -> bytes:
    generator = torch.Generator().manual_seed(seed)
    pixels: bytes = (
        TokenBridgePipeline.from_pretrained(folder)([label], generator=generator, **settings).images[0].tobytes()
    )
    return pixels


def test_a_class_may_be_a_name_or_a_number(address: str, pipeline_folder: Path) -> None:
    strong = {"seed": 3, "guidance_scale": 50.0}  # these weights hardly heed the class
    name, number, other = images(address, *({"class": label} | strong for label in ("Bag", "1", "2")))
    assert name == number == expected(pipeline_folder, "Bag", 3, guidance_scale=50.0)
    assert other != name


def test_settings_are_the_pipelines(address: str, pipeline_folder: Path) -> None:
    row = {"class": "Sneaker", "seed": -5, "guidance_scale": 3.0, "steps": 4, "temperature": 0.5}
    settings = {"guidance_scale": 3.0, "num_inference_steps": 4, "temperature": 0.5}
    assert images(address, row) == [expected(pipeline_folder, "Sneaker", -5, **settings)]
    assert images(address, row | {"steps": 5}) != images(address, row)


def test_all_but_the_class_may_be_left_out(address: str, pipeline_folder: Path) -> None:
    assert images(address, {"class": "Bag"}) == [expected(pipeline_folder, "Bag", 0)]
    assert images(address, EXAMPLE) == [expected(pipeline_folder, "0", 0)]  # its settings are the defaults


def test_a_neighbour_does_not_change_an_image(address: str) -> None:
    alone = images(address, {"class": "Bag", "seed": 1})
    assert images(address, {"class": "Sneaker", "seed": 9}, {"class": "Bag", "seed": 1})[1:] == alone


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"class": "Hat"}, "row 1: there is no class 'Hat': choose one of 0 Sneaker, 1 Bag, 2 Ankle boot"),
        ({"class": "3"}, "row 1: there is no class '3'"),
        ({"class": None}, "there is no class"),
        ({"class": "Bag", "steps": 0}, "row 1: steps is 0: must be greater than 0"),
        ({"class": "Bag", "steps": 17}, "row 1: 17 steps for 16 positions: use at most 16 steps"),
        ({"class": "Bag", "steps": MAX_STEPS + 1}, f"row 1: steps is {MAX_STEPS + 1}: ask for at most {MAX_STEPS}"),
        ({"class": "Bag", "guidance_scale": 0.5}, "row 1: guidance_scale is 0.5: must be greater than or equal to 1"),
        ({"class": "Bag", "guidance_scale": float("nan")}, "row 1: guidance_scale is NaN or missing"),
        ({"class": "Bag", "guidance_scale": float("inf")}, "row 1: guidance_scale is inf"),
        ({"class": "Bag", "temperature": -1.0}, "row 1: temperature is -1.0: must be greater than or equal to 0"),
        ({"class": "Bag", "seed": "many"}, "seed"),
        ({"seed": 1}, "class"),
    ],
)
def test_what_cannot_be_drawn_is_answered_with_400_and_the_reason(address: str, row: Row, told: str) -> None:
    fine = {"class": "Bag"} | {name: 1 for name in row if name != "class"}
    status, answer = ask(address, fine, row)
    assert status == 400
    assert told in answer["message"]


def test_too_many_rows_are_refused_at_once(address: str) -> None:
    status, answer = ask(address, *[{"class": "Bag"}] * (MAX_ROWS + 1))
    assert status == 400
    assert f"{MAX_ROWS + 1} rows: ask for at most {MAX_ROWS} at a time" in answer["message"]
