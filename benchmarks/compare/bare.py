"""The limit: a plain PyTorch loop, exactly packed, with nothing around it.

One attention call a record, on a GPU one for all of them; the LM head at supervised positions only;
bf16 weights with fp32 masters. --fp32: all in fp32, which is faster where a CPU multiplies bf16
slowly. --compiled: blocks by torch.compile. What a library costs is what it is slower than this.
"""

import time

import torch
import torch.nn.functional as F
from common import encode, read_task, report, split
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    AutoTokenizer,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
lengths: list[int] = []  # of the records of the pack
borders = torch.zeros(1, dtype=torch.int32)  # where they begin and end, for the GPU


def attention_by_record(_module, query, key, value, *_, scaling=None, **__):
    parts = [
        F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling)
        for q, k, v in zip(*(x.split(lengths, dim=2) for x in (query, key, value)), strict=True)
    ]
    return torch.cat(parts, dim=2).transpose(1, 2), None


def attention_at_once(_module, query, key, value, *_, scaling=None, **__):
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))
    most = max(lengths)
    output = varlen_attn(q, k, v, borders, borders, most, most, scale=scaling, window_size=(-1, 0))
    return output[None], None


def main() -> None:
    task, arguments = read_task(__doc__)
    on_gpu = DEVICE == "cuda"
    AttentionInterface.register("packed", attention_at_once if on_gpu else attention_by_record)
    torch.backends.cuda.enable_cudnn_sdp(False)
    tokenizer = AutoTokenizer.from_pretrained(task.model)
    options = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
    model = AutoModelForCausalLM.from_pretrained(
        task.model,
        dtype=torch.float32 if arguments.fp32 else torch.bfloat16,
        attn_implementation="packed",
        **options,
    ).train()
    model.to(DEVICE)
    if arguments.compiled:
        for block in model.transformer.h:
            block.compile(dynamic=True)
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
                if sum(len(ids) for ids, _ in pack) + len(item[0]) <= task.pack_tokens:
                    pack.append(item)
                    break
            else:
                packs.append([item])
        supervised = sum(len(ids) - prompt for pack in packs for ids, prompt in pack)
        for pack in packs:
            global borders
            lengths[:] = [len(ids) for ids, _ in pack]
            ids = torch.tensor([[token for ids, _ in pack for token in ids]])
            positions = torch.tensor([[i for ids, _ in pack for i in range(len(ids))]])
            target = torch.tensor([i >= prompt for ids, prompt in pack for i in range(len(ids))])
            at = target[1:].nonzero()[:, 0].to(DEVICE)
            ids, positions = ids.to(DEVICE), positions.to(DEVICE)
            borders = torch.tensor([0, *lengths]).cumsum(0).to(DEVICE, torch.int32)
            hidden = model.transformer(ids, position_ids=positions, use_cache=False)[0]
            logits = model.lm_head(hidden[0].index_select(0, at))
            wanted = ids[0].index_select(0, at + 1)
            loss = F.cross_entropy(logits.float(), wanted, reduction="sum")
            (loss / supervised).backward()
        for master, parameter in zip(masters, parameters, strict=True):
            master.grad = parameter.grad.float()
        torch.nn.utils.clip_grad_norm_(masters, 1.0)
        optimizer.step()
        with torch.no_grad():
            for master, parameter in zip(masters, parameters, strict=True):
                parameter.copy_(master)
                parameter.grad = None
        if on_gpu:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
        tokens.append(sum(len(ids) for pack in packs for ids, _ in pack))
    model.save_pretrained(task.output)
    report(times, tokens)


main()
