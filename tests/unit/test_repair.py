"""A register of checkpoints that a kill, a full disk or a person has damaged."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from raysft.errors import RunError, UserError
from raysft.runs import rundir, snapshot
from raysft.train.checkpoint import layout, repair
from raysft.train.checkpoint.export import export_checkpoint, read_weights
from raysft.train.checkpoint.integrity import crc


def checkpoint(run_dir: Path, name: str, step: int) -> Path:
    """A folder of one worker with one file and its manifest."""
    folder = run_dir / rundir.CHECKPOINTS / name
    folder.mkdir(parents=True)
    state = folder / "state.pt"
    state.write_bytes(name.encode())
    files = {"state.pt": [state.stat().st_size, crc(state)]}
    manifest = {"step": step, "world_size": 1, "zero_stage": 3, "files": files}
    (folder / "manifest_0.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Whole checkpoints of steps 10 and 20, a damaged one of step 30, and a register of two."""
    for name, step in (("checkpoint_a", 10), ("checkpoint_b", 20), ("checkpoint_c", 30)):
        checkpoint(tmp_path, name, step)
    (tmp_path / rundir.CHECKPOINTS / "checkpoint_c" / "state.pt").write_bytes(b"other")
    steps = [(10, "checkpoint_a"), (20, "checkpoint_b")]
    snapshot.write(tmp_path / rundir.CHECKPOINTS, steps)
    return tmp_path


def test_a_whole_register_is_left_alone(run_dir: Path) -> None:
    path = run_dir / rundir.CHECKPOINTS / snapshot.FILE
    before = path.read_bytes()
    assert repair.repair(run_dir) is None
    assert path.read_bytes() == before
    assert list(snapshot.checkpoints_by_step(run_dir)) == [10, 20]


@pytest.mark.parametrize("kind", ["half", "empty", "missing", "other"])
def test_a_damaged_register_lists_the_whole_checkpoints(run_dir: Path, kind: str) -> None:
    path = run_dir / rundir.CHECKPOINTS / snapshot.FILE
    text = path.read_text()
    path.write_text({"half": text[: len(text) // 2], "other": "[]"}.get(kind, ""))
    if kind == "missing":
        path.unlink()
    assert snapshot.checkpoints_by_step(run_dir) == {}
    said = repair.repair(run_dir)
    assert said is not None
    assert "written again from the 2 whole checkpoints" in said
    assert list(snapshot.checkpoints_by_step(run_dir)) == [10, 20]


def test_a_checkpoint_that_somebody_removed_is_no_longer_listed(run_dir: Path) -> None:
    newest = snapshot.checkpoints(run_dir)[-1]
    newest.rename(run_dir / "elsewhere")
    assert "named checkpoint_b, which is gone" in str(repair.repair(run_dir))
    assert list(snapshot.checkpoints_by_step(run_dir)) == [10]


def test_where_nothing_is_whole_nothing_is_written(tmp_path: Path) -> None:
    (checkpoint(tmp_path, "checkpoint_a", 10) / "state.pt").unlink()
    assert repair.repair(tmp_path) is None
    assert not (tmp_path / rundir.CHECKPOINTS / snapshot.FILE).exists()


def test_where_all_are_gone_that_is_what_a_resumption_and_an_export_say(run_dir: Path) -> None:
    config = {"model": {"path": "x"}, "data": {"path": "demo"}}
    spec = {"verb": "train", "config": config, "stamp": {"command": "raysft"}}
    rundir.write_json(run_dir / rundir.RUN, spec)
    (run_dir / rundir.CHECKPOINTS / "checkpoint_a/state.pt").unlink()
    with pytest.raises(UserError, match=r"checkpoint_a is damaged: state\.pt is missing"):
        export_checkpoint(run_dir / rundir.CHECKPOINTS / "checkpoint_a", None)
    shutil.rmtree(run_dir / rundir.CHECKPOINTS / "checkpoint_b")
    gone = r"snapshot\.json named checkpoint_b, which is gone"
    with pytest.raises(UserError, match=gone + ": name one of checkpoint_a, checkpoint_c in it"):
        export_checkpoint(run_dir, None)
    assert repair.repair(run_dir) is None
    with pytest.raises(UserError, match=gone + ", and no other is whole"):
        repair.require_checkpoint(run_dir)
    for name in ("checkpoint_a", "checkpoint_c"):
        shutil.rmtree(run_dir / rundir.CHECKPOINTS / name)
    with pytest.raises(UserError, match="named checkpoint_a, which is gone: none lies beside it"):
        export_checkpoint(run_dir, None)


def test_rays_own_manager_reads_it(run_dir: Path) -> None:
    from ray.train import CheckpointConfig
    from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import CheckpointManager
    from ray.train.v2._internal.execution.storage import StorageContext

    (run_dir / rundir.CHECKPOINTS / snapshot.FILE).unlink()
    repair.repair(run_dir)
    storage = StorageContext(str(run_dir), rundir.CHECKPOINTS)
    manager = CheckpointManager(CheckpointConfig(num_to_keep=2), storage)
    assert manager.latest_checkpoint_result.metrics["step"] == 20


class Poison:
    """An object that touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_a_file_that_holds_code_is_not_loaded(tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    torch.save({"weights": torch.ones(3), "more": Poison(touched)}, tmp_path / "state.pt")
    with pytest.raises(RunError, match=r"state.pt is not loaded: it would run .*pathlib"):
        read_weights(tmp_path)
    assert not touched.exists()
    torch.load(tmp_path / "state.pt", weights_only=False)  # as DeepSpeed does
    assert touched.exists()


def test_a_sweep_removes_what_was_never_complete(run_dir: Path) -> None:
    folder = run_dir / rundir.CHECKPOINTS
    (folder / (layout.WRITING + "x")).mkdir()
    (folder / "checkpoint_b.universal").mkdir()
    repair.sweep(run_dir)
    left = {path.name for path in folder.iterdir()}
    assert left == {"checkpoint_a", "checkpoint_b", snapshot.FILE}


def test_a_sweep_spares_checkpoints_where_the_register_is_damaged(run_dir: Path) -> None:
    folder = run_dir / rundir.CHECKPOINTS
    (folder / snapshot.FILE).write_text("{")
    repair.sweep(run_dir)
    assert {path.name for path in folder.glob("checkpoint_?")} == {
        "checkpoint_a", "checkpoint_b", "checkpoint_c",
    }  # fmt: skip
