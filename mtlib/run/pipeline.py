"""The notebooks of a profile in order, each in a fresh kernel, each skipped while nothing it depends on has changed.

    python -m mtlib.run.pipeline demo [--smoke] [--from 05] [-p key=value ...]

Every profile has the numbered ones; those that it lists under `notebooks` follow as further stages.
A stage runs in `runs/<run>/<stage>-<hash8>.part`, which stays after a failure so that its work resumes, and is renamed
when it is finished. The report is published once, after the last stage. This module imports no stage.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import re
import shutil
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from mtlib.run import artifacts, dependencies, needs, params, publish
from mtlib.run.artifacts import StageFailed, visible
from mtlib.run.forge import ENCODERS, KERNEL, LIBRARIES, kernel_env, running
from mtlib.run.profiles import OWNER, Places, forced, load_params, run_name
from mtlib.run.stage import SKIPPED, read_report

CELL_TIMEOUT = 6 * 3600  # s
RERUN = "rerun.json"  # of a run: {"stages" that `--from` runs again, "done": folders of those that it has}


@dataclass
class Result:
    """What a pipeline did with each stage, and where its report is."""

    run: str
    report: Path
    ran: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)  # stage -> why
    nothing: dict[str, str] = field(default_factory=dict)  # stage that was asked for something and got nothing -> why


@contextlib.contextmanager
def locked(run_dir: Path):
    """Hold a run for one pipeline; the lock goes with the process, however it ends."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with open(run_dir / ".lock", "a+", encoding="utf-8") as f:
        f.seek(0)
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = f.read().strip()
            raise BlockingIOError(f"{run_dir.name}: process {holder} is writing this run; wait for it") from None
        f.truncate()
        f.write(str(os.getpid()))
        f.flush()
        yield


def _done_again(record: Path, stages: set[str]) -> list[str]:
    """Folder names of the stages that this `--from` has already run again before it was interrupted.

    The record is there until the whole run is done, so that the same command goes on where it was; another one starts
    over, and removes what earlier runs left of its stages unfinished.
    """
    try:
        before = artifacts.read_record(record, "")
    except artifacts.ArtifactError:  # there is none, or it is damaged
        before = {}
    if stages and before.get("stages") != sorted(stages):
        for part in (part for stage in stages for part in record.parent.glob(f"{stage}-*.part")):
            shutil.rmtree(part)
        before = {"stages": sorted(stages), "done": []}
        artifacts.write_record(record, before)
    return before.get("done", [])


