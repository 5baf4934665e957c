#!/usr/bin/env bash
# From nothing to MixMatch's accuracy in a few minutes: installs the package into .venv, prepares the bundled digits,
# trains a small network on 2 labels a class: with MixMatch, and with neither the unlabelled loss nor MixUp. It reuses
# what is there already.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh ""

data="${ML_DATA:-$PWD/data}"
dataset=digits.1@20-100
train_dir=experiments/quickstart

python scripts/create_datasets.py digits --data_dir="$data"

train() {
  python ablation/ab_mixmatch.py --dataset=$dataset --data_dir="$data" --train_dir=$train_dir --seed=1 \
    --batch=16 --ema=.99 --filters=16 --repeat=1 --scales=2 --warmup_kimg=16 \
    --train_kimg=80 --report_kimg=8 --save_kimg=16 "$@"
}
echo; echo 'MixMatch: 20 labelled pictures and 1167 without labels.'
train --w_match=50 --beta=.75
echo; echo 'The same network, no unlabelled loss, no MixUp. (Unlabelled pictures still pass through batch norm.)'
train --w_match=0 --mixmode=.

echo
python scripts/extract_accuracy.py $train_dir/$dataset/*/ > /dev/null
python - "$train_dir/$dataset" <<'PYTHON'
import glob, json, sys

print('%-34s %s' % ('digits, 2 labels a class', 'test accuracy, %'))
for name, mode in (('MixMatch', 'xxy.yxy'), ('no unlabelled loss, no MixUp', '.')):
    (run,) = glob.glob('%s/*_mixmode%s_*' % (sys.argv[1], mode))
    print('%-34s %.1f' % (name, json.load(open(run + '/stats/accuracy.json'))['last01']))
PYTHON
echo
echo "The runs are in $PWD/$train_dir. For the commands above: source .venv/bin/activate. Curves, in a browser:"
echo "    $PWD/.venv/bin/tensorboard --logdir $PWD/$train_dir"
