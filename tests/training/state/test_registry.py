"""The state of a run: taken whole, given back whole or not at all."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from orchestrator.errors import ConfigError, MismatchError, UnstorableError
from orchestrator.training.state.progress import Progress
from orchestrator.training.state.registry import SHOWN_DIFFERENCES, Registry, all_finite

SOURCE = Path("state.pt")
Content = dict[str, Any]


class Ema:
    """A thing of the script's own with the two methods."""

    def __init__(self, value: float) -> None:
        self.value = value

    def state_dict(self) -> dict[str, float]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.value = state["value"]


class Script:
    """A model with buffers, two parameter groups, a scheduler; trained for some steps."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        first, *_, last = self.model
        groups = [{"params": list(first.parameters())}, {"params": list(last.parameters())}]
        self.optimizer = torch.optim.Adam(groups, lr=0.1)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 1)
        self.ema = Ema(float(seed))
        for _ in range(seed):
            self.model(torch.randn(5, 3)).square().mean().backward()
            self.optimizer.step()
            self.scheduler.step()
            self.optimizer.zero_grad()

    def registry(self) -> Registry:
        registry = Registry()
        registry.add(vars(self))
        return registry

    def snapshot(self) -> str:
        """Every bit of every live object."""
        with torch._tensor_str.printoptions(threshold=10_000, precision=12):  # type: ignore[attr-defined]
            return str({name: value.state_dict() for name, value in vars(self).items()})


@pytest.fixture
def trained() -> Script:
    return Script(seed=3)


@pytest.fixture
def live() -> Script:
    return Script(seed=1)


def captured(script: Script) -> Content:
    return copy.deepcopy(script.registry().capture())


def test_restore_gives_back_every_bit(trained: Script, live: Script) -> None:
    """After restoring, the live objects are those that were captured, and they stay themselves."""
    model, weight = live.model, live.model[0].weight
    assert live.snapshot() != trained.snapshot()
    live.registry().restore(captured(trained), SOURCE)
    assert live.snapshot() == trained.snapshot()
    assert live.model is model
    assert live.model[0].weight is weight


def test_captured_keys() -> None:
    """The name decides the key in the file."""
    keys = {"model_state_dict", "optimizer_state_dict", "scheduler_state_dict", "ema_state_dict"}
    assert Script().registry().capture().keys() == keys


def _missing_layer(content: Content) -> None:
    del content["model_state_dict"]["2.bias"]


def _extra_layer(content: Content) -> None:
    content["model_state_dict"]["3.weight"] = torch.ones(2)


def _other_shape(content: Content) -> None:
    content["model_state_dict"]["0.weight"] = torch.ones(9, 3)


def _no_tensor(content: Content) -> None:
    content["model_state_dict"]["1.running_mean"] = 1.0


def _other_dtype(content: Content) -> None:
    state = content["model_state_dict"]
    state["0.weight"] = state["0.weight"].double()


def _other_dtype_of_the_optimizer(content: Content) -> None:
    state = content["optimizer_state_dict"]["state"][2]
    state["exp_avg"] = state["exp_avg"].half()


def _missing_name(content: Content) -> None:
    del content["ema_state_dict"]


def _unregistered_name(content: Content) -> None:
    content["scaler_state_dict"] = {}


def _other_group_sizes(content: Content) -> None:
    content["optimizer_state_dict"]["param_groups"][1]["params"].append(9)


def _other_number_of_groups(content: Content) -> None:
    del content["optimizer_state_dict"]["param_groups"][1]


def _no_optimizer_state(content: Content) -> None:
    content["optimizer_state_dict"] = {"state": {}}


def _no_state_dict(content: Content) -> None:
    content["model_state_dict"] = [1, 2]


def _other_optimizer_class(content: Content) -> None:
    other = torch.optim.SGD(
        [{"params": [torch.ones(1)] * 2}, {"params": [torch.zeros(1)] * 2}], lr=0.1
    )
    content["optimizer_state_dict"] = other.state_dict()


def _other_scheduler_class(content: Content) -> None:
    optimizer = torch.optim.SGD([torch.ones(1)], lr=0.1)
    other = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 9)
    content["scheduler_state_dict"] = other.state_dict()


DIFFERENCES: list[tuple[Callable[[Content], None], str]] = [
    (_missing_layer, "model: layer 2.bias is missing in the file"),
    (_extra_layer, "model: layer 3.weight is only in the file"),
    (_other_shape, "model: layer 0.weight is [9, 3] in the file, [4, 3] here"),
    (_no_tensor, "model: layer 1.running_mean is no tensor in the file, [4] here"),
    (_other_dtype, "model: layer 0.weight is torch.float64 in the file, torch.float32 here"),
    (
        _other_dtype_of_the_optimizer,
        "optimizer: exp_avg of parameter 2 is torch.float16 in the file, torch.float32 here",
    ),
    (_missing_name, "ema is registered, but not in the file"),
    (_unregistered_name, "scaler is in the file, but not registered"),
    (_other_group_sizes, "optimizer: parameters per group are [2, 3] in the file, [2, 2] here"),
    (_other_number_of_groups, "optimizer: parameters per group are [2] in the file, [2, 2] here"),
    (_no_optimizer_state, "optimizer: the file holds no optimizer state"),
    (_no_state_dict, "model: the file holds a list, not a state_dict"),
    (_other_optimizer_class, "optimizer: "),
    (_other_scheduler_class, "scheduler: "),
]


@pytest.mark.parametrize(
    ("damage", "text"), DIFFERENCES, ids=[damage.__name__ for damage, _ in DIFFERENCES]
)
def test_any_difference_is_named_and_nothing_has_changed(
    trained: Script, live: Script, damage: Callable[[Content], None], text: str
) -> None:
    """A file that does not fit is refused with what differs, before any live object changes."""
    content = captured(trained)
    damage(content)
    before = live.snapshot()
    with pytest.raises(MismatchError) as refused:
        live.registry().restore(content, SOURCE)
    assert live.snapshot() == before
    assert text in str(refused.value)
    assert str(refused.value).startswith(f"cannot resume from {SOURCE}: ")


def test_all_differences_are_listed_together(trained: Script, live: Script) -> None:
    """One refusal names everything that differs, in every object."""
    content = captured(trained)
    for damage in (_missing_layer, _extra_layer, _other_shape, _unregistered_name):
        damage(content)
    with pytest.raises(MismatchError) as refused:
        live.registry().restore(content, SOURCE)
    lines = [line.strip() for line in str(refused.value).splitlines()]
    expected = [text for damage, text in DIFFERENCES[:4] if damage is not _no_tensor]
    assert all(text in lines for text in expected)
    assert "scaler is in the file, but not registered" in lines


def test_long_list_of_differences_is_cut(trained: Script, live: Script) -> None:
    """A wholly different model does not flood the terminal, and the rest is counted."""
    content = captured(trained)
    for number in range(SHOWN_DIFFERENCES + 5):
        content["model_state_dict"][f"x.{number:02}"] = torch.ones(1)
    with pytest.raises(MismatchError, match=r"and 5 more\n") as refused:
        live.registry().restore(content, SOURCE)
    assert str(refused.value).count("is only in the file") == SHOWN_DIFFERENCES


def test_objects_own_refusal_is_a_mismatch(trained: Script, live: Script) -> None:
    """What an object's load_state_dict says against the state is passed on with its name."""
    content = captured(trained)
    content["ema_state_dict"] = {}
    with pytest.raises(MismatchError, match="ema: 'value'"):
        live.registry().restore(content, SOURCE)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, torch.AcceleratorError])
