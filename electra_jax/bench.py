"""Our pretraining step beside the same step in PyTorch transformers, interleaved in one run.

Each side is a process of its own that waits for its turn: load on the machine hits both alike, and each has its own peak memory.
The peer gathers the masked slots before the vocabulary projection, as we do (what its users write projects every position), and
both get the same allocator setting.
"""

import dataclasses
import json
import pathlib
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

BATCH_ROWS, LENGTH = 32, 128


def ours(preset: str) -> Callable[[], float]:
    """A function that runs one step and returns its loss."""
    import jax
    import numpy as np

    from electra_jax import rng
    from electra_jax.config import PRESETS
    from electra_jax.objectives import electra, masking
    from electra_jax.parallel import executors, mesh
    from electra_jax.train import optimizer, step
    from electra_jax.types import Batch

    config = PRESETS[preset]
    vocabulary = masking.Vocabulary(101, 102, 103, np.ones(config.vocab_size, bool))
    objective = electra.make(config, masking.MaskingConfig(), vocabulary, LENGTH)
    rule = optimizer.make_optimizer(optimizer.OptimizerConfig(), optimizer.ScheduleConfig(total_steps=1_000_000))
    root, devices = rng.root_key(0), mesh.make_mesh(devices=jax.devices()[:1])
    state = jax.jit(lambda key: step.init_state(key, objective, rule))(root)
    tokens = random_tokens(config.vocab_size)
    positions = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), tokens.shape)
    batch = Batch(tokens, np.ones_like(tokens), positions, np.zeros_like(tokens), np.arange(BATCH_ROWS, dtype=np.int32))
    program = executors.compile_step(step.make_train_step(objective, rule, root), state, batch, devices, "jit")
    batch = mesh.to_devices(batch, devices)

    def run() -> float:
        nonlocal state
        state, metrics = program.run(state, batch)
        return float(metrics["loss"])

    return run


def transformers_step(preset: str, compiled: bool) -> Callable[[], float]:
    """ElectraForMaskedLM and ElectraForPreTraining with shared embeddings, SDPA, fused AdamW, one clip, masked slots gathered."""
    import torch
    import torch.nn.functional as F
    import transformers

    from electra_jax.config import PRESETS

    config = PRESETS[preset]
    torch.manual_seed(0)

    def hf(encoder):
        return transformers.ElectraConfig(
            vocab_size=config.vocab_size, embedding_size=config.embedding_size, hidden_size=encoder.hidden_size,
            num_hidden_layers=encoder.num_layers, num_attention_heads=encoder.num_heads, intermediate_size=encoder.ffn_size,
        )  # fmt: skip

    generator = transformers.ElectraForMaskedLM(hf(config.generator))
    discriminator = transformers.ElectraForPreTraining(hf(config.discriminator))
    discriminator.electra.embeddings = generator.electra.embeddings
    parameters = list({id(p): p for model in (generator, discriminator) for p in model.parameters()}.values())
    rule = torch.optim.AdamW(parameters, lr=5e-4, eps=1e-6, weight_decay=0.01, fused=True)
    tokens = torch.from_numpy(random_tokens(config.vocab_size)).long()
    num_slots = 19

    def loss_of(tokens, slots, shown, noise):
        original = tokens.gather(1, slots)
        masked = tokens.scatter(1, slots, torch.where(shown, 103, original))
        hidden = generator.electra(masked).last_hidden_state
        hidden = hidden.gather(1, slots[..., None].expand(-1, -1, hidden.shape[-1]))
        logits = generator.generator_lm_head(generator.generator_predictions(hidden))
        mlm = F.cross_entropy(logits.flatten(0, 1), original.flatten())
        sampled = (logits.detach() + noise).argmax(-1)
        corrupted = tokens.scatter(1, slots, sampled)
        rtd = F.binary_cross_entropy_with_logits(discriminator(corrupted).logits, (corrupted != tokens).float())
        return mlm + 50 * rtd

    if compiled:
        loss_of = torch.compile(loss_of)

    def run() -> float:
        slots = torch.rand(BATCH_ROWS, LENGTH).topk(num_slots).indices
        noise = -torch.log(torch.empty(BATCH_ROWS, num_slots, config.vocab_size).exponential_())
        loss = loss_of(tokens, slots, torch.rand(BATCH_ROWS, num_slots) < 0.85, noise)
        rule.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        rule.step()
        return float(loss.detach())

    return run


