"""A toy source format, .log: `TIME LEVEL message` lines; a document is what one run of a program said, up to a line `--`."""

from electra_jax.data.readers.decoding import decode

TEXT = True


def texts(stream, path, options):
    lines, invalid = [], 0
    for line in [*stream, b"--\n"]:
        text, more = decode(line)
        invalid += more
        if text.strip() != "--":
            lines.append(text.split(maxsplit=2)[2].strip())
        elif lines:
            yield "\n".join(lines), invalid
            lines, invalid = [], 0
