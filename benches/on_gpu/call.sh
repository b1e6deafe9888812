#!/usr/bin/env bash
# Ten minutes on a GPU, three times over: call.sh 1|2|3 OUT [FOLDER=.gpu]
#
#   1  is it right? kernels compiled, selftest op by op, tests of devices and goldens, memcheck and racecheck
#   2  how fast? merges, convolutions and steps, PyTorch beside them; the first step from a cold and from a warm cache
#   3  why? ncu on the hottest kernels, tiles tuned, steps again with them
#
# Run in the repository's root (tests find their files from there), with FOLDER as pack.sh made it. Into OUT go at most eight files;
# benches/on_gpu/results.py OUT… reads those of all calls. What finds no time is left out, and stages.txt says so. The environment
# chooses another device and less work: DEVICE, OPS, TESTS, NETWORK, IMAGE_SIZE, BATCHES, PRECISIONS, ROUNDS, FILTER, BUDGET.
set -uo pipefail
if [ $# -lt 2 ] || [ $# -gt 3 ]; then
  sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p;}' "$0" >&2
  exit 2
fi
here=$(cd "$(dirname "$0")" && pwd)
call=$1 results=$(realpath -m "$2") folder=$(realpath -m "${3:-.gpu}")
device=${DEVICE:-cuda}
network=${NETWORK:-resnet50}
image_size=${IMAGE_SIZE:-224}
batches=${BATCHES:-128 32}
precisions=${PRECISIONS:-bf16 f16}
rounds=${ROUNDS:-}
filter=${FILTER:-}
budget=${BUDGET:-570}
medmerge=$folder/medmerge
if ! [ -x "$medmerge" ]; then
  echo "error: no program $medmerge" >&2
  echo "hint: benches/on_gpu/pack.sh makes the folder" >&2
  exit 2
fi
mkdir -p "$results" || exit 2
# Logs of single stages stay here, and travel as one file.
out=$(mktemp -d)
source "$here/stages.sh"
: > "$out/stages.txt"

# libnvrtc, where the loader does not find it by itself; compiled kernels that were carried along.
if [ -z "${MEDMERGE_NVRTC:-}" ] && ! ldconfig -p 2> "$out/ldconfig.log" | grep -q 'libnvrtc\.so'; then
  found=$(find / -name 'libnvrtc.so*' -not -path '/proc/*' 2> "$out/find.log" | head -n 1)
  [ -z "$found" ] || export MEDMERGE_NVRTC=$(dirname "$found")
fi
export XDG_CACHE_HOME=${XDG_CACHE_HOME:-$folder/cache} MEDMERGE_REQUIRE_DEVICE=$device

{
  echo "date: $(date -u +%Y-%m-%dT%H:%M:%SZ)"
  echo "commit: $(cat "$folder/commit" 2> "$out/commit.log")"
  echo "device: $device"
  echo "card: $(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2> "$out/smi.log" | head -n 1)"
} > "$results/about.txt"

bench=(--network "$network" --image-size "$image_size" --device "$device" ${rounds:+--rounds "$rounds"})

# Is it right?
right() {
  stage devices 30 "$results/devices.txt" "$medmerge" devices
  stage kernels 150 "$results/kernels.json" "$medmerge" kernels ${ARCH:+--arch "$ARCH"} --json
  local ops op test tool
  ops=${OPS:-$("$medmerge" selftest --op '?' 2>&1 | sed -n 's/^hint: known: //p' | tr -d ,)}
  : > "$results/selftest.json"
  # A process for each: a fault in one would keep all others from running.
  for op in $ops; do
    stage "selftest-$op" 90 "$out/selftest.json" "$medmerge" selftest --op "$op" --device "$device" --json
    [ -s "$out/selftest.json" ] || printf '{"ops": [{"op": "%s", "outcome": "stopped"}]}\n' "$op" > "$out/selftest.json"
    cat "$out/selftest.json" >> "$results/selftest.json"
  done
  : > "$results/tests.txt"
  # One handle serves all tests of a process.
  for test in ${TESTS-device golden}; do
    stage "tests-$test" 120 "$out/tests.txt" "$folder/tests/$test" --test-threads=1 ${filter:+"$filter"}
    echo "== $test: exit status $?" | cat "$out/tests.txt" - >> "$results/tests.txt"
  done
  : > "$results/sanitizer.txt"
  for tool in memcheck racecheck; do
    if ! command -v compute-sanitizer > "$out/which.log"; then
      note "$tool: left out, there is no compute-sanitizer"
      continue
    fi
    stage "$tool" 75 "$out/sanitizer.txt" compute-sanitizer --tool "$tool" --error-exitcode 9 \
      "$medmerge" selftest --op batch_norm --op merge --op conv2d --device "$device"
    echo "== $tool: exit status $?" | cat "$out/sanitizer.txt" - >> "$results/sanitizer.txt"
  done
}

