"""The README, the tutorials and the how-to guides can be followed as they stand."""

import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.cli.parser import parse
from tests.e2e.warm_python import TRAINING, WarmPython

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    DOCS / "faq.md",
    *sorted((DOCS / "tutorials").glob("*.md")),
    *sorted((DOCS / "how-to").glob("*.md")),
]
README_CHARACTERS_READ_IN_A_MINUTE = 7000


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language; those of a list are indented."""
    found: list[str] = []
    fence = None
    for line in page.read_text().splitlines(keepends=True):
        if fence is None and (opened := re.match(r"( *)```(\w*)$", line)):
            indent, fence = opened[1], opened[2]
            found += [""] if fence == language else []
        elif fence is not None and line.strip() == "```":
            fence = None
        elif fence == language:
            found[-1] += line.removeprefix(indent)
    return found


def after_the_change(diff: str) -> str:
    """The file that a diff leads to."""
    return "".join(line[1:] for line in diff.splitlines(keepends=True) if line[0] != "-")


def commands(page: Path) -> list[list[str]]:
    """The words of each orchestrator command that the page has its reader type."""
    text = page.read_text()
    typed = "".join([*blocks(page, ""), *blocks(page, "bash")]).splitlines()
    named = [words for words in re.findall(r"`([^`\n]+)`", text) if " -" in words or "/" in words]
    found = []
    for line in [*typed, *named]:
        at = re.search(r"(?:^|! ?|do |\$ |srun )(orchestrator [a-z].*)", line.strip())
        if at and "..." not in at[1]:
            words = re.split(r" > |; ", at[1])[0]
            with contextlib.suppress(ValueError):  # a quoted command that goes on in the next line
                found.append(shlex.split(words, comments=True)[1:])
    return found


def train(directory: Path, script: str) -> None:
    (directory / "train.py").write_text(script)
    process = WarmPython(["train.py"], TRAINING, cwd=directory, env=dict(os.environ))
    _, said = process.communicate(timeout=120)
    assert process.wait() == 0, said


def is_complete(run_dir: Path) -> bool:
    return (run_dir / "done.json").exists()


@pytest.fixture(scope="module")
def quick_start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of the README's script after its training."""
    (diff,) = blocks(ROOT / "README.md", "diff")
    directory = tmp_path_factory.mktemp("quick_start")
    train(directory, after_the_change(diff))
    return directory / "runs" / "train"


@pytest.mark.processes
def test_readme_quick_start_trains_to_completion(quick_start: Path) -> None:
    """The script that the README's diff leads to trains to completion."""
    assert is_complete(quick_start)


def test_readme_counts_the_changed_lines_truthfully() -> None:
    """The quick start says how many lines are new and how many change."""
    (diff,) = blocks(ROOT / "README.md", "diff")
    added, removed = (sum(line[:1] == sign for line in diff.splitlines()) for sign in "+-")
    assert (added, removed) == (5, 2)
    assert "Five lines: three are new and two change." in (ROOT / "README.md").read_text()


def test_readme_answers_the_first_questions_within_a_minute() -> None:
    """What it does, costs, cannot do, how to get it, its licence and help stand near the top."""
    beginning = (ROOT / "README.md").read_text()[:README_CHARACTERS_READ_IN_A_MINUTE]
    for words in ("DDP", "8-GPU", "pip install", "Five lines", "torchrun", "memory", "Apache-2.0"):
        assert words in beginning
    for words in ("issue tracker", "0.1.0", "Linux", "Lightning", "submitit", "NVRx"):
        assert words in beginning


