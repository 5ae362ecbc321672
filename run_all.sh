#!/usr/bin/env bash
# Sets up the environment once, then runs the notebooks, the tests, or one of the other commands. See --help.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

usage() {
  cat <<'END'
./run_all.sh [profile] [--smoke] [--from NN] [-p key=value ...]
    Run the notebooks of a profile (params/<profile>.yaml; default: demo) and write reports/<run>/.
      --smoke          small and quick (params/smoke.yaml laid over the profile); writes reports/<profile>-smoke/
      --from NN        run stage NN (or a further notebook, by name) and all later ones again, even if nothing changed
      -p key=value     set a parameter; gives a run of its own, reports/<profile>-<hash>/ (-p run=NAME names it)
      --cell-timeout S seconds that one cell may take
      --clean          only remove stage folders under runs/ that no run uses any more
    Relative paths in parameters are taken from this folder.

./run_all.sh test [pytest arguments]     ruff check, ruff format --check, pytest
./run_all.sh keep run ...                copy what is worth keeping of reports/<run>/ into reports/kept/<run>/
./run_all.sh prove [name]                one of the long proofs (without a name: list them)
./run_all.sh bench [name]                one of the benchmarks (without a name: list them)
./run_all.sh viewer [run]                the feature viewer of a run (default: the newest) as an app in the browser
./run_all.sh pair                        make notebooks/*.ipynb from notebooks/*.py
./run_all.sh lock                        resolve pyproject.toml again into requirements.lock

The environment: an active conda or virtual environment that has the packages of pyproject.toml is used as it is;
otherwise .venv is made here, from requirements.lock. It needs Python 3.10 to 3.13 with pip and a package registry.
Set OMP_NUM_THREADS to use more than two threads (sums are then taken in another order: a training may end a little elsewhere).
END
}

UV=0.13.8
VENV=.venv

fail() { echo "error: ${*//[[:cntrl:]]/?}" >&2; exit 2; }

find_python() { # a Python 3.10 to 3.13 on PATH
  local name
  for name in python3 python python3.13 python3.12 python3.11 python3.10; do
    if "$name" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
      command -v "$name"
      return
    fi
  done
  fail "no Python 3.10 to 3.13 found on PATH as python3 or python; install one, or activate a conda environment made by" \
    "'conda env create -f environment.yml'"
}

set_up() { # set_up [extra ...]: sets PY to a Python that has the packages
  local active=${VIRTUAL_ENV:-${CONDA_PREFIX:-}} found
  export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
  if [ -n "$active" ] && [ -x "$active/bin/python" ] && "$active/bin/python" -m mtlib.run.environment "$@" >/dev/null 2>&1; then
    PY=$active/bin/python
    return
  fi
  PY=$PWD/$VENV/bin/python
  cmp -s requirements.lock "$VENV/installed.lock" && "$PY" -c '' 2>/dev/null && return
  echo "Setting up $VENV (once; several GB, mostly PyTorch) ..."
  if ! "$PY" -c '' 2>/dev/null; then
    found=$(find_python)
    env -u PYTHONPATH "$found" -m venv --clear "$VENV" ||
      fail "$found cannot make a virtual environment; on Debian or Ubuntu: apt install python3-venv"
  fi
  "$PY" -m pip install --quiet --disable-pip-version-check "uv==$UV" || echo "uv could not be installed; pip will do" >&2
  "$PY" -m uv pip install --python "$PY" --compile-bytecode --require-hashes -r requirements.lock ||
    "$PY" -m pip install --disable-pip-version-check --require-hashes -r requirements.lock ||
    fail "the packages of requirements.lock could not be installed; the messages above say which"
  pwd >"$("$PY" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/mtlib-here.pth"
  cp requirements.lock "$VENV/installed.lock"
}

set_up_bench() { # the libraries that benchmarks compare with, in an environment of their own that sees the usual one
  local env=.venv-bench base
  base=$("$PY" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  if ! cmp -s benchmarks/requirements.lock "$env/installed.lock" || ! "$env/bin/python" -c 'import torch' 2>/dev/null; then
    echo "Setting up $env (once): the libraries that the benchmarks compare with ..."
    env -u PYTHONPATH "$PY" -m venv --clear "$env" || fail "$PY cannot make a virtual environment"
    echo "$base" >"$("$env/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/base.pth"
    "$env/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r benchmarks/requirements.lock ||
      fail "the packages of benchmarks/requirements.lock could not be installed; the messages above say which"
    cp benchmarks/requirements.lock "$env/installed.lock"
  fi
  PY=$PWD/$env/bin/python
}

named() { # named FOLDER [NAME [argument ...]]: run FOLDER/NAME.py, or list what there is
  local folder=$1 name=${2:-} file
  if [[ $name =~ ^[A-Za-z0-9][A-Za-z0-9_]*$ ]] && [ -f "$folder/$name.py" ]; then
    exec "$PY" -m "$folder.$name" "${@:3}"
  fi
  for file in "$folder"/[!_]*.py; do
    printf '  %-20s %s\n' "$(basename "$file" .py)" "$(head -n 1 "$file" | sed 's/^"""//; s/"""$//')"
  done
  [ -z "$name" ] || fail "$folder has no $name; there are those above"
}

main() {
  local status=0
  export JUPYTER_PREFER_ENV_PATH=1 # the environment's own kernel
  case "${1:-}" in
    -h | --help | help) usage ;;
    test)
      set_up test viewer
      "$PY" -m ruff check . || status=1
      "$PY" -m ruff format --check . || status=1
      # two processes with a thread each; a file's tests stay together, since they share what it sets up
      OMP_NUM_THREADS=1 "$PY" -m pytest -n 2 --dist loadfile "${@:2}" || status=1
      exit $status
      ;;
    keep)
      set_up
      exec "$PY" -m mtlib.run.publish "${@:2}"
      ;;
    prove)
      set_up test
      case " ${*:2} " in *" --dry "*) ;; " gpu "*) set_up_bench ;; esac
      named proofs "${@:2}"
      ;;
    bench)
      set_up test
      case " ${*:2} " in "  " | " stages "* | " roofline "* | *" --quick "* | *" --dry "* | *" --help "*) ;; *) set_up_bench ;; esac # our own part needs no others
      named benchmarks "${@:2}"
      ;;
    viewer)
      set_up viewer
      exec "$PY" -m mtlib.report.serve "${@:2}"
      ;;
    pair)
      set_up
      exec "$PY" -m jupytext --quiet --update --to ipynb notebooks/*.py # --update keeps the cells' ids
      ;;
    lock)
      set_up
      "$PY" -m uv --version >/dev/null 2>&1 || "$PY" -m pip install --quiet "uv==$UV"
      local compile=(-m uv pip compile pyproject.toml --universal --python-version 3.10 --generate-hashes --quiet --upgrade
        --custom-compile-command "./run_all.sh lock")
      "$PY" "${compile[@]}" --extra viewer --extra test --extra browser --extra data --extra fast --output-file requirements.lock
      exec "$PY" "${compile[@]}" --extra bench --extra fast --constraint requirements.lock --output-file benchmarks/requirements.lock
      ;;
    *)
      for word in "$@"; do case "$word" in -h | --help) usage; exit 0 ;; esac; done
      set_up
      exec "$PY" -m mtlib.run.pipeline "$@"
      ;;
  esac
}

main "$@"
