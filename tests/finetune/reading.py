"""How the tests of readers read a file, and what they expect of one that is wrong."""

import dataclasses
import re

import pytest

from electra_jax.cli import UserError
from electra_jax.finetune import readers
from electra_jax.finetune.readers.layout import Layout

CONTEXT = "Beyoncé was born in Houston, Texas. Houston is large. 𝄞 Music."
TABLE = Layout("csv", "class", ("text",), "label")


def put(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def read(path, layout=TABLE, **changes):
    return readers.read(str(path), dataclasses.replace(layout, **changes))


def refused(path, *says, layout=TABLE, **changes):
    """The one line that reading it raises has all of these."""
    with pytest.raises(UserError) as error:
        read(path, layout, **changes)
    line = str(error.value)
    assert "\n" not in line and line.startswith(str(path))
    for each in says:
        assert re.search(each, line), line


def pairs(reading):
    return [(example.texts, example.label) for example in reading.examples]
