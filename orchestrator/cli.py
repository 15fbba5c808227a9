"""The command line: overrides run a sweep; a first word without `=` is a verb."""

from __future__ import annotations

import argparse
import errno
import json
import logging
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from orchestrator import __version__
from orchestrator.cluster.surroundings import name_user
from orchestrator.config.config_files import (
    CONF,
    OPTION,
    first_comment,
    groups,
    sweep_files,
    take_config_dir,
    with_config_dir,
)
from sweeps.core.errors import SweepError, nearest
from sweeps.core.secrets import scrub

Parsed = TypeVar("Parsed")

STEERING = {
    "stop": "end trials early, each with a checkpoint: stop RUN_DIR TRIAL...",
    "finish": "end all trials, rank them and prove the best one: finish RUN_DIR",
    "pause": "let no more trials begin; --now frees the devices: pause RUN_DIR [--now]",
    "resume": "go on after a pause, or with trials that were ended: resume RUN_DIR [TRIAL...]",
    "add": "train a config of your own in the sweep: add RUN_DIR key=value ...",
    "clone": "train a trial again with other values: clone RUN_DIR TRIAL key=value ... [--warm]",
    "set": "change what may change while a sweep runs: set RUN_DIR sweep.max_concurrent=2",
    "cancel": "stop as Ctrl-C does, from any terminal: cancel RUN_DIR",
}
VERBS = {
    "plan": "check everything and say what would run; takes the same overrides",
    "show": "rows as the model will see them, the learnt part marked: show data=file data.path=...",
    "status": "where a sweep stands, or several: status RUN_DIR... [--json] [--follow]",
    "sync": "upload a sweep to W&B, or what its server lacks of it: sync RUN_DIR",
    "report": "the sweep on one page, RUN_DIR/report.html: report RUN_DIR",
    "export": "a plain model from the best adapter: export RUN_DIR --merge [--to DIR]",
    **STEERING,
}
_USERS_DISK = {
    errno.ENOSPC: "Free some room, or choose another run_dir=...; what was written before is whole",
    errno.EDQUOT: "Free some room, or choose another run_dir=...; what was written before is whole",
    errno.EROFS: "Choose a run_dir=... that can be written",
    errno.EACCES: "Choose a run_dir=... that can be written",
    errno.EPERM: "Choose a run_dir=... that can be written",
    errno.ENOTDIR: "A folder is needed there: choose another run_dir=...",
    errno.EEXIST: "A folder is needed there: choose another run_dir=...",
    errno.EISDIR: "A file is needed there",
    errno.ENAMETOOLONG: "Choose a shorter run_dir=...",
}
# These have options, and help of their own.
_PARSED = ("show", "status", "report", "export", "sync", *STEERING)
_HELP = ("-h", "--help", "help")
_PLAN_HELP = """\
usage: python -m orchestrator plan GROUP=CHOICE ... KEY=VALUE ...

Check all that the sweep of the same words would check (config, data, model, memory, disk, W&B),
train one real step of its largest micro-batch, and say what would run. Nothing else is trained or
written. The exit code is 0 if the sweep could start, else 1.

  python -m orchestrator plan sweep=lr_grid
  python -m orchestrator plan sweep=joint data=file data.path=train.jsonl model=qwen3_0_6b

python -m orchestrator --help lists groups, choices and sweeps."""


