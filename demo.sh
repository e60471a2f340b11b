#!/bin/sh
# The method in small, on synthetic chest CTs, on the CPU, in minutes: sh demo.sh [FOLDER]
# CTs -> crop -> training with one labelled scan, S alone and GASNet side by side -> test -> masks on the scans' own grids;
# then a GASNet trained on a GPU (pretrained/phantoms) on crops of the published size. FOLDER (default: demo/ in the
# project's folder) is replaced.
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

echo "1/7 synthetic chest CTs in HU: one with a lesion mask, others known as diseased or healthy"
"$python" -m benchmarks.weak_supervision.cohort "$folder/raw" --size demo --raw --processes 2

echo "2/7 crop to the lungs: lungCrop.py"
"$python" lungCrop.py "$folder/raw/ct" --labels "$folder/raw/lesion" --output "$folder/cohort" \
    --lungs "$folder/raw/lung" --size 16 64 64
cp -R "$folder/raw/id_txt" "$folder/cohort/id_txt"  # which scans train, validate and test

# Small crops and networks. Both runs differ in their config alone.
set -- "DATASET.ROOT=$folder/cohort" "EXP.OUTPUT_DIR=$folder/output" \
    "DATASET.SPLIT={LABELED: labels_1, WO_LABEL: diseased, HEALTHY: healthy, VALID: valid, VALIDH: validh, TEST: test,\
 TESTH: testh}" "IMAGE.SIZE=[16, 64, 64]" IMAGE.SLICES=16 "MODEL.WIDTH={UNET: 8, G: 8, D: 8}" SOLVER.ITER_MAX=300 \
    DATALOADER.NUM_WORKERS=0 DATALOADER.CACHE_MB=100 "INTERVAL={LOG: 20, VALID: 50, SAVE: 150, PICTURE: 150}"
gasnet="$folder/output/weak_recons_origImgToD_genImgToD_perception"
alone="$folder/output/supervised"

echo "3/7 training with one labelled scan: GASNet, and beside it S alone (train.py)"
OMP_NUM_THREADS=1 "$python" train.py --config-path configs/supervised.yaml --device cpu --is-validation --quiet "$@" &
beside=$!
OMP_NUM_THREADS=1 "$python" train.py --config-path configs/weak.yaml --device cpu --is-validation "$@" || {
    kill "$beside"
    exit 1
}
wait "$beside"

echo "4/7 test: test.py"
"$python" test.py --config-path configs/supervised.yaml --model-path "$alone/segmenter_best.pth" \
    --split TEST TESTH --device cpu --quiet "$@" > "$folder/alone.txt"
for state in "$gasnet"/state_*.pth; do :; done  # the last one
"$python" test.py --config-path configs/weak.yaml --model-path "$gasnet/segmenter_best.pth" --output "$folder/test" \
    --split TEST TESTH --device cpu --save-vis --generator-path "$state" "$@" > "$folder/gasnet.txt"

echo "5/7 paste back: post_processing.py"
set --
for mask in "$folder"/test/probabilities/*.nii.gz; do
    set -- "$@" "$folder/raw/ct/$(basename -- "$mask")"
done
"$python" post_processing.py --images "$@" --masks "$folder/test/probabilities" --output "$folder/masks"

echo "6/7 raw CTs of the published size, of another kind: lungs found by thresholding"
ready="$root/pretrained/phantoms"
large="$folder/published_size"
"$python" -m datasets.phantom "$large/raw" --healthy 1 --diseased 3 --size 96 224 224
"$python" lungCrop.py "$large/raw/ct" --labels "$large/raw/lesion" --output "$large/cohort" --lungs threshold
"$python" -m datasets.make_splits "$large/cohort" --healthy 'healthy_*' \
    --labeled 0 --valid 0 --validh 0 --test 3 --testh 1

echo "7/7 a GASNet trained on such CTs on a GPU: test.py"
"$python" test.py --config-path "$ready/settings.yaml" --model-path "$ready" --output "$large/test" \
    --split TEST TESTH --device cpu --save-vis --generator-path "$ready/networks.pth" \
    --images "$large/raw/ct" --labels "$large/raw/lesion" \
    "DATASET.ROOT=$large/cohort" DATASET.SPLIT.TEST=test_id_L DATASET.SPLIT.TESTH=test_id_H > "$large/scores.txt"

echo
echo "S alone, one labelled scan:"
cat "$folder/alone.txt"
echo "GASNet, one labelled scan:"
cat "$folder/gasnet.txt"
echo "trained on a GPU, other synthetic CTs, crops of 40x160x160:"
cat "$large/scores.txt"
cat <<END

masks on the scans' own grids:  $folder/masks
scans to lay them over:         $folder/raw/ct
table, one row per scan:        $folder/test/metrics.csv
report of the test:             $folder/test/report.html
reports of the training:        $gasnet/report.html
                                $alone/report.html
figures of the test scans:      $folder/test/figures
pictures of the training:       $gasnet/pictures
the GASNet trained on a GPU:    $large/test/report.html
END
