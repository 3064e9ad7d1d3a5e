"""Objectives, optimizers and sizes compared at equal compute: launch/compare.py.

Every entry is pretrained to the same budget of FLOPs, those of its forward and backward passes with all its networks, on the same rows,
with several seeds; then it is scored on minimal pairs by each score that it has a head for, and fine-tuned on tasks.

workdir/ENTRY/flops-F/seed-N/                     a run of pretraining
workdir/ENTRY/flops-F/seed-N-fine-tuning/TASK/    the runs that were fine-tuned from it (finetune/transfer.py)
workdir/rows.jsonl                                what is known of each run, written anew after each of its parts: the last line of a
                                                  run counts. Table and figure are made from this file alone
workdir/table.md, figure.svg
"""
