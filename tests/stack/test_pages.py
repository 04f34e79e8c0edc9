"""What people see of a team's runs in MLflow's and Prefect's pages, by a real browser.

Screenshots go to the folder that TOKENBRIDGE_SCREENSHOTS names; docs/images/pages-*.png were made so.
"""

import io
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from PIL import Image
from playwright.sync_api import Page, Request, expect, sync_playwright

from tests.pipeline.project import STAGES, Project, wait_for
from tests.stack.team import MODEL, State
from tests.support.programs import require
from tokenbridge.infra.tracking.pages import run_page, version_page

pytestmark = pytest.mark.cluster

QUIET = ["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", *QUIET]  # root has no sandbox
PATIENCE = 60_000  # milliseconds
COLOURS = 128  # of a screenshot, which shall be small
# MLflow's chat opens itself once, over a third of the page
ASSISTANT_SEEN = "localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')"
SAMPLES = "samples/tiny.png"
DISTANCE = "fd_efficientnet_lite0_32px"


class Visitor:
    """A person with a browser.

    Attributes:
        elsewhere: addresses beyond this machine that the pages asked for.
    """

    def __init__(self, page: Page, pictures: Path) -> None:
        self.page, self.pictures = page, pictures
        self.elsewhere: list[str] = []
        page.on("request", self.note)

    def note(self, request: Request) -> None:
        if not request.url.startswith(("http://127.0.0.1:", "data:", "blob:")):
            self.elsewhere.append(request.url)

    def opens(self, address: str) -> None:
        self.page.goto("about:blank")  # MLflow's addresses differ behind the # alone, which is no new page
        self.page.goto(address)

    def sees(self, text: str) -> None:
        expect(self.page.get_by_text(text).first).to_be_visible()

    def photographs(self, name: str) -> None:
        shot = Image.open(io.BytesIO(self.page.screenshot(animations="disabled")))
        shot.quantize(COLOURS).save(self.pictures / f"pages-{name}.png", optimize=True)


@pytest.fixture(scope="session")
def chromium() -> Path:
    """The system's, because playwright's own would be another download. Asked for before anything is trained."""
    return require("chromium")


