"""The tasks by which docs/results.md judges models, with the same budget for every model. launch/transfer.py runs them.

Each task sets fields of configs/finetune.py; a flag --config.SECTION.NAME=VALUE takes precedence over them.
"""

SHORT = {"train.steps": 600, "finetune.length": 128, "seeds": 5}
LONG = {"train.steps": 150, "finetune.length": 256, "seeds": 5}


def get_tasks(data: str) -> dict[str, tuple[str, dict]]:
    """{name: (argument of configs/finetune.py, {field: value})}. data: the folder that holds the tasks' folders."""
    imdb = {"task.path": f"{data}/imdb/train.jsonl.xz", "task.label_column": "label"}
    return {
        "cola": ("cola", {"task.path": f"{data}/glue", **SHORT}),
        "sst2": ("sst2", {"task.path": f"{data}/glue", **SHORT}),
        "stsb": ("stsb", {"task.path": f"{data}/glue", **SHORT}),
        "rte": ("rte", {"task.path": f"{data}/glue", **SHORT}),
        "conll2000": ("conll2000", {"task.path": data, **SHORT}),
        "wnut17": ("wnut17", {"task.path": data, **SHORT}),
        "ud": ("ud", {"task.path": data, **SHORT}),
        "imdb": ("own", {**imdb, **LONG}),
        "squad1": ("squad1", {"task.path": data, **LONG, "seeds": 3}),
        "squad2": ("squad2", {"task.path": data, **LONG, "seeds": 3}),
    }
