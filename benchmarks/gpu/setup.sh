# . setup.sh BUNDLE [FOLDER]        sourced, in the root of a checkout of raysft, on the GPU machine
#
# Unpacks BUNDLE/site.tar.xz to FOLDER (/tmp/raysft-site) and puts it, this checkout and a `raysft` command on the paths.
# RAYSFT_EXTRA names what the bundle carries beside packages. Returns 1 where something does not import.
# shellcheck shell=bash

_bundle=${1:?BUNDLE}
_folder=${2:-/tmp/raysft-site}
if [ ! -e "$_folder/.complete" ]; then
    mkdir -p "$_folder" || return 1
    tar -C "$_folder" -xJf "$_bundle/site.tar.xz" || return 1
    # Some images forbid compiled Python and come without torch's: every process would compile it.
    unset PYTHONDONTWRITEBYTECODE
    _torch=$(python3 -c 'import importlib.util as u; print(u.find_spec("torch").submodule_search_locations[0])')
    python3 -m compileall -q -j 0 "$_folder/site/ray" "$_folder/site/deepspeed" "$_torch" \
        "${_torch%/*}/transformers" >/dev/null 2>&1
    # The package itself stays in the checkout: its version is all that is asked of its metadata.
    _version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' raysft/__init__.py)
    mkdir -p "$_folder/site/raysft-$_version.dist-info"
    printf 'Metadata-Version: 2.1\nName: raysft\nVersion: %s\n' "$_version" \
        >"$_folder/site/raysft-$_version.dist-info/METADATA"
    touch "$_folder/.complete"
fi
export PYTHONPATH="$_folder/site:$PWD" RAYSFT_EXTRA="$_folder/extra" HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
# Ray counts GPUs through NVML, which must be found by its name. Its memory monitor would kill workers where a machine's
# memory grows as it is used.
python3 -c 'import ctypes; ctypes.CDLL("libnvidia-ml.so.1")' 2>/dev/null ||
    export LD_LIBRARY_PATH="/usr/local/nvidia/lib64:/usr/local/nvidia/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export RAY_memory_monitor_refresh_ms=0
# The benchmark looks for the command beside the interpreter.
_command=$(python3 -c 'import pathlib, sys; print(pathlib.Path(sys.executable).parent / "raysft")')
if [ ! -e "$_command" ]; then
    printf '#!%s\nimport sys\nfrom raysft.cli.app import main\nsys.exit(main())\n' "$(command -v python3)" >"$_command" || return 1
    chmod +x "$_command"
fi
python3 - <<'P' || return 1
import importlib

names = """torch transformers accelerate psutil pyarrow tensorboard matplotlib ray.train.torch ray.tune deepspeed tomli_w
raysft.cli.app raysft.job raysft.train.worker raysft.studies.seq_len.run raysft.doctor.examine raysft.studies.tune.search
raysft.model.answers""".split()
failed = []
for name in names:
    try:
        importlib.import_module(name)
    except Exception as error:
        failed.append(f"{name}: {type(error).__name__}: {error}")
print("\n".join(failed) or "all is there")
raise SystemExit(bool(failed))
P