def test_failing_device_is_no_mismatch(
    trained: Script, live: Script, error: type[RuntimeError]
) -> None:
    """A full or broken device while restoring is no reason never to run the script again."""

    class Failing(Ema):
        def load_state_dict(self, state: dict[str, float]) -> None:
            raise error("CUDA error")

    live.ema = Failing(0)
    with pytest.raises(error):
        live.registry().restore(captured(trained), SOURCE)


def test_device_failing_under_a_module_is_no_mismatch(trained: Script, live: Script) -> None:
    """A module gathers what went wrong into one text; a copy that failed is still the device's."""

    class OnFullDevice(torch.Tensor):
        def copy_(self, *args: Any, **options: Any) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory")

    live.model[0].weight = nn.Parameter(torch.zeros(4, 3).as_subclass(OnFullDevice))
    with pytest.raises(RuntimeError, match="CUDA out of memory"):
        live.registry().restore(captured(trained), SOURCE)


def test_layers_own_versions_reach_the_loading_module() -> None:
    """A module that migrates old layouts sees its version, also beside a converted value."""

    class Versioned(nn.Module):
        _version = 3
        seen: int | None = None

        def get_extra_state(self) -> Any:
            return {"path": Path("x"), "value": np.float64(1)}

        def set_extra_state(self, state: Any) -> None:
            assert state == {"path": Path("x"), "value": 1.0}

        def _load_from_state_dict(self, state: Any, prefix: str, local: Any, *rest: Any) -> None:
            self.seen = local.get("version")
            super()._load_from_state_dict(state, prefix, local, *rest)

    module = Versioned()
    registry = Registry()
    registry.add({"model": module})
    registry.restore(registry.capture(), SOURCE)
    assert module.seen == 3


