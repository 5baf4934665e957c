#!/usr/bin/env bash
# Prints the 35 runs of a small comparison of methods on real pictures: MixMatch, Interpolation Consistency Training (an
# ablation of MixMatch), MixUp, VAT, Mean Teacher, Pseudo-Label and the Pi-Model, on CIFAR-10 at 16x16 pixels with 250
# labels, a small network, splits 1 to 5. See sweep_table4.sh for arguments; a FLAG must be one that all methods have.
#
#     python scripts/create_datasets.py cifar10 --size 16x16 --name cifar10-16
#     scripts/sweep_methods.sh | bash
#     python scripts/report.py experiments/methods --out=report
#
# methods.csv beside this script has the flags of each method. The weights, beta and weight decays are those of the
# published comparison on CIFAR-10. The warm-up is 0.4 of the run, as published; MixMatch's is that of docs/study.md. VAT's
# perturbation, published as 6, is 3: a picture has a quarter of the pixels, and each changes as much.
#
# These commands can be repeated: they keep what is there already, and the runs continue from their checkpoints.
set -euo pipefail
here=$(dirname "$0")
exec "$here/sweep_table4.sh" --rows="$here/methods.csv" --dataset=cifar10-16.1@250-1 --seeds=1,2,3,4,5 \
  --train_dir=experiments/methods --seed=1 --filters=16 --repeat=1 --batch=16 --train_kimg=160 --report_kimg=4 \
  --save_kimg=32 "$@"
