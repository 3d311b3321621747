"""What a model card says of use: how a prompt is written, and code that runs as it is."""

import json
from pathlib import Path
from typing import Any

from raysft.model.files import is_adapter

SAMPLE, SAMPLE_ANSWER = "What can you do?", "I answer questions."


def usage(folder: Path, repo: str | None, verb: str) -> str:
    """How a prompt is written, and code that runs as it is: in the folder, or with the name."""
    name = f'"{repo}"' if repo else '"."  # this folder'
    if verb == "reward":
        return scoring(name)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    file = folder / "config.json"
    described = json.loads(file.read_text()) if file.exists() else {}  # as of an adapter
    positions = described.get("max_position_embeddings") or described.get("n_positions") or 512
    room = positions - len(tokenizer(prompt_for(tokenizer, SAMPLE))["input_ids"])
    written = as_written(prompt_for(tokenizer, "{instruction}"))
    loader = "AutoModelForCausalLM"
    imports = f"from transformers import {loader}, AutoTokenizer"
    if is_adapter(folder):
        loader = "AutoPeftModelForCausalLM"
        imports = f"from peft import {loader}\nfrom transformers import AutoTokenizer"
    return f"""```python
{imports}

name = {name}
tokenizer = AutoTokenizer.from_pretrained(name)
model = {loader}.from_pretrained(name)
messages = [{{"role": "user", "content": "{SAMPLE}"}}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
)
output = model.generate(**inputs, max_new_tokens={max(1, min(256, room))}, do_sample=False)
answer = output[0, inputs["input_ids"].shape[1] :]
print(tokenizer.decode(answer, skip_special_tokens=True))
```

The chat template that the tokenizer carries is the one of training.{written}
`raysft generate` and `raysft chat` use it too."""


def scoring(name: str) -> str:
    """The same of a reward model. What a template writes after the token that ends the answer was
    not read in training."""
    return f"""```python
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

name = {name}
tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModelForSequenceClassification.from_pretrained(name)
messages = [
    {{"role": "user", "content": "{SAMPLE}"}},
    {{"role": "assistant", "content": "{SAMPLE_ANSWER}"}},
]
text = tokenizer.apply_chat_template(messages, tokenize=False).rstrip()
inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")
with torch.no_grad():
    print(model(**inputs).logits[0, 0].item())
```

The number is the reward of the whole conversation, read at its last token, the one that ends the
answer: differences between answers to one prompt tell something, the number alone does not. Pad on
the right, with the tokenizer's pad token, which is none of the text's."""


def prompt_for(tokenizer: Any, question: str) -> str:
    """As text; empty where the template wants turns of another kind."""
    asked = [{"role": "user", "content": question}]
    try:
        return str(tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True))
    except Exception:  # Jinja's, or whatever a template raises
        return ""


def as_written(prompt: str) -> str:
    if not prompt:
        return ""
    return f" It writes an instruction as\n\n````text\n{prompt}\n````\n\nand the answer follows."
