"""Files that run code when they are loaded as they ask to be: raysft refuses or ignores them.

The code makes a folder, the marker. Each test first shows, where it can, that it would.
"""

import copy
import gzip
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from raysft.config.load import load_config
from raysft.config.schema import Config
from raysft.data import cache
from raysft.data.containers import SUFFIXES
from raysft.data.dataset import Prepared, prepare
from raysft.data.template import install_template
from raysft.errors import RunError, UserError
from raysft.model import generate
from raysft.model.load import load_model, load_model_config, load_template
from raysft.runs import rundir
from raysft.train.checkpoint import layout, restore
from raysft.train.checkpoint.export import read_weights
from tests.unit import test_hub

# Of PyTorch's, about what is refused in the end.
pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")


class Poison:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (self.marker,))


@pytest.fixture
def marker(tmp_path: Path) -> Iterator[Path]:
    """It is not there when the test has ended."""
    path = tmp_path / "marker"
    yield path
    assert not path.exists()


def works(marker: Path, load: Callable[[], Any]) -> None:
    """Shows that loading it in this way does run the code."""
    with suppress(Exception):
        load()
    marker.rmdir()


def saved(marker: Path, kind: str) -> bytes:
    """A file of PyTorch's, of each kind that torch.load reads."""
    poison = {"weight": torch.ones(2), "more": Poison(marker)}
    file = io.BytesIO()
    if kind == "a plain pickle":
        pickle.dump(poison, file)
    elif kind == "as before 1.6":
        torch.save(poison, file, _use_new_zipfile_serialization=False)
    else:
        torch.save(poison, file, pickle_protocol=4 if kind == "another protocol" else 2)
    return file.getvalue()


KINDS = ("as today", "another protocol", "as before 1.6", "a plain pickle")


def torch_load(path: Path) -> Any:
    return torch.load(path, weights_only=False)


# Models


@pytest.fixture
def model(tokenizer: Any, tmp_path: Path) -> Path:
    """A GPT-2 with its tokenizer, and weights as safetensors."""
    folder = tmp_path / "model"
    shape = {"n_layer": 1, "n_embd": 8, "n_head": 2, "n_positions": 64}
    config = GPT2Config(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, **shape)
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def train_with(folder: Path) -> Any:
    """The model as a worker loads it, and before that what the job does."""
    config = load_config(
        "gpt2-tiny-cpu",
        ["model.init=pretrained", f"model.path={folder}", "model.tokenizer=none",
         f"data.path={folder}", "batch.seq_len=64", "engine.zero_stage=1"],
    )  # fmt: skip
    template = load_template(config)
    hf_config = load_model_config(config, template)
    return load_model(config, hf_config, {}, len(template.tokenizer))


def generate_with(folder: Path) -> Any:
    return generate.load(str(folder))[0]


LOADERS = pytest.mark.parametrize("load", [train_with, generate_with])