def main(argv: Sequence[str]) -> int:
    """Run a command line; returns the exit code (see docs/run-folder.md)."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    # At its import it advises a package that would only speed up 4-bit models on a CPU.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    name_user()
    is_json = "--json" in argv
    try:
        return _dispatch(list(argv))
    except SweepError as error:
        return _failed(str(error), error.exit_code, is_json)
    except OSError as error:
        if error.errno not in _USERS_DISK:
            raise
        what = f"{error.filename}: " if error.filename else ""
        return _failed(f"{what}{error.strerror}. {_USERS_DISK[error.errno]}", 1, is_json)
    except KeyboardInterrupt:
        print("\nSIGINT: stopped.", file=sys.stderr)
        return 130


def _status(argv: Sequence[str]) -> int:
    from orchestrator.terminal.as_json import follow, status_object
    from orchestrator.terminal.status import status
    from sweeps.storage.run_folder import RunFolder

    parser = argparse.ArgumentParser(prog="python -m orchestrator status")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--follow", action="store_true", help="print a line for each event")
    options, rest = _parse(parser.parse_known_args, argv)
    folders = _run_dirs("status", rest)
    if options.follow:
        for line in follow(RunFolder(folders[0]), as_json=options.json):
            print(line, flush=True)
        return 0
    if options.json:
        told = [status_object(RunFolder(folder)) for folder in folders]
        print(json.dumps(told[0] if len(told) == 1 else told, default=str))
        return 0
    if len(folders) > 1:
        from orchestrator.terminal.several import compare

        return compare(folders)
    return status(folders[0])


def _failed(why: str, code: int, is_json: bool) -> int:
    """Say why nothing was done: on stderr, or as a program asked for it."""
    if is_json:
        print(json.dumps({"error": scrub(why)}))
    else:
        print(scrub(why), file=sys.stderr)
    return code


def _dispatch(argv: list[str]) -> int:
    own, argv = take_config_dir(argv)
    first = argv[0] if argv else ""
    if first in _HELP or (first not in _PARSED and any(word in _HELP for word in argv)):
        print(_PLAN_HELP if first == "plan" else help_text(own))
        return 0
    if not argv:
        print(help_text(own))
        return 1  # a script whose words went missing has trained nothing
    if first == "--version":
        print(f"sft-sweeps {__version__}")
        return 0
    if first == "status":
        return _status(argv[1:])
    if first == "report":
        from orchestrator.report.write import report

        return report(_run_dirs(first, argv[1:], most=1)[0])
    if first in STEERING:
        from orchestrator.steer import parser as steering_parser
        from orchestrator.steer import steer

        return steer(first, _parse(steering_parser(first, STEERING[first]).parse_args, argv[1:]))
    if first == "export":
        from orchestrator.best.merge import export
        from orchestrator.storage.run_dir import fetched

        options = _export_arguments(argv[1:])
        return export(fetched(options.run_dir), merge=options.merge, to=options.to)
    if first == "sync":
        from orchestrator.storage.run_dir import fetched
        from orchestrator.tracking.sync import sync

        options = _sync_arguments(argv[1:])
        return sync(fetched(options.run_dir), project=options.project, entity=options.entity)
    if first == "show":
        from orchestrator.show import parser, show

        shown, words = _parse(parser().parse_known_args, argv[1:])
        return show(with_config_dir(own, words), shown)
    if first == "plan":
        from orchestrator.plan import plan

        words = [word for word in argv[1:] if word != "--json"]
        if len(words) < len(argv) - 1:
            return plan(with_config_dir(own, words), as_json=True)
        return plan(with_config_dir(own, words))
    if first and "=" not in first and not first.startswith(("-", "~", "+")):
        near = nearest(first, VERBS)
        hint = f" Did you mean {near}?" if near else ""
        if first in (known := groups(own)):
            hint = f" Did you mean {first}=CHOICE, one of {', '.join(known[first])}?"
        raise SweepError(
            f"{first}: no such verb; there are {', '.join(VERBS)}, and without one the sweep runs. "
            f"Overrides are written key=value.{hint} See python -m orchestrator --help."
        )
    from orchestrator.driver import run

    return run(with_config_dir(own, argv))


def _run_dirs(verb: str, argv: Sequence[str], most: int | None = None) -> list[Path]:
    from orchestrator.storage.run_dir import fetched

    parser = argparse.ArgumentParser(prog=f"python -m orchestrator {verb}", exit_on_error=True)
    parser.add_argument("run_dir", nargs=most or "+")
    return list(map(fetched, _parse(parser.parse_args, argv).run_dir))


def _export_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m orchestrator export")
    parser.add_argument("run_dir")
    parser.add_argument("--merge", action="store_true", help="fold the adapter into its base")
    parser.add_argument("--to", type=Path, default=None, help="default: RUN_DIR/merged")
    return _parse(parser.parse_args, argv)


def _sync_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m orchestrator sync")
    parser.add_argument("run_dir")
    parser.add_argument("--project", help="default: tracking.project of the sweep")
    parser.add_argument("--entity", help="default: tracking.entity of the sweep")
    return _parse(parser.parse_args, argv)


def _parse(parse: Callable[[Sequence[str]], Parsed], argv: Sequence[str]) -> Parsed:
    try:
        return parse(argv)
    except SystemExit as error:  # argparse's own code is 2; ours for usage is 1
        raise SystemExit(1 if error.code else 0) from None


def help_text(own: Path | None = None) -> str:
    """What can be chosen, and commands worth typing; `own` is the folder of --config-dir."""
    lines = [
        "Find out which settings to fine-tune a language model with.",
        "",
        "  python -m orchestrator sweep=lr_grid      8 trials on an embedded model, no download",
        "  python -m orchestrator sweep=joint data=file data.path=train.jsonl model=qwen3_0_6b",
        "  python -m orchestrator plan sweep=asha cluster=ray",
        "",
        "Verbs (anything else is an override, key=value):",
        *(f"  {verb:<8}{text}" for verb, text in VERBS.items()),
        "",
        f"Groups (group=choice; each is a file GROUP/CHOICE.yaml; {OPTION} DIR adds yours):",
    ]
    for group, choices in groups(own).items():
        lines.append(f"  {group:<10}{', '.join(choices)}")
    sweeps = {} if own is None else {path.stem: path for path in sweep_files(own)}
    shipped = [path for path in sweep_files(CONF) if path.stem not in sweeps]
    lines += ["", "Sweeps, and what each answers:"]
    lines += _about_sweeps(shipped)
    lines += ["", f"Sweeps of {own}:"] if sweeps else []
    lines += _about_sweeps(sweeps.values())
    lines += [
        "",
        "Any key can be set (trainer.learning_rate=2e-4) or searched, in Hydra's sweep grammar:",
        "  trainer.learning_rate=1e-4,1e-3     peft.r='choice(4,8,16)'",
        "  trainer.weight_decay='interval(0,0.1)'",
        "  trainer.learning_rate='tag(log,interval(1e-5,1e-2))'",
        "trainer.* are SFTConfig's fields, peft.* LoraConfig's.",
    ]
    return "\n".join(lines)


def _about_sweeps(paths: Iterable[Path]) -> list[str]:
    """Each sweep's name and what its file says of it, in whole sentences."""
    return [
        line
        for path in paths
        for line in textwrap.wrap(
            f"{path.stem:<14}{first_comment(path)}",
            width=110,
            initial_indent="  ",
            subsequent_indent=" " * 16,
            break_on_hyphens=False,
        )
    ]
