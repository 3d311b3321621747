"""The floor plan: what imports what, what is private to others, and how large a room gets."""

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import raysft
from raysft.doctor.machines import check_versions
from raysft.runtime import ray_private

ROOT = Path(raysft.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
PRIVATE = ROOT / "runtime" / "ray_private.py"


def names_in(file: Path) -> Iterator[str]:
    """Dotted names that a module imports or spells out."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Attribute):
            yield ast.unparse(node)


def private_to_ray(name: str) -> bool:
    parts = name.split(".")
    return parts[0] == "ray" and any(part.startswith("_") for part in parts[1:] if part)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_one_module_names_what_is_private_to_ray(file: Path) -> None:
    found = [name for name in names_in(file) if private_to_ray(name) and "__" not in name]
    assert bool(found) == (file == PRIVATE), found


def test_private_names_are_recognised() -> None:
    for name in ("ray._private.state", "ray.train.v2._internal.x.Y", "ray.train.torch.config._T"):
        assert private_to_ray(name)
    assert not private_to_ray("ray.train.v2.api.exceptions.TrainingFailedError")


def test_this_ray_has_all_that_is_relied_on(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ray_private.missing_methods() == []
    assert ray_private.version_warning() is None
    monkeypatch.setattr("ray.__version__", "2.61.0")
    told = ray_private.version_warning()
    assert told is not None
    assert "Ray 2.61.0 is not the one" in told
    assert "pip install 'ray[default,train,tune]==2.60.*'" in told
    monkeypatch.setattr(ray_private, "METHODS", (("ray.train:ScalingConfig", "_gone", "a test"),))
    assert ray_private.missing_methods() == ["ScalingConfig._gone (a test)"]


def test_the_doctor_tells_of_another_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"a": {"observed": {"python": "3.11", "versions": {"ray": "2.60.0"}}}}
    assert check_versions(facts).status == "pass"
    monkeypatch.setattr("ray.__version__", "2.61.0")
    assert check_versions(facts).status == "warn"
    monkeypatch.setattr(ray_private, "METHODS", (("ray.train:ScalingConfig", "_gone", "a test"),))
    found = check_versions(facts)
    assert (found.status, found.found) == ("fail", "this Ray lacks ScalingConfig._gone (a test)")
    assert "==2.60.*" in found.advice


def test_a_ray_that_lacks_a_private_part_is_told(tmp_path: Path) -> None:
    """As a UserError, with what to install, instead of the name of a module."""
    code = (
        "import sys\n"
        "sys.modules['ray.train.v2._internal.execution.scaling_policy'] = None\n"
        "from raysft.errors import UserError\n"
        "try:\n    import raysft.runtime.ray_private\n"
        "except UserError as error:\n    print(error)\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    assert "scaling_policy" in told
    assert "is known to work with Ray 2.60" in told


def test_rooms_are_few_and_small() -> None:
    rooms = {file.parent for file in FILES if file.parent.parent == ROOT}
    modules = [file.name for file in ROOT.glob("*.py")]
    assert len(rooms) <= 12, rooms
    assert len(modules) <= 3, modules
    large = {str(file): len(file.read_text().splitlines()) for file in FILES}
    assert max(large.values()) <= 350, max(large, key=lambda name: large[name])


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("config/section.py", "from raysft.cli import terminal"),  # up
        ("data/cache.py", "from raysft.estimate import shape"),  # from one of a pair to the other
        ("studies/figures.py", "from raysft.studies.seq_len import figure"),  # round in a circle
    ],
)
def test_an_import_that_runs_up_is_found(file: str, line: str, tmp_path: Path) -> None:
    shutil.copytree(ROOT, tmp_path / "raysft", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT.parent / "pyproject.toml", tmp_path)
    changed = tmp_path / "raysft" / file
    changed.write_text(f"{changed.read_text()}\n{line}\n")
    lint = [Path(sys.executable).parent / "lint-imports", "--no-cache"]
    done = subprocess.run(lint, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "0 broken" not in done.stdout
    assert "1 broken" in done.stdout or "2 broken" in done.stdout