@LOADERS
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sharded", [False, True])
def test_pickled_weights_are_not_loaded(
    model: Path, marker: Path, load: Callable[[Path], Any], kind: str, sharded: bool
) -> None:
    (model / "model.safetensors").unlink()
    weights = model / "pytorch_model.bin"
    if sharded:
        weights = model / "pytorch_model-00001-of-00001.bin"
        index = {"metadata": {}, "weight_map": {"transformer.wte.weight": weights.name}}
        (model / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    config = json.loads((model / "config.json").read_text())
    del config["dtype"]  # else the weights are not looked at for it, one more time
    (model / "config.json").write_text(json.dumps(config))
    weights.write_bytes(saved(marker, kind))
    works(marker, lambda: torch_load(weights))
    with pytest.raises(UserError, match="its weights are a pickle"):
        load(model)


@LOADERS
def test_a_pickle_is_no_safetensors_file(
    model: Path, marker: Path, load: Callable[[Path], Any]
) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(saved(marker, "a plain pickle"))
    works(marker, lambda: pickle.loads(weights.read_bytes()))
    with pytest.raises(UserError, match=r"does not load: .*header"):
        load(model)


CODE = """
import os
os.mkdir({marker!r})
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
class Settings(GPT2Config): model_type = "other"
class Network(GPT2LMHeadModel): config_class = Settings
class Words(PreTrainedTokenizerFast): pass
"""
CLASSES = {
    "AutoConfig": "code.Settings",
    "AutoModelForCausalLM": "code.Network",
    "AutoTokenizer": [None, "code.Words"],
}


def bring_code(model: Path, marker: Path, names: dict[str, dict[str, str]]) -> None:
    """Put a module beside the model that its files name, `names` being changes to each of them."""
    (model / "code.py").write_text(CODE.format(marker=str(marker)))
    for name, change in names.items():
        file = model / name
        file.write_text(json.dumps(json.loads(file.read_text()) | {"auto_map": CLASSES} | change))


@LOADERS
@pytest.mark.parametrize(
    "names",
    [
        {"config.json": {"model_type": "other"}},
        {"config.json": {"model_type": "other"}, "tokenizer_config.json": {}},
        {"config.json": {}, "tokenizer_config.json": {"tokenizer_class": "Words"}},
    ],
)
def test_code_that_comes_with_a_model_is_not_run(
    model: Path,
    marker: Path,
    load: Callable[[Path], Any],
    names: dict[str, dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not even where somebody, or what is piped in, says yes to all that is asked."""
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda text="": asked.append(text) or "y")
    bring_code(model, marker, names)
    known = "model_type" not in names["config.json"]
    if known:  # classes of transformers' own are there: the module is left aside
        assert type(load(model)) is GPT2LMHeadModel
    else:
        with pytest.raises(UserError, match="brings Python code of its own, which raysft does not"):
            load(model)
    assert not asked


# Data


def config_for(path: Path | str, *overrides: str) -> Config:
    return load_config(
        "gpt2-tiny-cpu",
        [f"data.path={path}", "model.tokenizer=unused", "data.eval_fraction=0", *overrides],
    )


def prepared(tokenizer: Any, path: Path | str, *overrides: str) -> Prepared:
    config = config_for(path, *overrides)
    return prepare(config, install_template(copy.deepcopy(tokenizer), config.data.template))


@pytest.mark.parametrize("protocol", [0, 4])  # 0 is lines of ASCII
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_pickle_under_the_name_of_records(
    tokenizer: Any, tmp_path: Path, marker: Path, suffix: str, protocol: int
) -> None:
    path = tmp_path / f"records{suffix}"
    content = pickle.dumps([Poison(marker)], protocol)
    works(marker, lambda: pickle.loads(content))
    variants = [content, gzip.compress(content)] if suffix.endswith(".gz") else [content]
    for variant in variants:
        path.write_bytes(variant)
        with pytest.raises(UserError, match=path.name):
            prepared(tokenizer, path)


def pickled_column(marker: Path, name: str, *, nested: bool = False) -> pa.Table:
    """Of an extension type whose values, or whose settings, are pickles."""
    poison = pickle.dumps(Poison(marker))
    label = {"ARROW:extension:name": name, "ARROW:extension:metadata": poison}
    is_tensor = name.startswith("ray.data.arrow_tensor")
    values = pa.array([[1, 2]]) if is_tensor else pa.array([poison], pa.large_binary())
    field = pa.field("text", values.type, metadata=label)
    if nested:
        values = pa.StructArray.from_arrays([values], fields=[field])
        field = pa.field("text", values.type)
    return pa.table([values], schema=pa.schema([field]))


OBJECTS = "ray.data.arrow_pickled_object"


def register_ray_types() -> None:
    """What importing Ray Train does; an earlier test may have undone it."""
    from ray.data._internal.object_extensions.arrow import ArrowPythonObjectType
    from ray.data._internal.tensor_extensions.arrow import ArrowTensorType, ArrowTensorTypeV2

    shape = ((0,), pa.int64())
    for kind in (ArrowPythonObjectType(), ArrowTensorType(*shape), ArrowTensorTypeV2(*shape)):
        with suppress(pa.ArrowKeyError):
            pa.register_extension_type(kind)


@pytest.mark.parametrize("nested", [False, True])
def test_a_parquet_column_of_python_objects(
    tokenizer: Any, tmp_path: Path, marker: Path, nested: bool
) -> None:
    path = tmp_path / "records.parquet"
    pq.write_table(pickled_column(marker, OBJECTS, nested=nested), path)
    register_ray_types()
    works(marker, lambda: pq.read_table(path).to_pylist())
    with pytest.raises(UserError, match=r"records.parquet row 1: field 'text' (is|holds) bytes"):
        prepared(tokenizer, path)


@pytest.mark.parametrize("name", ["ray.data.arrow_tensor", "ray.data.arrow_tensor_v2"])
def test_a_parquet_type_with_pickled_settings(
    tokenizer: Any, tmp_path: Path, marker: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Ray 2.49 to 2.54 wrote them, even where newer ones are told to read them."""
    from ray.data._internal.tensor_extensions import arrow

    monkeypatch.setattr(arrow, "_AUTOLOAD_CLOUDPICKLE_TENSOR_METADATA", True)
    path = tmp_path / "records.parquet"
    pq.write_table(pickled_column(marker, name), path)
    register_ray_types()
    works(marker, lambda: pq.read_table(path))
    with pytest.raises(UserError, match=r"records.parquet row 1: field 'text' is list"):
        prepared(tokenizer, path)


def test_a_parquet_type_that_pyarrow_unpickled(
    tokenizer: Any, tmp_path: Path, marker: Path
) -> None:
    """CVE-2023-47248, before pyarrow 14.0.1."""
    path = tmp_path / "records.parquet"
    pq.write_table(pickled_column(marker, "arrow.py_extension_type"), path)
    with pytest.raises(UserError, match=r"records.parquet row 1: field 'text' is bytes"):
        prepared(tokenizer, path)


def test_a_folder_with_a_loading_script(
    tokenizer: Any, tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it looks like the id of a hub dataset: its data files are read, and no other."""
    monkeypatch.chdir(tmp_path)
    folder = Path("acme/qa")
    folder.mkdir(parents=True)
    for name in ("qa.py", "dataset.py", "__init__.py"):
        (folder / name).write_text(f"import os\nos.mkdir({str(marker)!r})\n")
    (folder / "records.pkl").write_bytes(pickle.dumps(Poison(marker)))
    torch.save(Poison(marker), folder / "records.pt")
    for path in (folder, folder.resolve(), f"{folder}/*"):
        with pytest.raises(UserError, match=r"holds no \.json|is none of \.json"):
            prepared(tokenizer, path)
    (folder / "records.jsonl").write_text('{"instruction": "q", "output": "a"}\n')
    assert len(prepared(tokenizer, folder).train) == 1


READ = f"import ray.train\n{test_hub.READ}"


@pytest.mark.parametrize("kind", ["script", "parquet"])
def test_a_hub_dataset(
    tmp_path: Path, marker: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = f"import os\nos.mkdir({str(marker)!r})\n".encode()
    table = io.BytesIO()
    pq.write_table(pickled_column(marker, OBJECTS), table)
    files = {"script": {"qa.py": script}, "parquet": {"train.parquet": table.getvalue()}}[kind]
    monkeypatch.setattr(test_hub, "files_at", lambda _: files)
    server = ThreadingHTTPServer(("127.0.0.1", 0), test_hub.Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    environment = {name: v for name, v in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}"}
    environment |= {"HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1"}
    words = [sys.executable, "-c", READ, json.dumps({"split": "train"})]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, input="y\n" * 9)
    server.shutdown()
    if kind == "script":
        assert "UserError: data.path: 'acme/qa' is no local file" in done.stderr
        assert "scripts are no longer supported" in done.stderr
    else:  # the values are bytes, which JSON has no form for
        assert "Object of type bytes is not JSON serializable" in done.stderr


def test_the_cache_holds_numbers(tokenizer: Any, tmp_path: Path, marker: Path) -> None:
    """Nothing in it is unpickled, whoever wrote there."""
    path = tmp_path / "records.jsonl"
    path.write_text('{"instruction": "poisoned", "output": "a"}\n')
    prepared(tokenizer, path)
    entry = max(cache.folder().iterdir(), key=lambda entry: entry.stat().st_mtime)
    assert {file.name for file in entry.iterdir()} == {*cache.FILES, "counts.json"}
    poison = pickle.dumps(Poison(marker))
    for file in entry.iterdir():
        before = file.read_bytes()
        file.write_bytes(poison)
        with suppress(ValueError):  # of the wrong size, or no JSON
            prepared(tokenizer, path)
        file.write_bytes(before)
    assert len(prepared(tokenizer, path).train) == 1


TURNS = "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{% for x in ().__class__.__base__.__subclasses__() %}{{ x }}{% endfor %}",
        "{{ cycler.__init__.__globals__.os.mkdir(MARKER) }}",
        "{{ lipsum.__globals__.os.mkdir(MARKER) }}",
        "{{ raise_exception.__globals__['__builtins__']['__import__']('os').mkdir(MARKER) }}",
        "{{ (lipsum | attr('__globals__')).os.mkdir(MARKER) }}",
        "{{ '{0.__init__.__globals__}'.format(cycler) }}",
        "{{ messages.append(messages[0]) }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}{{ os.mkdir(MARKER) }}",
    ],
)
@pytest.mark.parametrize("own", [False, True])
def test_a_template_reaches_nothing_of_python(
    tokenizer: Any, tmp_path: Path, marker: Path, source: str, own: bool
) -> None:
    """Neither a file nor the tokenizer's own."""
    tokenizer = copy.deepcopy(tokenizer)
    file = tmp_path / "t.jinja"
    source = source.replace("MARKER", repr(str(marker))) + TURNS
    file.write_text(source)
    tokenizer.chat_template = source if own else None
    reasons = "is unsafe|no loader for this environment|has no attribute|is undefined"
    with pytest.raises(UserError, match=f"renders no question and answer: .* ({reasons})"):
        install_template(tokenizer, "tokenizer" if own else str(file))


def test_a_template_that_waits_for_a_record(tokenizer: Any, tmp_path: Path, marker: Path) -> None:
    attack = f"lipsum.__globals__.os.mkdir({str(marker)!r})"
    guarded = f"{{% if 'now' in messages[0].content %}}{{{{ {attack} }}}}{{% endif %}}"
    template, path = tmp_path / "t.jinja", tmp_path / "records.jsonl"
    template.write_text(guarded + TURNS)
    path.write_text('{"prompt": "later", "completion": "a"}\n')
    assert len(prepared(tokenizer, path, f"data.template={template}").train) == 1
    path.write_text('{"prompt": "now", "completion": "a"}\n')
    with pytest.raises(UserError, match=r"line 1: the template .* '__globals__' .* is unsafe"):
        prepared(tokenizer, path, f"data.template={template}")


# Checkpoints


def restored(folder: Path) -> Any:
    """What every restoration begins with, whatever stage and workers have saved it. It needs no
    engine to refuse.
    """
    return restore.load(None, folder)


@pytest.fixture(params=["checkpoint", "a link to one"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Of a checkpoint with no weights yet."""
    path = tmp_path / "checkpoint_a"
    (path / layout.TAG).mkdir(parents=True)
    (path / "manifest_0.json").write_text('{"world_size": 1, "zero_stage": 3, "files": {}}')
    if request.param == "checkpoint":
        return path
    link = tmp_path / "checkpoint_b"
    link.symlink_to(path)
    return link


@pytest.mark.parametrize("load", [restored, read_weights])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name",
    [
        f"{layout.TAG}/mp_rank_00_model_states.pt",
        f"{layout.TAG}/zero_pp_rank_0_mp_rank_00_optim_states.pt",
        "rng_0.pt",
    ],
)
def test_a_checkpoint_that_holds_code_is_not_loaded(
    folder: Path, marker: Path, load: Callable[[Path], Any], kind: str, name: str
) -> None:
    (folder / name).write_bytes(saved(marker, kind))
    works(marker, lambda: torch_load(folder / name))
    with pytest.raises(RunError, match=r"\.pt is not loaded: .* run .* Where does it come from\?"):
        load(folder)


@pytest.mark.parametrize("load", [restored, read_weights])
def test_a_checkpoint_that_is_elsewhere_is_not_loaded(
    folder: Path, marker: Path, tmp_path: Path, load: Callable[[Path], Any]
) -> None:
    """What a link leads to is read by DeepSpeed, and was not looked at."""
    elsewhere = tmp_path / "elsewhere"
    shutil.move(folder / layout.TAG, elsewhere)
    (folder / layout.TAG).symlink_to(elsewhere)
    weights = folder / layout.TAG / "mp_rank_00_model_states.pt"
    weights.write_bytes(saved(marker, "as today"))
    works(marker, lambda: torch_load(weights))
    with pytest.raises(RunError, match=r"is a link to another folder"):
        load(folder)


def test_a_pickle_is_no_run_json(tmp_path: Path, marker: Path) -> None:
    (tmp_path / rundir.RUN).write_bytes(pickle.dumps(Poison(marker)))
    with pytest.raises(UserError, match=r"run\.json is damaged"):
        rundir.read_json(tmp_path / rundir.RUN)
