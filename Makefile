# make demo, make test: from nothing but python3 >= 3.11. Each makes .venv and installs what it needs.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# Tested versions, where this Python has a list of them.
PY     := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
PINS   := $(wildcard constraints/$(PY).txt)
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(PINS),--constraint $(PINS))
export JAX_PLATFORMS ?= cpu
export PYTHONPATH := $(CURDIR)

# Most of a test's time is compiling. Without optimization the tests take two thirds of the time, and XLA's older emitters for fusions halve
# what compiling takes then. XLA stops at a flag that it does not know, so the second flag is set only where versions are pinned. The other
# targets test what users run.
QUICK      := --xla_backend_optimization_level=0 $(if $(PINS),--xla_cpu_use_fusion_emitters=false)
TEST_WORKERS ?= --numprocesses=auto --maxprocesses=4 --dist=loadfile
DEMO_DIR   ?= runs/demo
DEMO_FLAGS ?=

.PHONY: demo test parity interop finetune objectives tf1 aot scale beam lint kill bench clean

demo: $(VENV)/.demo  ## A tiny ELECTRA on the King James Bible, within minutes
	$(BIN)/python launch/demo.py --dir=$(DEMO_DIR) $(DEMO_FLAGS)

test: $(VENV)/.test  ## All tests that need neither PyTorch nor the network
	XLA_FLAGS="$(strip $(QUICK) $(XLA_FLAGS))" $(BIN)/python -m pytest -m "not parity and not slow and not aot and not objectives" $(TEST_WORKERS) $(TEST_FLAGS)

parity: $(VENV)/.parity  ## Against PyTorch transformers, float32 and float64
	$(BIN)/python -m pytest -m "parity and not slow" -s tests/parity $(TEST_FLAGS)

interop: $(VENV)/.test $(VENV)/.parity $(VENV)/.demo  ## All of conversion: every architecture at every size, training on, 2,000 mutated files
	$(BIN)/python -m pytest -s tests/interop tests/parity/test_interop.py tests/launch/test_convert.py $(TEST_FLAGS)

finetune: $(VENV)/.test $(VENV)/.parity  ## Fine-tuning and scores against PyTorch: every head, loss and rule, float32 and float64
	$(BIN)/python -m pytest -s tests/parity/test_finetune.py tests/parity/test_published.py tests/parity/test_dropout.py tests/parity/test_windows.py tests/parity/test_sentence_scores.py $(TEST_FLAGS)

objectives: $(VENV)/.test  ## Every objective: its equations, meshes, micro-batches, resumes, presets
	XLA_FLAGS="$(strip $(QUICK) $(XLA_FLAGS))" $(BIN)/python -m pytest -m objectives $(TEST_WORKERS) tests/objectives tests/interop/test_objectives.py $(TEST_FLAGS)

tf1: $(VENV)/.tf1  ## Google's TF1 checkpoints, written by TensorFlow itself and read without it
	$(BIN)/python -m pytest tests/interop/test_tf1.py $(TEST_FLAGS)

aot: $(VENV)/.test $(VENV)/.tpu  ## Two presets and small programs compiled for TPUs that are not there, their memory under a ceiling
	$(BIN)/python -m pytest -m aot tests/offline $(TEST_FLAGS)

scale: $(VENV)/.tpu  ## Every preset compiled for many TPUs (hours; what docs/scale.jsonl has is skipped), the table of docs/scale.md
	$(BIN)/python launch/compile.py --scale

beam: $(VENV)-beam/.beam  ## Preparation on Apache Beam against the local one, byte for byte, also on 20 MB
	$(VENV)-beam/bin/python -m pytest tests/data/test_beam.py $(TEST_FLAGS)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/shellcheck -x launch/*.sh launch/slurm.sbatch .ci/run

kill: $(VENV)/.test  ## Kill -9: twenty in preparation, twenty in training, thirty in fine-tuning and predicting; and what else takes long
	$(BIN)/python -m pytest -m slow -s tests/benchmarks tests/compare tests/data tests/finetune tests/infer tests/launch tests/parallel tests/store $(TEST_FLAGS)

bench: $(VENV)/.bench $(VENV)/.tpu  ## Us beside PyTorch transformers and txtai, interleaved: the tables and the figure of docs/speed.md (40 minutes)
	$(BIN)/python launch/bench.py --docs=docs/speed.md $(BENCH_FLAGS)

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("electra_jax needs Python 3.11 or later: make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)

# One stamp an extra: installed anew when the project's dependencies change.
$(VENV)/.%: pyproject.toml $(PINS) | $(VENV)/bin/python
	$(PIP) --editable '.[$*]'
	touch $@

# Beam wants older releases of these than the tested ones, so it has an environment of its own.
$(VENV)-beam/.beam: pyproject.toml $(PINS)
	$(PYTHON) -m venv $(VENV)-beam
	grep -hvE '^(pillow|protobuf|pyarrow|python-dateutil)==' /dev/null $(PINS) > $(VENV)-beam/pins.txt || true
	$(VENV)-beam/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(VENV)-beam/pins.txt --editable '.[test,beam]'
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-beam build *.egg-info
