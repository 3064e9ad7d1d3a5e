"""Models in and out: transformers' folders, Google's TF1 checkpoints, our own workdirs; and how a run begins with one."""
