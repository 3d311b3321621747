"""raysft: masked supervised fine-tuning of GPT-2-class models with DeepSpeed ZeRO-3 on Ray."""

__version__ = "0.1.0"
