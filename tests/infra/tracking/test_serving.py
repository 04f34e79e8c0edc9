"""The champion behind ``mlflow models serve``, asked over HTTP."""

import base64
import io
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from shutil import copy2
from typing import Any

import psutil
import pytest
import torch
from PIL import Image

from tests.infra.tracking.conftest import MlflowServer
from tests.infra.tracking.test_registry import NAME, record, send
from tests.support.patience import PATIENCE
from tokenbridge.infra.tracking.logged_model import EXAMPLE, MAX_ROWS, MAX_STEPS
from tokenbridge.infra.tracking.registry import CHAMPION, Registry
from tokenbridge.infra.tracking.store import connect
from tokenbridge.infra.tracking.uri import default_uri
from tokenbridge.sampling.pipeline import TokenBridgePipeline

pytestmark = pytest.mark.pipeline
Row = dict[str, Any]


@pytest.fixture(scope="module")  # it holds a gigabyte
def server(
    empty_database: Path, pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MlflowServer]:
    """A server of the champion, which it finds by its alias."""
    root = tmp_path_factory.mktemp("served")
    copy2(empty_database, root / "mlflow.db")
    record(root, pipeline_folder)
    send(root)
    registry = Registry(connect(root))
    registry.point(CHAMPION, registry.version(NAME))
    command = ["models", "serve", "--model-uri", f"models:/{NAME}@{CHAMPION}", "--env-manager", "local"]
    server = MlflowServer(root, *command, health="ping", MLFLOW_TRACKING_URI=default_uri(root))
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture
def address(server: MlflowServer) -> str:
    return server.address


def ask(address: str, *rows: Row) -> tuple[int, Any]:
    """Return status and answer."""
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


def expected(folder: Path, row: Row) -> bytes:
    """Pixels of the pipeline's own image."""
    settings = {"num_inference_steps" if name == "steps" else name: value for name, value in row.items()}
    label, generator = settings.pop("class"), torch.Generator().manual_seed(settings.pop("seed", 0))
    pixels: bytes = (
        TokenBridgePipeline.from_pretrained(folder)([label], generator=generator, **settings).images[0].tobytes()
    )
    return pixels


def test_settings_are_the_pipelines_and_may_be_left_out(address: str, pipeline_folder: Path) -> None:
    row = {"class": "Sneaker", "seed": -5, "guidance_scale": 3.0, "steps": 4, "temperature": 0.5}
    assert images(address, row) == [expected(pipeline_folder, row)]
    assert images(address, row | {"steps": 5}) != images(address, row)
    assert images(address, {"class": "Bag"}) == [expected(pipeline_folder, {"class": "Bag"})]
    assert images(address, EXAMPLE) == [expected(pipeline_folder, {"class": "0"})]  # its settings are the defaults


def test_a_class_is_a_name_or_a_number_and_rows_do_not_change_each_other(address: str, pipeline_folder: Path) -> None:
    strong = {"seed": 3, "guidance_scale": 50.0}  # these weights hardly heed the class
    bag, number, other = ({"class": label} | strong for label in ("Bag", "1", "2"))
    together = images(address, bag, number, other)
    assert together[0] == together[1] == expected(pipeline_folder, bag)
    assert together[2] != together[0]
    assert images(address, other) == together[2:]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"class": "Hat"}, "row 1: there is no class 'Hat': choose one of 0 Sneaker, 1 Bag, 2 Ankle boot"),
        ({"class": "Bag", "steps": MAX_STEPS + 1}, f"row 1: steps is {MAX_STEPS + 1}: ask for at most {MAX_STEPS}"),
        ({"class": "Bag", "guidance_scale": float("nan")}, "row 1: guidance_scale is NaN or missing"),
        ({"class": "Bag", "guidance_scale": 1e308}, "row 1: guidance_scale is 1e+308: must be less than"),
        ({"class": "Bag", "seed": 2**63}, "row 1: seed is 9223372036854775808: must be"),
        ({"class": "Bag", "seed": 1.5}, "row 1: seed is 1.5: must be an integer"),
        ({"class": "Bag", "seed": True}, "row 1: seed is True: must be a number"),
        ({"class": "Bag", "colour": "red"}, "unknown or repeated columns ['colour']"),
        ({"seed": 1}, "row 1: class is"),
    ],
)
def test_what_cannot_be_drawn_is_answered_with_400_and_the_reason(address: str, row: Row, reason: str) -> None:
    fine = {"class": "Bag"} | {name: 1 for name in row if name != "class"}
    status, answer = ask(address, fine, row)
    assert status == 400
    assert reason in answer["message"]


def test_too_many_rows_are_refused_at_once(address: str) -> None:
    status, answer = ask(address, *[{"class": "Bag"}] * (MAX_ROWS + 1))
    assert status == 400
    assert f"{MAX_ROWS + 1} rows: ask for at most {MAX_ROWS} at a time" in answer["message"]


def test_sigterm_ends_every_process(server: MlflowServer) -> None:
    """The last test of this file, for it ends the server."""
    assert server.process
    mother = psutil.Process(server.process.pid)
    family = [mother, *mother.children(recursive=True)]
    mother.terminate()
    assert psutil.wait_procs(family, timeout=PATIENCE)[1] == []
