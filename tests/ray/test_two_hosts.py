"""Runs on a Ray cluster of two hosts with networks of their own, submitted from a third."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from raysft.data import demo
from tests.conftest import Outcome, run_raysft
from tests.documented import commands
from tests.ray.hosts import NODE, STATE, URL, Hosts, environment, run, two_hosts

ON = ("--address", URL)


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    with two_hosts() as up:
        yield up


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Where the client stands: a folder with records, a tokenizer and a model."""
    folder = tmp_path_factory.mktemp("client")
    shutil.copytree(tiny_model, folder / "model")
    records = demo.generate(300, seed=3)
    (folder / "records.json").write_text(json.dumps(records))
    demo.train_tokenizer(records).save_pretrained(folder / "tokenizer")
    return folder


def small(storage: Path, **settings: str | int | Path) -> list[str]:
    """A run of a few steps on both hosts, whose data lie beside the client."""
    keys = {
        "run.storage": storage,
        "data.path": "records.json",
        "model.tokenizer": "tokenizer",
        "run.max_steps": 6,
        "run.samples": 0,
        "batch.global_batch_size": 16,
        "log.every_steps": 1,
        "eval.every_steps": 0,
        "checkpoint.every_steps": 0,
        **{key.replace("__", "."): value for key, value in settings.items()},
    }
    return [word for key, value in keys.items() for word in ("--set", f"{key}={value}")]


def losses(run_dir: Path) -> list[float]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [line["loss"] for line in map(json.loads, lines) if "loss" in line]


def wait_until_logged(run_dir: Path, step: int, timeout_s: float = 90) -> None:
    deadline = time.monotonic() + timeout_s
    metrics = run_dir / "metrics.jsonl"
    while not metrics.exists() or f'"step": {step},' not in metrics.read_text():
        assert time.monotonic() < deadline, f"no step {step} in {run_dir}"
        time.sleep(0.2)


def test_a_run_ends_as_it_does_on_one_machine(hosts: Hosts, here: Path) -> None:
    """Records, model and code travel; each host has room for one of the two workers."""
    model = {"model__init": "pretrained", "model__path": "model", "model__tokenizer": "none"}
    train = ("train", "gpt2-tiny-cpu", "--name", "x", "--json")
    options = small(here / "there", **model, batch__seq_len=128)
    there = hosts.raysft(*train, "--ship-code", *ON, *options, cwd=here)
    assert there.code == 0, there.stderr
    assert "shipped        model, records.json" in there.stderr
    local = run_raysft(*train, *small(here / "here", **model, batch__seq_len=128), cwd=here)
    assert there.summary["status"] == local.summary["status"] == "done"
    assert there.summary.keys() == local.summary.keys()
    assert losses(here / "there/x") == pytest.approx(losses(here / "here/x"), rel=1e-6)
    assert (here / "there/x/model/model.safetensors").exists()
    again = hosts.raysft(
        "train", "gpt2-tiny-cpu", "--name", "x", *ON, *small(here / "there"), cwd=here
    )
    assert again.code == 2
    assert "holds a run already" in again.stderr
    listed = hosts.raysft("runs", *ON, cwd=here)
    assert [row.split()[:3] for row in listed.stdout.splitlines() if row.startswith("x ")] == [
        ["x", "train", "done"],
        ["x", "train", "failed"],
    ]


def test_a_search_ends_as_it_does_on_one_machine(hosts: Hosts, here: Path) -> None:
    there = hosts.raysft(
        "tune", "tune-stability", "--name", "search", "--json", *ON,
        *small(here / "runs", tune__num_trials=2), cwd=here,
    )  # fmt: skip
    assert there.code == 0, there.stderr
    assert "Trials, best first" in there.stderr
    assert there.summary["best_config"] == str(here / "runs/search/best.toml")
    assert Path(there.summary["best_config"]).exists()
    assert len(json.loads((here / "runs/search/results.json").read_text())["trials"]) == 2


