"""Pretraining, one page. The argument is a preset and variants; every field can be overridden, typed and checked.

    python launch/pretrain.py --config=configs/pretrain.py:small --workdir=runs/small --config.data.path=data/wiki
    python launch/pretrain.py --config=configs/pretrain.py:tiny,faithful --workdir=runs/t --config.train.steps=500 ...

| preset   | what                         | rows       | steps  | trained on, for (paper, table 1) | expect (source)         |
|----------|------------------------------|------------|--------|----------------------------------|-------------------------|
| tiny     | ours: 2 layers, rotary, Muon | 32 x 64    | 1 K    | 2 CPU cores, 2 to 4 minutes      | see below               |
| small    | the paper's ELECTRA-Small    | 128 x 128  | 1 M    | one V100, 4 days                 | GLUE dev 79.9 (paper)   |
| small_pp | the released electra_small   | 128 x 512  | 4 M    | not stated                       | GLUE test 77.4 (README) |
| base     | the paper's ELECTRA-Base     | 256 x 512  | 766 K  | 16 TPUv3, 4 days                 | GLUE dev 85.1 (paper)   |
| base_pp  | the released electra_base    | 256 x 512  | 4 M    | not stated                       | GLUE test 82.7 (README) |
| large    | the released electra_large   | 2048 x 512 | 1.75 M | not stated                       | GLUE dev 89.5 (paper)   |

The published presets keep the published values exactly (learned positions, AdamW): right for a million steps, but they do not leave the
level of word frequencies within the first thousands. `tiny` is a preset of ours for minutes and laptops: rotary positions let
attention find the word before from the first step, and Muon on the layers' matrices makes the discriminator learn. On the King James
Bible (vocabulary 4,096, 1,000 steps) it reaches a held-out MLM loss 2.1 nats under the unigram entropy and an RTD AUC of about .71, and
what it learned is worth something: fine-tuned on CoNLL-2000 chunking (2,000 sentences, 5 epochs, rate 3e-3) three seeds end at accuracies
of .903 to .907, random weights at .889 to .896, and runs without Muon's weight decay at .886 to .893.

Variants: `faithful` keeps the published code's three known defects of pretraining (positions drawn with replacement, no bias
correction, warm-up times decay), which are mended by default. `flash` sets attention dropout to 0, a named deviation that
fused attention needs: what one uses on TPUs and GPUs. The name of another objective (mlm, electra_15, replace_mlm, all_tokens_mlm,
electric, coco_clm, mntp_clm) trains on that, masked as it is published: `tiny,mlm` has BERT's objective; docs/objectives.md has all.

All devices are used, on every host (README, "Many hosts"):

    python launch/pretrain.py --config=configs/pretrain.py:base,flash --distributed --workdir=gs://BUCKET/base --config.data.path=gs://...
    python launch/pretrain.py --config=configs/pretrain.py:large,flash --config.parallel.fsdp=16 --config.model.remat=full ...
    python launch/compile.py  --config=configs/pretrain.py:large,flash --topology=v5e:16x16      # what it needs there (docs/scale.md)

What is not said here has the default of its record (electra_jax/*/config.py), which `launch/pretrain.py --help` lists with its meaning.
"""

import dataclasses

from ml_collections import ConfigDict

from electra_jax.cli import UserError
from electra_jax.data.config import DataConfig
from electra_jax.models.config import PRESETS
from electra_jax.objectives.config import MaskingConfig
from electra_jax.options import parse_arg
from electra_jax.recipe import Recipe
from electra_jax.store.config import CheckpointConfig
from electra_jax.train.config import EvalConfig, OptimizerConfig, ScheduleConfig, TrainConfig
from electra_jax.watch.config import LogConfig

BERT = dict(mask_fraction=0.8, random_fraction=0.1)  # arXiv 1810.04805, 3.1
# Another objective than ELECTRA's, by name: what its publication sets otherwise, by section (docs/objectives.md).
OBJECTIVE_VARIANTS = {
    "electra_15": {},
    "replace_mlm": {},
    "all_tokens_mlm": {},
    "mlm": {"masking": BERT},
    "electric": {},
    "coco_clm": {"objective": dict(sample_dropout=False), "model": dict(generator_hidden_fraction=1.0, generator_layers_fraction=0.3333)},
    "mntp_clm": {"masking": BERT},
}
VARIANTS = ("faithful", "flash", *OBJECTIVE_VARIANTS)

# rows a step, length, steps, peak rate, masked share (paper, table 6; google-research/electra configure_pretraining.py)
PUBLISHED = {
    "small": dict(batch_rows=128, length=128, steps=1_000_000, learning_rate=5e-4, mask_rate=0.15),
    "small_pp": dict(batch_rows=128, length=512, steps=4_000_000, learning_rate=5e-4, mask_rate=0.15),
    "base": dict(batch_rows=256, length=512, steps=766_000, learning_rate=2e-4, mask_rate=0.15),
    "base_pp": dict(batch_rows=256, length=512, steps=4_000_000, learning_rate=2e-4, mask_rate=0.15),
    "large": dict(batch_rows=2048, length=512, steps=1_750_000, learning_rate=2e-4, mask_rate=0.25),
}
TINY = dict(
    optimizer=OptimizerConfig(name="muon", learning_rate=2e-3),
    schedule=ScheduleConfig(warmup_steps=100),
    data=DataConfig(length=64),
    train=TrainConfig(steps=1_000, batch_rows=32),
    log=LogConfig(every_steps=10),
    eval=EvalConfig(every_steps=250, max_rows=1_000),
    checkpoint=CheckpointConfig(every_steps=250),
)


def published(preset: str) -> Recipe:
    values = PUBLISHED[preset]
    return Recipe(
        masking=MaskingConfig(rate=values["mask_rate"]),
        optimizer=OptimizerConfig(learning_rate=values["learning_rate"]),
        data=DataConfig(length=values["length"]),
        train=TrainConfig(steps=values["steps"], batch_rows=values["batch_rows"]),
    )


def get_config(arg: str | None = None) -> ConfigDict:
    preset, variants = parse_arg(arg, presets=tuple(PRESETS), default="small", flags=VARIANTS)
    recipe = Recipe(**TINY) if preset == "tiny" else published(preset)
    # The type of matrix products is the platform's choice: bfloat16 on TPU and GPU, float32 on CPU.
    model = dataclasses.replace(PRESETS[preset], dtype="auto")
    if "flash" in variants:
        model = dataclasses.replace(model, attention_dropout=0.0)
    recipe = dataclasses.replace(recipe, preset=preset, model=model)
    if len(named := sorted(variants & OBJECTIVE_VARIANTS.keys())) > 1:
        raise UserError(f"the config's variants name {len(named)} objectives, {', '.join(named)}: name one, or use objective.name=mixture")
    for name in named:
        changes = {"objective": {}, **OBJECTIVE_VARIANTS[name]}
        changes["objective"] = {"name": name, **changes["objective"]}
        sections = {section: dataclasses.replace(getattr(recipe, section), **values) for section, values in changes.items()}
        recipe = dataclasses.replace(recipe, **sections)
    if "faithful" in variants:
        recipe = dataclasses.replace(
            recipe,
            masking=dataclasses.replace(recipe.masking, with_replacement=True),
            optimizer=dataclasses.replace(recipe.optimizer, bias_correction=False),
            schedule=dataclasses.replace(recipe.schedule, product=True),
        )
    return recipe.config()
