"""What people type wrong: the words of a command, and parts of what they are told.

Each is typed in a folder with a sound `run.toml`, `records.jsonl`, `model/`, `tokenizer/` and a run
`runs/first`. Where only settings are given, the command is `raysft train run.toml` with them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Mistake:
    typed: str  # settings, or a whole command where it begins with "raysft"
    told: tuple[str, ...]
    files: Mapping[str, str] = field(default_factory=dict)  # that are there besides
    env: Mapping[str, str] = field(default_factory=dict)


ROW = '{"prompt": "a", "completion": "b"}\n'
PAIRS = '{"prompt": "a", "chosen": "b", "rejected": "c"}\n'
TOML = '[model]\npath = "model"\n[data]\npath = "records.jsonl"\n'


def key(typed: str, *told: str) -> Mistake:
    return Mistake(typed, told)


def data(content: str, *told: str, more: str = "", name: str = "mine.jsonl") -> Mistake:
    return Mistake(f"data.path={name} {more}", told, {name: content})


def config(content: str, *told: str, name: str = "mine.toml") -> Mistake:
    return Mistake(f"raysft train {name}", (name, *told), {name: content})


KEYS = [
    key("optim.learning_rate=1e-4", "optim.learning_rate: no such key; did you mean 'lr'?"),
    key("optim.learn_rate=1e-4", "optim.learn_rate: no such key; did you mean 'lr'?"),
    key("run.lr=1e-4", "run.lr: no such key; did you mean 'optim.lr'?"),
    key("batch.max_length=64", "batch.max_length: no such key; did you mean 'seq_len'?"),
    key("run.output_dir=x", "run.output_dir: no such key; did you mean 'storage'?"),
    key("run.learning_rate=1", "did you mean 'optim.lr'?"),
    key("batch_size=8", "not of the form section.key=value", "'batch.global_batch_size=8'"),
    key("epochs=3", "not of the form section.key=value; did you mean 'run.epochs=3'?"),
    key("seed=3", "did you mean 'run.seed=3'?"),
    key("optm.lr=1", "optm: no such key; did you mean 'optim'?"),
    key("data.feilds.prompt=q", "data.feilds: no such key; did you mean 'fields'?"),
    key("data.fields.promt=q", "data.fields.promt: no such key; did you mean 'prompt'?"),
    key("optim.lr=fast", "optim.lr: input should be a valid number, but it is 'fast'"),
    key("optim.lr=-1", "optim.lr: input should be greater than 0"),
    key("run.epochs=0", "run.epochs: input should be greater than 0"),
    key("model.compile=False", "write model.compile=false"),
    key("model.compile=yes", "model.compile: input should be a valid boolean, but it is 'yes'"),
    key("run.max_steps=None", "write run.max_steps=none"),
    key("bench.seq_lens=128,256", "bench.seq_lens", "a list is written [128, 256]"),
    key("data.path=[a.jsonl,b.jsonl]", """write data.path='["a.jsonl", "b.jsonl"]'"""),
    key("optim.betas=(0.9,0.95)", "write optim.betas='[0.9, 0.95]'"),
    key("engine.precision=bf32", "engine.precision: input should be 'bf16', 'fp16' or 'fp32'"),
    key("engine.zero_stage=4", "engine.zero_stage", "but it is 4"),
    key("scaling.workers=0", "0 is neither a number of workers"),
    key("data.format=sharegtp", "data.format: input should be 'auto', 'messages', 'sharegpt'"),
    key("schedule.warmup_ratio=0.1 schedule.warmup_steps=5", "warmup_ratio or warmup_steps"),
    key("batch.packing=false batch.global_batch_size=3 scaling.workers=2", "not a multiple"),
    key("data.path=none", "data.path: this key is required"),
    key("run.storage=s3://bucket", "run: storage is a folder"),
]
FILES = [
    config("[optim]\nlr = 1\n", "model: this key is required", "data.path: this key is required"),
    config(TOML + "[training]\nlearning_rate = 1\n", "training: no such key", "is optim.lr"),
    config(TOML + "[optimizer]\nlr = 1e-4\n", "optimizer: no such key; did you mean 'optim'?"),
    config("learning_rate = 1e-4\n" + TOML, "learning_rate: no such key", "'optim.lr'"),
    config("[data]\npath = records.jsonl\n", "at line 2", 'write: path = "records.jsonl"'),
    config("[model]\ncompile = True\n", "at line 2", "write: compile = true"),
    config("[run]\nmax_steps = None\n", "TOML has no None: leave the key out"),
    config("[model\npath = 1\n", "is not valid TOML"),
    config(TOML + "[model]\npath = 'x'\n", "is not valid TOML"),
    config("learning_rate: 2e-5\nnum_epochs: 3\n", "is YAML", "[optim] lr = 2e-5", "epochs = 3",
           name="axolotl.yaml"),
    config('{"output_dir": "out", "max_seq_length": 64}', "is JSON", 'storage = "out"',
           name="trl.json"),
    config(TOML.replace('"records.jsonl"', '[{ path = "records.jsonl", wieght = 2 }]'),
           "wieght: no such key; did you mean 'weight'?"),
    config("\udcff", "cannot be read as a text in UTF-8"),
    Mistake("raysft train run.tml", ("no config file or preset 'run.tml'",)),
    Mistake("raysft train gpt2-tiny", ("no config file or preset", "'gpt2-tiny-cpu'")),
]  # fmt: skip
OPTIONS = [
    Mistake("raysft train run.toml --lr 1e-4", ("no such option --lr", "--set optim.lr=1e-4")),
    Mistake("raysft train run.toml --epochs=3", ("--set run.epochs=3",)),
    Mistake("raysft train run.toml --output_dir out", ("--set run.storage=out",)),
    Mistake("raysft train run.toml --resme", ("no such option --resme; did you mean --resume?",)),
    Mistake("raysft train run.toml --name a/b", ("--name: 'a/b' is no name for a run",)),
    Mistake("raysft train run.toml --name first", ("runs/first holds a run", "another --name")),
    Mistake("raysft train run.toml --resume", ("--resume needs --name",)),
    Mistake("raysft train run.toml --resume --name none", ("there is no runs/none/run.json",)),
    Mistake("raysft train run.toml --accept-changes", ("give it with --resume",)),
    Mistake("raysft train run.toml --ship-code", ("which one, --address?",)),
    Mistake("raysft train run.toml --address http://h:8265", ("absolute path that all nodes",)),
    Mistake("raysft tune run.toml --set scaling.workers=[1,2]", ("same number of workers",)),
    Mistake("raysft tune run.toml --set data.path=no.jsonl", ("there is no file no.jsonl",)),
    Mistake(
        "raysft bench seq-len run.toml --set bench.seq_lens=[16] --set data.path=no.jsonl",
        ("no file no.jsonl",),
    ),
    Mistake(
        "raysft bench masking run.toml --set bench.prompt_loss_weights=[1]",
        ("bench.prompt_loss_weights has one weight: take two or more",),
    ),
    Mistake("raysft train run.toml --dry-run --set data.path=no.jsonl", ("no file no.jsonl",)),
    Mistake(
        "raysft generate runs/frist hello",
        ("'runs/frist' is no local folder", "did you mean 'runs/first'?"),
    ),
]
DATA = [
    key("data.path=recrods.jsonl", "no file recrods.jsonl; did you mean 'records.jsonl'?"),
    key("data.eval_path=nothing.jsonl", "data.eval_path: there is no file nothing.jsonl"),
    key("data.path=*.csv", "holds no"),
    key("data.path=model", "model/tokenizer.json record 1: no known format"),
    key("data.path=notes.txt", "data.path: notes.txt is none of .json, .jsonl"),
    key("data.split=test", "data.split = 'test' does nothing for records.jsonl"),
    Mistake('data.path=[{path="records.jsonl"},{path="b.jsonl"}]', ("there is no file b.jsonl",)),
    data("", "mine.jsonl holds no records"),
    data(ROW + '{"prompt"\n', "mine.jsonl line 2: not valid JSON", "data.on_bad_record"),
    data('{"ask": "a", "tell": "b"}\n', "mine.jsonl line 1", "'ask', 'tell'", "data.fields."),
    data('{"prompt": "a", "reply": "b"}\n', "no field 'completion'",
         'data.fields.completion = "reply"'),
    data('{"instruction": "a", "solution": "b"}\n', 'data.fields.output = "solution"'),
    data('{"instruction": "a"}\n', "say which: data.fields.output = NAME"),
    data(ROW, "data.fields.prompt = 'quetsion': no record has that field", "'completion'",
         more="data.fields.prompt=quetsion"),
    data(ROW, "no field 'messages'", more="data.format=messages"),
    data('{"prompt": "a", "completion": true}\n', "'completion' is bool, not text"),
    data('{"messages": [{"role": "usr", "content": "a"}]}\n', "role 'usr' is none of"),
    data('{"messages": "hello"}\n', "field 'messages' is str, not a list"),
    data('{"messages": [{"role": "user", "content": "a"}]}\n', "1 x no answer to train on"),
    data(PAIRS, "these are preference pairs"),
    data('{"prompt": "a", "completion": "b", "label": false}\n', "its answer is a bad one"),
    data('["a", "b"]\n', "a record is a JSON object"),
    data("prompt,completion\na\n", "mine.csv line 2: 1 values where the header has 2 names",
         name="mine.csv"),
    data("question,reply\na,b\n", 'data.fields.completion = "reply"', name="mine.csv"),
    data("not parquet", "mine.parquet", name="mine.parquet"),
]  # fmt: skip
ONE_WORSE = '{"prompt": "a", "chosen": "b", "rejected": 3}\n'
ALIKE = '{"prompt": "a", "chosen": "b", "rejected": "b"}\n'
OF_PAIRS = [
    Mistake("raysft dpo run.toml", ("records.jsonl line 1: this record has one answer",)),
    Mistake("raysft reward run.toml", ("one answer, and a pair has two", "data.fields.chosen")),
    Mistake("raysft dpo run.toml --dry-run", ("this record has one answer",)),
    Mistake("raysft dpo run.toml --set data.path=mine.jsonl",
            ("mine.jsonl line 2: field 'rejected' is int",), {"mine.jsonl": PAIRS + ONE_WORSE}),
    Mistake("raysft reward run.toml --set data.path=mine.jsonl",
            ("no record of 1 can be trained on", "both answers are the same"),
            {"mine.jsonl": ALIKE}),
    Mistake("raysft dpo run.toml --set data.eval_path=records.jsonl --set data.path=mine.jsonl",
            ("records.jsonl line 1: this record has one answer",), {"mine.jsonl": PAIRS}),
    Mistake("raysft dpo run.toml --set data.path=mine.jsonl --set data.prompt_loss_weight=0.5",
            ("data.prompt_loss_weight 0.5 trains prompts",), {"mine.jsonl": PAIRS}),
    Mistake("raysft pairs run.toml --set data.path=mine.jsonl",
            ("these are preference pairs",), {"mine.jsonl": PAIRS}),
    Mistake("raysft tune run.toml --set data.path=mine.jsonl",
            ("these are preference pairs",), {"mine.jsonl": PAIRS}),
]  # fmt: skip
MODELS = [
    key("model.path=./mdoel", "model.path: there is no folder ./mdoel; did you mean 'model'?"),
    key("model.path=/no/such/folder", "model.path: there is no folder /no/such/folder"),
    key("model.path=runs/first", "runs/first is a run: its model is runs/first/model"),
    key("model.path=first", "no local folder", "did you mean 'runs/first/model'?"),
    key("model.path=model/config.json", "is a file, where a folder is meant: model?"),
    key("model.path=tokenizer", "model.path: tokenizer has no config.json"),
    key("model.path=bare", "model.path: bare has no weights"),
    key("model.path=parent", "has no config.json", "did you mean 'parent/inside'?"),
    key("model.tokenizer=./tokeniser", "no folder ./tokeniser; did you mean 'tokenizer'?"),
    key("model.tokenizer=bare", "model.tokenizer: bare has no tokenizer"),
    key("model.tokenizer=large", "large has 40 tokens, but model has embeddings for 12"),
    key("model.tokenizer=demo", 'model.tokenizer = "demo" knows the demo records only'),
    key("batch.seq_len=65", "batch.seq_len 65 is past the 64 positions", "batch.seq_len to 64"),
    Mistake("model.path=damaged", ("damaged/config.json is damaged",),
            {"damaged/config.json": "{"}),
    Mistake("model.tokenizer=damaged", ("model.tokenizer: damaged/tokenizer.json is damaged",),
            {"damaged/tokenizer.json": "{"}),
    Mistake("model.tokenizer=plain", ("plain has no end token (eos_token)",),
            {"plain/tokenizer_config.json": '{"tokenizer_class": "TokenizersBackend"}'}),
    key("data.template=chatlm", "no template or Jinja file 'chatlm'; did you mean 'chatml'?"),
    key("data.template=mine.jinja", "no template or Jinja file 'mine.jinja'"),
    key("data.template=tokenizer", "tokenizer model has no chat template of its own"),
    Mistake("data.template=bad.jinja", ("bad.jinja line 1",), {"bad.jinja": "{% if %}"}),
    key("model.path=acme/nothing", "'acme/nothing' is no local folder", "hub does not answer"),
    key("data.path=acme/nothing", "'acme/nothing' is no local file", "hub does not answer"),
]  # fmt: skip
PLACES = [
    key("run.storage=notes.txt", "run.storage: notes.txt cannot be written", "is a file"),
    key("run.storage=notes.txt/x", "cannot be written", "notes.txt is a file"),
    key("model.init=scratch model.shape={n_layer=4000,n_embd=16384,n_head=16}", "MiB free"),
    Mistake("", ("RAY_ADDRESS is 127.0.0.1:1, and nobody answers there", "Unset RAY_ADDRESS"),
            env={"RAY_ADDRESS": "127.0.0.1:1"}),
    Mistake("", ("RAY_ADDRESS is http://h:8265", "--address http://h:8265"),
            env={"RAY_ADDRESS": "http://h:8265"}),
    Mistake("", ("RAY_ADDRESS is cluster, which is no address",), env={"RAY_ADDRESS": "cluster"}),
]  # fmt: skip
MISTAKES = [*KEYS, *FILES, *OPTIONS, *DATA, *OF_PAIRS, *MODELS, *PLACES]
