"""What people see of a team's runs in MLflow's and Prefect's pages, in a real browser.

Screenshots go to the folder that TOKENBRIDGE_SCREENSHOTS names. docs/images/pages-*.png were made this way.
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
from playwright.sync_api import Page, expect, sync_playwright

from tests.pipeline.project import STAGES, Project, wait_for
from tests.stack.team import MODEL, State, client
from tests.support.patience import PATIENCE
from tests.support.programs import require
from tokenbridge.infra.tracking.pages import run_page, version_page

pytestmark = pytest.mark.cluster

QUIET = ["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
# root has no sandbox; what draws graphs is slow on a busy machine, and not to be ended as hung
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-gpu-watchdog", "--disable-quic", *QUIET]
COLOURS = 128  # of a screenshot, to make its file small
# MLflow's chat opens once by itself, over a third of the page
ASSISTANT_SEEN = "localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')"
SAMPLES = "samples/tiny.png"
DISTANCE = "fd_efficientnet_lite0_32px"


@pytest.fixture(scope="session")
def chromium() -> Path:
    """The system's browser, because playwright's own would be another download. Found before anything is trained."""
    return require("chromium")


@pytest.fixture
def page(chromium: Path, team: Project) -> Iterator[Page]:
    """A browser in which Prefect's password was typed once."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        context = browser.new_context(viewport={"width": 1500, "height": 800})
        context.add_init_script(ASSISTANT_SEEN)
        password = team.environment["PREFECT_API_AUTH_STRING"]
        context.add_init_script(f"localStorage.setItem('prefect-password', btoa('{password}'))")
        context.set_default_timeout(PATIENCE * 1000)
        expect.set_options(timeout=PATIENCE * 1000)
        yield context.new_page()
        browser.close()


def test_every_page_shows_a_team_its_work(
    page: Page, team: Project, promoted: State, retrained_again: State, tmp_path: Path
) -> None:
    assert (promoted["name"], retrained_again["name"]) == ("Promoted", "Completed")
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    mlflow, pictures = client(team), Path(os.environ.get("TOKENBRIDGE_SCREENSHOTS") or tmp_path)
    pictures.mkdir(parents=True, exist_ok=True)
    run = newest(mlflow, "tags.stage = 'pipeline' and tags.`prefect.page` LIKE 'http%'")

    see_runs(page, team, run)
    photograph(page, pictures, "runs")
    see_curves(page, mlflow)
    photograph(page, pictures, "charts")
    see_samples(page, mlflow, run)
    photograph(page, pictures, "artifacts")
    see_champion(page, mlflow)
    photograph(page, pictures, "version")
    see_flow(page, team, run)
    photograph(page, pictures, "flow")
    see_artifacts(page)
    photograph(page, pictures, "flow-artifacts")
    see_link_to_mlflow(page, run)
    see_promotion(page, team)
    photograph(page, pictures, "promotion")
    assert [url for url in requested if not url.startswith(("http://127.0.0.1:", "data:", "blob:"))] == []


def photograph(page: Page, pictures: Path, name: str) -> None:
    shot = Image.open(io.BytesIO(page.screenshot(animations="disabled")))
    shot.quantize(COLOURS).save(pictures / f"pages-{name}.png", optimize=True)


def visit(page: Page, address: str) -> None:
    page.goto("about:blank")  # MLflow's addresses differ only behind the #, which opens no new page
    page.goto(address)


def see(page: Page, text: str) -> None:
    expect(page.get_by_text(text).first).to_be_visible()


def newest(mlflow: MlflowClient, condition: str) -> Run:
    """Return the newest finished run; a test of outages may have left others."""
    experiment = mlflow.get_experiment_by_name("tokenbridge").experiment_id
    return mlflow.search_runs([experiment], f"{condition} and attributes.status = 'FINISHED'", max_results=1)[0]


def visit_run(page: Page, mlflow: MlflowClient, run: Run, tab: str) -> None:
    address = run_page(mlflow.tracking_uri, run.info.experiment_id, run.info.run_id)
    visit(page, address.replace("?", f"/{tab}?"))


