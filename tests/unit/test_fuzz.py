"""Files of every format and kind, damaged in every way: no error but one that a person can read."""

import copy
import io
import json
import shutil
import tempfile
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysft.config.load import load_config
from raysft.data.audit import audit
from raysft.data.containers import SUFFIXES, File
from raysft.data.dataset import prepare
from raysft.data.preview import previews
from raysft.data.template import Template, install_template
from raysft.errors import UserError
from tests.unit.test_read import COMPRESS, content

FILES = 200  # 2,000 once, by hand: see `check`

CHAT = [{"role": "user", "content": "q é"}, {"role": "assistant", "content": "a", "weight": 1}]
CALL = {"id": "1", "function": {"name": "f", "arguments": {"city": "Oslo", "n": 1}}}
SHAPES: list[dict[str, Any]] = [
    {"messages": CHAT, "tools": [{"name": "f"}]},
    {"messages": [CHAT[0], {"role": "assistant", "content": None, "tool_calls": [CALL]}]},
    {"messages": json.dumps(CHAT)},
    {"data": ["q", "a", "r", "b"]},
    {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    {"instruction": "q", "input": "i", "output": "a", "history": [["x", "y"]]},
    {"instruction": "q", "context": "c", "response": "a", "category": "qa"},
    {"instruction": "q", "instances": [{"input": "i", "output": "a"}]},
    {"prompt": "q", "completion": "a"},
    {"prompt": CHAT[:1], "completion": CHAT[1:]},
    {"system_prompt": "s", "question": "q", "response": "a"},
    {"context": "c", "question": "q", "answers": {"text": ["a"], "answer_start": [0]}},
    {"question": "q", "choices": ["x", "y"], "answer": 1},
    {"question": "q", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "A"},
    {"text": "a document"},
    {"prompt": "q", "chosen": "a", "rejected": "b"},
]
KNOWN = sorted({name for shape in SHAPES for name in shape} | {"system", "tools", "options", ""})
plain = st.none() | st.booleans() | st.integers(-3, 2**70) | st.floats() | st.text(max_size=6)
values = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "text", "a"]), inner, max_size=3)
    ),
    max_leaves=5,
)
changes = st.lists(
    st.tuples(
        st.sampled_from(["as it is", "renamed", "nested", "nulled", "replaced", "added", "gone"]),
        st.integers(0, 5),
        st.sampled_from(KNOWN),
        values,
    ),
    max_size=2,
)


def changed(record: dict[str, Any], how: list[tuple[str, int, str, Any]]) -> dict[str, Any]:
    record = copy.deepcopy(record)
    for change, place, other, value in how:
        name = list(record)[place % len(record)] if record else other
        was = record.get(name)
        if change in ("renamed", "gone"):
            record.pop(name, None)
        if change in ("renamed", "added"):
            record[other] = was if change == "renamed" else value
        elif change != "gone":
            new = {"nested": [{name: was}], "nulled": None, "replaced": value}
            record[name] = new.get(change, was)
    return record


class Case(NamedTuple):
    records: list[dict[str, Any]]
    suffix: str
    zipped: bool
    damage: str
    at: float  # where, of the content
    junk: bytes
    compress_first: bool


cases = st.builds(
    Case,
    st.lists(st.builds(changed, st.sampled_from(SHAPES), changes), min_size=1, max_size=4)
    | st.builds(lambda shape, how: [changed(shape, how)] * 3, st.sampled_from(SHAPES), changes),
    st.sampled_from([".parquet", ".arrow"]) | st.sampled_from(SUFFIXES),
    st.booleans(),
    st.sampled_from(["none", "cut", "doubled", "utf-16", "cp1252", "utf-32-be", "junk"]),
    st.floats(0, 1),
    st.binary(min_size=1, max_size=8),
    st.booleans(),
)


def file_of(case: Case) -> bytes:
    kind, compression = File(f"d{case.suffix}", 0).suffixes
    try:
        data = content(kind, case.records)
    except (pa.ArrowException, ValueError, OverflowError, TypeError):  # one type does not fit all
        data = content(kind, [{"prompt": json.dumps(record)} for record in case.records])
    compress = COMPRESS[compression]
    return damaged(compress(data), case) if case.compress_first else compress(damaged(data, case))


def damaged(data: bytes, case: Case) -> bytes:
    place = int(case.at * len(data))
    if case.damage == "cut":
        return data[:place]
    if case.damage == "doubled":
        return data + data
    if case.damage == "junk":
        return data[:place] + case.junk + data[place:]
    if case.damage == "none":
        return data
    return data.decode("utf-8", "replace").encode(case.damage, "replace")


def check(case: Case, template: Template) -> None:
    """Preview, audit and training's reading, of the file and of a folder with it."""
    root = Path(tempfile.mkdtemp())
    path = root / f"d{case.suffix}"
    path.write_bytes(file_of(case))
    if case.zipped:
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as writer:
            writer.write(path, path.name)
        path = root / "d.zip"
        data = archive.getvalue()
        path.write_bytes(damaged(data, case) if case.damage in ("cut", "junk") else data)
    options = ["model.tokenizer=unused", "data.eval_fraction=0", "data.on_bad_record=skip"]
    try:
        for place in (path, root):
            config = load_config("gpt2-tiny-cpu", [*options, f"data.path={place}"])
            with suppress(UserError):
                list(previews(config, template, 3))
            with suppress(UserError):
                audit(config, template, prepare(config, template))
    finally:
        shutil.rmtree(root)


@pytest.fixture(scope="module")
def template(tokenizer: Any) -> Template:
    return install_template(copy.deepcopy(tokenizer), "auto")


def test_no_file_ends_in_a_traceback(template: Template, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    @settings(max_examples=FILES)
    @given(cases)
    def each(case: Case) -> None:
        seen.append(case.suffix)
        check(case, template)

    with tempfile.TemporaryDirectory() as cache:
        monkeypatch.setenv("XDG_CACHE_HOME", cache)
        each()
    assert len(seen) >= FILES
