"""Architectures whose attention, state or head is not GPT-2's, against the plain PyTorch loop."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    CodeGenConfig,
    DogeConfig,
    FalconH1Config,
    Gemma2Config,
    GptOssConfig,
    MambaConfig,
    MistralConfig,
    OPTConfig,
    PreTrainedConfig,
    StableLmConfig,
)

from raysft.runs.events import Warning
from tests.ray.conftest import Groups, steps_of, tiny_config
from tests.ray.reference import five_steps

# Wide enough that ZeRO-3 partitions the largest matrices: it keeps those below 1e5 elements whole.
SIZES: dict[str, Any] = {
    "hidden_size": 128, "intermediate_size": 1024, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
PACKED: dict[str, PreTrainedConfig] = {
    "opt": OPTConfig(hidden_size=128, word_embed_proj_dim=128, ffn_dim=1024, num_hidden_layers=2,
                     num_attention_heads=4, max_position_embeddings=128, dropout=0.0),
    "mistral": MistralConfig(**SIZES, sliding_window=16),
    "gemma2": Gemma2Config(**SIZES, head_dim=32, sliding_window=16, query_pre_attn_scalar=32,
                           attn_logit_softcapping=2.0, final_logit_softcapping=2.0),
    "gpt_oss": GptOssConfig(**SIZES | {"intermediate_size": 256}, head_dim=32, sliding_window=16,
                            num_local_experts=4, num_experts_per_tok=2, rope_scaling=None),
}  # fmt: skip
PADDED: dict[str, PreTrainedConfig] = {
    "bloom": BloomConfig(hidden_size=128, n_layer=2, n_head=4),
    "codegen": CodeGenConfig(n_embd=128, n_layer=2, n_head=4, n_inner=1024, rotary_dim=8,
                             n_positions=128, n_ctx=128),
    "stablelm": StableLmConfig(**SIZES),
    "doge": DogeConfig(**SIZES),
    "mamba": MambaConfig(hidden_size=128, state_size=8, num_hidden_layers=2,
                         intermediate_size=1024),
    "falcon_h1": FalconH1Config(**SIZES, mamba_d_ssm=64, mamba_n_heads=4, mamba_d_head=16,
                                mamba_n_groups=1, mamba_d_state=8, lm_head_multiplier=0.2),
}  # fmt: skip


def write(folder: Path, tiny_model: Path, hf_config: PreTrainedConfig) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    hf_config.vocab_size, hf_config.pad_token_id = len(tokenizer), None
    hf_config.bos_token_id = hf_config.eos_token_id = 0
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(hf_config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize("name", PACKED | PADDED)
def test_losses_and_gradient_norms_equal_plain_pytorch(
    tiny_model: Path, tmp_path: Path, groups: Groups, name: str
) -> None:
    """On 2 workers with ZeRO-3, where a try that breaks off leaves gathered parameters behind."""
    write(tmp_path / "base", tiny_model, (PACKED | PADDED)[name])
    records = tiny_model.parent / "records.json"
    config = tiny_config(
        tmp_path / "base", f"data.path={records}", "scaling.workers=2", "engine.zero_stage=3",
        "batch.tokens_per_micro_batch=256",
    )  # fmt: skip
    _, events, _ = groups.fit_in(tmp_path, config)
    losses, norms, _ = five_steps(tmp_path / "base", records)
    steps = steps_of(events)
    assert [step["loss"] for step in steps] == pytest.approx(losses, abs=1e-4)
    assert [step["grad_norm"] for step in steps] == pytest.approx(norms, rel=1e-3)
    told = [event.message for event in events if isinstance(event, Warning)]
    assert [message for message in told if "padded instead" in message] == told[: name in PADDED]
