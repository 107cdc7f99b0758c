#!/usr/bin/env bash
# Tests and measurements on a CUDA GPU, at most nine minutes.
#
#   benchmarks/gpu/run.sh OUT [arguments of benchmarks/gpu ...]
#
# On a machine without a network, WHEELS names a folder with the packages of benchmarks/gpu/wheels.txt; torch, PyG and
# Lightning must be installed. The tests' log and gpu.json go to OUT.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
out=$1
shift
mkdir -p "$out"
export MPLBACKEND=Agg PYTHONUNBUFFERED=1 STXTOOLS_TEST_DATA=${STXTOOLS_TEST_DATA:-../shared/data}

if [ -n "${WHEELS:-}" ]; then
    python3 -m pip install -q --no-index --no-deps --no-compile --target /tmp/stxtools_wheels "$WHEELS"/*.whl || exit
    export PYTHONPATH=/tmp/stxtools_wheels
fi
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

folder=$(mktemp -d)
python3 benchmarks/gpu --generate --folder "$folder" "$@" & # on one core, while the tests run
[ -n "${SKIP_TESTS:-}" ] || python3 -m pytest -q -m gpu -p no:cacheprovider --durations=5 tests/test_gpu.py 2>&1 | tee "$out/tests.log" | tail -n 30
wait
python3 benchmarks/gpu --folder "$folder" --out "$out/gpu.json" --tests "$out/tests.log" --data "$STXTOOLS_TEST_DATA" "$@"
