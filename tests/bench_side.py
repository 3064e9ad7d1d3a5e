"""A side for test_bench.py: what its child imports is this alone."""


def counting(fails_at: int = 0, broken: bool = False):
    if broken:
        raise RuntimeError("no such | device")
    print("what a library prints is no answer")
    turns = 0

    def run():
        nonlocal turns
        turns += 1
        if turns == fails_at:
            raise RuntimeError("lost the device")
        return {"turn": turns, "work": 10.0}

    return run