def run(
    profile: str = "demo",
    overrides: dict | None = None,
    *,
    smoke: bool = False,
    from_stage: str = "",
    cell_timeout: int = CELL_TIMEOUT,
    places: Places | None = None,
) -> Result:
    """Run or skip every stage, then publish the report.

    Args:
        profile:    name of a file in params/.
        overrides:  parameters of the command line; `run` names the run.
        from_stage: "05", or "concepts": this stage and all later ones run again even if nothing changed; after an
                    interruption the same call goes on where it was.
        places:     the repository (tests give a small one).
    Raises: ParamsError or OSError before anything ran; StageFailed; artifacts.ArtifactError.
    """
    places, overrides = places or Places(), overrides or {}
    if cell_timeout < 1:
        raise params.ParamsError(f"--cell-timeout {cell_timeout}: a cell may take at least one second")
    checked = load_params(profile, smoke, overrides, places)
    name = run_name(profile, smoke, overrides, places)
    repeated = forced(from_stage, list(checked))
    run_dir, report, package = (places.root / part for part in (f"runs/{name}", f"reports/{name}", "mtlib"))
    with locked(run_dir), contextlib.ExitStack() as forges:
        artifacts.write_text(report / OWNER, profile)
        result, folders, metas, record = Result(name, report), {}, {}, run_dir / RERUN
        done, forge = _done_again(record, repeated), None
        artifacts.current(run_dir)  # a damaged list of stages ends the run before it does any work
        for stage, values in checked.items():
            notebook = places.root / "notebooks" / f"{stage}.py"
            provided = set().union(*(meta["facts"].get("provides", []) for meta in metas.values()))
            if lacking := needs.missing(needs.attributes(notebook).get("needs", ""), provided, values):
                result.left_out[stage] = needs.reason(lacking)
                print(f"{stage:<14} left out: {result.left_out[stage]}")
                artifacts.set_current(run_dir, stage, None)
                continue
            read = dependencies.stages_read(notebook, package, list(metas))
            inputs = {s: artifacts.digest(metas[s]) for s in read}
            met = needs.answers(notebook, provided, values)
            key = dependencies.stage_hash(notebook, package, values, inputs, places.root, met)
            folder = run_dir / f"{stage}-{key}"
            kept = stage not in repeated or folder.name in done
            meta = artifacts.standing(folder, "the stage runs again") if kept else {}
            if meta and not meta["facts"].get("nothing"):
                print(f"{stage:<14} unchanged, {meta['seconds']:.0f} s when it ran")
                result.unchanged.append(stage)
            elif kept and (other := artifacts.taken(folder)):
                print(f"{stage:<14} taken from runs/{other}, where nothing differs")
                meta = artifacts.read_meta(folder)
                result.unchanged.append(stage)
            else:
                params.check_inputs(notebook, values, places.root)
                if forge is None:
                    forge = forges.enter_context(_forge(checked, places.root))
                meta = _run_stage(notebook, folder, values, provided, set(read), cell_timeout, forge)
                if stage in repeated:
                    done.append(folder.name)
                    artifacts.write_record(record, {"stages": sorted(repeated), "done": done})
                print(f"{stage:<14} done in {meta['seconds']:.0f} s, {meta['peak_mb']:.0f} MB")
                if meta["facts"].get("told"):
                    print(f"{'':<14} {meta['facts']['told']}")
                result.ran.append(stage)
            artifacts.set_current(run_dir, stage, folder.name)
            folders[stage], metas[stage] = folder, meta
            result.nothing |= {stage: meta["facts"]["nothing"]} if meta["facts"].get("nothing") else {}
        artifacts.write_record(run_dir / "left_out.json", result.left_out)
        publish.publish(report, folders, run_dir, metas, places, forge)
        record.unlink(missing_ok=True)  # the next --from starts anew
    return result


def _forge(checked: dict[str, dict], root: Path):
    """What the kernels are forked from: with the libraries of 01 to 07, and the encoders' where images are read."""
    libraries = LIBRARIES * ("01_embed" in checked)
    libraries += ENCODERS * (not checked.get("01_embed", {}).get("embeddings", "-"))
    return running(os.environ | kernel_env(root), [*KERNEL, *libraries])


def _run_stage(
    source: Path, folder: Path, values: dict, provided: set[str], reads: set[str], cell_timeout: int, forge
) -> dict:
    """Run a notebook in `folder`.part and rename that when it is finished. Returns: its meta.json, with its seconds.

    Args: values: its parameters. provided: what earlier stages provide. reads: those that its source and modules name.
    """
    from mtlib.run import notebook, render

    part, run_dir, stage = folder.with_name(folder.name + ".part"), folder.parent, source.stem
    root = run_dir.parents[1]
    print(f"{stage:<14} " + (f"resumes in {part.relative_to(root)}" if part.is_dir() else "runs"))
    part.mkdir(exist_ok=True)
    (part / artifacts.META).unlink(missing_ok=True)
    (run_dir / "logs").mkdir(exist_ok=True)
    log, executed = (run_dir / "logs" / f"{stage}{suffix}" for suffix in (".log", ".ipynb"))
    executed.unlink(missing_ok=True)
    given = values | {"run_dir": run_dir.relative_to(root).as_posix(), "stage_dir": part.relative_to(root).as_posix()}
    try:
        prepared, left_out = notebook.prepare(source, provided, values)
        artifacts.write_record(part / SKIPPED, {"skipped": left_out})
        seconds = notebook.run_notebook(stage, prepared, executed, log, given, root, cell_timeout, forge)
        meta = _check_finished(stage, part, reads) | {"seconds": round(seconds, 1)}
        private = list(dependencies.external_inputs(values, root))
        render.render(executed, part / artifacts.NOTEBOOKS / stage, root, private)
        meta["files"] |= artifacts.hash_files(part, [artifacts.NOTEBOOKS])
        artifacts.write_record(part / artifacts.META, meta)
    except StageFailed as e:
        raise StageFailed(f"{e}\n  log: {log.relative_to(root)}  notebook: {executed.relative_to(root)}") from None
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(part, folder)
    return meta


