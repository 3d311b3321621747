"""DeepSpeed's own configuration as a pure function of ours: nothing else is read."""

from typing import Any

from raysft.config.schema import Config

# ZeRO-3 buffers in elements. DeepSpeed's defaults (5e8 and 1e9) assume a GPU with tens of GiB to
# spare; on a CPU, where workers share one memory, they alone keep GPT-2 Large out of 24 GiB.
CPU_BUCKET_SIZE = 5_000_000
CPU_MAX_LIVE_PARAMETERS = 100_000_000
# Nearly every matrix is then a group of its own, whose gradients the update need not copy together.
CPU_SUB_GROUP_SIZE = 1_000_000


def deepspeed_config(config: Config) -> dict[str, Any]:
    engine = config.engine
    result: dict[str, Any] = {
        # Nominal: train_step() says which micro-batch is the last of a step, and divides by tokens.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": config.grad_accum_steps,
        "gradient_clipping": config.optim.max_grad_norm,
        "bf16": {"enabled": engine.precision == "bf16"},
        "fp16": {"enabled": engine.precision == "fp16"},
        "zero_optimization": zero_config(config),
        # Our optimizer is made by make_optimizer(), also where its state is offloaded.
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": None,
        # It would wait for the device at every step; StepClock does not.
        "timers": {"throughput": {"enabled": False}},
    }
    if engine.precision != "fp32" and config.grad_accum_steps > 1:
        # Sums of many bf16 gradients lose their small terms. Costs 2 bytes a parameter more, so
        # only where something is summed.
        result["data_types"] = {"grad_accum_dtype": "fp32"}
    return result


def zero_config(config: Config) -> dict[str, Any]:
    engine = config.engine
    zero: dict[str, Any] = {"stage": engine.stage}
    if engine.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": config.on_gpu}
    if engine.offload_params:
        zero["offload_param"] = {"device": "cpu", "pin_memory": config.on_gpu}
    if not config.on_gpu and engine.stage > 0:
        zero |= {
            "reduce_bucket_size": CPU_BUCKET_SIZE,
            "allgather_bucket_size": CPU_BUCKET_SIZE,
            "overlap_comm": False,  # there is no second stream to overlap with
        }
    if not config.on_gpu and engine.stage == 3:
        zero |= {
            "stage3_prefetch_bucket_size": CPU_BUCKET_SIZE,
            "stage3_max_live_parameters": CPU_MAX_LIVE_PARAMETERS,
            "stage3_max_reuse_distance": CPU_MAX_LIVE_PARAMETERS,
            "sub_group_size": CPU_SUB_GROUP_SIZE,
            "contiguous_gradients": False,  # one copy less: they are laid together to be sent
        }
    return zero
