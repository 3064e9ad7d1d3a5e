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
Bible (vocabulary 4,096, 1,000 steps) it reaches a held-out MLM loss 2.1 nats under the unigram entropy and an RTD AUC of about .70.

Variants: `faithful` keeps the published code's three known defects of pretraining (positions drawn with replacement, no bias
correction, warm-up times decay), which are mended by default. `flash` sets attention dropout to 0, a named deviation that
fused attention needs: what one uses on TPUs and GPUs. All devices are used, on every host (README, "Many hosts"):

    python launch/pretrain.py --config=configs/pretrain.py:base,flash --distributed --workdir=gs://BUCKET/base --config.data.path=gs://...
    python launch/pretrain.py --config=configs/pretrain.py:large,flash --config.parallel.fsdp=16 --config.model.remat=full ...
    python launch/compile.py  --config=configs/pretrain.py:large,flash --topology=v5e:16x16      # what it needs there (docs/scale.md)
"""

import dataclasses

from ml_collections import ConfigDict, config_dict

from electra_jax import options
from electra_jax.models import config as configs

VARIANTS = ("faithful", "flash")

# rows a step, length, steps, peak rate, masked share (paper, table 6; google-research/electra configure_pretraining.py)
RECIPES = {
    "tiny": dict(batch_rows=32, length=64, steps=1_000, learning_rate=2e-3, mask_rate=0.15),
    "small": dict(batch_rows=128, length=128, steps=1_000_000, learning_rate=5e-4, mask_rate=0.15),
    "small_pp": dict(batch_rows=128, length=512, steps=4_000_000, learning_rate=5e-4, mask_rate=0.15),
    "base": dict(batch_rows=256, length=512, steps=766_000, learning_rate=2e-4, mask_rate=0.15),
    "base_pp": dict(batch_rows=256, length=512, steps=4_000_000, learning_rate=2e-4, mask_rate=0.15),
    "large": dict(batch_rows=2048, length=512, steps=1_750_000, learning_rate=2e-4, mask_rate=0.25),
}


def get_config(arg: str | None = None) -> ConfigDict:
    preset, variants = options.parse_arg(arg, presets=configs.PRESETS, default="small", flags=VARIANTS)
    recipe, tiny, faithful = RECIPES[preset], preset == "tiny", "faithful" in variants
    c = ConfigDict()
    c.preset = preset
    c.seed = 0

    c.init_from = ""  # begin with this model: a workdir, a folder of transformers, a TF1 checkpoint, or DISCRIMINATOR,GENERATOR
    c.init_network = ""  # take "discriminator" or "generator" of it alone; the other begins anew
    c.init_slots = False  # and the optimizer's memory; the schedule begins anew

    c.model = ConfigDict(dataclasses.asdict(configs.PRESETS[preset]))
    c.model.dtype = "auto"  # of matrix products: bfloat16 on TPU and GPU, float32 on CPU
    if "flash" in variants:
        c.model.attention_dropout = 0.0

    c.masking = ConfigDict()
    c.masking.rate = recipe["mask_rate"]
    c.masking.mask_fraction = 0.85  # of the chosen, shown as [MASK]; the rest stay as they are
    c.masking.with_replacement = faithful
    c.masking.whole_word = False

    c.objective = ConfigDict()
    c.objective.mlm_weight = 1.0
    c.objective.rtd_weight = 50.0

    c.optimizer = ConfigDict()
    c.optimizer.name = "muon" if tiny else "adamw"
    c.optimizer.learning_rate = recipe["learning_rate"]
    c.optimizer.muon_learning_rate = 0.02
    c.optimizer.beta1, c.optimizer.beta2, c.optimizer.epsilon = 0.9, 0.999, 1e-6
    c.optimizer.weight_decay = 0.01
    c.optimizer.bias_correction = not faithful
    c.optimizer.clip_norm = 1.0  # of both networks' gradients together; 0 = no clip
    c.optimizer.rates = ()  # (path regex, factor on the rate), the first match: (("discriminator/layers/", 0.5),)

    c.schedule = ConfigDict()
    c.schedule.warmup_steps = 100 if tiny else 10_000
    c.schedule.decay_steps = 0  # the rate reaches 0 here; 0 = train.steps (which then cannot change on resume)
    c.schedule.product = faithful

    c.data = ConfigDict()
    c.data.path = ""  # a folder of launch/prepare.py's, or several: a,b
    c.data.weights = config_dict.placeholder(tuple)  # of the several: (0.7, 0.3); unset = by their rows
    c.data.length = recipe["length"]

    c.train = ConfigDict()
    c.train.steps = recipe["steps"]
    c.train.batch_rows = recipe["batch_rows"]
    c.train.accumulation_steps = 1  # micro-batches a step: the same result to rounding, in less memory
    c.train.max_non_finite_steps = 10  # in a row, each skipped; then the run stops
    c.train.hang_secs = 1800.0  # no step for so long: all stacks are printed, and the process exits 42

    c.log = ConfigDict()
    c.log.every_steps = 10 if tiny else 100
    c.log.tensorboard = True
    c.log.profile_steps = (0, 0)  # [first, last): a trace for TensorBoard or Perfetto

    c.eval = ConfigDict()
    c.eval.every_steps = 250 if tiny else 5_000  # 0 = only at the end
    c.eval.max_rows = 1_000 if tiny else 2_000
    c.eval.batch_rows = 32

    c.checkpoint = ConfigDict()
    c.checkpoint.every_steps = 250 if tiny else 1_000
    c.checkpoint.keep = 3
    c.checkpoint.keep_every_steps = 0  # and every so many steps for good; 0 = none

    c.parallel = ConfigDict()
    c.parallel.executor = "auto"  # jit, shard_map or pmap; auto: shard_map for a mesh of data alone, jit elsewhere
    c.parallel.slices = 1  # of a TPU, joined by the data-center network
    c.parallel.data = -1  # devices that share the rows; -1: those which the others leave
    c.parallel.fsdp = 1  # devices that share the rows, and the parameters and optimizer state too
    return c