def test_classic_file_may_lack_objects(trained: Script, live: Script) -> None:
    """An object that a classic file does not know keeps its state and is reported."""
    content = captured(trained)
    del content["ema_state_dict"], content["scheduler_state_dict"]
    assert live.registry().restore_classic(content, SOURCE) == ["scheduler", "ema"]
    assert live.ema.value == 1.0
    assert torch.equal(live.model[0].weight, trained.model[0].weight)


def test_classic_file_that_does_not_fit_changes_nothing(trained: Script, live: Script) -> None:
    """The comparison comes first for a classic file too."""
    content = captured(trained)
    del content["ema_state_dict"]
    _other_shape(content)
    before = live.snapshot()
    with pytest.raises(MismatchError):
        live.registry().restore_classic(content, SOURCE)
    assert live.snapshot() == before


def test_name_is_taken_once() -> None:
    """Two objects under one name would overwrite each other in the file."""
    registry = Script().registry()
    with pytest.raises(ConfigError, match="cannot register ema: that name is taken"):
        registry.add({"ema": Ema(0)})


@pytest.mark.parametrize("value", [3, "text", {"a": 1}, torch.ones(1), None])
def test_only_things_with_state_are_registered(value: Any) -> None:
    """A plain value is refused with the advice where to put it."""
    with pytest.raises(ConfigError, match=r"no state_dict\(\).*session\.state"):
        Registry().add({"thing": value})


def test_capture_names_what_cannot_be_stored() -> None:
    """An object whose state has no safe form is named with the entry."""
    registry = Registry()
    registry.add({"ema": Ema(object())})  # type: ignore[arg-type]
    with pytest.raises(UnstorableError) as refused:
        registry.capture()
    assert refused.value.where == "ema_state_dict['value']"


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.complex64])
def test_non_finite_parameter_is_noticed(bad: float, dtype: torch.dtype) -> None:
    """One bad element in one parameter of any floating type is enough."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).to(dtype)
    registry = Registry()
    registry.add({"ema": Ema(0), "model": model})
    assert registry.is_finite()
    with torch.no_grad():
        model[1].bias[1] = bad
    assert not registry.is_finite()


def test_sum_that_overflows_is_no_bad_value() -> None:
    """Finite values whose sum the type cannot hold are finite."""
    assert all_finite(torch.full((4,), 60_000.0, dtype=torch.float16))
    assert not all_finite(torch.tensor([float("inf"), float("-inf")]))


def test_infinite_buffer_is_meant() -> None:
    """An attention mask holds infinities on purpose; integer parameters cannot."""
    model = nn.Linear(2, 2)
    model.register_buffer("mask", torch.full((2, 2), float("-inf")))
    model.code = nn.Parameter(torch.ones(2, dtype=torch.int8), requires_grad=False)
    registry = Registry()
    registry.add({"model": model})
    assert registry.is_finite()


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (1, 1.0),
        (True, 1.0),
        (np.float32(0.5), 0.5),
        (np.array(2), 2.0),
        (torch.tensor([[3.0]]), 3.0),
        (torch.ones(1, requires_grad=True).sum(), 1.0),
        (torch.tensor(4, dtype=torch.int64), 4.0),
    ],
    ids=str,
)
def test_one_number_is_a_metric(value: Any, number: float) -> None:
    """Numbers, and tensors and arrays of one element, are metrics."""
    assert Progress(metrics={"loss": value}).metric_values() == {"loss": number}


@pytest.mark.parametrize(
    "value", [torch.ones(2), torch.ones(0), np.ones(3), "high", None, [1.0], 1j], ids=str
)
def test_more_than_one_number_is_no_metric(value: Any) -> None:
    """Anything else is refused by the metric's name."""
    with pytest.raises(ConfigError, match="cannot keep the metric accuracy: it is not one number"):
        Progress(metrics={"accuracy": value}).metric_values()


