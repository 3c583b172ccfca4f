"""The image of a checkpoint is the file that torch.save would have written."""

import io
import warnings
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings

from orchestrator.checkpoint.manifest import Manifest, Reason
from orchestrator.errors import UnstorableError
from orchestrator.training.saving.image import (
    InexpressibleError,
    Layout,
    freeze,
    lay_out,
    provisional,
)
from orchestrator.training.saving.snapshotter import SnapshotContent, Snapshotter
from tests.training.saving.support import assert_same, bytes_of, loaded, sharing, states
from tests.training.support import draft_of, result_of


def image_of(snapshotter: Snapshotter, state: Any) -> bytes:
    taking = snapshotter.take(SnapshotContent({"step": 1, "state": state}, draft_of(1), []))
    assert taking is not None
    return bytes_of(result_of(taking))


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(states())
def test_image_equals_what_torch_save_writes(snapshotter: Snapshotter, state: Any) -> None:
    """Any nested state loads from its image as from torch.save: values, strides, and ties."""
    buffer = io.BytesIO()
    torch.save({"step": 1, "state": state}, buffer)
    expected, actual = loaded(buffer.getvalue()), loaded(image_of(snapshotter, state))
    assert_same(actual, expected)
    assert sharing(actual) == sharing(expected)


@settings(max_examples=100)
@given(states())
def test_provisional_places_are_never_behind_those_in_the_file(state: Any) -> None:
    """Storages that were copied before the layout was known can all be moved forward."""
    frozen = freeze(state)
    first, layout = provisional(frozen), lay_out(frozen)
    assert first.sizes == layout.sizes
    pairs = zip(first.offsets, layout.offsets, strict=True)
    assert all(before <= after for before, after in pairs)
    assert _overlaps(first) == []


def test_provisional_image_is_about_as_large_as_the_file() -> None:
    """The memory that is reserved before the layout is known is enough, and not twice as much."""
    for count, elements in ((1, 0), (1, 1000), (1000, 4), (3, 100_000)):
        frozen = freeze({"tensors": [torch.zeros(elements) for _ in range(count)]})
        actual, estimated = lay_out(frozen).image_bytes, provisional(frozen).image_bytes
        assert actual * 0.9 <= estimated <= actual * 1.5


def _overlaps(layout: Layout) -> list[int]:
    places = sorted((o, o + s) for o, s in zip(layout.offsets, layout.sizes, strict=True) if s)
    return [end for (_, end), (begin, _) in pairwise(places) if begin < end]


def test_image_holds_conjugated_and_overlapping_tensors(snapshotter: Snapshotter) -> None:
    """Tensors whose meaning is not in their bytes keep it."""
    complex_ = torch.randn(3, dtype=torch.complex64)
    state = {
        "conjugated": complex_.conj(),
        "negated": torch.randn(3, dtype=torch.complex64).conj().imag,
        "buffer": torch.nn.BatchNorm1d(3).running_var,
        "overlapping": torch.arange(6.0).as_strided((3, 3), (1, 1)),
    }
    read = loaded(image_of(snapshotter, state))
    for name, tensor in state.items():
        assert torch.equal(
            read[name].resolve_conj().resolve_neg(), tensor.resolve_conj().resolve_neg()
        )


@pytest.mark.parametrize(
    "tensor",
    [
        torch.eye(3).to_sparse(),
        torch.eye(3).to_sparse_csr(),
        torch.quantize_per_tensor(torch.randn(2, 2), 0.1, 3, torch.qint8),
        torch.quantize_per_channel(
            torch.randn(2, 2), torch.tensor([0.1, 0.2]), torch.tensor([0, 1]), 0, torch.qint8
        ),
    ],
    ids=["sparse", "csr", "quantised", "quantised by channel"],
)
def test_state_that_an_image_cannot_express_is_saved_plainly(
    snapshotter: Snapshotter, tensor: torch.Tensor
) -> None:
    """Sparse tensors and the like take torch.save's own way into memory, with one warning."""
    state = {"odd": tensor, "even": torch.ones(2)}
    with pytest.warns(UserWarning, match="slower torch.save"):
        image_of(snapshotter, state)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = image_of(snapshotter, state)
    read = loaded(image)
    dense = read["odd"].dequantize() if tensor.is_quantized else read["odd"].to_dense()
    assert torch.equal(dense, tensor.dequantize() if tensor.is_quantized else tensor.to_dense())
    assert torch.equal(read["even"], torch.ones(2))


