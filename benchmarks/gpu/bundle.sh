#!/usr/bin/env bash
# bundle.sh OUT [NAME=PATH]...
#
# For a GPU machine without a network that has torch and transformers, but neither Ray nor DeepSpeed: what raysft needs
# beside them, for CPython 3.12 on x86-64, as OUT/site.tar.xz, below 64 MiB. Run it where there is PyPI; no compiler and no
# torch are needed. NAME=PATH puts a file or folder into the bundle as extra/NAME, such as a tokenizer and records.
# On the GPU machine: . setup.sh OUT
set -euo pipefail
out=${1:?usage: bundle.sh OUT [NAME=PATH]...}; shift
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python3}
mkdir -p "$out"
out=$(cd "$out" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/wheels" "$work/tree/site"

# With the versions of constraints.txt, where it names them.
names=(ray hjson pydantic pydantic-core annotated-types typing-inspection typer rich jsonschema
    jsonschema-specifications referencing rpds-py tensorboardX tomli-w optuna alembic colorlog mako sqlalchemy
    trl datasets dill multiprocess)
wanted=()
for name in "${names[@]}"; do
    wanted+=("$(grep -i "^${name//-/[-_.]}==" "$here/../../constraints.txt" || echo "$name")")
done
target=(--no-deps --only-binary=:all: --python-version 3.12 --implementation cp --abi cp312 --abi abi3 --abi none)
for tag in 2_34 2_31 2_28 2_27 2_24 2_17; do target+=(--platform "manylinux_${tag}_x86_64"); done
target+=(--platform manylinux2014_x86_64 --platform manylinux1_x86_64)
"$python" -m pip download -q "${target[@]}" -d "$work/wheels" "${wanted[@]}"
# DeepSpeed comes as source, and compiles an op only where it is used: raysft's GPU path uses none.
DS_BUILD_OPS=0 "$python" -m pip wheel -q --no-deps --no-binary deepspeed -w "$work/wheels" \
    "$(grep -i '^deepspeed==' "$here/../../constraints.txt")"
"$python" -m pip install -q --no-index "${target[@]}" --no-compile --no-cache-dir --target "$work/tree/site" \
    "$work"/wheels/*.whl
# Java, RL, serving and the dashboard's pages: most of Ray, and nothing that training uses.
rm -rf "$work/tree/site/ray"/{jars,rllib,llm,dashboard/client} "$work/tree/site/bin"
find "$work/tree/site" -depth -type d \( -name tests -o -name __pycache__ \) -not -path '*/deepspeed/*' \
    -exec rm -rf {} +
for item in "$@"; do
    mkdir -p "$work/tree/extra/$(dirname "${item%%=*}")"
    cp -rL "${item#*=}" "$work/tree/extra/${item%%=*}"
done
tar -C "$work/tree" --owner=0 --group=0 --sort=name -cJf "$out/site.tar.xz" .
cp "$here/setup.sh" "$out/"
du -h "$out/site.tar.xz"
