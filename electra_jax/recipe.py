"""The recipe of a run: every value of its config, typed and checked once. Nothing below this file reads a config's dictionary.

A section of the config is a record of the folder that it speaks of (`models/config.py`, `train/config.py` ...), where each value has
its type, its default and its meaning. `parse` reads a config, `resolve` fills in what the devices decide, `stored` is what config.json
and the checkpoints keep; resume.py compares it.
"""

import dataclasses
import json
import os
import pathlib
import re
import sys
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

from electra_jax import cli, options
from electra_jax.cli import UserError
from electra_jax.data.config import DataConfig
from electra_jax.models.attention import choice
from electra_jax.models.config import PRESETS, ElectraConfig
from electra_jax.objectives import OBJECTIVES
from electra_jax.objectives.config import MaskingConfig, ObjectiveConfig
from electra_jax.options import load, option
from electra_jax.parallel.config import ParallelConfig
from electra_jax.store.config import CheckpointConfig
from electra_jax.train.config import EvalConfig, OptimizerConfig, ScheduleConfig, TrainConfig
from electra_jax.views import Run
from electra_jax.watch.config import LogConfig

_ROOT = pathlib.Path(__file__).resolve().parents[1]
FORMAT = 3  # of what `stored` gives; what was stored before had no number


@dataclasses.dataclass(frozen=True)
class RunRecipe:
    """What every run has: a task adds sections of its own by a subclass. Raises UserError where sections contradict each other."""

    preset: str = option("small", "the name of what the other values began as")
    seed: int = option(0, "of the first parameters, the order of rows, masks, samples and dropout")
    init_from: str = option("", "begin with this model: a workdir, a folder of transformers, a TF1 checkpoint, or DISCRIMINATOR,GENERATOR")
    init_network: str = option(
        "", "of init_from take `discriminator` or `generator` alone; `THERE:HERE`, or two of these, takes it as another"
    )
    model: ElectraConfig = ElectraConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    train: TrainConfig = TrainConfig()
    log: LogConfig = LogConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    parallel: ParallelConfig = ParallelConfig()
    # No values of the run: which fields a person set by a flag, and lines to say about those that follow from others.
    given: frozenset[str] = dataclasses.field(default=frozenset(), compare=False)
    notes: tuple[str, ...] = dataclasses.field(default=(), compare=False)

    def __post_init__(self):
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed is {self.seed}: it must be from 0 to 2**32 - 1")
        self.check_needs_init_from("init_network")
        warmup, end = self.schedule.warmup_steps, self.schedule.decay_steps or self.train.steps
        if not 0 <= warmup < end:
            name = "schedule.decay_steps" if self.schedule.decay_steps else "train.steps"
            raise UserError(f"schedule.warmup_steps is {warmup}: it must be from 0 to below {name}={end}")
        if self.init_network:
            _check_networks(self.init_network)

    def check_needs_init_from(self, name: str) -> None:
        if getattr(self, name) and not self.init_from:
            raise UserError(f"{name} is {getattr(self, name)} and there is no init_from: name the model to begin with, or leave it out")

    @property
    def run(self) -> Run:
        """What warnings go by."""
        rule = self.optimizer
        return Run(self.train.steps, self.schedule.warmup_steps, self.model.positions, rule.name, rule.muon_weight_decay)

    @classmethod
    def sections(cls) -> dict[str, type]:
        """{section: its record}."""
        hints = typing.get_type_hints(cls)
        return {field.name: hints[field.name] for field in dataclasses.fields(cls) if dataclasses.is_dataclass(hints[field.name])}

    @classmethod
    def help_lines(cls) -> list[str]:
        """Every field with its flag, type, default and meaning, for --help."""
        lines = ["Fields of the config (defaults before the preset; override any with --config.NAME=VALUE):", *options.help_lines(cls, "")]
        for name, record in cls.sections().items():
            lines += ["", *options.help_lines(record, name)]
        return lines

    @classmethod
    def check_flags(cls, argv: Sequence[str]) -> None:
        """Raises UserError where a flag --config.NAME names no field; it lists those of the section."""
        sections = cls.sections()
        for flag in argv:
            if re.match(r"--?config\.\w+\.\w+\.", flag):
                raise UserError(f"{flag}: no such field: a field is --config.NAME=VALUE or --config.SECTION.NAME=VALUE")
            match = re.match(r"--?(?:no)?config\.(?:(\w+)\.)?(\w+)(=|$)", flag)
            if match is None or (match[1] is None and match[2] in sections):
                continue
            section, name = match[1] or "", match[2]
            if section and section not in sections:
                raise UserError(f"{flag}: no section {section!r}{options.hint(section, sections)}: {', '.join(sections)}")
            options.check_name(sections[section] if section else cls, name, section)

    @classmethod
    def flag(cls, default: str) -> Any:
        """Defines --config=FILE:ARGUMENT with its overrides --config.NAME=VALUE; returns the holder of its ConfigDict.

        default: a file of configs/ and its argument, found from any folder. A mistake ends the program with one line.
        """
        from ml_collections import config_flags

        named = default
        if not os.path.exists(default.split(":")[0]):
            default = str(_ROOT / default)
        with cli.defining(sys.argv[0]):
            _find_file(sys.argv, named)
            cls.check_flags(sys.argv)
            return config_flags.DEFINE_config_file("config", default, "The config file and its preset.", lock_config=True)

    @classmethod
    def flags_of(cls, argv: Sequence[str]) -> frozenset[str]:
        """The fields, as "section.field", that flags of a command line set."""
        return frozenset(match[1] for flag in argv if (match := re.match(r"--?(?:no)?config\.([\w.]+)(=|$)", flag)))

    @classmethod
    def values_of(cls, config: Any, argv: Sequence[str]) -> dict[str, Any]:
        """{"section.field": its value in the ConfigDict} of those that flags of a command line set."""
        return {field: _at(config, field) for field in cls.flags_of(argv)}

    @classmethod
    def of(cls, config: Any, values: Mapping[str, Any]) -> Self:
        """The recipe of a ConfigDict with these values in it, {"section.field": value}, as if flags had set them. UserError for a name that
        is no field, and for a value of another type."""
        for name, value in values.items():
            cls.check_flags([f"--config.{name}={value}"])
            try:
                config.update_from_flattened_dict({name: value})
            except (TypeError, ValueError) as error:
                raise UserError(f"{name} is {value!r}: {cli.one_line(error)}") from None
        return cls.parse(config, values)

    @classmethod
    def parse(cls, config: Mapping[str, Any], given: Iterable[str] = ()) -> Self:
        """The recipe of a config: a ConfigDict of configs/, or what `stored` gave.

        What the config lacks has the default of its record. A warm-up that was not given is at most a tenth of the run. UserError names
        the flag of what is wrong. given: fields that a person set by a flag.
        """
        if not isinstance(config, Mapping) and not hasattr(config, "to_dict"):
            raise UserError(f"the config is {config!r}: get_config must return an ml_collections.ConfigDict, as configs/pretrain.py does")
        values, sections = config.to_dict() if hasattr(config, "to_dict") else dict(config), cls.sections()
        for name in (name for name, value in values.items() if isinstance(value, dict)):
            if name not in sections:
                raise UserError(
                    f"the config has a section {name!r}, and this command reads {', '.join(sections)}; "
                    "is --config the config of another command?"
                )
        top = options.parse(cls, {name: value for name, value in values.items() if name not in (*sections, "format")}, "")
        for name, record in sections.items():
            if not isinstance(values.get(name, {}), dict):
                raise UserError(f"{name} is {values[name]!r}: it is a section of the config, such as {name}.{options.names(record)[0]}")
        parsed = {name: options.parse(record, values.get(name, {}), name) for name, record in sections.items()}
        given, notes = frozenset(given), []
        schedule = parsed["schedule"]
        tenth = (schedule.decay_steps or parsed["train"].steps) // 10
        if schedule.warmup_steps > tenth and "schedule.warmup_steps" not in given and "format" not in values:  # what is stored is decided
            notes.append(f"schedule.warmup_steps={tenth}: a tenth of the run, because the config's {schedule.warmup_steps:,} are more")
            parsed["schedule"] = dataclasses.replace(schedule, warmup_steps=tenth)
        return dataclasses.replace(top, **parsed, given=given, notes=tuple(notes))

    def config(self) -> Any:
        """As an ml_collections ConfigDict, for a file in configs/: its fields can then be overridden by flags, typed."""
        from ml_collections import ConfigDict, config_dict

        def part(record: Any) -> ConfigDict:
            found = ConfigDict()
            kinds = options.plain_types(type(record))
            for name, value in options.values(record).items():
                found[name] = config_dict.placeholder(kinds[name]) if value is None else value
            return found

        whole = part(self)
        for name in self.sections():
            whole[name] = part(getattr(self, name))
        return whole

    def resolved(self, platform: Any, length: int, networks: Sequence[str], directed: bool = False) -> Self:
        """With what was left to the platform (a parallel.mesh.Platform) decided: the type of products, and the path of attention in rows
        of `length` tokens, which must heed a DirectedBatch where it is `directed`. UserError where the model has no sizes for one of the
        networks."""
        dtype = platform.dtype if self.model.dtype == "auto" else self.model.dtype
        model = dataclasses.replace(self.model, dtype=dtype)
        path = choice.choose(model.attention, platform.name, length, [model.encoder(name) for name in networks], directed)
        return dataclasses.replace(self, model=dataclasses.replace(model, attention=path))

    def value(self, field: str) -> Any:
        """Of "section.field", as a JSON value."""
        return _at(self.stored(), field)

    def stored(self) -> dict[str, Any]:
        """JSON values."""
        tree = {**options.values(self), **{name: options.values(getattr(self, name)) for name in self.sections()}}
        return {"format": FORMAT, **json.loads(json.dumps(tree))}


