"""Objects without a state_dict: what they hold is captured, and put back in place."""

import argparse
import collections
import copy
import enum
import gc
import pathlib
import random
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from orchestrator.errors import ConfigError, UnstorableError
from orchestrator.training.state.digests import digest
from orchestrator.training.state.kept import Kept
from orchestrator.training.state.plain_values import from_plain, to_plain
from orchestrator.training.state.registered_objects import Registry
from tests.training.state.support import bits


class Transition(NamedTuple):
    """What a replay memory holds."""

    state: Any
    action: int
    following: Any


class Mode(enum.Enum):
    """A state of an environment."""

    LEFT = 1
    RIGHT = 2


class Side(enum.Flag):
    """Where a wall is."""

    UP = enum.auto()
    DOWN = enum.auto()


class Space:
    """An action space with a generator of its own, made when it is first used."""

    def __init__(self) -> None:
        self.dtype = np.dtype(np.float32)
        self.generator: np.random.Generator | None = None

    def sample(self) -> float:
        if self.generator is None:
            self.generator = np.random.default_rng(5)
        return float(self.generator.random())


class Buffer:
    """A ring of arrays, as replay buffers have it, around an environment and a small network."""

    def __init__(self, size: int = 8) -> None:
        self.size, self.position, self.full = size, 0, False
        self.observations = np.zeros((size, 3), dtype=np.float32)
        self.rewards = torch.zeros(size)
        self.space = self.other_name = Space()
        self.mode = Mode.LEFT
        self.recent: collections.deque[float] = collections.deque(maxlen=5)
        self.memory: list[Any] = []
        self.by_name: dict[str, Any] = {"where": pathlib.Path("a"), "seen": {1, 2}}
        self.network = torch.nn.Linear(2, 1)
        self.python = random.Random(1)
        self.last = np.float32(0)
        self.best: tuple[Any, ...] = (0, np.zeros(2))
        self.transform: Callable[[float], float] = lambda value: 2 * value
        self.itself = self

    def add(self) -> None:
        """Change everything that can change."""
        noise = self.space.sample() + self.python.random()
        self.observations[self.position] = noise
        self.rewards[self.position] = noise
        self.position = (self.position + 1) % self.size
        self.full = self.full or self.position == 0
        self.mode = Mode.RIGHT if noise > 1 else Mode.LEFT
        self.recent.append(noise)
        self.memory.append(Transition(np.full(2, noise), self.position, None))
        self.by_name[f"entry {self.position}"] = noise
        self.by_name["seen"].add(self.position)
        with torch.no_grad():
            self.network.weight.add_(noise)
        self.last = np.float32(self.transform(noise))
        self.best = max(self.best, (noise, np.full(2, noise)), key=lambda each: each[0])


def stored(kept: Kept) -> dict[str, Any]:
    """The state as a checkpoint gives it back."""
    return from_plain(copy.deepcopy(to_plain(kept.state_dict(), "kept")))


@pytest.mark.parametrize("steps", [0, 1, 7, 40])
def test_object_continues_from_where_it_was_saved(steps: int) -> None:
    """A new object with the state of another does what that one does, and has its state."""
    one, two = Buffer(), Buffer()
    mine, other = Kept("one", one), Kept("one", two)
    for _ in range(steps):
        one.add()
    other.load_state_dict(stored(mine))
    assert digest(other.state_dict()) == digest(mine.state_dict())
    for _ in range(10):
        one.add()
        two.add()
    assert digest(other.state_dict()) == digest(mine.state_dict())
    assert bits(two.memory) == bits(one.memory)
    assert bits(two.last) == bits(one.last)
    assert two.recent.maxlen == 5


def test_names_that_the_script_holds_stay_valid() -> None:
    """The parts of an object are changed in place: the same arrays, containers and objects."""
    one, two = Buffer(), Buffer()
    parts = {name: value for name, value in vars(two).items() if hasattr(value, "__len__")}
    parts |= {"space": two.space, "network": two.network, "python": two.python}
    for _ in range(3):
        one.add()
    Kept("two", two).load_state_dict(stored(Kept("one", one)))
    for name, part in parts.items():
        if not isinstance(part, tuple):
            assert getattr(two, name) is part, name
    assert two.other_name is two.space
    assert two.itself is two
    assert two.transform(1.0) == 2.0