def see_runs(page: Page, team: Project, run: Run) -> None:
    """The table shows what a newcomer looks for; another view compares trainings."""
    table = team.run("tokenbridge", "ui").split()[1]
    visit(page, table)
    see(page, "One row pipeline is one execution")
    page.get_by_role("button", name="Pipelines").click()
    page.get_by_test_id("saved-views-item-trainings").click()
    expect(page.get_by_role("columnheader", name="gradient_norm").first).to_be_visible()
    visit(page, table)
    row = page.locator(".ag-row", has_text=run.info.run_name).first.get_attribute("row-id")
    for column, value in {
        f"metrics.`{DISTANCE}`": str(run.data.metrics[DISTANCE])[:6],
        "metrics.`class_accuracy`": str(run.data.metrics["class_accuracy"])[:5],
        "metrics.`validation_loss`": str(run.data.metrics["validation_loss"])[:5],
        "params.`data`": "fashion_mnist",
        "params.`models`": "tiny",
        "tags.`git.commit`": run.data.tags["git.commit"][:7],
    }.items():
        expect(page.locator(f".ag-row[row-id='{row}'] [col-id='{column}']")).to_contain_text(value)


def see_curves(page: Page, mlflow: MlflowClient) -> None:
    visit_run(page, mlflow, newest(mlflow, "tags.stage = 'train@tiny'"), "model-metrics")
    card = page.get_by_test_id("experiment-view-compare-runs-card").filter(has_text="train@tiny (loss)")
    several_points = re.compile("(,[^,]+){4}")  # of the line; MLflow adds markers only if there are few points
    expect(card.locator("path.js-line").first).to_have_attribute("d", several_points)


def see_samples(page: Page, mlflow: MlflowClient, run: Run) -> None:
    visit_run(page, mlflow, run, f"artifacts/{SAMPLES}")
    picture = page.get_by_alt_text(SAMPLES)
    expect(picture).to_be_visible()
    assert picture.evaluate("picture => picture.naturalWidth") > 100


def see_champion(page: Page, mlflow: MlflowClient) -> None:
    version = int(mlflow.get_model_version_by_alias(MODEL, "champion").version)
    visit(page, version_page(mlflow.tracking_uri, MODEL, version))
    for text in (f"Version {version}", "champion", "How to use it"):
        see(page, text)


def visit_flow_run(page: Page, team: Project, name: str, end: str = "") -> None:
    """Search the list of flow runs for ``name``; several may have it, and ``end`` is the end of one's address."""
    visit(page, team.environment["PREFECT_API_URL"].removesuffix("/api") + "/runs")
    page.get_by_role("searchbox", name="Search by flow run name").fill(name)
    links = page.get_by_role("link", name=name)
    (links.and_(page.locator(f"[href$='{end}']")) if end else links).first.click()
    see(page, "Artifacts")


def see_flow(page: Page, team: Project, run: Run) -> None:
    """The flow run shows its stages, as a graph and as a list, and their output."""
    name = str(run.info.run_name).replace("pipeline", "retrain", 1)
    visit_flow_run(page, team, name, run.data.tags["prefect.page"].rpartition("/")[2])
    page.get_by_text("Task Runs", exact=True).click()
    for stage in STAGES:
        expect(page.get_by_role("link", name=stage, exact=True)).to_be_visible()
    page.get_by_text("Logs", exact=True).click()
    see(page, "Running stage 'train@tiny'")
    wait_for(lambda: shows_graph(page), "graph")


def shows_graph(page: Page) -> bool:
    """Return whether the graph is drawn. The page is loaded again if it is not: a busy browser may lose a graph."""
    if any(is_drawn(page.locator("canvas").first.screenshot()) for _ in range(100)):
        return True
    page.reload()
    return False


def is_drawn(graph: bytes) -> bool:
    """Return whether the picture of a graph has completed stages, which are green. No text can be read from it."""
    picture = Image.open(io.BytesIO(graph)).convert("RGB")
    found = picture.getcolors(picture.width * picture.height) or []
    return sum(count for count, (red, green, _) in found if green > red + 80) > 2000


def see_artifacts(page: Page) -> None:
    page.get_by_text("Artifacts", exact=True).click()
    page.get_by_role("link", name="samples-tiny").scroll_into_view_if_needed()


def see_link_to_mlflow(page: Page, run: Run) -> None:
    page.get_by_role("link", name="mlflow-run").click()
    link = page.get_by_role("link", name="This run in MLflow")  # a click would open it in another tab
    visit(page, str(link.get_attribute("href")))
    see(page, str(run.info.run_name))


def see_promotion(page: Page, team: Project) -> None:
    visit_flow_run(page, team, "promote tiny")
    page.get_by_text("Artifacts", exact=True).click()
    page.get_by_role("link", name="markdown promotion-tiny created").click()
    see(page, "class accuracy on real images is")