@dataclasses.dataclass(frozen=True)
class Recipe(RunRecipe):
    """A run of pretraining."""

    init_slots: bool = option(False, "of init_from take the optimizer's memory too; the schedule begins anew")
    masking: MaskingConfig = MaskingConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    data: DataConfig = DataConfig()

    def __post_init__(self):
        super().__post_init__()
        self.check_needs_init_from("init_slots")
        if not (self.objective.train_generator or self.init_from):
            raise UserError(
                "objective.train_generator=False and there is no init_from: the generator would stay random: name one that is trained"
            )
        if self.objective.temperature_decay_steps > self.train.steps:
            raise UserError(
                f"objective.temperature_decay_steps is {self.objective.temperature_decay_steps:,} and train.steps is {self.train.steps:,}: "
                "the temperature would hardly change; choose fewer"
            )
        for part in self.objective.parts:
            if part.steps > self.train.steps:
                raise UserError(
                    f"objective.mixture changes the weight of {part.name} over {part.steps:,} steps and train.steps is "
                    f"{self.train.steps:,}: it must end within the run"
                )

    def of_rows(self, length: int, vocab_size: int) -> Self:
        """With the length and the vocabulary of the rows that the run trains on, where the config says others."""
        data, model = dataclasses.replace(self.data, length=length), dataclasses.replace(self.model, vocab_size=vocab_size)
        if model.positions == "rotary":  # no table ends there; the model is used and exported for as long texts as it was trained on
            model = dataclasses.replace(model, max_length=max(model.max_length, length))
        if (data, model) == (self.data, self.model):
            return self
        before = f"{self.data.length} and {self.model.vocab_size:,}"
        note = f"data.length={length} and model.vocab_size={vocab_size}, as the rows are (in the config: {before})"
        return dataclasses.replace(self, data=data, model=model, notes=(*self.notes, note))

    def resolve(self, platform: Any, networks: Sequence[str] | None = None) -> Self:
        """With what the platform decides. networks: that are trained; None: the objective's. UserError where the config sets a value that
        the objective does not read."""
        module = load(OBJECTIVES, self.objective.name)
        self.objective.refuse_unread(module.reads(self.objective))
        self._check_two_networks(module.networks(self.objective))
        networks = list(module.networks(self.objective)) if networks is None else networks
        return self.resolved(platform, self.data.length, networks, module.directed(self.objective))

    def _check_two_networks(self, networks: Sequence[str]) -> None:
        """UserError where the config speaks of a generator and the objective has none."""
        if any(name.startswith("generator") for name in networks):
            return
        given = sorted(name for name in self.given if name.startswith("model.generator_"))
        if self.model.sharing != "shared":
            given.append(f"model.sharing={self.model.sharing}")
        if given:
            raise UserError(f"{given[0]} is of a generator that is a network, and {self.objective.name} has none here: leave it out")


