#!/usr/bin/env bash
# Turns a folder of real images and networks into the results beside this file; `docs/method.md` has the protocol.
#
#   docs/evidence/run.sh PROGRAM FOLDER CASE [OPTIONS OF compare…]
#
# SEEDS=3 runs so many seeds instead of as many as the protocol has.
#
# FOLDER holds npz/*.npz in MedMNIST's layout and weights/*.th, as the table of cases names them. Sources are trained once, into
# WORK (default: ./evidence-work). Runs that are there already are kept, so that a case continues on any machine.
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

# One that knows nothing, as it was drawn: for controls.
untrained() { # NAME ARCHITECTURE SEED
    [ -e "$work/$1.safetensors" ] || "$program" train --device cpu --data "$folder/npz/busi_28.npz" --architecture "$2" --epochs 1 \
        --batch-size 64 --learning-rate 0 --weight-decay 0 --seed "$3" --out "$work/$1.safetensors" >&2
}

# HAM10000 in parts that share no lesion.
parts() {
    [ -e "$work/ham_T.npz" ] || "${PYTHON:-python3}" "$here/parts.py" "$folder" "$work" >&2
}

probe=12 tune=28

compare() { # TARGET SOURCES… -- OPTIONS…
    local target=$1 models=()
    shift
    while [ "$1" != -- ]; do models+=("$1"); shift; done
    shift
    "$program" compare --device cpu --models "${models[@]}" --data "$target" --batch-size 32 --probe-epochs "$probe" --epochs "$tune" \
        --learning-rate 1e-3 --learning-rates 1e-3,3e-4 --merge-learning-rate 2e-2 --class-weights balanced \
        --out "$here/$case" "$@"
}

kernel=medmerge:granularity=kernel,start=0.5
single="scratch fine-tune:source=0 fine-tune:source=1 lp-ft:source=0 lp-ft:source=1"
averages="linear linear:align=activations ensemble greedy-soup"
learned="medmerge medmerge:start=0.5 $kernel $kernel,align=activations $kernel,learn-on=yes"
# What the gain is made of: a probe twice as long, of a source and of the average.
ablation="lp-ft:source=0,probe-epochs=24 lp-ft:source=1,probe-epochs=24"
# With ten seeds; what is varied beside them, with one, in a folder of its own.
key="$single rescale:source=0 linear:align=activations medmerge:start=0.5 medmerge:granularity=kernel $kernel
    $kernel,align=activations $kernel,align=activations,l2-sp=10 ensemble greedy-soup"
variants="$kernel,align=activations,ema=0.8 $kernel,align=activations,learn-on=0.002 $kernel,batch-norm=own,align=activations
    $kernel,align=activations,probe-statistics=running medmerge:granularity=kernel,start=layer,align=activations
    $kernel,align=activations,merge-rate=0.05 $kernel,align=activations,probe-epochs=24 linear:align=activations,ema=0.8
    lp-ft:source=0,ema=0.8 fine-tune:source=0,ema=0.8 lp-ft:source=0,l2-sp=10 medmerge:start=0.5,align=activations
    medmerge:granularity=layer,start=0.5,align=activations $kernel,align=activations,regularise=1
    medmerge:granularity=kernel,start=filter,align=activations medmerge:granularity=kernel,start=filter,align=activations,regularise=1
    medmerge:granularity=kernel,start=0/0.5,align=activations lp-ft:source=0,distill=0.01 lp-ft:source=0,distill=0.1
    $kernel,align=activations,distill=0.01 $kernel,align=activations,distill=0.1"

# What the first case left in question.
short="fine-tune:source=0 fine-tune:source=1 lp-ft:source=0 lp-ft:source=1 rescale:source=0 $kernel $kernel,align=activations
    ensemble greedy-soup"

cifar="$folder/weights/resnet20_cifar10_akamaster.th"
brain="$folder/npz/brainmri4_28.npz"
of_cifar="--train-images 200 --mean 0.5 --std 0.5"

