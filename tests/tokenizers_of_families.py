"""Small tokenizers that begin texts and strip white space as those of well-known models do, and
chat templates in their manner."""

import json
from functools import lru_cache
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "What is the capital of France? Paris is the capital.",
    "USER: Name a colour. ASSISTANT: red and blue, or green.",
    "user assistant system the words of an answer, one two three: a b c",
    "### Instruction:\nSort.\n\n### Response:\n[INST] it [/INST] <|user|> that's all",
] * 4
SPECIAL = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|user|>", "<|end|>")
SPELT_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def wrapped(backend: Tokenizer, **flags: bool) -> PreTrainedTokenizerFast:
    tokens = [AddedToken(t, special=True, normalized=False) for t in SPECIAL[:5]]
    tokens += [AddedToken(t, special=True, normalized=False, **flags) for t in SPECIAL[5:]]
    backend.add_special_tokens(tokens)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@lru_cache
def byte_level_model() -> str:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.decoder = decoders.ByteLevel()
    return backend.to_str()


def byte_level(*, add_prefix_space: bool = False, **flags: bool) -> PreTrainedTokenizerFast:
    backend = Tokenizer.from_str(byte_level_model())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    return wrapped(backend, **flags)


@lru_cache
def pieces_model() -> str:
    """A BPE over words with their space in front, that spells what it lacks as bytes."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=300, show_progress=False)
    backend.train_from_iterator([line.replace("\n", " ") for line in CORPUS], trainer)
    trained = json.loads(backend.to_str())["model"]
    names = list(dict.fromkeys(["<unk>", *SPELT_BYTES, *trained["vocab"]]))
    merges = [tuple(pair) for pair in trained["merges"]]
    model = models.BPE(
        vocab={name: index for index, name in enumerate(names)}, merges=merges,
        byte_fallback=True, unk_token="<unk>", fuse_unk=True,
    )  # fmt: skip
    return Tokenizer(model).to_str()


def pieces(kind: str, **flags: bool) -> PreTrainedTokenizerFast:
    """kind: "legacy" puts a space before every stretch of text, "first" before the whole text's
    first word, "bare" nowhere."""
    backend = Tokenizer.from_str(pieces_model())
    spaces = normalizers.Replace(" ", "▁")
    if kind == "legacy":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces])
    elif kind == "bare":
        backend.normalizer = spaces
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    decoding = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if kind != "bare":
        decoding.append(decoders.Strip(" ", 1, 0))
    backend.decoder = decoders.Sequence(decoding)
    return wrapped(backend, **flags)


def unigram() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.train_from_iterator(
        [line.replace("\n", " ") for line in CORPUS],
        trainers.UnigramTrainer(
            vocab_size=120, show_progress=False, unk_token="<unk>", special_tokens=["<unk>"]
        ),
    )
    backend.decoder = decoders.Metaspace()
    return wrapped(backend)


def lossy(unknown: str | None) -> PreTrainedTokenizerFast:
    """A BPE over the letters of the corpus alone, which leaves others out or calls them unknown."""
    backend = Tokenizer(models.BPE(unk_token=unknown))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=200, show_progress=False, special_tokens=[unknown] if unknown else []
    )
    backend.train_from_iterator([line.replace("\n", " ") for line in CORPUS], trainer)
    backend.decoder = decoders.Metaspace()
    return wrapped(backend)


FAMILIES: dict[str, Any] = {
    "gpt2": byte_level,
    "gpt2-prefix-space": lambda: byte_level(add_prefix_space=True),
    "llama2": lambda: pieces("legacy"),
    "mistral": lambda: pieces("first"),
    "gemma": lambda: pieces("bare"),
    "phi3": lambda: pieces("legacy", rstrip=True),
    "phi3-byte-level": lambda: byte_level(rstrip=True),
    "strips-left": lambda: byte_level(lstrip=True),
    "strips-left-pieces": lambda: pieces("first", lstrip=True),
    "unigram": unigram,
}
TURN = "{% for m in messages %}"
TEMPLATES = {
    "chatml": TURN + "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "llama2": TURN + "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
    "llama3": "{{ bos_token }}" + TURN + "{{ '<|im_start|>' + m.role + '<|end|>\n\n'"
    " + m.content | trim + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|end|>\n\n' }}{% endif %}",
    "vicuna": TURN + "{% if m.role == 'user' %}{{ 'USER: ' + m.content + ' ASSISTANT:' }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}",
    "vicuna-space": TURN + "{% if m.role == 'user' %}{{ 'USER: ' + m.content + ' ASSISTANT: ' }}"
    "{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}",
    "phi3": TURN + "{{ '<|user|>\n' if m.role == 'user' else '<|im_start|>\n' }}"
    "{{ m.content + '<|end|>\n' }}{% endfor %}"
    "{{ '<|im_start|>\n' if add_generation_prompt else eos_token }}",
    "plain": TURN + "{{ m.content + (eos_token if m.role == 'assistant' else '\n') }}{% endfor %}",
    "touching": TURN + "{{ '<|user|>' if m.role == 'user' else '<|end|>' }}"
    "{{ m.content + eos_token }}{% endfor %}{% if add_generation_prompt %}<|end|>{% endif %}",
}
