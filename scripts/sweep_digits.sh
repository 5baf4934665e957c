#!/usr/bin/env bash
# Prints the runs of Table 4 in miniature, on the digits that come with scikit-learn: 2 labels a class, a small network,
# three splits. These are 33 runs, which take less than half an hour on 2 idle cores. See sweep_table4.sh for arguments.
#
#     python scripts/create_datasets.py digits
#     scripts/sweep_digits.sh | bash
#     python scripts/report.py experiments/digits
#
# These commands can be repeated: they keep what is there already, and the runs continue from their checkpoints.
set -euo pipefail
exec "$(dirname "$0")/sweep_table4.sh" --dataset=digits.1@20-100 --seeds=1,2,3 --train_dir=experiments/digits --seed=1 \
  --batch=16 --ema=.99 --filters=16 --repeat=1 --scales=2 --warmup_kimg=16 --w_match=50 \
  --train_kimg=64 --report_kimg=1 --save_kimg=16 "$@"
