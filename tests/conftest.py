"""A tokenizer whose tokens are bytes, and the command line as users run it."""

import json
import os
import resource
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
from hypothesis import settings

from tests import mlflow_server

# The same examples in every run, and nothing written beside the tests.
settings.register_profile("fixed", derandomize=True, database=None, deadline=None)
settings.load_profile("fixed")


# Modules that take minutes, the longest first: begun before the others, so that no core waits for
# the last of them at the end.
LONG = ("test_two_hosts", "test_errors_cli", "test_tune_cli", "test_readme", "test_faults")


HANGS_S = 600.0  # after which the stacks of a test's processes are shown; pyproject.toml ends it


def pytest_configure(config: pytest.Config) -> None:
    config.stash[REAL_STDERR] = os.dup(2)  # nothing is captured yet


REAL_STDERR = pytest.StashKey[int]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    timer = threading.Timer(HANGS_S, show_stacks, [item.nodeid, item.config.stash[REAL_STDERR]])
    timer.daemon = True
    timer.start()
    try:
        return (yield)
    finally:
        timer.cancel()


def show_stacks(test: str, stderr: int) -> None:
    """Where this process and all that it has started stand."""
    here = psutil.Process()
    os.write(stderr, f"\n{test} runs for {HANGS_S:.0f} s\n".encode())
    for process in [here, *here.children(recursive=True)]:
        with suppress(psutil.Error):
            if "python" in process.exe():
                dump = ["py-spy", "dump", "--nonblocking", "--pid", str(process.pid)]
                subprocess.run(dump, stdout=stderr, stderr=stderr, timeout=30)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        return LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG)

    items.sort(key=place)


class Outcome(NamedTuple):
    code: int
    stdout: str
    stderr: str

    @property
    def summary(self) -> dict[str, Any]:
        """The JSON document that --json puts on the last line."""
        return json.loads(self.stdout.splitlines()[-1])


def run_raysft(
    *args: str | Path,
    cwd: Path,
    timeout: float = 300,
    address_space: int | None = None,
    **env: str,
) -> Outcome:
    """The installed command in a process of its own, as a person runs it.

    address_space: bytes that each of its processes can map at most.
    """

    def limit() -> None:
        if address_space:
            resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space))

    command = [Path(sys.executable).parent / "raysft", *args]
    env = os.environ | {"COLUMNS": "120"} | env
    return run_command(command, cwd, env, timeout, preexec_fn=limit)


def run_command(
    command: Sequence[str | Path],
    cwd: Path,
    env: Mapping[str, str],
    timeout: float,
    **options: Any,
) -> Outcome:
    """Fails the test, with what the command has said, where it has not ended after `timeout` s.

    options: of Popen.
    """
    process = subprocess.Popen(
        [*map(str, command)],
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
    try:
        stdout, stderr = process.communicate(timeout=timeout)
        return Outcome(process.returncode, stdout, stderr)
    except subprocess.TimeoutExpired:
        process.kill()
        said = []
        with suppress(subprocess.TimeoutExpired):  # what it has started may hold its streams
            said = [stream[-2000:] for stream in process.communicate(timeout=5)]
        pytest.fail(
            "\n".join([f"no end after {timeout} s: {shlex.join(map(str, command))}", *said])
        )


@pytest.fixture(scope="session", autouse=True)
def cache_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Tokenised sets of the tests go here, and none is found from an earlier run.

    But what takes a minute is where it always is: what DeepSpeed compiles, a server of MLflow.
    """
    folder = tmp_path_factory.mktemp("cache")
    for name in ("torch_extensions", mlflow_server.KEPT):
        kept = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / name
        kept.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(kept)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session")
def mlflow_program(cache_home: Path) -> Path:
    return mlflow_server.installed(cache_home)


@pytest.fixture(scope="session")
def mlflow_uri(mlflow_program: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server that all tests share."""
    folder, port = tmp_path_factory.mktemp("mlflow"), mlflow_server.free_port()
    with mlflow_server.serving(mlflow_program, folder, port) as uri:
        yield uri


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """Every byte is one token, so ids can be read; <|endoftext|> is the end token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(["<|endoftext|>", *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")


@pytest.fixture
def records_file(tmp_path: Path) -> Path:
    """Four alpaca records."""
    words = ["one", "two", "three", "four"]
    records = [{"instruction": f"say {w}", "input": "", "output": f"{w} {w}"} for w in words]
    path = tmp_path / "records.json"
    path.write_text(json.dumps(records))
    return path


@pytest.fixture
def own_files(tmp_path: Path, tokenizer: Any) -> Path:
    """A folder with what pages call my-model, a GPT-2 of two layers with its tokenizer, and
    records.jsonl: 600 records, of which the longest is an answer of 200 bytes."""
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = {"n_layer": 2, "n_embd": 64, "n_head": 2, "n_positions": 1024}
    ids = {"bos_token_id": 0, "eos_token_id": 0}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **shape, **ids))
    model.save_pretrained(tmp_path / "my-model")
    tokenizer.save_pretrained(tmp_path / "my-model")
    lengths = [length for length in (5, 50, 200) for _ in range(200)]
    records = [{"prompt": "say it", "completion": "x" * length} for length in lengths]
    lines = (json.dumps(record) + "\n" for record in records)
    (tmp_path / "records.jsonl").write_text("".join(lines))
    return tmp_path