def test_what_is_met_twice_stays_one_thing() -> None:
    """Two names for one array are two names for one array after a resume."""
    array = np.zeros(2)
    mine: list[Any] = [array, [array], {"a": array}]
    other: list[Any] = []
    Kept("other", other).load_state_dict(stored(Kept("mine", mine)))
    other[0][:] = 3
    assert other[1][0].tolist() == other[2]["a"].tolist() == [3, 3]


ROOTS: dict[str, tuple[Any, Any, Any]] = {
    # empty as the script makes it, filled, changed after the save
    "deque": (collections.deque(maxlen=3), collections.deque([1, 2, 3], 3), [2, 3, 4]),
    "list": ([], [1, "a", None], None),
    "dict": ({"old": 1}, {("a", 1): 2.5, 3: [4]}, None),
    "set": (set(), {1, "a", (2, 3)}, None),
    "defaultdict": (collections.defaultdict(list), collections.defaultdict(list, a=[1]), None),
    "counter": (collections.Counter(), collections.Counter("aab"), None),
    "array": (np.zeros(3), np.arange(3.0), None),
    "view of an array": (np.zeros((3, 4))[:, ::2], np.arange(12.0).reshape(3, 4)[:, ::2], None),
    "array of unsigned numbers": (np.zeros(2, np.uint16), np.array([1, 65535], np.uint16), None),
    "tensor": (torch.zeros(2), torch.ones(2), None),
    "bfloat16 tensor": (torch.zeros(2, dtype=torch.bfloat16), torch.ones(2).bfloat16(), None),
    "long deque of transitions": (
        collections.deque(maxlen=100),
        collections.deque((Transition(torch.ones(2) * i, i, None) for i in range(200)), 100),
        None,
    ),
}


def in_order(container: Any) -> Any:
    if isinstance(container, set):
        return sorted(container, key=repr)
    return container if isinstance(container, dict) else list(container)


@pytest.mark.parametrize("name", ROOTS)
def test_container_and_array_are_filled_in_place(name: str) -> None:
    """A resumed script's own container or array holds what the saved one held."""
    empty, full, _ = copy.deepcopy(ROOTS[name])
    Kept("empty", empty).load_state_dict(stored(Kept("full", full)))
    if isinstance(full, np.ndarray | torch.Tensor):
        assert bits(empty) == bits(full)
    else:
        assert type(empty) is type(full)
        assert bits(in_order(empty)) == bits(in_order(full))


def test_arrays_are_not_copied() -> None:
    """The state of a large buffer shares its memory, so that a snapshot copies it once."""
    array = np.zeros(4)
    state = Kept("array", array).state_dict()
    array[0] = 7
    (node,) = state.values()
    assert node["value"].tolist() == [7, 0, 0, 0]


