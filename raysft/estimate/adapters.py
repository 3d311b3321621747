"""What a low-rank adapter is of a model whose arithmetic is known: its weights, and what it keeps.

The layers are those of transformers, by their names; a test holds each count to peft's.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from raysft.config.adapter import Adapter
from raysft.errors import UserError
from raysft.estimate.families import Adapted, Dims

# Linear layers of a block and what they are.
SEPARATE = {"q_proj": "q", "k_proj": "kv", "v_proj": "kv"}
LLAMA = SEPARATE | {"o_proj": "o", "gate_proj": "up", "up_proj": "up", "down_proj": "down"}
LINEARS: Mapping[str, Mapping[str, str]] = {
    "gpt2": {"attn.c_attn": "qkv", "attn.c_proj": "o", "mlp.c_fc": "up", "mlp.c_proj": "down"},
    "phi": SEPARATE | {"dense": "o", "fc1": "up", "fc2": "down"},
    "phi3": {"qkv_proj": "qkv", "o_proj": "o", "gate_up_proj": "both", "down_proj": "down"},
    "gpt_neox": {
        "query_key_value": "qkv", "dense": "o", "dense_h_to_4h": "up", "dense_4h_to_h": "down",
    },
    "opt": SEPARATE | {"out_proj": "o", "fc1": "up", "fc2": "down"},
}  # fmt: skip


def adapted(dims: Dims, adapter: Adapter) -> Dims:
    """The model with this adapter, all else frozen; as it is where there is none.

    Raises UserError where none of the names is a layer of the family.
    """
    if adapter.rank is None:
        return dims
    places = targeted(dims, adapter)
    sizes = linears(dims)
    names = sorted({name for _, name in places})
    dora = adapter.variant == "dora"
    rank, outputs = adapter.rank, sum(sizes[name][1] for name in names)
    return replace(
        dims,
        adapter=Adapted(
            trained=sum(rank * sum(sizes[n]) + dora * sizes[n][1] for _, n in places),
            largest=rank * max(max(sizes[name]) for name in names),
            # Between its two matrices; DoRA also what the layer gives, and what it adds to that.
            kept=rank * len(names) + dora * 2 * outputs,
            dropped=sum(sizes[name][0] for name in names) if adapter.dropout else 0,
            replaced=sum(read(dims, names).values()) if adapter.dropout else 0,
        ),
    )


def read(dims: Dims, names: Sequence[str]) -> dict[str, int]:
    """Widths of what these layers read, each once: some read the same."""
    first = "norm" if dims.parallel or dims.norms == 1 else "second norm"
    inputs = {"o": ("attention", dims.query), "down": ("inside", 0 if dims.relu else dims.inner)}
    inputs |= dict.fromkeys(("up", "both"), (first, dims.n_embd))
    kinds = kinds_of(dims)
    return dict(inputs.get(kinds[name], ("norm", dims.n_embd)) for name in names)


def kinds_of(dims: Dims) -> Mapping[str, str]:
    return LINEARS.get(dims.family, LLAMA)


def linears(dims: Dims) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of the linear layers of a block, by name."""
    d, query, key_value, inner = dims.n_embd, dims.query, dims.key_value, dims.inner
    sizes = {
        "qkv": (d, query + 2 * key_value), "q": (d, query), "kv": (d, key_value), "o": (query, d),
        "up": (d, inner), "both": (d, 2 * inner), "down": (inner, d),
    }  # fmt: skip
    return {name: sizes[kind] for name, kind in kinds_of(dims).items()}


def targeted(dims: Dims, adapter: Adapter) -> set[tuple[int, str]]:
    """Number of the block and name of each layer with an adapter: by the whole of its name, or the
    last parts, as peft takes names.

    Raises UserError where one of the names is no layer of the family.
    """
    layers, names = range(dims.n_layer), linears(dims)
    if adapter.target_modules == "auto":
        return {(layer, name) for layer in layers for name in names}
    found: set[tuple[int, str]] = set()
    for target in adapter.target_modules:
        numbered = re.search(r"\.(\d+)\.", f".{target}")
        among = [int(numbered[1])] if numbered else layers
        fits = [
            n for n in names if f".{n}".endswith(f".{target}") or f".{target}".endswith(f".{n}")
        ]
        if not fits:
            raise UserError(
                f"adapter.target_modules: {target!r} is no linear layer of this model below its "
                f"head; it has {', '.join(names)}"
            )
        found |= {(layer, name) for layer in among for name in fits}
    return found