@pytest.fixture(scope="module")
def visitor(chromium: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visitor]:
    pictures = Path(os.environ.get("TOKENBRIDGE_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    pictures.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        context = browser.new_context(viewport={"width": 1500, "height": 800})
        context.add_init_script(ASSISTANT_SEEN)
        context.set_default_timeout(PATIENCE)
        expect.set_options(timeout=PATIENCE)
        yield Visitor(context.new_page(), pictures)
        browser.close()


@pytest.fixture
def mlflow(team: Project, retrained_again: State) -> MlflowClient:
    assert retrained_again["name"] == "Completed", retrained_again
    return MlflowClient(team.environment["MLFLOW_TRACKING_URI"])


def newest(mlflow: MlflowClient, condition: str) -> Run:
    """Of those that came to a good end; a test of outages may have run before."""
    condition += " and attributes.status = 'FINISHED'"
    experiment = mlflow.get_experiment_by_name("tokenbridge").experiment_id
    return mlflow.search_runs([experiment], condition, max_results=1)[0]


@pytest.fixture
def pipeline(mlflow: MlflowClient) -> Run:
    """Of the last `retrain`; a sweep's runs may have come after it."""
    return newest(mlflow, "tags.stage = 'pipeline' and tags.`prefect.page` LIKE 'http%'")


def page_of(mlflow: MlflowClient, run: Run, tab: str) -> str:
    return run_page(mlflow.tracking_uri, run.info.experiment_id, run.info.run_id).replace("?", f"/{tab}?")


def test_the_runs_table_shows_what_a_newcomer_looks_for(team: Project, pipeline: Run, visitor: Visitor) -> None:
    visitor.opens(team.run("tokenbridge", "ui").split()[1])
    visitor.sees("One row pipeline is one execution")
    run, page = pipeline, visitor.page
    assert run.info.run_name.startswith("pipeline experiment=smoke train.epochs=")
    row = page.locator(".ag-row", has_text=run.info.run_name)
    row_id = row.first.get_attribute("row-id")
    for column, value in {
        f"metrics.`{DISTANCE}`": str(run.data.metrics[DISTANCE])[:6],
        "metrics.`class_accuracy`": str(run.data.metrics["class_accuracy"])[:5],
        "metrics.`validation_loss`": str(run.data.metrics["validation_loss"])[:5],
        "params.`data`": "fashion_mnist",
        "params.`models`": "tiny",
        "tags.`git.commit`": run.data.tags["git.commit"][:7],
        "duration": "s" if (run.info.end_time - run.info.start_time) < 60_000 else "min",
    }.items():
        expect(page.locator(f".ag-row[row-id='{row_id}'] [col-id='{column}']")).to_contain_text(value)
    expect(page.locator("[col-id*='evaluate_tiny']")).to_have_count(0)
    visitor.photographs("runs")


def test_another_view_compares_trainings(mlflow: MlflowClient, visitor: Visitor) -> None:
    visitor.page.get_by_role("button", name="Pipelines").click()
    visitor.page.get_by_test_id("saved-views-item-trainings").click()
    expect(visitor.page.get_by_role("columnheader", name="gradient_norm").first).to_be_visible()
    expect(visitor.page.locator(".ag-row", has_text="promotion")).to_have_count(0)


def test_a_training_has_its_curves(mlflow: MlflowClient, visitor: Visitor) -> None:
    visitor.opens(page_of(mlflow, newest(mlflow, "tags.stage = 'train@tiny'"), "model-metrics"))
    card = visitor.page.get_by_test_id("experiment-view-compare-runs-card").filter(has_text="train@tiny (loss)")
    several_points = re.compile("(,[^,]+){4}")  # whether they are marked as well hangs on their number
    expect(card.locator("path.js-line").first).to_have_attribute("d", several_points)
    visitor.photographs("charts")


def test_the_samples_can_be_looked_at(mlflow: MlflowClient, pipeline: Run, visitor: Visitor) -> None:
    visitor.opens(page_of(mlflow, pipeline, f"artifacts/{SAMPLES}"))
    picture = visitor.page.get_by_alt_text(SAMPLES)
    expect(picture).to_be_visible()
    assert picture.evaluate("picture => picture.naturalWidth") > 100
    visitor.photographs("artifacts")


def test_the_champion_is_told_from_other_versions(mlflow: MlflowClient, visitor: Visitor) -> None:
    version = int(mlflow.get_model_version_by_alias(MODEL, "champion").version)
    visitor.opens(version_page(mlflow.tracking_uri, MODEL, version))
    visitor.sees(f"Version {version}")
    visitor.sees("champion")
    visitor.sees("How to use it")
    visitor.photographs("version")


def open_flow_run(team: Project, visitor: Visitor, name: str, page: str = "") -> None:
    """From the list of all runs, by searching for its name; several may have it, and ``page`` tells which."""
    visitor.opens(team.environment["PREFECT_API_URL"].removesuffix("/api") + "/runs")
    visitor.page.get_by_role("searchbox", name="Search by flow run name").fill(name)
    links = visitor.page.get_by_role("link", name=name)
    if page:
        links = links.and_(visitor.page.locator(f"[href$='{page.rpartition('/')[2]}']"))
    links.first.click()
    visitor.sees("Artifacts")


def is_drawn(graph: bytes) -> bool:
    """Whether stages that completed, in green, are in the picture of a graph; no text can be read from it."""
    picture = Image.open(io.BytesIO(graph)).convert("RGB")
    found = picture.getcolors(picture.width * picture.height) or []
    return sum(count for count, (red, green, _) in found if green > red + 80) > 2000


def test_a_flow_run_shows_its_stages_and_what_they_say(team: Project, pipeline: Run, visitor: Visitor) -> None:
    name = str(pipeline.info.run_name).replace("pipeline", "retrain", 1)
    open_flow_run(team, visitor, name, pipeline.data.tags["prefect.page"])
    wait_for(lambda: is_drawn(visitor.page.locator("canvas").first.screenshot()), "graph")
    visitor.sees("Running stage 'train@tiny'")
    visitor.photographs("flow")
    visitor.page.get_by_text("Task Runs", exact=True).click()
    for stage in STAGES:
        expect(visitor.page.get_by_role("link", name=stage, exact=True)).to_be_visible()


def test_a_flow_run_leads_to_its_run_in_mlflow(pipeline: Run, visitor: Visitor) -> None:
    page = visitor.page
    page.get_by_text("Artifacts", exact=True).click()
    page.get_by_role("link", name="samples-tiny").scroll_into_view_if_needed()
    visitor.photographs("flow-artifacts")
    page.get_by_role("link", name="mlflow-run").click()
    link = page.get_by_role("link", name="This run in MLflow")  # which a click would open in another tab
    visitor.opens(str(link.get_attribute("href")))
    visitor.sees(str(pipeline.info.run_name))


def test_a_promotion_tells_its_reasons(team: Project, promoted: State, visitor: Visitor) -> None:
    open_flow_run(team, visitor, "promote tiny")
    visitor.page.get_by_text("Artifacts", exact=True).click()
    visitor.page.get_by_role("link", name="markdown promotion-tiny created").click()
    visitor.sees("class accuracy is")
    visitor.photographs("promotion")


def test_no_page_asks_another_machine(visitor: Visitor) -> None:
    assert visitor.elsewhere == []
