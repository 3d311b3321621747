"""TRL's SFTTrainer: as it comes; --packed: with packing; --best: with packing, bf16 weights, and
activations kept instead of computed again; --lora: with an adapter of peft."""

from importlib.util import find_spec
from itertools import pairwise

import torch
from common import LORA, LORA_RATE, prompt_of, read_task, report, split, step_clock
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer


def main() -> None:
    task, arguments = read_task(__doc__)
    train, _ = split(task.data, task.records_per_step * task.steps)
    rows = [{"prompt": prompt_of(r), "completion": r["response"]} for r in train]
    packed = arguments.packed or arguments.best
    options = {"dtype": "bfloat16"} if arguments.best else {}
    if find_spec("flash_attn"):
        options["attn_implementation"] = "flash_attention_2"
    config = SFTConfig(
        output_dir=str(task.output),
        use_cpu=not torch.cuda.is_available(),
        bf16=True,
        max_length=task.seq_len,
        per_device_train_batch_size=task.pack_tokens // task.seq_len
        if packed
        else task.records_per_step,
        packing=packed,
        gradient_checkpointing=not arguments.best,
        num_train_epochs=1,
        learning_rate=task.learning_rate * (LORA_RATE if arguments.lora else 1),
        lr_scheduler_type="constant",
        save_strategy="no",
        logging_steps=1,
        report_to="none",
        model_init_kwargs=options or None,
    )
    tokenizer = AutoTokenizer.from_pretrained(task.model)
    tokenizer.pad_token = tokenizer.eos_token
    clock = step_clock()
    trainer = SFTTrainer(
        str(task.model),
        config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[clock],
        peft_config=LoraConfig(**LORA, task_type="CAUSAL_LM") if arguments.lora else None,
    )
    trainer.train()
    if arguments.lora:
        trainer.model.merge_and_unload().save_pretrained(task.output)
    else:
        trainer.save_model(str(task.output))
    seen = [line["num_tokens"] for line in trainer.state.log_history if "num_tokens" in line]
    report(clock.times, [int(b - a) for a, b in pairwise([0, *seen])])


main()
