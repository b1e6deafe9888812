#!/usr/bin/env bash
# Prints a hash of the numbers in every file that small jobs write, for comparing a program with itself before and after its
# code was moved: bits differ between instruction sets, so this is no test. Headers are left out.
#
#   tests/bits.sh target/debug/medmerge > before    (built with the feature `emulator`)
set -euo pipefail
program=$(realpath "$1")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

quietly() { "$program" --quiet --threads 2 "$@" > /dev/null; }
job="--batch-size 8 --epochs 2"

quietly synth --out data --image-size 16 --source-train 32 --target-train 32 --val 16 --test 24
for name in texture shape; do
  quietly train --data data/$name.npz --architecture resnet8 --width 4 $job --device cpu --out $name.safetensors
done
models="--models texture.safetensors shape.safetensors"
for place in "cpu f32" "emulator f32" "emulator bf16"; do
  read -r device precision <<< "$place"
  mkdir -p "$device-$precision"
  cd "$device-$precision"
  ln -sf ../data ../texture.safetensors ../shape.safetensors .
  on="--device $device --precision $precision"
  for granularity in model layer filter kernel; do
    quietly learn $models --data data/target.npz $job --anchor 1 --granularity $granularity --out $granularity.safetensors $on
  done
  quietly learn $models --data data/target.npz --batch-size 8 --epochs 1 --batch-norm anchor --constraint simplex --start 0.2 --out probed.safetensors $on
  quietly merge $models --weights kernel.weights.safetensors --out folded.safetensors --device "$device"
  quietly merge $models --coefficients 0.3,0.7 --out averaged.safetensors --device "$device"
  quietly train --from filter.safetensors --data data/target.npz $job --flip --shift 2 --resume --out tuned.safetensors $on
  quietly train --from filter.safetensors --data data/target.npz $job --head-only --out head.safetensors $on
  quietly predict --model tuned.safetensors --data data/target.npz --logits --out scores.csv $on
  cd ..
done

python3 - <<'PYTHON'
import hashlib, json, pathlib, struct
for path in sorted(pathlib.Path(".").rglob("*")):
    if path.is_symlink() or path.suffix not in (".safetensors", ".csv") or "data" in path.parts or path.name.endswith(".log.csv"):
        continue
    content = path.read_bytes()
    if path.suffix == ".safetensors":
        length, = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        header.pop("__metadata__", None)
        content = json.dumps(header, sort_keys=True).encode() + content[8 + length :]
    print(hashlib.sha256(content).hexdigest()[:16], path)
PYTHON
