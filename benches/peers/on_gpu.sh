#!/usr/bin/env bash
# medmerge beside PyTorch on this machine's GPU, within ten minutes: on_gpu.sh OUT_DIR [MEDMERGE]
#
# MEDMERGE is the program (default: `medmerge` on the PATH, else this repository's release build). Nothing is built. Into OUT_DIR go
# each program's reports and logs, stages.txt (what ended how, after how long) and table.md, which is written anew after every pair
# of reports. Each stage has its own limit of time, and a stage that fails or is stopped loses neither the others nor the rows
# that it had. What matters most comes first; what finds no time left is left out, and stages.txt says so.
#
# The environment chooses more; on a machine without a GPU, for example:
#   DEVICE=cpu PRECISIONS=f32 NETWORKS=resnet18 IMAGE_SIZES=28 BATCHES=8 SOURCES=2 ROUNDS=3 FORMS=eager on_gpu.sh out
set -uo pipefail

if [ $# -lt 1 ] || [ $# -gt 2 ]; then
  sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p;}' "$0" >&2
  exit 2
fi
here=$(cd "$(dirname "$0")" && pwd)
out=$1
medmerge=${2:-$(command -v medmerge || echo "$here/../../target/release/medmerge")}
python=${PYTHON:-python3}
device=${DEVICE:-cuda}
stages=${STAGES:-selftest merge conv step}
precisions=${PRECISIONS:-bf16 tf32 f32}
networks=${NETWORKS:-resnet50,resnet18}
image_sizes=${IMAGE_SIZES:-224}
batches=${BATCHES:-128 32}     # of steps; convolutions take the first
sources=${SOURCES:-2,8}        # of merges; a learning step has two
rounds=${ROUNDS:-}             # default: as each program has it
forms=${FORMS:-}               # default: below
budget=${BUDGET:-570}          # seconds in all

if ! [ -x "$medmerge" ]; then
  echo "error: no program $medmerge" >&2
  echo "hint: give its path, as in: $0 $out target/release/medmerge" >&2
  exit 2
fi
mkdir -p "$out" || exit 2
: > "$out/stages.txt"
source "$here/../on_gpu/stages.sh"
ours=() theirs=()

# pair NAME LIMIT_OF_MEDMERGE LIMIT_OF_PYTORCH FORMS BENCH [OPTION…], which both take: PyTorch's part only where medmerge has rows.
pair() {
  local name=$1 limit=$2 torch_limit=$3 chosen=${forms:-$4}
  shift 4
  local options=("$@" --device "$device" --network "$networks" ${rounds:+--rounds "$rounds"})
  stage "$name-medmerge" "$limit" "$out/$name-medmerge.json" "$medmerge" bench "${options[@]}" --json
  # A run that failed before its first row prints what went wrong.
  if ! grep -q '"rows"' "$out/$name-medmerge.json"; then
    rm -f "$out/$name-medmerge.json"
    note "$name-pytorch: left out, medmerge has no report"
    return
  fi
  ours+=("$out/$name-medmerge.json")
  stage "$name-pytorch" "$torch_limit" /dev/null "$python" "$here/pytorch.py" "${options[@]}" --form "$chosen" --out "$out/$name-pytorch.json"
  [ -s "$out/$name-pytorch.json" ] && theirs+=("$out/$name-pytorch.json")
  if [ "${#theirs[@]}" -gt 0 ]; then
    python3 "$here/ratios.py" "${ours[@]}" "${theirs[@]}" --out "$out/table.md" 2> "$out/ratios.log"
  fi
}

has() { [[ " $stages " == *" $1 "* ]]; }

rm -f "$out/table.md" "$out"/*-pytorch.json
first_batch=${batches%% *}
has selftest && stage selftest 60 "$out/selftest.txt" "$medmerge" selftest --device "$device"
has merge && pair merge 30 100 "eager,foreach,vecdot,autograd,compile" merge --sources "$sources"
for precision in $precisions; do
  # What compiles comes last in a report of PyTorch's, and is what a limit cuts.
  has conv && pair "conv-$precision" 45 90 "channels_last,default" \
    conv --precision "$precision" --image-size "$image_sizes" --batch-size "$first_batch"
  for batch in $batches; do
    has step && pair "step-$precision-$batch" 45 150 "channels_last,eager" \
      step --precision "$precision" --image-size "$image_sizes" --batch-size "$batch"
  done
done

if [ -s "$out/table.md" ]; then
  cat "$out/table.md"
  cat "$out/ratios.log" >&2
else
  note "no table: no pair of reports"
  failed=1
fi
exit "$failed"
