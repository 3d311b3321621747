"""Which files a path stands for: folders of folders, splits, what is left out, and archives."""

import json
import zipfile
from pathlib import Path
from typing import Any

import datasets
import pytest

from raysft.config.data import Data, Source
from raysft.data.folders import Listing, split_of
from raysft.data.sources import find_files, sources
from raysft.errors import UserError
from tests.unit.test_read import files, values, write

ONE = [{"prompt": "q", "completion": "a"}]


def listing(path: Path | str, **keys: str) -> Listing:
    return find_files(Source(path=str(path), **keys))


def relative(found: list[str], root: Path) -> list[str]:
    return [str(Path(name.removeprefix("file://")).relative_to(root)) for name in found]


def make(root: Path, *names: str) -> Path:
    for name in names:
        write(root / name, [{"prompt": name, "completion": "a"}])
    return root


def test_a_folder_is_read_with_its_folders_and_whatever_the_case(tmp_path: Path) -> None:
    data = ("a.JSONL", "b.ndjson", "c.jsonl.zst", "deep/er/d.Parquet", "e.json.bz2", "f.csv.xz")
    make(tmp_path, *data)
    for name in ("notes.txt", ".git/x.jsonl", "__pycache__/y.json", "dataset_infos.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    for root in (str(tmp_path), f"file://{tmp_path}"):
        found = listing(root)
        assert relative([file.name for file in found.files], tmp_path) == sorted(data)
        out = {why: [Path(name).name for name in names] for why, names in found.left_out.items()}
        kinds = "none of .json, .jsonl, .ndjson, .csv, .tsv, .parquet, .arrow"
        assert out[kinds] == ["notes.txt"]
        assert out["about the data, not records"] == ["dataset_infos.json"]
        assert len(out["hidden"]) == 2
        assert len(values(root)) == len(data)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.jsonl", "train"),
        ("train-00000-of-00003.parquet", "train"),
        ("my_training_set.csv", "train"),
        ("data/train-00000-of-00001.parquet", "train"),
        ("data/train_sft-00000-of-00001.parquet", "train_sft"),
        ("test/part-1.jsonl", "test"),
        ("validation/a.json", "validation"),
        ("dev.jsonl", "validation"),
        ("squad-val2.json", "validation"),
        ("eval.jsonl", "test"),
        ("train/test.jsonl", "test"),
        ("latest.jsonl", None),
        ("trainer.jsonl", None),
        ("a/b.jsonl", None),
    ],
)
def test_a_name_tells_the_split(name: str, split: str | None) -> None:
    assert split_of(name) == split


def test_the_split_of_a_folder(tmp_path: Path) -> None:
    make(tmp_path, "train.jsonl", "test.jsonl", "validation/a.jsonl", "more.jsonl")
    for root in (str(tmp_path), f"file://{tmp_path}"):
        for split, name in (("train", "train.jsonl"), ("test", "test.jsonl"),
                            ("dev", "validation/a.jsonl")):  # fmt: skip
            assert relative(files(root, split=split), tmp_path) == [name]
        assert len(files(root)) == 1
        out = listing(root, split="train").left_out
        assert set(out) == {"of split 'test'", "of split 'validation'", "of no split"}
        with pytest.raises(UserError, match=r"has no split 'nope'; its splits are test, train, va"):
            files(root, split="nope")


def test_splits_agree_with_datasets(tmp_path: Path) -> None:
    """Of one folder, by the library whose rules these are."""
    make(tmp_path, "train-1.jsonl", "train-2.jsonl", "dev.jsonl", "testing.jsonl", "other.jsonl")
    theirs = datasets.load_dataset(str(tmp_path), cache_dir=str(tmp_path / ".cache"))
    for split, rows in theirs.items():
        ours = [record for name in files(tmp_path, split=split) for record in values(name)]
        assert [record["prompt"] for record in ours] == rows["prompt"]


def test_a_folder_without_splits_is_all_train(tmp_path: Path) -> None:
    make(tmp_path, "a.jsonl", "b.jsonl")
    assert len(files(tmp_path, split="train")) == 2
    with pytest.raises(UserError, match="has no split 'test'; no name of a file tells one"):
        files(tmp_path, split="test")


