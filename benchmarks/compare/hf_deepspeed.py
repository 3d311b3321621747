"""Hugging Face Trainer with DeepSpeed ZeRO-3 in one process, padded to the longest."""

import os

import torch

os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29581"}
if not torch.cuda.is_available():
    os.environ["DS_ACCELERATOR"] = "cpu"

import deepspeed
from common import encode, read_task, report, split, step_clock
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
)

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # a minute of compiling, not used


def main() -> None:
    task, _ = read_task(__doc__)
    tokenizer = AutoTokenizer.from_pretrained(task.model)
    train, _ = split(task.data, task.records_per_step * task.steps)
    rows = [
        {"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]}
        for ids, prompt in (encode(tokenizer, record, task.seq_len) for record in train)
    ]

    tokens: list[int] = []

    def collate(batch: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        tokens.append(sum(len(row["input_ids"]) for row in batch))
        longest = max(len(row["input_ids"]) for row in batch)

        def filled(key: str, value: int) -> torch.Tensor:
            return torch.tensor([row[key] + [value] * (longest - len(row[key])) for row in batch])

        mask = torch.tensor(
            [[1] * len(r["input_ids"]) + [0] * (longest - len(r["input_ids"])) for r in batch]
        )
        ids, labels = filled("input_ids", 0), filled("labels", -100)
        return {"input_ids": ids, "labels": labels, "attention_mask": mask}

    arguments = TrainingArguments(
        output_dir=str(task.output),
        use_cpu=not torch.cuda.is_available(),
        bf16=True,
        per_device_train_batch_size=task.records_per_step,
        num_train_epochs=1,
        learning_rate=task.learning_rate,
        lr_scheduler_type="constant",
        save_strategy="no",
        logging_steps=1,
        report_to="none",
        deepspeed={
            "bf16": {"enabled": True},
            "zero_optimization": {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True},
            "gradient_clipping": 1.0,
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
            "optimizer": {"type": "AdamW", "params": {"lr": "auto"}},
        },
    )
    model = AutoModelForCausalLM.from_pretrained(task.model)
    clock = step_clock()
    trainer = Trainer(
        model, arguments, train_dataset=rows, data_collator=collate, callbacks=[clock]
    )
    trainer.train()
    trainer.save_model(str(task.output))
    report(clock.times, tokens)


main()
