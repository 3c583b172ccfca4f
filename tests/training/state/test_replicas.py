"""What ranks hold in common, what each has of its own, and how the first is compared."""

import pytest
import torch

from orchestrator.errors import ConfigError
from orchestrator.training.state.kept import Kept
from orchestrator.training.state.registered_objects import Registry
from orchestrator.training.state.replicas import (
    MOST_LEAVES,
    Replicas,
    merge_own,
    refuse_sharded,
)


class Rank:
    """The registered objects of a rank, after a step."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(torch.nn.Linear(200, 50), torch.nn.BatchNorm1d(50))
        self.optimizer = torch.optim.Adam(self.model.parameters())
        self.replay = [seed]
        self.registry = Registry()
        self.registry.add({"model": self.model, "optimizer": self.optimizer})
        self.registry.keep({"replay": self.replay})
        self.model(torch.randn(4, 200)).sum().backward()
        self.optimizer.step()
        torch.manual_seed(seed)
        with torch.no_grad():
            self.model(torch.randn(4, 200))  # the statistics of another batch

    def state(self) -> dict[str, object]:
        entries = {"epoch": 1, "step": 7, "state": {}, "rng": {}, "data": {}}
        return {**entries, **self.registry.capture()}

    def replicas(self) -> Replicas:
        return Replicas(self.registry.objects)

    def digests(self) -> dict[str, str]:
        return self.replicas().digests(self.state())


def test_buffers_and_objects_of_the_script_are_not_compared() -> None:
    """Ranks that differ in what is their own are equal replicas."""
    one, other = Rank(1), Rank(2)
    assert not torch.equal(one.model[1].running_mean, other.model[1].running_mean)
    assert one.digests() == other.digests()
    assert {"model.0.weight", "optimizer.state.0.exp_avg"} <= one.digests().keys()
    assert not any("running_mean" in name or "replay" in name for name in one.digests())


@pytest.mark.parametrize("position", [0, 4999, 9999])
def test_difference_in_a_single_element_is_found(position: int) -> None:
    """Every byte counts, not only those at both ends of a tensor."""
    one, other = Rank(), Rank()
    other.model[0].weight.data.view(-1)[position] += 1e-3
    differing = {name for name, each in one.digests().items() if other.digests()[name] != each}
    assert differing == {"model.0.weight"}


def test_numbers_of_an_optimizer_are_compared() -> None:
    """A rank with another learning rate trains another model."""
    one, other = Rank(), Rank()
    other.optimizer.param_groups[0]["lr"] = 0.5
    differing = {name for name, each in one.digests().items() if other.digests()[name] != each}
    assert differing == {"optimizer (its numbers)"}


def test_many_tensors_have_one_digest_for_each_object() -> None:
    """The manifest of a snapshot has room for so many names only."""
    registry = Registry()
    registry.add({"model": torch.nn.ParameterList([torch.ones(1)] * (MOST_LEAVES + 1))})
    state = registry.capture()
    before = Replicas(registry.objects).digests(state)
    assert before.keys() == {"model"}
    with torch.no_grad():
        next(iter(registry.parameters())).add_(1)
    assert Replicas(registry.objects).digests(registry.capture()) != before


def test_own_part_over_that_of_rank_0_is_the_whole_state_of_a_rank() -> None:
    """A rank saves what is its own, and gets that back over what rank 0 has saved."""
    main, other = Rank(1), Rank(2)
    own = other.replicas().own(other.state())
    assert own["buffers"]["model_state_dict"].keys() == {
        "1.running_mean",
        "1.running_var",
        "1.num_batches_tracked",
    }
    assert own["objects"].keys() == {"replay_state_dict"}
    content = main.state()
    merge_own(content, own)
    assert str(content) == str(other.state())


def test_sharded_and_prepared_objects_are_refused() -> None:
    """What is no replica is refused by its name, and so is what accelerate has prepared."""
    model = torch.nn.Linear(1, 1)
    model.register_parameter("flat", FlatParameter(torch.ones(1)))
    with pytest.raises(ConfigError, match="model is sharded"):
        refuse_sharded({"model": model}, is_prepared=False)
    for kind in ("DeepSpeedEngine", "ZeroRedundancyOptimizer", "ZeROOptimizer"):
        named = type("OfAPackage", (type(kind, (), {}),), {})()
        with pytest.raises(ConfigError, match="it is sharded"):
            refuse_sharded({"it": named}, is_prepared=False)
    with pytest.raises(ConfigError, match="accelerate has prepared the optimizer"):
        refuse_sharded({}, is_prepared=True)
    refuse_sharded({"model": torch.nn.Linear(1, 1), "kept": Kept("k", [])}, is_prepared=False)


class FlatParameter(torch.nn.Parameter):
    """A parameter of the class that FSDP's first version makes."""


def test_objects_of_like_names_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """With many tensors there is a digest for each object, and of nothing but this object."""
    monkeypatch.setattr("orchestrator.training.state.replicas.MOST_LEAVES", 0)
    objects = {name: torch.nn.Linear(1, 1) for name in ("model", "model2")}
    replicas = Replicas(objects)

    def digests() -> dict[str, str]:
        return replicas.digests({f"{n}_state_dict": m.state_dict() for n, m in objects.items()})

    before = digests()
    with torch.no_grad():
        objects["model2"].weight += 1
    after = digests()
    assert before.keys() == {"model", "model2"}
    assert [name for name in before if before[name] != after[name]] == ["model2"]