case $case in
ham-mednist-to-brain-300 | ham-mednist-to-brain-300-double)
    source ham8 "$folder/npz/ham10000_28.npz" resnet8 8 11
    source mednist8 "$folder/npz/mednist6_28.npz" resnet8 6 12
    sources="$work/ham8.safetensors $work/mednist8.safetensors"
    if [ "$case" = ham-mednist-to-brain-300 ]; then
        compare "$brain" $sources -- --train-images 300 --seeds "${SEEDS:-10}" --recipes $single $averages $learned $ablation "$@"
    else
        probe=24 tune=56
        compare "$brain" $sources -- --train-images 300 --seeds "${SEEDS:-3}" --recipes $single $kernel $kernel,align=activations "$@"
    fi
    ;;
cifar-ham-to-brain-200)
    source ham20 "$folder/npz/ham10000_28.npz" resnet20-option-a 8 13
    compare "$brain" "$cifar" "$work/ham20.safetensors" -- $of_cifar --seeds "${SEEDS:-10}" --recipes $key "$@"
    ;;
cifar-ham-to-brain-200-variants)
    source ham20 "$folder/npz/ham10000_28.npz" resnet20-option-a 8 13
    compare "$brain" "$cifar" "$work/ham20.safetensors" -- $of_cifar --seeds "${SEEDS:-1}" \
        --recipes $key $averages $learned $ablation $variants "$@"
    ;;
cifar-untrained-to-brain-200)
    untrained untrained21 resnet20-option-a 21
    compare "$brain" "$cifar" "$work/untrained21.safetensors" -- $of_cifar --seeds "${SEEDS:-5}" \
        --recipes $kernel $kernel,align=activations "$@"
    ;;
untrained-untrained-to-brain-200)
    untrained untrained21 resnet20-option-a 21
    untrained untrained22 resnet20-option-a 22
    compare "$brain" "$work/untrained21.safetensors" "$work/untrained22.safetensors" -- $of_cifar --seeds "${SEEDS:-5}" \
        --recipes $kernel "$@"
    ;;
cifar-scaled-to-brain-200)
    compare "$brain" "$cifar" "$cifar" -- $of_cifar --seeds "${SEEDS:-5}" --recipes $kernel,constraint=free "$@"
    ;;
cifar-cifar-to-brain-200)
    compare "$brain" "$cifar" "$folder/weights/resnet20_cifar10_zhengjiakun.th" -- $of_cifar --seeds "${SEEDS:-10}" --recipes $key "$@"
    ;;
cifar-ham-to-busi-200)
    source ham20 "$folder/npz/ham10000_28.npz" resnet20-option-a 8 13
    compare "$folder/npz/busi_28.npz" "$cifar" "$work/ham20.safetensors" -- $of_cifar --seeds "${SEEDS:-10}" --recipes $key "$@"
    ;;
ham-ham-to-ham-500 | cifar-ham-to-ham-500)
    parts
    source hamA "$work/ham_A.npz" resnet20-option-a 16 14
    source hamB "$work/ham_B.npz" resnet20-option-a 16 15
    first="$work/hamB.safetensors"
    [ "$case" = ham-ham-to-ham-500 ] || first=$cifar
    compare "$work/ham_T.npz" "$first" "$work/hamA.safetensors" -- --train-images 500 --mean 0.5 --std 0.5 --seeds "${SEEDS:-10}" \
        --recipes $short "$@"
    ;;
cifar-ham-to-brain-50 | cifar-ham-to-brain-500)
    source ham20 "$folder/npz/ham10000_28.npz" resnet20-option-a 8 13
    compare "$brain" "$cifar" "$work/ham20.safetensors" -- --train-images "${case##*-}" --mean 0.5 --std 0.5 --seeds "${SEEDS:-10}" \
        --recipes $short "$@"
    ;;
*)
    echo "no case '$case'; they are in docs/method.md" >&2
    exit 2
    ;;
esac
