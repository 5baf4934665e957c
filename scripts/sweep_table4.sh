#!/usr/bin/env bash
# Prints the runs of the paper's Table 4, which shows what each part of MixMatch is worth on CIFAR-10. Each line is a
# complete command, to be run from the repository's root.
#
#     scripts/sweep_table4.sh [--dataset NAME]... [--seeds N,N,...] [FLAG]... > sweep.txt
#
#     --dataset   may be given more than once; default: cifar10.3@250-1 and cifar10.3@4000-1, which are the paper's
#     --seeds     split seeds; each replaces the split seed in the datasets' names
#     --rows      another table than scripts/table4.csv, whose flags may begin with another method's script. It is a CSV
#                 file with a column "flags", as spreadsheets write it: a cell with a comma or a quote stands in quotes,
#                 as in MixMatch,"--p_unlabeled=1,2". In a cell, flags are divided as the shell does it.
#     FLAG        a flag of ablation/ab_mixmatch.py, for every run, such as --seed=1 or --train_dir=FOLDER. The
#                 published sweep leaves --w_match at its default, 100; the paper's text says 75.
#
# Cost: 11 runs for each dataset and seed. Each run has 65,536 kimg, which are 1,048,576 updates of 64 labelled images:
# 15 hours if a machine makes 20 updates (1280 images in the progress bar) a second. K = 1, 3 and 4 cost 0.64, 1.36 and
# 1.73 times that.
# Error to expect: the paper's, in percent, in the last two columns of scripts/table4.csv (250 and 4000 labels).
# scripts/report.py shows yours next to them.
set -euo pipefail

fail() {
  echo "Error: $*" >&2
  exit 2
}

datasets=() seeds='' common=() rows=$(dirname "$0")/table4.csv beta=--beta=0.75
while [ $# -gt 0 ]; do
  case $1 in
    --dataset | --seeds | --rows) [ $# -gt 1 ] || fail "$1 needs a value"; set -- "$1=$2" "${@:3}" ;;
    --dataset=*) datasets+=("${1#*=}"); shift ;;
    --seeds=*) seeds=${1#*=}; shift ;;
    --rows=*) rows=${1#*=} beta=''; shift ;;
    --help) grep -E '^#( |$)' "$0" | cut -c3-; exit ;;
    --*) common+=("$1"); shift ;;
    *) fail "$1 is not a flag: a flag's value goes behind =, as in --seed=1" ;;
  esac
done
[ ${#datasets[@]} -gt 0 ] || datasets=(cifar10.3@250-1 cifar10.3@4000-1)
[[ ${seeds:-0} =~ ^[0-9]+(,[0-9]+)*$ ]] || fail "--seeds=$seeds is not a list such as 1,2,3"
table=$(python3 - "$rows" 2> /dev/null << 'END'  # A line for each row: its script, and its flags, quoted for the shell.
import csv, shlex, sys

with open(sys.argv[1], newline='', encoding='utf-8-sig') as file:
    for row in csv.DictReader(file, strict=True):
        assert None not in row  # More cells than the first line has.
        script = [] if '.py' in row['flags'] else ['ablation/ab_mixmatch.py']
        print(shlex.join(script + shlex.split(row['flags'])))
END
) || fail "--rows=$rows cannot be read as a CSV table with a column flags, where a cell with a comma stands in quotes (python3 reads it)"
for dataset in "${datasets[@]}"; do
  [[ $dataset =~ ^([^.]+)\.([0-9]+)@(([0-9]+|all)-[0-9]+)$ ]] || fail "--dataset=$dataset is not such as cifar10.3@250-1"
  name=${BASH_REMATCH[1]} own_seed=${BASH_REMATCH[2]} size=${BASH_REMATCH[3]}
  for seed in $(tr , ' ' <<< "${seeds:-$own_seed}"); do
    while read -r script flags; do
      printf 'python %s' "$script"
      printf ' %q' "--dataset=$name.$seed@$size" ${beta:+"$beta"} ${common[@]+"${common[@]}"}
      echo "${flags:+ $flags}"
    done <<< "$table"
  done
done
