"""`tokengym doctor`: whether a data set is sound."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Annotated

import tyro

from ..settings import Count, CountOrZero, check_settings
from .options import MAIN, EnvChoice
from .terminal import run_command, say


def doctor(arguments: Sequence[str]) -> None:
    """Check a data set: gold answers, duplicates, overlap between splits, prompts over the limit."""

    @dataclasses.dataclass(frozen=True)
    class DoctorOptions(EnvChoice):
        """Data set to check.

        Attributes:
            env: Environment id; `tokengym list` shows all.
            model: Model whose tokenizer counts the tokens.
            limit: Number of problems to check in each split of an endless source.
            show: Findings of one kind to print for each split; 0 prints all.
        """

        env: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="ENV")] = "tokengym/Arithmetic-v0"
        model: str = "tokengym/tiny"
        limit: Count = 2000
        show: CountOrZero = 20

    def run(options: Annotated[DoctorOptions, MAIN]) -> None:
        from ..envs.doctor import diagnose_env

        check_settings(options)
        if any(item.startswith("split=") for item in options.env_args):
            raise ValueError("--env-args split is of no effect: all splits are checked, against each other too")
        findings = diagnose_env(options.spec(tokenizer=options.model), limit=options.limit)
        printed: Counter[tuple[str, ...]] = Counter()
        for finding in findings.findings:
            kind = (finding.severity, finding.check, finding.split)
            printed[kind] += 1
            if not options.show or printed[kind] <= options.show:
                say(str(finding))
        for (severity, check, split), count in printed.items():
            if options.show and count > options.show:
                say(f"{severity}: {count - options.show} more of {check} in {split}: --show 0 prints all")
        for split, reason in findings.absent.items():
            say(f"no {split} split: {reason}")
        checked = ", ".join(f"{count} of {source}" for source, count in findings.checked.items())
        counts = {"error": len(findings.errors), "warning": len(findings.warnings)}
        say(f"checked {checked}: " + ", ".join(f"{n} {what}{'s' * (n != 1)}" for what, n in counts.items()))
        if findings.errors:
            raise SystemExit(1)

    run_command(run, "tokengym doctor", arguments, doctor.__doc__)