def test_a_benchmark_ends_as_it_does_on_one_machine(hosts: Hosts, here: Path) -> None:
    there = hosts.raysft(
        "bench", "seq-len", "bench-seq-len", "--name", "bench", "--json", *ON,
        *small(
            here / "runs", bench__seq_lens="[64]", bench__steps=2,
            bench__warmup_steps=1, bench__synthetic="true", scaling__workers=2,
            scaling__cpus_per_worker=1, model__shape__n_layer=2, model__shape__n_embd=64,
        ),
        cwd=here,
    )  # fmt: skip
    assert there.code == 0, there.stderr
    assert "Equal sequences a step" in there.stderr
    assert (here / "runs/bench/report.md").exists()


def test_a_client_that_is_killed_or_cut_off_sees_the_end(hosts: Hosts, here: Path) -> None:
    name, run_dir = "long", here / "runs/long"
    options = small(here / "runs", run__max_steps=150, checkpoint__every_steps=10)
    log = here / "client.log"
    client = hosts.start("train", "gpt2-tiny-cpu", "--name", name, *ON, *options, cwd=here, log=log)
    wait_until_logged(run_dir, 20)
    client.kill()
    watching = hosts.start("attach", name, *ON, "--json", cwd=here, log=log)
    time.sleep(3)
    hosts.do("cut", "client")
    time.sleep(3)
    hosts.do("heal", "client")
    assert watching.wait(120) == 0, log.read_text()
    summary = json.loads(log.read_text().splitlines()[-1])
    assert (summary["status"], summary["steps"]) == ("done", 150)
    shown = [line.split()[0] for line in log.read_text().splitlines() if line[:6].strip().isdigit()]
    assert shown == [str(step) for step in range(151)]  # each once, though the log was read again


def test_a_run_that_is_stopped_goes_on(hosts: Hosts, here: Path) -> None:
    run_dir = here / "runs/stopped"
    train = ("train", "gpt2-tiny-cpu", "--name", "stopped", *ON)
    options = small(here / "runs", run__max_steps=300, checkpoint__every_steps=100)
    client = hosts.start(*train, *options, cwd=here, log=here / "stopped.log")
    wait_until_logged(run_dir, 5)
    stopped = hosts.raysft("stop", "stopped", cwd=here)  # it was submitted from here
    assert stopped.code == 0, stopped.stderr
    assert "go on from the newest checkpoint with" in stopped.stderr
    assert client.wait(60) == 130
    done = len(losses(run_dir))
    assert 5 <= done < 300
    options = small(here / "runs", run__max_steps=done + 3, checkpoint__every_steps=100)
    resumed = hosts.raysft(*train, "--resume", "--json", *options, cwd=here)
    assert resumed.code == 0, resumed.stderr
    assert f"after step {done}" in resumed.stderr
    assert f"run.max_steps was 300 and is now {done + 3}" in resumed.stderr
    over = hosts.raysft("stop", run_dir, cwd=here)  # whose run.json tells the address
    assert over.code == 2
    assert "has ended already" in over.stderr


def test_documented_commands_run(hosts: Hosts, here: Path) -> None:
    """As written in README.md and docs/, in their order, but on this cluster and in brief."""
    found = [words for words in commands("raysft") if "--address" in words]
    assert {words[0] for words in found} == {"doctor", "train", "attach", "runs"}
    for words in found:
        ours = {
            "http://localhost:8265": URL,
            "run.storage=/shared/runs": f"run.storage={here / 'r'}",
        }
        extra = ["--set", "run.max_steps=5"] if words[0] == "train" else []
        outcome = hosts.raysft(*(ours.get(word, word) for word in words), *extra, cwd=here)
        assert outcome.code == 0, outcome.stderr
        assert outcome.stdout.strip()


def check_one_message(outcome: Outcome, words: str) -> None:
    assert outcome.code == 2
    assert "Traceback" not in outcome.stderr
    (line,) = [line for line in outcome.stderr.splitlines() if line.startswith("error:")]
    assert words in line


def test_without_the_token_there_is_one_clear_message(hosts: Hosts, tmp_path: Path) -> None:
    train = ("train", "gpt2-tiny-cpu", "--set", f"run.storage={tmp_path / 'runs'}")
    for command in (("runs",), ("attach", "x"), train):
        outcome = hosts.without_token(*command, *ON, cwd=tmp_path)
        check_one_message(outcome, "wants a token, and there is none here")
    wrong = hosts.without_token("runs", *ON, cwd=tmp_path, RAY_AUTH_TOKEN="wrong")
    check_one_message(wrong, "refuses the token it was sent")