def random_tokens(vocab_size: int):
    import numpy as np

    tokens = np.random.default_rng(0).integers(1000, vocab_size, (BATCH_ROWS, LENGTH)).astype(np.int32)
    tokens[:, 0], tokens[:, -1] = 101, 102
    return tokens


SIDES = {
    "electra_jax": ours,
    "transformers, eager": lambda preset: transformers_step(preset, compiled=False),
    "transformers, torch.compile": lambda preset: transformers_step(preset, compiled=True),
}


def serve(side: str, preset: str) -> None:
    """The child: a line in, a step and a line out."""
    from electra_jax.parallel import allocator

    allocator.keep_memory()
    run = SIDES[side](preset)
    for _ in range(3):  # compile, first touch of the memory, one to settle
        run()
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        loss = run()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"wall": wall, "cpu": cpu, "loss": loss, "peak_mib": peak_mib}), flush=True)


@dataclasses.dataclass(frozen=True)
class Row:
    side: str
    wall_secs: float
    cpu_secs: float
    tokens_per_sec: float
    peak_mib: float
    times_ours: float  # its wall seconds over ours, the median of the rounds
    spread: tuple[float, float]  # of that ratio, quartiles


def measure(preset: str, sides: list[str], rounds: int) -> list[Row]:
    """Medians over `rounds` interleaved steps; the ratio is taken round by round. The first side is the one to compare with."""
    command = [sys.executable, "-c", "import sys; from electra_jax import bench; bench.serve(*sys.argv[1:])"]
    children = {
        side: subprocess.Popen([*command, side, preset], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for side in sides
    }
    try:
        for side, child in children.items():
            if not child.stdout.readline():
                raise RuntimeError(f"{side} did not start")
        samples = {side: [] for side in sides}
        for _ in range(rounds):
            for side, child in children.items():
                child.stdin.write("\n")
                child.stdin.flush()
                samples[side].append(json.loads(child.stdout.readline()))
    finally:
        for child in children.values():
            child.kill()
            child.wait()
    base = [sample["wall"] for sample in samples[sides[0]]]
    rows = []
    for side in sides:
        walls = [sample["wall"] for sample in samples[side]]
        ratios = [a / b for a, b in zip(walls, base, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        wall = statistics.median(walls)
        cpu = statistics.median(sample["cpu"] for sample in samples[side])
        rows.append(Row(side, wall, cpu, BATCH_ROWS * LENGTH / wall, max(s["peak_mib"] for s in samples[side]), middle, (low, high)))
    return rows


def measure_data(text: pathlib.Path, folder: pathlib.Path) -> tuple[float, float, float]:
    """(MB of text a CPU-second of the whole preparation, of the Rust tokenizer alone, M tokens a CPU-second of the shuffled feed).

    One worker, a WordPiece vocabulary of 30,522 trained beforehand, rows of 128, dense packing.
    """
    import numpy as np
    import tokenizers

    from electra_jax.data import prepare as preparation
    from electra_jax.data import tokenizer

    def options(output: str, given: str) -> preparation.PrepareOptions:
        return preparation.PrepareOptions(inputs=(str(text),), output=str(folder / output), tokenizer=given, packing="dense", heldout=0.1)

    preparation.prepare(options("first", "wordpiece"), workers=1, progress=False)
    vocabulary = folder / "first" / "tokenizer"
    cpu = time.process_time()
    manifest = preparation.prepare(options("second", str(vocabulary)), workers=1, progress=False)
    megabytes = manifest["corpus"]["bytes"] / 1e6
    prepared = megabytes / (time.process_time() - cpu)

    ids = {piece: number for number, piece in enumerate(tokenizer.load(vocabulary).vocabulary)}
    rust = tokenizers.BertWordPieceTokenizer(vocab=ids, lowercase=True)
    lines = [line for line in text.read_text(encoding="utf-8", errors="replace").splitlines() if line]
    cpu = time.process_time()
    rust._tokenizer.encode_batch_fast(lines, add_special_tokens=False)
    alone = megabytes / (time.process_time() - cpu)

    from electra_jax.data import loader

    stream = loader.Stream([str(folder / "second")], None, seed=0)
    batches = loader.batches(stream, start_step=0, global_batch=BATCH_ROWS)
    tokens = [np.sum(next(batches).segments > 0) for _ in range(50)]  # fills the caches
    cpu = time.process_time()
    tokens = sum(int(np.sum(next(batches).segments > 0)) for _ in range(1000))
    return prepared, alone, tokens / 1e6 / (time.process_time() - cpu)


def measure_dispatch(preset: str, rounds: int) -> dict[str, float]:
    """Milliseconds a call, median, of a step that only counts, with all arrays of the preset's state: what an executor itself costs.

    "bare" is jax.jit without shardings or a mesh, on one device; the executors run on all devices that there are.
    """
    import jax
    import numpy as np

    from electra_jax import pretrain, rng
    from electra_jax.config import PRESETS
    from electra_jax.objectives import electra, masking
    from electra_jax.parallel import executors, mesh
    from electra_jax.train import optimizer

    config = PRESETS[preset]
    objective = electra.make(config, masking.MaskingConfig(), masking.Vocabulary(101, 102, 103, np.ones(config.vocab_size, bool)), LENGTH)
    rule = optimizer.make_optimizer(optimizer.OptimizerConfig(), optimizer.ScheduleConfig(total_steps=1_000_000))
    devices, root = mesh.make_mesh(), rng.root_key(0)
    init, shapes = pretrain.make_init(objective, rule, devices, root)
    batch = pretrain.abstract_batch(mesh.make_mesh().size, LENGTH)
    rows = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), batch)

    def body(state, batch):
        return state.replace(step=state.step + 1), {"loss": batch.tokens.sum()}

    def bare():
        step = jax.jit(body, donate_argnums=0)
        return step, jax.device_put(rows, jax.devices()[0]), jax.device_put(jax.device_get(init(root)), jax.devices()[0])

    def executed(name):
        program = executors.compile_step(body, shapes, batch, devices, name)
        return program.run, program.place(rows), init(root)

    sides = {"bare": bare(), **{name: executed(name) for name in ("jit", "shard_map", "pmap")}}
    secs: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, (run, placed, state) in sides.items():
            start = time.perf_counter()
            state, _ = run(state, placed)
            jax.block_until_ready(state.step)
            secs[name].append(time.perf_counter() - start)
            sides[name] = run, placed, state
    return {name: 1e3 * statistics.median(values[5:]) for name, values in secs.items()}


def cpu_name() -> str:
    """The widest instruction set that decides a ratio on a CPU: AVX-512, AVX2 or neither known."""
    try:
        with open("/proc/cpuinfo") as file:
            flags = file.read()
    except OSError:
        return "unknown instruction set"
    return "AVX-512" if "avx512f" in flags else "AVX2" if "avx2" in flags else "neither AVX2 nor AVX-512"


def table(rows: list[Row]) -> str:
    lines = ["| step | wall s | CPU-s | tokens/s | peak MiB | x ours, wall (quartiles) |", "|---|---|---|---|---|---|"]
    for r in rows:
        lines.append(
            f"| {r.side} | {r.wall_secs:.2f} | {r.cpu_secs:.2f} | {r.tokens_per_sec:,.0f} | {r.peak_mib:,.0f} "
            f"| {r.times_ours:.2f} ({r.spread[0]:.2f} to {r.spread[1]:.2f}) |"
        )
    return "\n".join(lines)
