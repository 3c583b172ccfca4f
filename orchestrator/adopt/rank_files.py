"""Checks that a checkpoint to which each rank writes files of its own has those of all ranks.

How many ranks there are is read from the files themselves: from a pickle, without running it, or
from a name.
"""

import math
import re
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator
from pathlib import PurePosixPath

from orchestrator.adopt.file_check import DCP_METADATA, IncompleteError, torch_root
from orchestrator.adopt.files import SavedFiles
from orchestrator.adopt.pickle_reader import PickledObject
from orchestrator.system.regular_files import read_regular

LATEST = "latest"
LARGEST_LATEST_BYTES = 1024
# DeepSpeed: the state of the model for each model-parallel rank (with ZeRO 3 for every rank), and
# a part of the optimizer state for every rank.
_ZERO_RANK = r"(?P<kind>(?:\w+_)?zero_pp_rank_)(?P<data_rank>\d+)_"
_DEEPSPEED_MODEL = re.compile(rf"(?:{_ZERO_RANK})?mp_rank_(?P<rank>\d+)_model_states\.pt")
_DEEPSPEED_OPTIMIZER = re.compile(rf"{_ZERO_RANK}mp_rank_(?P<rank>\d+)_optim_states\.pt")
# Megatron-LM: a directory for each rank of the tensor, pipeline and expert groups.
_MEGATRON_RANK = re.compile(r"mp_rank_\d{2,}(?:_\d{3,}){0,2}")
_MEGATRON_MODEL = re.compile(r"model(?:_optim)?_rng\.pt")
_MEGATRON_GROUPS = (
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "expert_model_parallel_size",
)
# Megatron Core writes these two beside a distributed checkpoint, metadata.json last of all.
_MEGATRON_CORE = ("common.pt", "metadata.json")
_RANK_OF_WORLD = re.compile(r"(.*)world_size_(\d+)_rank_\d+(\D*)")
_DCP_RANK = re.compile(r"__(\d+)_\d+\.distcp")
# Accelerate and the Trainer write these for each rank.
_RANDOM_STATES = re.compile(r"(?P<before>random_states_|rng_state_)\d+(?P<after>\.\w+)")


def check_rank_files(saved: SavedFiles) -> set[str]:
    """Require the files of all ranks, and return those that a known layout accounts for.

    Raises IncompleteError and OSError.
    """
    accounted: set[str] = set()
    ranks = 0
    folders: dict[PurePosixPath, set[str]] = defaultdict(set)
    for path in map(PurePosixPath, saved.states):
        folders[path.parent].add(path.name)
    for folder, names in folders.items():
        found, found_ranks = _check_deepspeed(saved, folder, names)
        ranks = max(ranks, found_ranks, _distributed_ranks(names))
        accounted |= found | _check_megatron_core(folder, names)
        _check_named_worlds(folder, names)
    accounted |= _check_megatron(saved)
    for name in saved.states:
        if states := _RANDOM_STATES.fullmatch(PurePosixPath(name).name):
            folder = PurePosixPath(name).parent
            wanted = (f"{states['before']}{rank}{states['after']}" for rank in range(ranks))
            _require(saved.states, _inside(folder, wanted), f"of {ranks} ranks")
    return accounted


def latest_files(saved: SavedFiles) -> set[str]:
    """Return DeepSpeed's files ``latest``, each of which names a folder beside it.

    Raises OSError.
    """
    found = set()
    folders = {str(folder) for name in saved.states for folder in PurePosixPath(name).parents}
    for name in map(PurePosixPath, saved.states):
        if name.name != LATEST or saved.states[str(name)].bytes > LARGEST_LATEST_BYTES:
            continue
        content = read_regular(saved.root / name, LARGEST_LATEST_BYTES, follow_link=True)
        tag = content.decode(errors="replace").strip()
        if tag and str(name.parent / tag) in folders:
            found.add(str(name))
    return found