def test_readme_figures_stand_on_the_pages_they_are_from() -> None:
    """Each figure of the README's promises can be found in performance.md or reliability.md."""
    pages = (DOCS / "explanation" / "performance.md").read_text()
    pages += (DOCS / "explanation" / "reliability.md").read_text()
    readme = (ROOT / "README.md").read_text()
    for shown, measured in {
        "0.13 s": "0.125 s",
        "2.3 s": "2.27",
        "0.9 s": "0.942 s",
        "3.8 s": "3.78",
        "2.2 µs": "2.18 us",
        "0.36 s": "0.359 s",
        "1,081": "1081",
    }.items():
        assert shown in readme
        assert measured in pages


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_a_page_are_accepted(page: Path) -> None:
    """Each orchestrator command that a page shows has options that exist, and values they take."""
    for words in commands(page):
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            try:
                parse(words)
            except SystemExit as end:
                assert end.code == 0, f"orchestrator {shlex.join(words)}: {errors.getvalue()}"


def test_commands_are_found_on_the_pages() -> None:
    """The search for commands finds those of every kind of block, and of the text."""
    found = [words for page in PAGES for words in commands(page)]
    assert len(found) > 40
    assert ["stop", "runs/train"] in found
    assert ["stop", "$run"] in found


@pytest.mark.processes
def test_tutorial_script_and_its_resumable_form_train(tmp_path: Path) -> None:
    """Both scripts of the tutorial run, and end with the same weights' loss."""
    before, after = blocks(DOCS / "tutorials" / "make-your-script-resumable.md", "python")
    for name, script in (("before", before), ("after", after)):
        (tmp_path / name).mkdir()
        train(tmp_path / name, script)
    assert is_complete(tmp_path / "after" / "runs" / "train")


@pytest.mark.processes
def test_best_checkpoint_is_found_as_the_page_says(tmp_path: Path) -> None:
    """The page's loop keeps the best by accuracy, and its script prints where it is."""
    loop, *_ = [
        code for code in blocks(DOCS / "how-to" / "use-the-weights.md", "python") if "poll" in code
    ]
    loop = loop.replace("epochs(20)", "epochs(6)").replace("...", "loss = model(inputs).sum()")
    script = (
        "import torch\n"
        "from torch.utils.data import DataLoader, TensorDataset\n"
        "from orchestrator import Session\n"
        "model = torch.nn.Linear(2, 1)\n"
        "loader = DataLoader(TensorDataset(torch.ones(4, 2), torch.ones(4)), batch_size=2)\n"
        "evaluate = lambda model: {2: 0.9}.get(session.epoch, 0.1 * session.epoch)\n"
        "with Session(model=model) as session:\n"
    ) + re.sub("^", "    ", loop, flags=re.M)
    (tmp_path / "train.py").write_text(script)
    options = ["--keep", "2", "--every", "1epoch", "--keep-best", "accuracy:max", "--no-spare"]
    run = [sys.executable, "-m", "orchestrator", "run", *options, "--", sys.executable, "train.py"]
    subprocess.run(run, cwd=tmp_path, check=True, timeout=120, capture_output=True)

    (finder,) = [
        code for code in blocks(DOCS / "how-to" / "use-the-weights.md", "python") if "max(" in code
    ]
    finder = finder.replace('"orchestrator",', "sys.executable, '-m', 'orchestrator',")
    best = subprocess.run(
        [sys.executable, "-c", finder, "runs/train"],
        cwd=tmp_path,
        check=True,
        timeout=60,
        capture_output=True,
        text=True,
    ).stdout.strip()
    manifest = json.loads((tmp_path / best / "manifest.json").read_text())
    assert manifest["metrics"]["accuracy"] == 0.9


@pytest.mark.processes
def test_weights_load_as_the_page_says(quick_start: Path) -> None:
    """Plain torch reads a checkpoint's weights into the model."""
    import torch

    code = blocks(DOCS / "how-to" / "use-the-weights.md", "python")[0]
    (path,) = quick_start.glob("checkpoints/step-*4800/state.pt")
    code = re.sub(r'path = ".*"', f'path = "{path}"', code)
    model = torch.nn.Linear(8, 1)
    before = model.weight.detach().clone()
    exec(code, {"model": model})
    assert not torch.equal(before, model.weight)