# How fast?
fast() {
  local batch
  : > "$results/first-step.txt"
  # A few images are enough for a first step of a network of the size that is meant.
  local data=$out/data train
  if "$medmerge" synth --out "$data" --image-size "${FIRST_IMAGE_SIZE:-64}" --source-train 8 --target-train 32 --val 8 --test 8 > "$out/synth.log" 2>&1; then
    train=("$medmerge" train --data "$data/shape.npz" --architecture "$network" --steps 1 --batch-size 8 --precision bf16 --device "$device" --force)
    local cache
    for cache in cold warm; do
      local start=$(date +%s.%N)
      XDG_CACHE_HOME=$out/cache stage "first-step-$cache" 120 "$out/train.txt" "${train[@]}" --out "$out/net.safetensors" &&
        echo "$cache: $(awk -v a="$start" -v b="$(date +%s.%N)" 'BEGIN { print b - a }') s" >> "$results/first-step.txt"
    done
  fi
  DEVICE=$device NETWORKS=$network IMAGE_SIZES=$image_size BATCHES=$batches PRECISIONS=$precisions ROUNDS=$rounds \
    STAGES=${STAGES:-step conv merge} FORMS=${FORMS:-} BUDGET=$((budget - SECONDS - 10)) \
    bash "$here/../peers/on_gpu.sh" "$out/peers" "$medmerge" > "$out/peers.txt" 2> "$out/peers.log" || failed=1
  [ -s "$out/peers/stages.txt" ] && cat "$out/peers/stages.txt" >> "$out/stages.txt"
  [ -s "$out/peers/table.md" ] && cp "$out/peers/table.md" "$results/"
  tar czf "$results/reports.tgz" -C "$out" peers
}

# Why?
why() {
  local kernel first=${batches%% *} precision=${precisions%% *}
  : > "$results/ncu.txt"
  for kernel in ${KERNELS:-fprop_statistics_128x256 dgrad_sums_128x256 wgrad_128x256 batch_norm_input_gradient}; do
    if ! command -v ncu > "$out/which.log"; then
      note "ncu: left out, it is not there"
      break
    fi
    stage "ncu-$kernel" 60 "$out/ncu.txt" ncu --clock-control none --section SpeedOfLight --section Occupancy \
      --section WarpStateStats --section MemoryWorkloadAnalysis -k "regex:$kernel" -c 3 \
      "$medmerge" bench step "${bench[@]}" --batch-size "$first" --precision "$precision" --rounds 1
    cat "$out/ncu.txt" >> "$results/ncu.txt"
  done
  local step=("$medmerge" bench step "${bench[@]}" --batch-size "$first" --precision "$precision" --json)
  stage step 60 "$results/step.json" "${step[@]}"
  stage tune 180 "$results/tune.txt" "$medmerge" bench conv "${bench[@]}" --batch-size "$first" --precision "$precision" \
    ${filter:+--filter "$filter"} --tune "$results/tiles.json" --force
  [ -s "$results/tiles.json" ] &&
    MEDMERGE_TILES=$results/tiles.json stage step-tuned 60 "$results/step-tuned.json" "${step[@]}"
}

case $call in
  1) right ;;
  2) fast ;;
  3) why ;;
  *) echo "error: call $call" >&2; echo "hint: give 1, 2 or 3" >&2; exit 2 ;;
esac
cp "$out/stages.txt" "$results/"
(cd "$out" && tar czf "$results/logs.tgz" ./*.log)
rm -rf "$out"
cat "$results/stages.txt"
exit "$failed"