def test_long_list_of_small_arrays_has_few_tensors() -> None:
    """Ten thousand transitions do not become forty thousand storages."""
    memory = collections.deque((np.ones(4), i, np.zeros(4), False) for i in range(10_000))
    tensors: list[torch.Tensor] = []

    def look(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            tensors.append(value)
        for item in value.values() if isinstance(value, dict) else ():
            look(item)
        for item in value if isinstance(value, list) else ():
            look(item)

    look(Kept("memory", memory).state_dict())
    assert len(tensors) == 4


class Slots:
    """An object whose attributes are not all in its __dict__."""

    __slots__ = ("__dict__", "hidden")


def local_transition() -> Any:
    class Local(NamedTuple):
        field: int

    return Local(1)


def local_object() -> Any:
    class Local:
        pass

    return Local()


def with_attribute(value: Any) -> Buffer:
    buffer = Buffer()
    buffer.by_name["bad"] = [value]
    return buffer


class Marked(torch.Tensor):
    """A tensor that says what it is, as torchvision has them."""


UNSTORABLE: dict[str, Callable[[], Any]] = {
    "lock": threading.Lock,
    "file": lambda: open(__file__),  # noqa: SIM115
    "iterator": lambda: iter([1, 2]),
    "generator function": lambda: (each for each in range(3)),
    "slots": Slots,
    "array of objects": lambda: np.array([None, {}]),
    "key": lambda: {object(): 1},
    "named tuple of a function": local_transition,
    "object of a class of a function": local_object,
    "frozen set": lambda: frozenset({1}),
    "tensor of another class": lambda: torch.zeros(2).as_subclass(Marked),
    "field of a packed array": lambda: np.zeros(4, [("a", "i1"), ("b", "f4")])["b"],
    "masked array": lambda: np.ma.masked_array([1.0], [True]),
}


@pytest.mark.parametrize("name", UNSTORABLE)
def test_what_cannot_be_stored_is_refused_by_name(name: str) -> None:
    """The refusal comes where the object is given to the session, and names the part."""
    value = UNSTORABLE[name]()
    with pytest.raises(ConfigError, match=r"cannot keep env: env\.by_name\['bad'\]\[0\]") as error:
        Registry().keep({"env": with_attribute(value)})
    assert "state_dict()" in str(error.value)
    getattr(value, "close", bool)()


@pytest.mark.parametrize("value", [1, "a", None, (1, 2), len, np, Buffer])
def test_value_that_cannot_change_is_refused(value: Any) -> None:
    """Only what can be changed in place can be put back in place."""
    with pytest.raises(ConfigError, match=r"does not change in place.*session\.state"):
        Registry().keep({"value": value})


def test_structure_without_an_end_is_refused() -> None:
    """A chain that is deeper than the interpreter's stack is no traceback."""
    chain: list[Any] = []
    for _ in range(100_000):
        chain = [chain]
    with pytest.raises(ConfigError, match="nested too deeply"):
        Registry().keep({"chain": chain})
    while chain:  # not by a recursion of the interpreter
        chain = chain.pop()


def test_iterator_with_nothing_left_is_left_alone() -> None:
    """Gymnasium's vectors hold the iterator over the last actions."""
    used_up = iter([1])
    next(used_up)
    one, two = with_attribute(used_up), with_attribute(None)
    Kept("two", two).load_state_dict(stored(Kept("one", one)))
    assert two.by_name["bad"] == [None]


class Feed:
    """A buffer that is its own iterator."""

    def __init__(self) -> None:
        self.items: list[int] = []
        self.taken = 0

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        if not self.items:
            raise StopIteration
        self.taken += 1
        return self.items.pop()


@pytest.mark.parametrize("count", [0, 1])
def test_empty_buffer_that_is_an_iterator_is_stored(count: int) -> None:
    """It may be filled again, and what else it holds counts."""
    one, two = Feed(), Feed()
    one.items, one.taken = [5] * count, 7
    Kept("two", two).load_state_dict(stored(Kept("one", one)))
    assert vars(two) == vars(one)


@pytest.mark.parametrize("flags", [re.I, re.I | re.M, re.RegexFlag(0), Side.UP | Side.DOWN])
def test_flags_are_restored(flags: enum.Flag) -> None:
    """Several flags together have no name by which they could be found."""
    one, two = with_attribute(flags), with_attribute(None)
    Kept("two", two).load_state_dict(stored(Kept("one", one)))
    assert two.by_name["bad"] == [flags]


def test_object_that_answers_to_every_name_is_not_asked() -> None:
    """Wrappers of environments pass unknown names on, with warnings or errors."""

    class Wrapper:
        def __init__(self) -> None:
            self.steps = 0

        def __getattr__(self, name: str) -> Any:
            if name.endswith("state_dict"):
                raise RuntimeError(f"{name} was asked for")
            raise AttributeError(name)

    one, two = Wrapper(), Wrapper()
    one.steps = 3
    registry = Registry()
    registry.keep({"one": one})
    Kept("two", two).load_state_dict(stored(Kept("one", one)))
    assert two.steps == 3


@pytest.mark.parametrize(
    ("saved", "here"),
    [
        (np.zeros(3), np.zeros(4)),
        (np.zeros(3), np.zeros(3, np.float32)),
        (torch.zeros(3), torch.zeros(2)),
        ([1], {}),
        (Space(), []),
    ],
)
def test_object_that_cannot_hold_the_state_refuses_it(saved: Any, here: Any) -> None:
    """A buffer of another size is no place for what was saved."""
    with pytest.raises(ValueError, match="here is a .* cannot hold what was saved"):
        Kept("here", here).load_state_dict(stored(Kept("saved", saved)))


def test_object_of_a_class_that_is_gone_is_named() -> None:
    """A script that has renamed a class cannot restore its objects."""
    memory: list[Any] = []
    state = stored(Kept("saved", [Space()]))
    state["__kept__"]["items"][0]["class"] = "tests.training.state.test_kept:Gone"
    with pytest.raises(ValueError, match=r"test_kept\.Gone is not there any more"):
        Kept("memory", memory).load_state_dict(state)


def test_object_with_a_state_dict_is_registered_as_such() -> None:
    """``keep`` takes models and generators too, and stores them as ``register`` does."""
    registry, model = Registry(), torch.nn.Linear(2, 1)
    registry.keep({"model": model, "generator": np.random.default_rng(1)})
    assert registry.capture()["model_state_dict"].keys() == {"weight", "bias"}
    assert list(registry.generators) == ["generator"]


def test_part_that_becomes_unstorable_keeps_its_last_state() -> None:
    """After the first save a state that cannot be captured any more ends no training."""
    registry, buffer = Registry(), Buffer()
    registry.keep({"buffer": buffer})
    before = digest(registry.capture())
    buffer.by_name["bad"] = threading.Lock()
    with pytest.raises(UnstorableError, match=r"buffer\.by_name\['bad'\]"):
        registry.capture()
    registry.plain.is_strict = False
    assert digest(registry.capture()) == before
    assert any("buffer.by_name['bad'] could not be stored" in p for p in registry.plain.problems)


def test_modules_and_optimizers_in_a_kept_object_are_known() -> None:
    """An agent's weights are checked for health, and its optimizer counts as registered."""

    class Agent:
        def __init__(self) -> None:
            self.network = torch.nn.Linear(2, 1)
            self.optimizers = [torch.optim.Adam(self.network.parameters())]

    registry, agent = Registry(), Agent()
    registry.keep({"agent": agent})
    assert list(registry.optimizers().values()) == agent.optimizers
    assert registry.is_finite()
    with torch.no_grad():
        agent.network.weight.fill_(float("nan"))
    assert not registry.is_finite()


def test_class_that_has_moved_is_still_the_same() -> None:
    """A script may move the class of its buffer to another module between two runs."""
    one, two = Space(), Space()
    one.sample()
    state = stored(Kept("one", one))
    state["__kept__"]["class"] = "another.module:Space"
    Kept("two", two).load_state_dict(state)
    assert two.sample() == one.sample()


class Finalized:
    """Deletes the file that an attribute names, as a class of a library may."""

    path: str | None = None

    def __del__(self) -> None:
        if self.path is not None:
            pathlib.Path(self.path).rmdir()


HOSTILE_CLASSES: dict[str, dict[str, Any]] = {
    "tempfile:_TemporaryFileCloser": {"file": 5, "name": "PATH", "delete": True},
    "numpy.lib._datasource:DataSource": {"_istmpdest": True, "_destpath": "PATH"},
    f"{__name__}:Finalized": {"path": "PATH"},
    "threading:Thread": {"_target": None},
    "collections:deque": {},
}


@pytest.mark.parametrize("name", HOSTILE_CLASSES)
@pytest.mark.parametrize("place", ["attribute", "item", "another class"])
def test_checkpoint_makes_no_object_that_acts(
    tmp_path: pathlib.Path, name: str, place: str
) -> None:
    """A class that a checkpoint names is not made if it acts by itself, or is Python's own."""
    victim = tmp_path / "precious"
    victim.mkdir()
    attributes = {
        key: str(victim) if value == "PATH" else value
        for key, value in HOSTILE_CLASSES[name].items()
    }
    planted = {"kind": "object", "class": name, "attributes": attributes}
    live: Any = [] if place == "item" else Space()
    state = stored(Kept("saved", [0] if place == "item" else Space()))
    if place == "item":
        state["__kept__"]["items"] = [planted]
    else:
        live.there = Space()
        state["__kept__"]["attributes"]["there" if place == "another class" else "new"] = planted
    with pytest.raises(ValueError, match="is not there"):
        Kept("live", live).load_state_dict(state)
    gc.collect()
    assert victim.exists()


def test_checkpoint_names_enums_and_named_tuples_only_as_such() -> None:
    """Where a checkpoint says that a class is an enum or a named tuple, it must be one."""
    for planted in (
        {"kind": "enum", "class": f"{__name__}:Space", "name": "x"},
        {"kind": "tuple", "class": f"{__name__}:Space", "items": []},
    ):
        state = stored(Kept("saved", [0]))
        state["__kept__"]["items"] = [planted]
        with pytest.raises(ValueError, match="is no "):
            Kept("live", []).load_state_dict(state)


def test_object_that_acts_is_not_stored_in_a_container() -> None:
    """What a resume would refuse to make is refused when it is kept."""
    with pytest.raises(ConfigError, match="acts when an object of it goes"):
        Kept("memory", [Finalized()])


def test_data_of_argparse_is_made() -> None:
    """A namespace of arguments, which only holds data, comes back into an empty list."""
    memory: list[Any] = []
    Kept("memory", memory).load_state_dict(stored(Kept("saved", [argparse.Namespace(lr=0.5)])))
    assert memory == [argparse.Namespace(lr=0.5)]
