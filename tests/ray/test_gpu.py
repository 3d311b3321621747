"""What only a GPU can show."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

STEPS = Path(__file__).parents[2] / "benchmarks/gpu/steps.py"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_the_host_waits_for_the_gpu_at_the_end_of_a_step_only(tmp_path: Path) -> None:
    """So a step of twice as many micro-batches waits no more often.

    At ZeRO-1: at ZeRO-3 a single rank has nothing to gather, and DeepSpeed waits for its copies.
    """
    case = {"stage": 1, "recomputes": False, "tokens": 2}
    command = [sys.executable, STEPS, tmp_path / "out.jsonl", json.dumps(case), "--tiny"]
    subprocess.run(command, check=True, timeout=120)
    (line,) = (json.loads(text) for text in (tmp_path / "out.jsonl").read_text().splitlines())
    assert "failed" not in line, line
    assert line["waits_of_twice_as_many"] == line["waits"]