def _check_networks(words: str) -> None:
    """UserError unless init_network is a name, or pairs of names, no two of which are taken as one network."""
    names = ("discriminator", "generator")
    pairs = [pair.split(":") for pair in words.split(",")]
    are_pairs = all(len(pair) == 2 and set(pair) <= set(names) for pair in pairs) and len({here for _, here in pairs}) == len(pairs)
    if words not in names and not are_pairs:
        raise UserError(
            f"init_network is {words!r}: it must be discriminator or generator, or THERE:HERE, such as discriminator:generator, "
            "or two of these with a comma between"
        )


def _at(tree: Mapping[str, Any], field: str) -> Any:
    section, _, name = field.rpartition(".")
    return tree[section][name] if section else tree[name]


def _find_file(argv: list[str], default: str) -> None:
    """Where --config names a file that is not here but lies beside the package, as configs/pretrain.py does, its whole path takes the
    name's place in `argv`. UserError unless there is a file; a bare preset is a common slip."""
    for place, flag in enumerate(argv):
        match = re.fullmatch(r"(--?config)(?:=(.*))?", flag)
        if match is None:
            continue
        at = place if match[2] is not None else place + 1
        value = match[2] if match[2] is not None else (argv[at] if at < len(argv) else "")
        file, colon, argument = value.partition(":")
        if os.path.isfile(file):
            _check_python(file)
            continue
        if file and (_ROOT / file).is_file():
            argv[at] = (f"{match[1]}=" if at == place else "") + f"{_ROOT / file}{colon}{argument}"
            continue
        file, usual = default.split(":")
        preset = argument or (value if value.split(",")[0] in PRESETS else usual)
        raise UserError(f"--config={value}: no such file: a config is a file and a preset, such as --config={file}:{preset}")


def _check_python(file: str) -> None:
    """UserError unless the file is Python, which a config is."""
    try:
        compile(pathlib.Path(file).read_bytes(), file, "exec")
    except (SyntaxError, ValueError) as error:
        line = f", line {error.lineno}" if getattr(error, "lineno", None) else ""
        words = getattr(error, "msg", None) or cli.one_line(error)
        raise UserError(f"{file}{line}: no Python ({words}): a config is a file such as configs/pretrain.py") from None
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from None
