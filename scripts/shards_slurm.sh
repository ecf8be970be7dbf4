#!/bin/bash
# Answers a file in shards as a Slurm array whose tasks are gone on with after a kill, then joins them; prints the
# number of the job that joins. All nodes must see the folder of OUTPUT. MLXBATCH says which binary, SBATCH_FLAGS
# what else sbatch is told of each task.
#
#   scripts/shards_slurm.sh INPUT OUTPUT NUM_SHARDS [FLAGS OF mlxbatch run ...]
set -euo pipefail
if [ $# -lt 3 ]; then
    sed -n '2,6s/^# \?//p' "$0" >&2
    exit 2
fi
input=$(realpath "$1") output=$(realpath "$2") num_shards=$3
shift 3
mlxbatch=${MLXBATCH:-mlxbatch}
parts=${output%.jsonl}.shards
mkdir -p "$parts"

# The array's own variables are for its tasks, not for this shell.
run="$(printf '%q ' "$mlxbatch" run "$input" "$@") -o $(printf '%q' "$parts")/out.\$SLURM_ARRAY_TASK_ID.jsonl"
run+=" --shard auto/$num_shards --resume --fail-on-errors 100%"
merge=$(printf '%q ' "$mlxbatch" merge "$parts/out.*.jsonl" -o "$output")
# With 3 all is there, some lines being errors.
merge+=' || [ $? -eq 3 ]'

# shellcheck disable=SC2086 # flags are words
array=$(sbatch --parsable --array="1-$num_shards" --requeue --output="$parts/%a.log" ${SBATCH_FLAGS:-} --wrap "$run")
sbatch --parsable --dependency="afterok:$array" --output="$parts/merge.log" --wrap "$merge"