def test_storage_seen_as_two_types_is_refused(snapshotter: Snapshotter) -> None:
    """An object that torch.save refuses is an error that says so, not a traceback."""
    numbers = torch.randn(3, dtype=torch.complex64)
    with pytest.raises(UnstorableError, match="different types"):
        image_of(snapshotter, [numbers, numbers.imag])


def test_state_that_changes_its_shape_is_laid_out_again(snapshotter: Snapshotter) -> None:
    """Optimizer state that appears later, and an embedding that grows, are in the next image."""
    model = torch.nn.Embedding(10, 4)
    optimizer = torch.optim.Adam(model.parameters())
    for rows in (10, 10, 300):
        if rows != model.weight.shape[0]:
            model = torch.nn.Embedding(rows, 4)
            optimizer = torch.optim.Adam(model.parameters())
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        assert_same(loaded(image_of(snapshotter, state))["optimizer"], state["optimizer"])
        model(torch.arange(rows)).sum().backward()
        optimizer.step()


def test_plain_values_that_grow_move_the_tensors(snapshotter: Snapshotter) -> None:
    """A history that grows from image to image leaves every tensor right."""
    history: list[float] = []
    tensors = [torch.randn(30_000), torch.randn(7), torch.empty(0), torch.randn(40_000)]
    for round_ in range(12):
        history += [float(round_)] * 150 if round_ < 6 else []
        if round_ == 8:
            history.clear()
        for tensor in tensors:
            tensor += 1
        read = loaded(image_of(snapshotter, {"history": list(history), "tensors": tensors}))
        assert read["history"] == history
        assert all(map(torch.equal, read["tensors"], tensors))


def test_tensors_may_change_as_soon_as_the_snapshot_is_begun(snapshotter: Snapshotter) -> None:
    """A write or an assignment to .data after take() has returned is not in the image."""
    model = torch.nn.Linear(100, 100)
    before = [parameter.clone() for parameter in model.parameters()]
    history = [1.0]
    state = {"model": model.state_dict(), "history": history}
    taking = snapshotter.take(SnapshotContent({"step": 1, "state": state}, draft_of(1), []))
    assert taking is not None
    with torch.no_grad():
        model.weight.add_(1)
        model.bias.data = torch.zeros(100)
    history.append(2.0)
    read = loaded(bytes_of(result_of(taking)))
    assert torch.equal(read["model"]["weight"], before[0])
    assert torch.equal(read["model"]["bias"], before[1])
    assert read["history"] == [1.0]


def test_layout_is_taken_from_what_torch_save_skips() -> None:
    """Should torch.save ever skip other bytes than those of the storages, the layout is refused."""
    frozen = freeze({"a": torch.ones(3), "b": torch.ones(4)})
    assert lay_out(frozen).sizes == [12, 16]
    frozen.sizes.pop()
    with pytest.raises(InexpressibleError):
        lay_out(frozen)


def test_non_finite_parameter_makes_the_snapshot_unhealthy(snapshotter: Snapshotter) -> None:
    """A NaN or an infinity among the parameters is found in the image; a large sum is none."""
    parameter = torch.nn.Parameter(torch.ones(1000, dtype=torch.float16))
    content = SnapshotContent({"step": 1, "p": parameter}, draft_of(1), [parameter])
    for value, healthy in ((6e4, True), (float("inf"), False), (float("nan"), False), (0, True)):
        with torch.no_grad():
            parameter[:900] = value
        taking = snapshotter.take(content)
        assert taking is not None
        assert result_of(taking).manifest.healthy is healthy


def test_snapshot_of_ordinary_state_warns_of_nothing(snapshotter: Snapshotter) -> None:
    """A snapshot of ordinary state warns of nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image_of(snapshotter, torch.nn.Linear(3, 3).state_dict())


def test_snapshot_has_the_manifest_of_its_checkpoint(snapshotter: Snapshotter) -> None:
    """The draft that was handed over comes back with the image."""
    draft = Manifest("a run", 7, 2, Reason.PERIODIC, {"loss": 0.5}, True, "now", {}, {"torch": "2"})
    taking = snapshotter.take(SnapshotContent({"step": 7}, draft, []))
    assert taking is not None
    assert result_of(taking).manifest == draft