@pytest.mark.parametrize("key", ["split", "subset", "revision"])
def test_keys_that_do_nothing_are_refused(tmp_path: Path, key: str) -> None:
    file = make(tmp_path, "a.jsonl") / "a.jsonl"
    paths = [file, tmp_path / "*.jsonl", f"file://{file}", *([tmp_path] * (key != "split"))]
    for path in paths:
        with pytest.raises(UserError, match=f"data.{key} = 'x' does nothing for"):
            files(path, **{key: "x"})
    assert len(files(file, split="train")) == 1


def test_a_zip_file_is_read_like_a_folder(tmp_path: Path) -> None:
    make(tmp_path, "train.jsonl", "test.csv.gz", "deep/train-2.parquet")
    with zipfile.ZipFile(tmp_path / "set.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("train.jsonl", "test.csv.gz", "deep/train-2.parquet"):
            archive.write(tmp_path / name, name)
        archive.writestr("__MACOSX/._train.jsonl", "x")
        archive.writestr("README.md", "x")
    path = tmp_path / "set.zip"
    for root in (str(path), f"file://{path}"):
        assert [record["prompt"] for record in values(root)] == ["deep/train-2.parquet",
                                                                 "train.jsonl"]  # fmt: skip
    assert [Path(name).name for name in files(path, split="test")] == ["test.csv.gz"]
    (tmp_path / "in" / "a").mkdir(parents=True)
    path.rename(tmp_path / "in" / "a" / "set.zip")
    assert len(values(tmp_path / "in")) == 2
    assert len(values(tmp_path / "in" / "*" / "*.zip")) == 3  # a glob knows no splits
    broken = tmp_path / "broken.zip"
    broken.write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(UserError, match=r"broken.zip cannot be read: File is not a zip file"):
        values(broken)


def test_names_that_look_like_globs_and_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "data[1].jsonl", ONE)
    assert values(tmp_path / "data[1].jsonl") == ONE
    monkeypatch.setenv("HOME", str(tmp_path))
    data = Data.model_validate({"path": "~/data[1].jsonl"})
    (source,) = sources(data, data.path)
    assert source.path == str(tmp_path / "data[1].jsonl")


def test_a_folder_that_a_glob_finds_is_told(tmp_path: Path) -> None:
    make(tmp_path, "a.jsonl", "more/b.jsonl")
    assert list(listing(tmp_path / "*").left_out.values()) == [[str(tmp_path / "more")]]
    assert len(files(tmp_path / "**" / "*")) == 2
    assert listing(tmp_path / "**" / "*").left_out == {}


def test_links(tmp_path: Path) -> None:
    make(tmp_path, "in/a.jsonl", "b.jsonl")
    (tmp_path / "in" / "up").symlink_to(tmp_path)
    (tmp_path / "broken.txt").symlink_to(tmp_path / "gone.txt")
    assert len(files(tmp_path)) == 2
    (tmp_path / "c.jsonl").symlink_to(tmp_path / "gone.jsonl")
    for path in (tmp_path, tmp_path / "c.jsonl", tmp_path / "*.jsonl"):
        with pytest.raises(UserError, match=r"c.jsonl is a link to a file that cannot be read"):
            files(path)


def test_what_datasets_saved_to_disk(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i}", "completion": "a"} for i in range(5)]
    saved = datasets.Dataset.from_list(rows)
    saved.save_to_disk(tmp_path / "one")
    (tmp_path / "one" / "data-00009-of-00010.arrow").write_bytes(b"of an earlier time")
    assert values(tmp_path / "one") == rows
    assert list(listing(tmp_path / "one").left_out) == [
        "no part of the set by its state.json",
        "about the data, not records",
    ]
    splits: Any = {"train_sft": saved, "test_sft": saved.select([1])}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "two")
    assert len(files(tmp_path / "two", split="train_sft")) == 1
    with pytest.raises(UserError, match="its splits are test_sft, train_sft"):
        files(tmp_path / "two", split="train")
    saved.to_parquet(tmp_path / "three.parquet")
    assert values(tmp_path / "three.parquet") == rows


def test_a_state_file_of_something_else(tmp_path: Path) -> None:
    write(tmp_path / "a.arrow", ONE)
    (tmp_path / "state.json").write_text(json.dumps(["not of datasets"]))
    assert values(tmp_path) == ONE