def test_the_token_is_found_where_ray_looks_for_it(hosts: Hosts, tmp_path: Path) -> None:
    token = (STATE / "token").read_text()
    for place in ({"RAY_AUTH_TOKEN": token}, {"RAY_AUTH_TOKEN_PATH": str(STATE / "token")}):
        nobody = hosts.without_token("attach", "nobody", *ON, cwd=tmp_path, **place)
        check_one_message(nobody, "no run 'nobody' on this cluster")
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text(token + "\n")  # in the home folder of this client
    nobody = hosts.without_token("attach", "nobody", *ON, cwd=tmp_path)
    check_one_message(nobody, "no run 'nobody' on this cluster")


def test_what_cannot_be_submitted_is_told(hosts: Hosts, here: Path) -> None:
    train = ("train", "gpt2-tiny-cpu", *ON)
    check_one_message(hosts.raysft(*train, cwd=here), "run.storage 'runs' is relative")
    record = b'{"prompt": "a", "completion": "b"}\n'
    (here / "large.jsonl").write_bytes(record * (65 * 2**20 // len(record)))
    options = small(here / "runs", data__path="large.jsonl")
    check_one_message(hosts.raysft(*train, *options, cwd=here), "too large to travel with the job")
    nobody = hosts.raysft("runs", "--address", "http://10.77.0.1:9", cwd=here)
    check_one_message(nobody, "no Ray dashboard answers at http://10.77.0.1:9")
    gcs = hosts.raysft("runs", "--address", "10.77.0.1:6379", cwd=here)
    check_one_message(gcs, "is not that of a dashboard")
    check_one_message(hosts.raysft("attach", "nobody", *ON, cwd=here), "no run 'nobody'")


def test_storage_that_is_not_shared_is_told_before_training(hosts: Hosts, here: Path) -> None:
    storage = here / "apart"
    storage.mkdir()
    hosts.do("on", "node", "mount", "-t", "tmpfs", "tmpfs", str(storage))
    try:
        outcome = hosts.raysft(
            "train", "gpt2-tiny-cpu", "--name", "x", *ON, *small(storage), cwd=here
        )
    finally:
        hosts.do("on", "node", "umount", str(storage))
    check_one_message(outcome, f"run.storage: there is no {storage}/x on node")
    assert not list(storage.glob("x/metrics.jsonl"))


def doctor(hosts: Hosts, here: Path) -> tuple[Outcome, dict[str, dict[str, str]]]:
    outcome = hosts.raysft(
        "doctor", *ON, "--json", "--set", f"run.storage={here / 'runs'}", cwd=here
    )
    return outcome, {check["name"]: check for check in outcome.summary["checks"]}


def test_the_doctor_finds_nothing_where_nothing_is_wrong(hosts: Hosts, here: Path) -> None:
    outcome, checks = doctor(hosts, here)
    assert outcome.code == 0, outcome.stderr
    assert {check["status"] for check in checks.values()} == {"pass"}
    assert f"{NODE} eth0" in checks["interface"]["found"]
    assert "gloo: 4 KB in" in checks["all-reduce"]["found"]
    assert "pass  token" in outcome.stderr


def test_the_doctor_finds_a_node_that_differs(hosts: Hosts, here: Path) -> None:
    """Version, storage, compiler and /dev/shm of the second host, whose mounts are its own."""
    import transformers

    site = Path(transformers.__file__).parents[1]
    (metadata,) = site.glob("transformers-*.dist-info/METADATA")
    other = here / "METADATA"
    other.write_text(
        metadata.read_text().replace(f"Version: {transformers.__version__}", "Version: 4.0.0")
    )
    (here / "runs").mkdir(exist_ok=True)
    mounts = {
        str(metadata): ("--bind", str(other)),
        str(here / "runs"): ("-t", "tmpfs", "-o", "size=40g", "tmpfs"),
        "/dev/shm": ("-t", "tmpfs", "-o", "size=64m", "tmpfs"),
        **dict.fromkeys(compilers(), ("--bind", "/dev/null")),
    }
    try:
        for target, mount in mounts.items():
            hosts.do("on", "node", "mount", *mount, target)
        outcome, checks = doctor(hosts, here)
    finally:
        for target in mounts:
            hosts.do("on", "node", "umount", target)
    assert outcome.code == 1
    wrong = {name: check["status"] for name, check in checks.items() if check["status"] != "pass"}
    assert wrong == {"versions": "fail", "storage": "fail", "compiler": "warn", "/dev/shm": "fail"}
    assert f"{NODE} has transformers 4.0.0, not" in checks["versions"]["found"]
    assert f"on {NODE} is another folder than on" in checks["storage"]["found"]
    assert NODE in checks["compiler"]["found"]
    assert f"{NODE} 0.1 GiB" in checks["/dev/shm"]["found"]
    assert all(checks[name]["advice"] for name in wrong)


def compilers() -> list[str]:
    """Every file that is called c++."""
    found = {Path(folder, "c++") for folder in ("/usr/bin", "/usr/local/bin", "/bin")}
    return sorted({str(path.resolve()) for path in found if path.exists()})


def test_the_doctor_finds_a_blocked_port(hosts: Hosts, here: Path) -> None:
    """Those that Ray's workers and Gloo take, which are in the range that the kernel gives."""
    rule = (
        "INPUT",
        "-p",
        "tcp",
        "--syn",
        "-s",
        "10.77.0.1",
        "--dport",
        "30000:65535",
        "-j",
        "DROP",
    )
    hosts.do("on", "node", "iptables", "-A", *rule)
    try:
        outcome, checks = doctor(hosts, here)
    finally:
        hosts.do("on", "node", "iptables", "-D", *rule)
    assert outcome.code == 1
    wrong = [name for name, check in checks.items() if check["status"] == "fail"]
    assert wrong in (["ports"], ["nodes"])
    assert NODE in checks[wrong[0]]["found"]
    assert "open all TCP ports between the nodes" in checks[wrong[0]]["advice"]


def test_the_doctor_finds_a_slow_link(hosts: Hosts, here: Path) -> None:
    hosts.do("slow", "100")
    try:
        outcome, checks = doctor(hosts, here)
    finally:
        hosts.do("heal")
    assert outcome.code == 0, outcome.stderr
    assert checks["all-reduce"]["status"] == "warn"
    assert "faster network" in checks["all-reduce"]["advice"]


def test_the_doctor_finds_that_there_is_no_token(hosts: Hosts, tmp_path: Path) -> None:
    outcome = hosts.without_token("doctor", *ON, cwd=tmp_path)
    assert outcome.code == 1
    assert "fail  dashboard" in outcome.stderr
    assert "wants a token, and there is none here" in outcome.stderr


@pytest.mark.usefixtures("hosts")
def test_the_doctor_finds_a_cluster_that_asks_for_none(tmp_path: Path) -> None:
    """A cluster of one node in namespaces of its own."""
    url = "http://127.0.0.1:8265"
    script = (
        "mkdir -p /tmp/ray && mount -t tmpfs tmpfs /tmp/ray && ip link set lo up && "
        "ray start --head --node-ip-address=127.0.0.1 --dashboard-host=127.0.0.1 --num-cpus=2 "
        f"--disable-usage-stats && sleep 3 && raysft doctor --address {url}"
    )
    spaces = ("--net", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc")
    done = subprocess.run(
        ["unshare", *spaces, "bash", "-c", script],
        cwd=tmp_path,
        env=environment() | {"RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "fail  token" in done.stderr
    assert "whoever reaches the dashboard can run code" in done.stderr
    assert done.returncode == 1


def test_what_a_killed_cluster_has_left_is_no_hindrance(hosts: Hosts) -> None:
    """As after a reboot, or when a whole session is ended: networks and files, no process."""
    refused = run("up")
    assert refused.code == 1
    assert "it is up already" in refused.stderr
    for host in ("head", "node"):
        os.kill(int((STATE / f"{host}.pid").read_text()), signal.SIGKILL)
    assert "Two hosts are up" in hosts.do("up")
