"""Objectives, optimizers and sizes compared at equal compute: launch/compare.py.

Every entry is pretrained to the same budget of FLOPs, those of its forward and backward passes with all its networks, on the same rows,
with several seeds; then it is scored on minimal pairs by each score that it has a head for, and fine-tuned on tasks.

workdir/ENTRY/flops-F/seed-N/    a run of pretraining
workdir/fine-tuning/             runs of finetune/transfer.py, and transfer.jsonl with their rows
workdir/rows.jsonl               one line per run, added when everything about it is known; table and figure are made from this file alone
workdir/table.md, figure.svg
"""
