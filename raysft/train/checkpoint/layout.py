"""The names of a checkpoint's files: the one module that spells them. Light imports only."""

from pathlib import Path

FOLDERS = "checkpoint_*"  # as Ray Train names them, below rundir.CHECKPOINTS
WRITING = ".writing-"  # beside them: the files of one rank until they are checked
TAG = "state"  # DeepSpeed's name for its sub-folder
HF_FOLDER = "hf"  # config and tokenizer, so that any checkpoint can be exported
SHARDED_MODEL = "zero_pp_rank_0_mp_rank_00_model_states.pt"  # DeepSpeed's, at stage 3
WHOLE_MODEL = "mp_rank_00_model_states.pt"  # at the other stages


def random_state(checkpoint: Path, rank: int) -> Path:
    return checkpoint / f"rng_{rank}.pt"


def manifest(checkpoint: Path, rank: int) -> Path:
    """Sizes and checksums of the files of one rank, and what saved them."""
    return checkpoint / f"manifest_{rank}.json"


def manifests(checkpoint: Path) -> list[Path]:
    return sorted(checkpoint.glob("manifest_*.json"))


def converted(checkpoint: Path) -> Path:
    """Where the state for other workers or another ZeRO stage lies while it is loaded."""
    return checkpoint.with_name(checkpoint.name + ".universal")
