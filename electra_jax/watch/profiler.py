"""A look inside some steps of a run."""

import os
import pathlib

import jax


class ProfilerWindow:
    """Traces steps [start_step, stop_step) with jax.profiler into `directory`, for TensorBoard or Perfetto; each step is named.

    start_step == stop_step: nothing. A context manager, so that a run which ends inside the window writes its trace too.
    """

    def __init__(self, directory: str | os.PathLike, start_step: int, stop_step: int):
        self._directory, self._steps = pathlib.Path(directory), range(start_step, stop_step)
        self._annotation: jax.profiler.StepTraceAnnotation | None = None  # of the step that is being traced

    def __enter__(self) -> "ProfilerWindow":
        return self

    def __exit__(self, *_) -> None:
        self.step(self._steps.stop)

    def step(self, step: int) -> None:
        """Call it before each step is dispatched, with its number from 0."""
        tracing = self._annotation is not None
        if tracing:
            self._annotation.__exit__(None, None, None)
            self._annotation = None
        if step in self._steps:
            if not tracing:
                jax.profiler.start_trace(str(self._directory))
            self._annotation = jax.profiler.StepTraceAnnotation("train", step_num=step)
            self._annotation.__enter__()
        elif tracing:
            jax.profiler.stop_trace()
