"""No password or token gets into run.json, nor to the terminal, from where it is copied."""

import json
import shlex
import sys
from pathlib import Path

import pytest

from raysft.config.load import load_config
from raysft.errors import UserError
from raysft.runs.provenance import command_without_places, submission
from tests.conftest import run_raysft

SECRETS = {
    "HF_TOKEN": "hf_sentinelAAAA1",
    "AWS_SECRET_ACCESS_KEY": "aws/sentinelBBBB2",
    "RAY_AUTH_TOKEN": "ray-sentinel-CCCC3",
    "WANDB_API_KEY": "wandb-sentinel-DDDD4",
}


def found_in(folder: Path, *texts: str) -> list[str]:
    """Which of SECRETS stand in a file of the folder, in its name, or in a text, and where."""
    places = {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert places
    places |= {f"text {index}": text.encode() for index, text in enumerate(texts)}
    return [
        f"{variable} in {place}"
        for place, content in places.items()
        for variable, secret in SECRETS.items()
        if secret.encode() in content or secret in place
    ]


def test_a_dry_run_writes_no_secret_of_the_environment(tmp_path: Path) -> None:
    words = ("train", "gpt2-tiny-cpu", "--name", "x", "--dry-run")
    outcome = run_raysft(*words, cwd=tmp_path, **SECRETS)
    assert outcome.code == 0, outcome.stderr
    assert not found_in(tmp_path / "runs/x", outcome.stdout, outcome.stderr)


@pytest.mark.parametrize(
    ("word", "kept"),
    [
        ("https://me:hidden@host:8265/x", "https://***@host:8265/x"),
        ("https://hidden@host", "https://***@host"),
        ("HTTP://me:hid:den@host", "HTTP://***@host"),
        ("s3://key:hidden@bucket/x", "s3://***@bucket/x"),
        ("s3://key:hid/d+en=@bucket/x", "s3://***@bucket/x"),
        ("s3://key:hid@den@bucket/x@y", "s3://***@bucket/x@y"),
        ("abfs://:hidden@account.dfs/x", "abfs://***@account.dfs/x"),
        ("abfs://c@a.dfs/x?client_secret=hidden&client_id=me",
         "abfs://c@a.dfs/x?client_secret=***&client_id=me"),
        ("https://a.blob/c/x?sv=2024&sig=hidden%3D", "https://a.blob/c/x?sv=2024&sig=***"),
        ('data.path=["s3://key:hidden@b/x", "s3://key:hidden@b/y"]',
         'data.path=["s3://***@b/x", "s3://***@b/y"]'),
        ("data.path=s3://key:hidden@bucket/x", "data.path=s3://***@bucket/x"),
    ],
)  # fmt: skip
def test_the_command_is_kept_without_secrets(
    monkeypatch: pytest.MonkeyPatch, word: str, kept: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["raysft", "train", word])
    command = submission()["command"]
    assert kept in command
    assert "hid" not in command


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["train", "/home/me/my runs/a b.toml"], "train 'a b.toml'"),
        (["--set", "data.path=/home/me/x.jsonl"], "--set data.path=x.jsonl"),
        (["--set", 'data.path=["~/x.jsonl", "../me/y", "s3://b/z", "o/n"]'],
         """--set 'data.path=["x.jsonl", "y", "s3://b/z", "o/n"]'"""),
        (["--set", "optim.lr=1e-3", "--name", "a.b"], "--set optim.lr=1e-3 --name a.b"),
    ],
)  # fmt: skip
def test_a_model_card_tells_names_and_no_places(words: list[str], kept: str) -> None:
    assert command_without_places(shlex.join(["raysft", *words])) == f"raysft {kept}"


HARMLESS = (
    "s3://bucket/set@2024/a:b@c.jsonl",
    "s3://bucket/a:b@c/*.jsonl?region=eu-west-1&endpoint_override=localhost%3A9000",
    "abfs://container@account.dfs.core.windows.net/x:y@z.parquet",
    "gs://anonymous@bucket/x.jsonl",
    "hdfs://me@head:8020/x@y.json",
    "hdfs://head:8020/x@y.json",
    "hdfs://[::1]:8020/x@y.json",
    "file:///home/me:you@here/x.json",
    "owner/name",
    "what?sig.json",
)


@pytest.mark.parametrize("word", [*HARMLESS, "http://head:8265", "a:b@c", "lr=1e-3"])
def test_the_rest_of_the_command_is_kept(monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    monkeypatch.setattr(sys, "argv", ["raysft", word])
    assert word in submission()["command"]


@pytest.mark.parametrize("key", ["data.path", "data.eval_path", "model.path"])
@pytest.mark.parametrize(
    "uri",
    [
        "s3://key:hidden@bucket/x.jsonl",
        "s3://key:hid/d+en=@bucket/x.jsonl",
        "s3://key:@bucket/x.jsonl?secret_key=hidden",
        "abfs://:hidden@account.dfs.core.windows.net/c/x",
        "abfs://c@account.dfs.core.windows.net/x?tenant_id=a&client_secret=hidden",
        "abfs://c@account.dfs.core.windows.net/x?sv=2024&sig=hidden",
        "https://hf:hidden@huggingface.co/owner/name",
    ],
)
def test_a_uri_with_a_secret_is_refused(key: str, uri: str) -> None:
    with pytest.raises(UserError) as raised:
        load_config("gpt2-tiny-cpu", [f"{key}={uri}"])
    message = str(raised.value)
    assert f"{key} holds a password or another secret, which run.json would keep" in message
    assert (
        "by the environment of the machine that reads the data, such as AWS_ACCESS_KEY" in message
    )
    assert "hid" not in message


def test_a_secret_in_a_mixture_or_a_search_is_refused(tmp_path: Path) -> None:
    uri = "s3://key:hidden@bucket/x"
    parts = f'data.path=["a.json", {{path = "{uri}", weight = 2}}]'
    choice = f'tune.space={{"data.path" = {{choice = ["a.json", "{uri}"]}}}}'
    for override, key in ((parts, "data.path.1.path"), (choice, "tune.space.data.path.choice.1")):
        outcome = run_raysft("train", "gpt2-tiny-cpu", "--set", override, cwd=tmp_path)
        assert outcome.code == 2
        assert f"{key} holds a password" in " ".join(outcome.stderr.split())
        assert "hidden" not in outcome.stdout + outcome.stderr
        assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("uri", HARMLESS)
def test_letters_of_an_object_key_are_no_password(uri: str) -> None:
    overrides = [f'data.path="{uri}"', f'data.eval_path=["{uri}"]', "model.tokenizer=gpt2"]
    config = load_config("gpt2-tiny-cpu", overrides)
    assert json.loads(config.model_dump_json())["data"]["path"] == uri
