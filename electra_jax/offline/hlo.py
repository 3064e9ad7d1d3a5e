"""Reads a compiled program's text (HLO): its collectives, and the cycles that the compiler expects of each operation.

The text is what `jax.stages.Compiled.as_text()` gives: computations, each a list of instructions. A loop names its body and its
condition; a fusion and an asynchronous operation name the computation that they call. What the figures mean: estimate.py.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
_UNKNOWN_CYCLES = 2**60

_NAME = r"%?([\w.\-]+)"
# The metadata of a Pallas kernel: the one part of an instruction that goes over several lines.
_KERNEL_METADATA = re.compile(r"kernel_metadata=\{\n.*?\n\}", re.DOTALL)
_COMPUTATION = re.compile(rf"^(ENTRY )?{_NAME} \(.*\{{$")
_INSTRUCTION = re.compile(rf"^\s+(?:ROOT )?{_NAME} = (.*)$")
_ARRAY = re.compile(r"\b(\w+)\[([\d,]*)\]")


class Instruction(NamedTuple):
    name: str
    shape: str  # "f32[8,128]{1,0}", or a tuple of such in parentheses
    opcode: str
    rest: str  # operands and attributes


class Collective(NamedTuple):
    kind: str
    dtypes: tuple[str, ...]
    bytes_once: int  # of the operands on one device
    bytes_made: int  # of its results there
    times: int  # a step
    depth: int  # of loops around it
    elements: int  # of the largest array that it makes


def _close(text: str, start: int) -> int:
    """Where the parenthesis that opens at `start` closes."""
    depth = 0
    for i in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[i], 0)
        if not depth:
            return i
    return len(text)


def _instruction(line: str) -> Instruction | None:
    match = _INSTRUCTION.match(line)
    if not match:
        return None
    name, text = match.groups()
    end = _close(text, 0) + 1 if text.startswith("(") else text.find(" ")
    opcode = re.match(r"\s*([\w\-]+)\(", text[end:])
    if not opcode:
        return None
    return Instruction(name, text[:end], opcode[1], text[end + opcode.end() - 1 :])


class Module:
    """The computations of a program by name, and which one is its entry."""

    def __init__(self, text: str):
        self.computations: dict[str, list[Instruction]] = {}
        self.entry, current = "", None
        for line in _KERNEL_METADATA.sub("", text).splitlines():
            if current is None:
                if match := _COMPUTATION.match(line):
                    current = self.computations.setdefault(match[2], [])
                    self.entry = match[2] if match[1] else self.entry
            elif line == "}":
                current = None
            elif found := _instruction(line):
                current.append(found)

    def shapes(self, computation: str) -> dict[str, str]:
        return {instruction.name: instruction.shape for instruction in self.computations[computation]}

    def trip_count(self, loop: Instruction) -> int:
        """How often a while loop runs: what the compiler says, or the largest constant in its condition."""
        if match := re.search(r"known_trip_count\D*(\d+)", loop.rest):
            return int(match[1])
        condition = re.search(rf"condition={_NAME}", loop.rest)
        constants = [x.rest for x in self.computations.get(condition[1] if condition else "", ()) if x.opcode == "constant"]
        return max((int(match[1]) for text in constants if (match := re.match(r"\((\d+)\)", text))), default=1)

    def called(self, instruction: Instruction) -> list[str]:
        """The computations that a fusion, a call or the start of an asynchronous operation runs."""
        if instruction.opcode not in ("call", "fusion", "async-start", "conditional"):
            return []
        names = re.findall(rf"(?:calls|to_apply|true_computation|false_computation)={_NAME}", instruction.rest)
        return names + re.findall(_NAME, " ".join(re.findall(r"(?:branch|called)_computations=\{([^}]*)\}", instruction.rest)))

    def multiplies(self, instruction: Instruction) -> bool:
        """Whether it is a matrix product, or a fusion around one."""
        return instruction.opcode in ("dot", "convolution") or any(
            self.multiplies(inner) for name in self.called(instruction) for inner in self.computations.get(name, ())
        )

    def walk(self, computation: str | None = None, times: int = 1, depth: int = 0) -> Iterator[tuple[str, Instruction, int, int]]:
        """(computation, instruction, times a step, loops around it) of all that runs, called computations too."""
        computation = computation or self.entry
        for instruction in self.computations.get(computation, ()):
            yield computation, instruction, times, depth
            if instruction.opcode == "while":
                body = re.search(rf"body={_NAME}", instruction.rest)
                yield from self.walk(body[1], times * self.trip_count(instruction), depth + 1)
            for name in self.called(instruction):
                yield from self.walk(name, times, depth)


def array_bytes(shape: str) -> int:
    """Of an array or of all arrays of a tuple."""
    return sum(_BYTES.get(dtype, 4) * math.prod(int(n) for n in dims.split(",") if n) for dtype, dims in _ARRAY.findall(shape))


def _elements(shape: str) -> int:
    return max((math.prod(int(n) for n in dims.split(",") if n) for _, dims in _ARRAY.findall(shape)), default=0)


def collectives(module: Module) -> list[Collective]:
    """Every collective that a step runs, with the bytes of its operands on one device.

    The TPU's compiler spreads one collective over several fusions, which carry the same chain_id and count once here. It writes most
    reduce-scatters as an all-reduce within a fusion whose name says what they are.
    """
    found, chains = [], set()
    for computation, instruction, times, depth in module.walk():
        kind = instruction.opcode.removesuffix("-start")
        chain = re.search(r'chain_id="(\d+)"', instruction.rest)
        if kind not in COLLECTIVES or (chain and chain[1] in chains):
            continue
        if chain:
            chains.add(chain[1])
        if computation.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"
        shapes = module.shapes(computation)
        operands = re.findall(_NAME, instruction.rest[: _close(instruction.rest, 0)].replace("(", " "))
        given = " ".join(shapes[name] for name in operands if name in shapes)
        dtypes = tuple(sorted({dtype for dtype, _ in _ARRAY.findall(given)}))
        made = array_bytes(instruction.shape)
        if instruction.opcode == "all-gather-start":  # the shape of a start names its operands beside its result
            made -= array_bytes(given)
        found.append(Collective(kind, dtypes, array_bytes(given), made, times, depth, _elements(instruction.shape)))
    return found


class Priced(NamedTuple):
    """One scheduled operation of a step."""

    instruction: Instruction
    times: int  # a step
    cycles: int  # each time, by the compiler's estimate; 0 where it has none
    bytes_hbm: int  # of operands and results in the chip's main memory
    multiplies: bool  # it is a matrix product, or a fusion around one


def priced(module: Module, computation: str | None = None, times: int = 1) -> Iterator[Priced]:
    """The operations of the entry and of its loops. A fusion is one operation: the compiler prices it as a whole."""
    computation = computation or module.entry
    shapes = module.shapes(computation)
    for instruction in module.computations.get(computation, ()):
        if instruction.opcode == "while":
            body = re.search(rf"body={_NAME}", instruction.rest)
            yield from priced(module, body[1], times * module.trip_count(instruction))
        elif instruction.opcode == "call":
            for name in module.called(instruction):
                yield from priced(module, name, times)
        else:
            match = re.search(r'"estimated_cycles":"?(\d+)', instruction.rest)
            cycles = int(match[1]) if match and int(match[1]) < _UNKNOWN_CYCLES else 0
            operands = re.findall(_NAME, instruction.rest[: _close(instruction.rest, 0)])
            arrays = [instruction.shape, *(shapes[name] for name in operands if name in shapes)]
            in_hbm = sum(array_bytes(shape) for shape in arrays if "S(1)" not in shape)  # space 1 is the chip's own memory, VMEM
            yield Priced(instruction, times, cycles, in_hbm, module.multiplies(instruction))
