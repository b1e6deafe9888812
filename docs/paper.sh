#!/usr/bin/env bash
# The comparison of the MedMerge paper (arXiv 2403.11646), for whoever has its data and a GPU: one command for each of its three
# targets. It was rehearsed with drawn images, by --dry-run; nobody has run it on the data yet.
#
#   docs/paper.sh PROGRAM FOLDER PAIR [OPTIONS OF compare…]
#
#   PAIR    source besides ImageNet    target
#   isic    ham10000_224.npz           isic2019_224.npz     8 classes
#   aptos   eyepacs_224.npz            aptos2019_224.npz    5
#   rsna    chexpert_224.npz           rsna_224.npz         2
#
# FOLDER holds these in MedMNIST's layout, and imagenet_resnet50.pth, torchvision's weights as torch.save wrote them. The medical source
# is trained once, from its own initialisation, into WORK (default: ./paper-work); then `compare` runs, which continues after a stop.
# For a rehearsal: SIZE, ARCHITECTURE (torchvision's densenet121 or vgg16 are the paper's others), DEVICE, SEEDS.
set -euo pipefail

program=$(realpath "$1") folder=$(realpath "$2") pair=$3
shift 3
size=${SIZE:-224} architecture=${ARCHITECTURE:-resnet50} device=${DEVICE:-auto} work=${WORK:-paper-work}
case $pair in
isic) source=ham10000 target=isic2019 ;;
aptos) source=eyepacs target=aptos2019 ;;
rsna) source=chexpert target=rsna ;;
*)
    echo "no pair '$pair': isic, aptos or rsna" >&2
    exit 2
    ;;
esac
mkdir -p "$work"
medical=$work/${source}_$architecture.safetensors
imagenet="--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225"
# What the paper leaves open is chosen here; docs/method.md lists it.
common="--device $device --batch-size 128 --schedule cosine --optimizer adamw --class-weights balanced --flip"

[ -e "$medical" ] || "$program" train $common $imagenet --data "$folder/${source}_$size.npz" --architecture "$architecture" \
    --epochs "${SOURCE_EPOCHS:-50}" --patience 8 --learning-rate 1e-3 --seed 1 --out "$medical" >&2

kernel=medmerge:granularity=kernel,start=0.5
"$program" compare $common $imagenet --models "$folder/imagenet_$architecture.pth" "$medical" --data "$folder/${target}_$size.npz" \
    --probe-epochs 10 --learning-rate 1e-3 --merge-learning-rate 1e-2 --epochs 50 --patience 8 \
    --learning-rates 1e-3,1e-4,1e-5,1e-6,1e-7 --seeds "${SEEDS:-3}" --out "$work/$pair-$architecture" --recipes \
    fine-tune:source=0 fine-tune:source=1 lp-ft:source=0 lp-ft:source=1 linear linear:align=weights linear:align=activations zipit \
    medmerge medmerge:start=0.5 $kernel $kernel,align=activations ensemble "$@"
