#!/usr/bin/env bash
# Turns a folder of real images and networks into the results beside this file; `docs/method.md` has the protocol.
#
#   docs/evidence/run.sh PROGRAM FOLDER CASE [OPTIONS OF compare…]
#
# FOLDER holds npz/*.npz in MedMNIST's layout and weights/*.th, as the table of cases names them. Sources are trained once, into
# WORK (default: ./evidence-work). Runs that are there already are kept, so that a case continues on any machine; Whether
# CPUs of different kinds give the same bits was not asked.
set -euo pipefail

program=$(realpath "$1") folder=$(realpath "$2") case=$3
shift 3
here=$(cd "$(dirname "$0")" && pwd)
work=${WORK:-evidence-work}
mkdir -p "$work"

# Sources are trained to be transferred from, not to win: a few epochs, the best of them by the validation split.
source() { # NAME DATA ARCHITECTURE EPOCHS SEED
    [ -e "$work/$1.safetensors" ] || "$program" train --device cpu --data "$2" --architecture "$3" --epochs "$4" --batch-size 64 \
        --class-weights balanced --flip --shift 2 --seed "$5" --out "$work/$1.safetensors" >&2
}

compare() { # TARGET SOURCES… -- OPTIONS…
    local target=$1 models=()
    shift
    while [ "$1" != -- ]; do models+=("$1"); shift; done
    shift
    "$program" compare --device cpu --models "${models[@]}" --data "$target" --batch-size 32 --probe-epochs 12 --epochs 28 \
        --learning-rate 1e-3 --learning-rates 1e-3,3e-4 --merge-learning-rate 2e-2 --class-weights balanced \
        --out "$here/$case" "$@"
}

single="scratch fine-tune:source=0 fine-tune:source=1 lp-ft:source=0 lp-ft:source=1"
averages="linear linear:align=activations ensemble greedy-soup"
learned="medmerge medmerge:start=0.5 medmerge:granularity=kernel,start=0.5
    medmerge:granularity=kernel,start=0.5,align=activations medmerge:granularity=kernel,start=0.5,learn-on=yes"
# What the gain is made of: a probe twice as long, of a source and of the average.
ablation="lp-ft:source=0,probe-epochs=24 lp-ft:source=1,probe-epochs=24"

case $case in
ham-mednist-to-brain-300)
    source ham8 "$folder/npz/ham10000_28.npz" resnet8 8 11
    source mednist8 "$folder/npz/mednist6_28.npz" resnet8 6 12
    compare "$folder/npz/brainmri4_28.npz" "$work/ham8.safetensors" "$work/mednist8.safetensors" -- --train-images 300 \
        --seeds 10 --recipes $single $averages $learned $ablation "$@"
    ;;
cifar-ham-to-brain-200)
    source ham20 "$folder/npz/ham10000_28.npz" resnet20-option-a 8 13
    compare "$folder/npz/brainmri4_28.npz" "$folder/weights/resnet20_cifar10_akamaster.th" "$work/ham20.safetensors" -- \
        --train-images 200 --mean 0.5 --std 0.5 --seeds 10 --recipes $single $averages $learned $ablation "$@"
    ;;
cifar-cifar-to-brain-200)
    compare "$folder/npz/brainmri4_28.npz" "$folder/weights/resnet20_cifar10_akamaster.th" \
        "$folder/weights/resnet20_cifar10_zhengjiakun.th" -- --train-images 200 --mean 0.5 --std 0.5 --seeds 10 \
        --recipes $single $averages $learned "$@"
    ;;
*)
    echo "no case '$case'; they are in docs/method.md" >&2
    exit 2
    ;;
esac
