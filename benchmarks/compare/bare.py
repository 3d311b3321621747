"""The limit: a plain PyTorch loop, exactly packed, with nothing around it.

One attention call a record, the LM head at supervised positions only, bf16 weights with fp32
masters; --fp32: all in fp32, which is faster where a CPU multiplies bf16 slowly. What a library
costs is what it is slower than this.
"""

import time
from itertools import pairwise

import torch
import torch.nn.functional as F
from common import encode, read_task, report, split
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    AutoTokenizer,
)

borders: list[int] = []


def attention_by_record(_module, query, key, value, *_, scaling=None, **__):
    parts = [
        F.scaled_dot_product_attention(
            query[:, :, a:b], key[:, :, a:b], value[:, :, a:b], is_causal=True, scale=scaling
        )
        for a, b in pairwise(borders)
    ]
    return torch.cat(parts, dim=2).transpose(1, 2), None


def main() -> None:
    task, arguments = read_task(__doc__)
    AttentionInterface.register("by_record", attention_by_record)
    AttentionMaskInterface.register("by_record", lambda *_, **__: None)
    tokenizer = AutoTokenizer.from_pretrained(task.model)
    options = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
    model = AutoModelForCausalLM.from_pretrained(
        task.model,
        dtype=torch.float32 if arguments.fp32 else torch.bfloat16,
        attn_implementation="by_record",
        **options,
    ).train()
    parameters = list(model.parameters())
    masters = [p.detach().float().requires_grad_() for p in parameters]
    optimizer = torch.optim.AdamW(
        masters, lr=task.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True
    )
    train, _ = split(task.data, task.records_per_step * task.steps)
    times, tokens = [], []
    for step in range(task.steps):
        started = time.perf_counter()
        records = train[step * task.records_per_step :][: task.records_per_step]
        packs: list[list[tuple[list[int], int]]] = [[]]
        for item in sorted(
            (encode(tokenizer, r, task.seq_len) for r in records), key=lambda i: -len(i[0])
        ):
            for pack in packs:
                if sum(len(ids) for ids, _ in pack) + len(item[0]) <= task.seq_len:
                    pack.append(item)
                    break
            else:
                packs.append([item])
        supervised = sum(len(ids) - prompt for pack in packs for ids, prompt in pack)
        for pack in packs:
            ids = torch.tensor([[token for ids, _ in pack for token in ids]])
            positions = torch.tensor([[i for ids, _ in pack for i in range(len(ids))]])
            target = torch.tensor([i >= prompt for ids, prompt in pack for i in range(len(ids))])
            borders[:] = [0, *torch.tensor([len(ids) for ids, _ in pack]).cumsum(0).tolist()]
            hidden = model.transformer(ids, position_ids=positions, use_cache=False)[0]
            logits = model.lm_head(hidden[0, :-1][target[1:]])
            loss = F.cross_entropy(logits.float(), ids[0, 1:][target[1:]], reduction="sum")
            (loss / supervised).backward()
        for master, parameter in zip(masters, parameters, strict=True):
            master.grad = parameter.grad.float()
        torch.nn.utils.clip_grad_norm_(masters, 1.0)
        optimizer.step()
        with torch.no_grad():
            for master, parameter in zip(masters, parameters, strict=True):
                parameter.copy_(master)
                parameter.grad = None
        times.append(time.perf_counter() - started)
        tokens.append(sum(len(ids) for pack in packs for ids, _ in pack))
    model.save_pretrained(task.output)
    report(times, tokens)


main()
