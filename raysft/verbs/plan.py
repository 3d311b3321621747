"""What a config comes to, as equations: printed before a run and by --dry-run."""

from raysft.config.schema import Config


def equations(config: Config, verb: str = "train") -> list[tuple[str, str]]:
    """(name, equation) rows. Pure arithmetic: neither data nor model is read."""
    return PLANS[verb](config)


def training(config: Config) -> list[tuple[str, str]]:
    batch, scaling, schedule = config.batch, config.scaling, config.schedule
    if batch.packing:
        share = f"packs of at most {batch.pack_tokens:,} tokens on {scaling.words}"
    else:
        share = ", or ".join(
            f"{workers} workers x {batch.micro_batch_size} micro-batch x "
            f"{config.at(workers).grad_accum_steps} accumulation"
            for workers in sorted({scaling.fewest, scaling.most})
        )
    rows = [
        model_equation(config),
        ("global batch", f"{batch.global_batch_size} records = {share}"),
        (
            "tokens a step",
            f"at most {batch.global_batch_size * batch.seq_len:,} = "
            f"{batch.global_batch_size} records x {batch.seq_len} seq_len",
        ),
        ("steps", steps_equation(config)),
        ("learning rate", rate_equation(config)),
        *where_and_how(config),
    ]
    if schedule.min_lr_ratio == 1.0:
        rows.append(("note", "min_lr_ratio = 1: the rate stays constant after warmup"))
    return rows


def seq_len_cases(config: Config) -> list[tuple[str, str]]:
    """Of `bench seq-len`."""
    from raysft.studies.seq_len.run import cases, longest

    longest(config)  # raises UserError where the model has no such positions
    listed, bench = cases(config), config.bench
    rows = [model_equation(config), *where_and_how(config)]
    for table in ("sequences", "tokens"):
        words = [f"{c.sequences} x {c.seq_len:,}" for c in listed if table in c.tables]
        rows.append((f"equal {table}", ", ".join(words)))
    rows.append(
        (
            "cases",
            f"{len(listed)}, each in fresh workers: {bench.warmup_steps} + {bench.steps} steps",
        )
    )
    return rows


def search(config: Config) -> list[tuple[str, str]]:
    """Of `tune`."""
    from raysft.studies.tune.settings import check_search, num_trials

    check_search(config)  # raises UserError where a trial could not run
    tune = config.tune
    ways = " x ".join(str(len(domain.values)) for domain in tune.space.values())
    count = num_trials(config)
    rows = [model_equation(config), ("steps", steps_equation(config) + ", in each trial")]
    rows += where_and_how(config)
    trials = f"{count} = {ways}" if tune.sampler == "grid" else str(count)
    rows.append(("trials", f"{trials}; sampler {tune.sampler}, scheduler {tune.scheduler}"))
    for key, domain in tune.space.items():
        rows.append(("search", f"{key}: {domain.kind} {list(domain.values)}"))
    return rows


PLANS = {"train": training, "tune": search, "bench seq-len": seq_len_cases}


def model_equation(config: Config) -> tuple[str, str]:
    shape = config.model.shape
    if config.model.init != "scratch" or shape is None:
        return "model", f"{config.model.path}, {config.model.init}"
    blocks = shape.n_layer * (12 * shape.n_embd**2 + 13 * shape.n_embd)
    return (
        "model",
        f"{blocks / 1e6:.1f} M parameters in blocks = {shape.n_layer} layers x "
        f"(12 x {shape.n_embd}² + 13 x {shape.n_embd}), plus embeddings, from scratch",
    )


def where_and_how(config: Config) -> list[tuple[str, str]]:
    scaling = config.scaling
    return [
        (
            "workers",
            f"{scaling.count} x {scaling.cpus_per_worker} CPU"
            + (f" + {scaling.gpus_per_worker} GPU" if config.on_gpu else ""),
        ),
        ("engine", engine_words(config)),
    ]


def steps_equation(config: Config) -> str:
    run, size = config.run, config.batch.global_batch_size
    if run.max_steps is not None:
        records = run.max_steps * size
        return f"{run.max_steps:,} (run.max_steps) x {size} = {records:,} records seen"
    return f"{run.epochs:g} epochs x training records / {size}, rounded up"


def rate_equation(config: Config) -> str:
    schedule, lr = config.schedule, config.optim.lr
    if schedule.warmup_steps is not None:
        warmup = f"{schedule.warmup_steps} steps"
    else:
        ratio = 0.05 if schedule.warmup_ratio is None else schedule.warmup_ratio
        steps = config.run.max_steps
        warmup = f"{ratio:g} of all steps"
        if steps is not None:
            warmup = f"{round(ratio * steps)} steps = {ratio:g} x {steps}"
    floor = f"{lr * schedule.min_lr_ratio:g} = {schedule.min_lr_ratio:g} x {lr:g}"
    return f"0 to {lr:g} in {warmup}, then cosine to {floor}"


def engine_words(config: Config) -> str:
    engine = config.engine
    words = [f"ZeRO stage {engine.zero_stage}", engine.precision]
    words += ["optimizer offloaded"] if engine.offload_optimizer else []
    words += ["parameters offloaded"] if engine.offload_params else []
    words += ["activation checkpointing"] if config.model.activation_checkpointing else []
    return ", ".join(words)
