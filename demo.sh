#!/bin/sh
# The method in small, on synthetic chest CTs, on the CPU, in minutes: sh demo.sh [FOLDER]
# CTs -> crop -> a minute of training with one labelled scan -> test -> masks on the scans' own grids; then CTs segmented
# with the segmenter of pretrained/. FOLDER (default: demo/ in the project's folder) is replaced.
set -eu
root=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
. "$root/scripts/environment.sh"

folder=${1:-"$root/demo"}
if [ -e "$folder" ] && [ ! -e "$folder/demo.txt" ]; then
    fail "$folder exists and was not made by demo.sh; name another folder"
fi
rm -rf "$folder"
mkdir -p "$folder"
folder=$(CDPATH= cd -- "$folder" && pwd)
echo "Made by demo.sh, which replaces this folder when it runs again." > "$folder/demo.txt"
cd "$root"

echo "1/5 synthetic chest CTs in HU: one with a lesion mask, others known as diseased or healthy"
"$python" -m benchmarks.weak_supervision.cohort "$folder/raw" --size demo --raw --processes 2

echo "2/5 crop to the lungs: lungCrop.py"
"$python" lungCrop.py "$folder/raw/ct" --labels "$folder/raw/lesion" --output "$folder/cohort" \
    --lungs "$folder/raw/lung" --size 16 64 64
cp -R "$folder/raw/id_txt" "$folder/cohort/id_txt"  # which scans train, validate and test

echo "3/5 GASNet for a minute, with one labelled scan: train.py"
set -- "DATASET.ROOT=$folder/cohort" "EXP.OUTPUT_DIR=$folder/output" \
    "DATASET.SPLIT={LABELED: labels_1, WO_LABEL: diseased, HEALTHY: healthy, VALID: valid, VALIDH: validh, TEST: test,\
 TESTH: testh}" "IMAGE.SIZE=[16, 64, 64]" IMAGE.SLICES=16 "MODEL.WIDTH={UNET: 8, G: 8, D: 8}" SOLVER.ITER_MAX=60 \
    LOSS.PERCEPTION_START=25 LOSS.PERCEPTION_RAMP=25 DATALOADER.NUM_WORKERS=0 DATALOADER.CACHE_MB=100 \
    "INTERVAL={LOG: 10, VALID: 30, SAVE: 60, PICTURE: 20}"
gasnet="$folder/output/weak_recons_origImgToD_genImgToD_perception"
"$python" train.py --config-path configs/weak.yaml --device cpu --is-validation "$@"

echo "4/5 test and paste back: test.py, post_processing.py"
"$python" test.py --config-path configs/weak.yaml --model-path "$gasnet/segmenter_best.pth" --output "$folder/test" \
    --split TEST TESTH --device cpu --save-vis "$@" > "$folder/gasnet.txt"
set --
for mask in "$folder"/test/probabilities/*.nii.gz; do
    set -- "$@" "$folder/raw/ct/$(basename -- "$mask")"
done
"$python" post_processing.py --images "$@" --masks "$folder/test/probabilities" --output "$folder/masks"

echo "5/5 other CTs, segmented in one step by the segmenter of pretrained/: predict.py"
"$python" -m datasets.phantom "$folder/other" --healthy 1 --diseased 2 --size 64 192 192 --seed 5
"$python" predict.py "$folder/other/ct" --lungs threshold --output "$folder/found" --device cpu
"$python" -m benchmarks.patients "$folder/other" --model-path pretrained --device cpu --quiet > "$folder/pretrained.txt"
mkdir "$folder/raw/lists"
cp "$folder/raw/id_txt/test.txt" "$folder/raw/id_txt/testh.txt" "$folder/raw/lists"
states=benchmarks/weak_supervision/states
"$python" -m benchmarks.patients "$folder/raw" --model-path $states/s-1.pth $states/gasnet-1.pth --device cpu --quiet \
    > "$folder/long.txt"

echo
echo "GASNet after a minute, one labelled scan:"
cat "$folder/gasnet.txt"
echo "S and GASNet of the size long of benchmarks/weak_supervision, one labelled scan, on the same test scans:"
cat "$folder/long.txt"
echo "the segmenter of pretrained/ on the other CTs, lungs given:"
cat "$folder/pretrained.txt"
cat <<END

found in the other CTs:         $folder/found/report.html
                                $folder/found/summary.csv, masks in $folder/found/masks
pictures of the training:       $gasnet/pictures: I, M, I_s, I_g; curves: tensorboard --logdir $gasnet
report of the test:             $folder/test/report.html
figures of the test scans:      $folder/test/figures
masks on the scans' own grids:  $folder/masks
scans to lay them over:         $folder/raw/ct
END