def _check_deepspeed(
    saved: SavedFiles, folder: PurePosixPath, names: set[str]
) -> tuple[set[str], int]:
    """Return the files of DeepSpeed's layout in one folder, and the number of ranks."""
    models = sorted(filter(None, map(_DEEPSPEED_MODEL.fullmatch, names)), key=lambda m: m[0])
    optimizers = list(filter(None, map(_DEEPSPEED_OPTIMIZER.fullmatch, names)))
    if not models:
        if optimizers:
            raise IncompleteError(f"it lacks {folder / 'mp_rank_00_model_states.pt'}")
        return set(), 0
    root = torch_root(saved.root / folder / models[0][0])
    data_ranks, model_ranks = root.get("dp_world_size"), root.get("mp_world_size")
    if not isinstance(data_ranks, int) or not isinstance(model_ranks, int):
        return set(), 0
    required = set()
    for sample, what in ((models[0], "model"), *((o, "optim") for o in optimizers[:1])):
        wanted = _deepspeed_names(sample["kind"], data_ranks, model_ranks, what)
        why = f"of {data_ranks * model_ranks} ranks"
        required |= _require(saved.states, _inside(folder, wanted), why)
    # Without ZeRO the optimizer state is in the files of the model.
    has_optimizer = bool(optimizers) or isinstance(root.get("optimizer"), dict)
    return required if has_optimizer else set(), data_ranks * model_ranks


def _deepspeed_names(kind: str | None, data: int, model: int, what: str) -> Iterator[str]:
    for model_rank in range(model):
        for data_rank in range(data if kind else 1):
            before = f"{kind}{data_rank}_" if kind else ""
            yield f"{before}mp_rank_{model_rank:02d}_{what}_states.pt"


def _check_megatron(saved: SavedFiles) -> set[str]:
    """Return the files of Megatron-LM's layout, in folders of ranks."""
    paths = [PurePosixPath(name) for name in saved.states]
    paths = [path for path in paths if _MEGATRON_RANK.fullmatch(path.parent.name)]
    models = sorted(path for path in paths if _MEGATRON_MODEL.fullmatch(path.name))
    if not models:
        return set()
    arguments = torch_root(saved.root / models[0]).get("args")
    sizes = arguments.state if isinstance(arguments, PickledObject) else None
    if not isinstance(sizes, dict):
        return set()
    groups = [sizes.get(group, 1) for group in _MEGATRON_GROUPS]
    if not all(isinstance(size, int) and size > 0 for size in groups):
        return set()
    folder = models[0].parent.parent
    # An older distributed optimizer has folders of its own, with a further number.
    depth = models[0].parent.name.count("_")
    kinds = sorted({path.name for path in paths if path.parent.name.count("_") == depth})
    wanted = (f"{rank}/{name}" for rank in _megatron_folders(*groups) for name in kinds)
    return _require(saved.states, _inside(folder, wanted), f"of {math.prod(groups)} ranks")


def _megatron_folders(tensor: int, pipeline: int, expert: int) -> Iterator[str]:
    for tensor_rank in range(tensor):
        for pipeline_rank in range(pipeline):
            for expert_rank in range(expert):
                name = f"mp_rank_{tensor_rank:02d}"
                name += f"_{pipeline_rank:03d}" if pipeline > 1 else ""
                yield name + (f"_{expert_rank:03d}" if expert > 1 else "")


def _check_megatron_core(folder: PurePosixPath, names: set[str]) -> set[str]:
    has_both = DCP_METADATA in names and names.issuperset(_MEGATRON_CORE)
    return set(_inside(folder, _MEGATRON_CORE)) if has_both else set()


def _check_named_worlds(folder: PurePosixPath, names: set[str]) -> None:
    """Require every rank where the names of files have the number of ranks in them."""
    named = {found.groups() for found in map(_RANK_OF_WORLD.fullmatch, names) if found}
    for before, world, after in sorted(named):
        wanted = (f"{before}world_size_{world}_rank_{rank}{after}" for rank in range(int(world)))
        _require(names, wanted, f"of {world} ranks")


def _distributed_ranks(names: set[str]) -> int:
    """Return how many ranks have written a distributed checkpoint, at least."""
    ranks = [int(found[1]) for found in map(_DCP_RANK.fullmatch, names) if found]
    return max(ranks, default=-1) + 1


def _inside(folder: PurePosixPath, names: Iterable[str]) -> Iterator[str]:
    return (str(folder / name) for name in names)


def _require(names: Container[str], wanted: Iterable[str], why: str) -> set[str]:
    """Return the wanted names if all are there. Whatever a file says, this ends with the first.

    Raises IncompleteError.
    """
    found = set()
    for name in wanted:
        if name not in names:
            raise IncompleteError(f"it lacks {name} {why}")
        found.add(name)
    return found
