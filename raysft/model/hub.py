"""An exported folder to the Hugging Face hub, with the token and HF_ENDPOINT of the environment."""

import sys
from collections.abc import Callable
from pathlib import Path

from raysft.errors import RunError
from raysft.model.files import base_of, is_adapter


def push(folder: Path, name: str, *, private: bool, write_card: Callable[[str], None]) -> str:
    """Make the repository where it is not there, write the card under its full name, and upload.

    private: where the repository is made. Returns its URL. Raises RunError, in one line.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    api = HfApi()
    if is_adapter(folder) and Path(base_of(folder)).is_dir():
        raise RunError(
            f"{name} was not pushed: {folder} is an adapter, and the model that it belongs to a "
            "folder of this machine: export it with --merge, and push that"
        )
    try:
        repo = api.create_repo(name, private=private or None, exist_ok=True)
        write_card(repo.repo_id)
        api.upload_folder(
            repo_id=repo.repo_id,
            folder_path=folder,
            commit_message="Trained by raysft",
            ignore_patterns=["*.partial"],
        )
    except Exception as error:  # of the client, of HTTP below it, of the disk
        raise RunError(f"{name} was not pushed to {api.endpoint}: {reason(error)}") from error
    return str(repo)


def reason(error: Exception) -> str:
    """In one line, with what to do about a token."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    words = " ".join(str(error).split())[:300] or type(error).__name__
    if status in (401, 403) or type(error).__name__ == "LocalTokenNotFoundError":
        said = "it does not let you write there" if status == 403 else "it does not know you"
        return f"{said}; set HF_TOKEN to a token that may write, or type `hf auth login`"
    if type(error).__name__ == "OfflineModeIsEnabled":
        return "HF_HUB_OFFLINE is set"
    return words
