#!/bin/sh
# The whole method on synthetic chest CTs, on the CPU, in minutes: sh demo.sh [FOLDER]
# Phantoms -> crop -> splits -> training -> test -> masks on the scans' own grids; then a GASNet trained on a GPU
# (pretrained/phantoms) on crops of the published size. FOLDER (default: demo/ in the project's folder) is replaced.
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
config="$root/configs/demo.yaml"
set -- "EXP.OUTPUT_DIR=$folder/output" "DATASET.ROOT=$folder/cohort"
run="$folder/output/demo_recons_origImgToD_genImgToD_perception_MIL"
cd "$root"

echo "1/7 synthetic chest CTs in HU"
"$python" -m datasets.phantom "$folder/raw" --healthy 16 --diseased 44 --size 48 96 96

echo "2/7 crop to the lungs: lungCrop.py"
"$python" lungCrop.py "$folder/raw/ct" --labels "$folder/raw/lesion" --output "$folder/cohort" \
    --lungs threshold --size 16 64 64

echo "3/7 splits: which scans train, validate and test"
"$python" -m datasets.make_splits "$folder/cohort" --healthy 'healthy_*' \
    --labeled 14 --valid 6 --validh 2 --test 8 --testh 4

echo "4/7 training: train.py"
# The untrained segmenter: one iteration from the same seed, with a learning rate of almost zero.
"$python" train.py --config-path "$config" --device cpu --quiet "$@" "EXP.OUTPUT_DIR=$folder/untrained" EXP.ID=demo \
    SOLVER.ITER_MAX=1 SOLVER.OPTIMIZER.U.LR=1e-12
"$python" train.py --config-path "$config" --device cpu --is-validation "$@"

echo "5/7 test: test.py, before and after training"
"$python" test.py --config-path "$config" --model-path "$folder/untrained/demo/segmenter_last.pth" \
    --split TEST TESTH --device cpu --quiet "$@" > "$folder/before.txt"
for state in "$run"/state_*.pth; do :; done  # the last one
"$python" test.py --config-path "$config" --model-path "$run/segmenter_best.pth" --output "$folder/test" \
    --split TEST TESTH --device cpu --save-vis --generator-path "$state" "$@" \
    > "$folder/after.txt"

echo "6/7 paste back: post_processing.py"
set --
for mask in "$folder"/test/probabilities/*.nii.gz; do
    set -- "$@" "$folder/raw/ct/$(basename -- "$mask")"
done
"$python" post_processing.py --images "$@" --masks "$folder/test/probabilities" --output "$folder/masks"

echo "7/7 a GASNet trained on a GPU, on crops of the published size: test.py"
ready="$root/pretrained/phantoms"
large="$folder/published_size"
"$python" -m datasets.phantom "$large/raw" --healthy 1 --diseased 3 --size 96 224 224
"$python" lungCrop.py "$large/raw/ct" --labels "$large/raw/lesion" --output "$large/cohort" --lungs threshold
"$python" -m datasets.make_splits "$large/cohort" --healthy 'healthy_*' \
    --labeled 0 --valid 0 --validh 0 --test 3 --testh 1
"$python" test.py --config-path "$ready/settings.yaml" --model-path "$ready" --output "$large/test" \
    --split TEST TESTH --device cpu --save-vis --generator-path "$ready/networks.pth" \
    --images "$large/raw/ct" --labels "$large/raw/lesion" \
    "DATASET.ROOT=$large/cohort" DATASET.SPLIT.TEST=test_id_L DATASET.SPLIT.TESTH=test_id_H > "$large/scores.txt"

echo
echo "before training:"
cat "$folder/before.txt"
echo "after training:"
cat "$folder/after.txt"
echo "trained on a GPU, other phantoms, crops of 40x160x160:"
cat "$large/scores.txt"
cat <<END

masks on the scans' own grids:  $folder/masks
scans to lay them over:         $folder/raw/ct
table, one row per scan:        $folder/test/metrics.csv
report of the test:             $folder/test/report.html
report of the training:         $run/report.html
figures of the test scans:      $folder/test/figures
pictures of the training:       $run/pictures
the GASNet trained on a GPU:    $large/test/report.html
END