@pytest.mark.processes
def test_evaluation_page_loop_trains(tmp_path: Path) -> None:
    """The loop of the page, with names that it leaves open, trains to completion."""
    (loop,) = blocks(DOCS / "how-to" / "evaluation-and-schedulers.md", "python")
    script = (
        "import torch\n"
        "from torch.utils.data import DataLoader, TensorDataset\n"
        "from orchestrator import Session\n"
        "model, criterion = torch.nn.Linear(4, 3), torch.nn.CrossEntropyLoss()\n"
        "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n"
        "scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1)\n"
        "data = TensorDataset(torch.randn(8, 4), torch.randint(3, (8,)))\n"
        "loader = DataLoader(data, batch_size=4, shuffle=True)\n"
        "test_batches, test_size = [(torch.randn(4, 4), torch.randint(3, (4,)))], 4\n"
        "with Session(model=model, optimizer=optimizer, scheduler=scheduler) as session:\n"
    ) + re.sub("^", "    ", loop, flags=re.M)
    train(tmp_path, script)
    assert is_complete(tmp_path / "runs" / "train")


@pytest.mark.processes
def test_notebook_cell_resumes_and_refuses_as_the_page_says(tmp_path: Path) -> None:
    """The cell of the page is interrupted, goes on when run again, and is refused once complete."""
    (cell,) = blocks(DOCS / "how-to" / "notebook.md", "python")
    script = f"""
import signal, torch
from torch.utils.data import DataLoader, TensorDataset
model = torch.nn.Linear(8, 1)
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
x = torch.randn(256, 8)
loader = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=16, shuffle=True)
cell = {cell!r}
interrupt = "loss.backward(); signal.raise_signal(signal.SIGINT)"
interrupting = cell.replace("loss.backward()", interrupt)
ends = []
for code in (interrupting, cell, cell):
    try:
        exec(code)
        ends.append("complete")
    except SystemExit as end:
        ends.append(type(end).__name__)
assert ends == ["TrainingStopped", "complete", "TrainingRefused"], ends
assert session.global_step == 160
"""
    train(tmp_path, script)


@pytest.mark.processes
def test_settings_file_of_the_page_is_read(tmp_path: Path) -> None:
    """The orchestrator.toml that the page shows is accepted where a run starts."""
    (settings,) = blocks(DOCS / "how-to" / "tune-saving.md", "toml")
    (tmp_path / "orchestrator.toml").write_text(settings)
    command = [sys.executable, "-m", "orchestrator", "run", "--", "true"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=60, capture_output=True)


def test_python_blocks_compile() -> None:
    """Every Python block is Python, those that are parts of a program too."""
    for page in PAGES:
        for block in blocks(page, "python"):
            compile(block, str(page), "exec")


LOOPS = blocks(DOCS / "how-to" / "convert-common-loops.md", "python")
AROUND_A_LOOP = """
import random
from collections import deque
from functools import partial

import numpy
import torch

import orchestrator


class Environment:
    def reset(self):
        return numpy.zeros(2)

    def step(self):
        return numpy.random.rand(2)


def train(batch):
    loss = sum(net(torch.as_tensor(batch).float()).sum() for net in (model, generator, critic))
    loss.backward()
    for each in (optimizer, optimizer_g, optimizer_d):
        each.step()
    return loss


def get_batch():
    return torch.rand(1, 2).tolist()


model, generator, critic = (torch.nn.Linear(2, 1) for _ in range(3))
optimizer, optimizer_g, optimizer_d = (
    torch.optim.SGD(net.parameters(), lr=0.01) for net in (model, generator, critic)
)
loader = torch.utils.data.DataLoader(torch.rand(10, 2), 3)
env = Environment()
"""


@pytest.mark.processes
def test_loops_of_the_page_of_conversions_train(tmp_path: Path) -> None:
    """Each pattern of the page runs as it stands."""
    script = AROUND_A_LOOP
    for number, loop in enumerate(LOOPS):
        script += f'Session = partial(orchestrator.Session, run_dir="runs/{number}")\n{loop}'
    train(tmp_path, script)
    assert len(LOOPS) > 5
    assert all(is_complete(tmp_path / "runs" / str(number)) for number in range(len(LOOPS)))
