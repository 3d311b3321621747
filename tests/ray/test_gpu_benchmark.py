"""benchmarks/gpu to its end on a machine without a GPU: that the script runs, not how fast."""

import json
import subprocess
import sys
from pathlib import Path

from raysft.data import demo

SCRIPT = Path(__file__).parents[2] / "benchmarks/gpu/run.py"


def test_the_benchmark_of_a_gpu_runs_to_its_end_without_one(tmp_path: Path) -> None:
    records = demo.generate(400)
    named = [{**record, "response": record.pop("output")} for record in records]
    (tmp_path / "records.json").write_text(json.dumps(named))
    demo.train_tokenizer(records=demo.generate(400)).save_pretrained(tmp_path / "tokenizer")
    command = [
        sys.executable, SCRIPT, "--tiny", "--tokenizer", "tokenizer", "--data", "records.json",
        "--out", "out", "--minutes", "60",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "out/results.jsonl").read_text().splitlines()]
    assert not [line for line in lines if "failed" in line or "left_out" in line]
    by_check = {line["check"]: line for line in lines if "check" in line}
    for name in ("doctor", "train", "compare", "kill", "bench"):
        assert by_check[name]["exit_code"] == 0, (tmp_path / "out/log.txt").read_text()[-5000:]
    assert by_check["kill"]["num_restarts"] == 1
    assert by_check["kill"]["generate"] == 0
    assert set(by_check["compare"]["table"]) == {"bare"}
    assert by_check["train"]["predicted_memory_gib"] > 0.5
    assert by_check["train"]["first_step_s"] > 1
    parts = [line["part"] for line in lines if "part" in line]
    assert parts.count("step") == 3
    # At ZeRO-3 as well, which hands on the head's output as a view of it.
    assert all(line["logits_in_blocks"] for line in lines if line.get("part") == "step")
    assert by_check["adapter"]["exit_code"] == by_check["ppo"]["exit_code"] == 0
    assert {"linear", "copy", "attention", "head"} < set(parts)
    report = (tmp_path / "out/report.md").read_text()
    assert report.startswith("# raysft on a CPU\n\nNo GPU was there")
    assert report.count("not measured") == 6
    assert "| kill | 0 | 1 restart, generate ended with 0 |" in report
    assert (tmp_path / "out/kernels-zero1.txt").exists()
    assert not (tmp_path / "out/runs").exists()
