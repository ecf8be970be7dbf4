#!/bin/bash
# Answers a file in shards with GNU parallel (Debian's package `parallel`), each tried three times and gone on with
# after a kill, and joins them. JOBS says how many run at a time, MLXBATCH which binary.
#
#   scripts/shards_parallel.sh INPUT OUTPUT NUM_SHARDS [FLAGS OF mlxbatch run ...]
set -euo pipefail
if [ $# -lt 3 ]; then
    sed -n '2,5s/^# \?//p' "$0" >&2
    exit 2
fi
input=$1 output=$2 num_shards=$3
shift 3
mlxbatch=${MLXBATCH:-mlxbatch}
parts=${output%.jsonl}.shards
mkdir -p "$parts"

seq "$num_shards" | parallel --will-cite --jobs "${JOBS:-2}" --retries 3 --joblog "$parts/jobs.log" --quote \
    "$mlxbatch" run "$input" -o "$parts/out.{}.jsonl" --shard "{}/$num_shards" --resume --fail-on-errors 100% "$@"
status=0
"$mlxbatch" merge "$parts/out.*.jsonl" -o "$output" || status=$?
# With 3 all is there, some lines being errors: the shards are of no more use.
[ $status = 0 ] || [ $status = 3 ] || exit $status
rm -r "$parts"
exit $status