def test_bad_metric_of_a_run_that_has_saved_is_left_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Once there is something to lose, a bad metric costs one warning for its name and no more."""
    progress = Progress(metrics={"norm": None, "loss": 1}, refuses_bad_metrics=False)
    assert [progress.metric_values() for _ in range(2)] == [{"loss": 1.0}] * 2
    progress.note({"norm": "high"})
    progress.note({"epoch": 3})
    assert progress.metric_values() == {"loss": 1.0}
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "cannot keep the metric norm",
        "cannot keep the metric epoch",
    ]
    assert all("training goes on" in line for line in lines)
    progress.note({"norm": 2})
    assert progress.metric_values() == {"loss": 1.0, "norm": 2.0}


@pytest.mark.parametrize("name", ["epoch", "step", "state", "rng", "data", "model_state_dict"])
def test_metric_does_not_overwrite_the_checkpoint(name: str) -> None:
    """A metric named like an entry of the file is refused."""
    with pytest.raises(ConfigError, match=f"cannot keep the metric {name}: "):
        Progress(metrics={name: 1.0}).metric_values()


def test_failure_of_the_device_is_no_bad_metric() -> None:
    """An error that only shows when the loss is read is not the metric's, and may be transient."""

    class OnBrokenDevice:
        def __float__(self) -> float:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        Progress(metrics={"loss": OnBrokenDevice()}).metric_values()


class KeepsWhatItIsGiven(torch.nn.Module):
    """A module whose extra state is the very tensor that it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.zeros(3)

    def get_extra_state(self) -> torch.Tensor:
        return self.table

    def set_extra_state(self, state: torch.Tensor) -> None:
        self.table = state


def test_nothing_restored_lies_in_memory_that_will_change() -> None:
    """What is read from a slot is copied, whoever would keep it: optimizers, extra state."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 1), KeepsWhatItIsGiven())
    optimizer = torch.optim.Adam(model.parameters())
    model[0](torch.ones(3)).backward()
    optimizer.step()
    registry = Registry()
    registry.add({"model": model, "optimizer": optimizer})
    content = registry.capture()
    expected = copy.deepcopy(content)
    shared = copy.deepcopy(content)
    registry.restore(shared, Path("memory"), borrowed=True)

    def overwrite(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            value.fill_(77)
        for item in value.values() if isinstance(value, dict) else ():
            overwrite(item)

    overwrite(shared)
    now = registry.capture()
    assert torch.equal(
        now["model_state_dict"]["0.weight"], expected["model_state_dict"]["0.weight"]
    )
    assert torch.equal(
        now["model_state_dict"]["1._extra_state"], expected["model_state_dict"]["1._extra_state"]
    )
    for key, state in expected["optimizer_state_dict"]["state"].items():
        for name, value in state.items():
            assert torch.equal(now["optimizer_state_dict"]["state"][key][name], value)
