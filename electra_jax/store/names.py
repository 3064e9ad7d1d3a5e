"""The names of what lies in a run's workdir."""

CONFIG = "config.json"  # whose run it is; written last of all that a start checks
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"  # a folder a step
TOKENIZER = "tokenizer"
TENSORBOARD = "tensorboard"
PROFILE = "profile"
REPORT = "report.html"
MODEL = "model"  # of a complete fine-tuning: the best seed's, with checkpoints/ of its own
LOCK = ".lock"
