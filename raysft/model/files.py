"""What the files of a model and its tokenizer tell without loading them. Light imports only."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raysft.config.data import DEMO
from raysft.config.model import Model
from raysft.config.schema import Config
from raysft.data.hub import HUB_NAME, nearest, require_on_hub
from raysft.data.template import no_end_token, no_template
from raysft.errors import UserError
from raysft.estimate.shape import tokens_in
from raysft.runs import rundir

WEIGHTS = ("*.safetensors", "*.bin", "*.safetensors.index.json", "*.bin.index.json")
# Any of them may be what a tokenizer is loaded from.
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt", "*.model"),
    *("*.tiktoken", "tekken.json"),
)
MOST_BYTES = 12 << 20  # of a tokenizer that is read here: a larger one takes too long
ADAPTER = "adapter_config.json"  # what peft keeps of one beside its weights
PLAIN_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")  # without an own end token


def require_place(path: str, key: str) -> Path | None:
    """The folder of a model or tokenizer, or None of a name on the hub, which then has it.

    Raises UserError (NoAnswer where the hub does not answer).
    """
    folder = Path(path)
    if folder.is_dir():
        if (folder / rundir.RUN).exists() and not (folder / "config.json").exists():
            inside = folder / rundir.MODEL
            has = f"its model is {inside}" if inside.is_dir() else "which has no model yet"
            raise UserError(f"{key}: {path} is a run: {has}")
        return folder
    if folder.exists():
        raise UserError(f"{key}: {path} is a file, where a folder is meant: {folder.parent}?")
    if not HUB_NAME.fullmatch(path):
        near = nearest(path, rundir.MODEL)
        hint = f"; did you mean {near!r}?" if near else ""
        raise UserError(f"{key}: there is no folder {path}{hint}")
    require_on_hub("model", path, key)
    return None


def check_files(config: Config, model: Path | None, tokenizer: Path | None) -> None:
    """Model and tokenizer, as far as they are folders here. Raises UserError."""
    raw: Mapping[str, Any] = {}
    if model is not None:
        if is_adapter(model):
            raise UserError(
                f"model.path: {model} is an adapter, without the model that it belongs to: take a "
                "merged one, as raysft export RUN --merge writes it"
            )
        raw = read_object(model, "config.json", "model.path")
        check_model(config.model, model, raw)
        text = raw.get("text_config")  # of a model for text and images
        raw = text if isinstance(text, dict) else raw
        positions = raw.get("max_position_embeddings", raw.get("n_positions"))
        require_positions(config, positions if isinstance(positions, int) else None)
    if tokenizer is None:
        return
    tokens = check_tokenizer(config, tokenizer)
    vocabulary = raw.get("vocab_size")
    if config.model.init == "scratch":
        shape = config.model.shape
        vocabulary = shape.vocab_size if shape else None
    if tokens is not None and isinstance(vocabulary, int):
        require_embeddings(config, tokens, tokens, vocabulary)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter alone, and not the model that it belongs to."""
    return (folder / ADAPTER).is_file() and not (folder / "config.json").exists()


def base_of(folder: Path) -> str:
    """Folder or hub id of the model that an adapter belongs to. Raises UserError."""
    base = read_object(folder, ADAPTER, "model").get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise UserError(f"model: {folder / ADAPTER} does not name the model that it belongs to")
    return base


def check_model(model: Model, folder: Path, raw: Mapping[str, Any]) -> None:
    if not isinstance(raw.get("model_type"), str):
        raise UserError(
            f"model.path: {folder / 'config.json'} has no model_type, so it is no model of "
            "transformers"
        )
    has_weights = any(any(folder.glob(name)) for name in WEIGHTS)
    if model.init == "pretrained" and not has_weights:
        raise UserError(
            f"model.path: {folder} has no weights (*.safetensors): take a folder that has, or "
            'train from scratch with model.init = "scratch"'
        )


def check_tokenizer(config: Config, folder: Path) -> int | None:
    """Its tokens, where that can be told quickly. Raises UserError."""
    key = "model.tokenizer" if config.model.tokenizer else "model.path"
    if not any(any(folder.glob(name)) for name in TOKENIZER_FILES):
        advice = (
            "take a folder that has one" if config.model.tokenizer else "set model.tokenizer too"
        )
        raise UserError(f"{key}: {folder} has no tokenizer ({TOKENIZER_FILES[0]}): {advice}")
    settings: Mapping[str, Any] = {}
    if (folder / "tokenizer_config.json").exists():
        settings = read_object(folder, "tokenizer_config.json", key)
    # Beside a model, its type may choose another class.
    alone = not any((folder / name).exists() for name in ("config.json", "special_tokens_map.json"))
    plain = settings.get("tokenizer_class") in PLAIN_CLASSES
    if alone and plain and not settings.get("eos_token"):
        raise UserError(no_end_token(folder))
    if config.data.template == "tokenizer" and not has_template(folder, settings):
        raise UserError(no_template(folder))
    file = folder / "tokenizer.json"
    if not file.exists() or file.stat().st_size > MOST_BYTES:
        return None
    try:
        return tokens_in(file, file.stat().st_mtime_ns)
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{key}: {file} is damaged: {error}") from None
    except (KeyError, TypeError, ValueError):  # of a kind that transformers may know
        return None


def has_template(folder: Path, settings: Mapping[str, Any]) -> bool:
    files = ("chat_template.*", "additional_chat_templates/*.jinja")
    return bool(settings.get("chat_template")) or any(any(folder.glob(name)) for name in files)


def read_object(folder: Path, name: str, key: str) -> Mapping[str, Any]:
    """Raises UserError."""
    try:
        value = json.loads((folder / name).read_bytes())
    except FileNotFoundError:
        near = [path.parent for path in sorted(folder.glob(f"*/{name}"))]
        hint = f"; did you mean {str(near[0])!r}?" if near else ""
        raise UserError(f"{key}: {folder} has no {name}, so it holds no model{hint}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{key}: {folder / name} is damaged: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{key}: {folder / name} is damaged: it is a {type(value).__name__}")
    return value


def require_positions(config: Config, positions: int | None) -> None:
    """Raises UserError where the model has fewer than `batch.seq_len`."""
    if positions is not None and config.batch.seq_len > positions:
        raise UserError(
            f"batch.seq_len {config.batch.seq_len} is past the {positions} positions of "
            f"{config.model.path}: set batch.seq_len to {positions} or less"
        )


def require_embeddings(config: Config, tokens: int, needed: int, vocabulary: int) -> None:
    """Raises UserError where the model has fewer than `needed`. tokens: of the tokenizer."""
    if needed > vocabulary:
        raise UserError(
            f"model.tokenizer {config.model.tokenizer_path} has {tokens} tokens, but "
            f"{config.model.path or 'model.shape'} has embeddings for {vocabulary}: "
            "take the model's own tokenizer"
        )


def is_read(config: Config) -> bool:
    """Whether a model is read from its path, and not made of a shape."""
    return config.model.path is not None and not (
        config.model.init == "scratch" and config.model.shape is not None
    )


def tokenizer_is_read(config: Config) -> bool:
    return config.model.tokenizer_path != DEMO