def _check_finished(stage: str, part: Path, declared: set[str]) -> dict:
    """The artifact's record, if the notebook closed its own artifact and read what its source says it reads."""
    if not (part / artifacts.META).is_file():
        raise StageFailed(f"{stage} failed: it ended without stage.finish(), so its artifact is not complete")
    try:
        meta = artifacts.verify(part)
        publish.check_names(stage, part, read_report(part)["prefix"])
    except (artifacts.ArtifactError, ValueError) as e:
        raise StageFailed(f"{stage} failed: {e}") from None
    if meta["stage"] != stage:
        raise StageFailed(f'{stage} failed: its Stage is named "{meta["stage"]}"; name it "{stage}"')
    for hidden in sorted(set(meta["inputs"]) - declared):
        raise StageFailed(
            f'{stage} failed: it read {hidden}, which neither it nor its modules spell out as "{hidden}", '
            "so a change there would go unnoticed"
        )
    return meta


def clean(places: Places) -> None:
    """Remove what no run uses any more: folders of other hashes than the current ones, and unfinished work."""
    for run_dir in sorted(p for p in (places.root / "runs").glob("*") if p.is_dir()):
        try:
            with locked(run_dir):
                keep = set(artifacts.current(run_dir).values())
                (run_dir / RERUN).unlink(missing_ok=True)
                for folder in sorted(p for p in run_dir.glob("*-*") if p.is_dir() and p.name not in keep):
                    if re.search(r"-[0-9a-f]{8}(\.part|\.taken)?$", folder.name):
                        shutil.rmtree(folder)
                        print(f"removed {folder.relative_to(places.root)}")
        except BlockingIOError as e:
            print(f"left as it is: {e}")


def main(argv: list[str] | None = None, places: Places | None = None) -> int:
    """The command line. Returns 0, or 1 after a failed stage or one that got nothing of what it asked for, 2 for parameters or inputs that cannot be used."""
    parser = argparse.ArgumentParser("run_all.sh", description="Run the notebooks of a profile and write its report.")
    parser.add_argument("profile", nargs="?", default="demo", help="a file of params/, without .yaml (default: demo)")
    parser.add_argument("--smoke", action="store_true", help="small and quick: overlay params/smoke.yaml")
    parser.add_argument("--from", dest="from_stage", default="", metavar="NN", help="run stage NN and later ones again")
    parser.add_argument("-p", dest="pairs", action="append", default=[], metavar="KEY=VALUE", help="set a parameter")
    parser.add_argument("--cell-timeout", type=int, default=CELL_TIMEOUT, metavar="S", help="seconds a cell may take")
    parser.add_argument("--clean", action="store_true", help="only remove stage folders that no run uses any more")
    args, more = parser.parse_known_args(argv)
    if more:
        parser.error(visible(f"unrecognized arguments: {' '.join(more)}"))
    places, start = places or Places(), time.monotonic()
    sys.stdout.reconfigure(line_buffering=True)  # progress is seen at once, also in a pipe
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the kernel is ended, too
    try:
        if args.clean:
            clean(places)
            return 0
        how = {"smoke": args.smoke, "from_stage": args.from_stage, "cell_timeout": args.cell_timeout}
        result = run(args.profile, params.parse_overrides(args.pairs), places=places, **how)
        counts = f"{len(result.ran)} stages run, {len(result.unchanged)} unchanged, {time.monotonic() - start:.0f} s"
        print(f"Report: {(result.report / 'README.md').relative_to(places.root)} ({counts})")
        for stage, why in result.nothing.items():
            print(visible(f"error: {stage} got nothing: {why}"), file=sys.stderr)
        return 1 if result.nothing else 0
    except (params.ParamsError, FileNotFoundError, PermissionError, BlockingIOError) as e:
        said, code = f"error: {e}", 2
    except (StageFailed, artifacts.ArtifactError, OSError, SyntaxError) as e:
        said, code = f"error: {e}", 1
    except KeyboardInterrupt:
        said, code = "interrupted; the same command resumes", 130
    finally:
        signal.signal(signal.SIGTERM, before)
    print(visible(said), file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
