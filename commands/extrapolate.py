"""`tokengym extrapolate`: ExPO."""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from ..files import check_new_folder
from ..settings import Count, Finite, check_settings, check_unused
from .options import MAIN, EnvChoice, Threads
from .terminal import run_command, say, set_threads, table


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExtrapolateOptions(EnvChoice):
    """Models to extrapolate, how far, and where the result is written.

    Attributes:
        weaker: Model that training began from, such as the fine-tuned one; anything that `train --model` takes.
        stronger: Model that was trained from it. A folder `adapter` whose base is the weaker model stays an adapter.
        alpha: Distances beyond the stronger model, in multiples of its distance from the weaker. Several are compared
            on the validation split, and the best is saved; 0 stands for the stronger model itself, and one alone is
            saved without a comparison.
        problems: Number of validation problems to compare on.
        folder: Folder for the model; the default is a new one, `runs/extrapolate-DATE-TIME`.
        num_envs: Environment slots, which are rows of the decoder's batch.
        device: Device such as "cpu" or "cuda"; the default is a GPU if there is one.
        attn: Attention implementation such as sdpa or eager; the default is transformers' choice.
        threads: Number of CPU threads; the default is PyTorch's choice.
    """

    weaker: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="WEAKER")]]
    stronger: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="STRONGER")]]
    alpha: tuple[Finite, ...] = (0.0, 0.25, 0.5, 1.0, 2.5)
    problems: Count = 200
    folder: Path | None = None
    num_envs: Count = 64
    device: str | None = None
    attn: str | None = None
    threads: Threads | None = None

    def __post_init__(self) -> None:
        check_settings(self)


def extrapolate(arguments: Sequence[str]) -> None:
    """Extrapolate a trained model's weights away from where its training began (ExPO)."""

    def run(options: Annotated[ExtrapolateOptions, MAIN]) -> None:
        from ..agents.expo import best_alpha, compare_alphas, extrapolated, save_policy
        from ..agents.rollouts.conditioned_policy import load_policy
        from ..agents.rollouts.slots import make_rollout_env
        from ..agents.training.progress import progress
        from ..models import load

        set_threads(options.threads)
        folder = options.folder or Path("runs") / time.strftime("extrapolate-%Y%m%d-%H%M%S")
        if folder.exists():
            raise ValueError(f"{folder} is there already: give another by --folder")
        check_new_folder(folder)
        if not options.alpha:
            raise ValueError("--alpha takes at least one number")
        if len({*options.alpha}) < len(options.alpha):
            raise ValueError(
                f"--alpha has a number more than once: {' '.join(f'{alpha:g}' for alpha in options.alpha)}"
            )
        if len(options.alpha) == 1:
            names = ("env", "data", "env_args", "problems", "num_envs")
            check_unused(options, names, "a comparison, at least two numbers of --alpha")
        stronger = load_policy(options.stronger, device=options.device, attn=options.attn)
        weaker, tokenizer = load(options.weaker, device=str(stronger.model.device), attn=options.attn)
        if tokenizer.get_vocab() != stronger.tokenizer.get_vocab():
            raise ValueError(
                f"the tokenizers of {options.weaker!r} and {options.stronger!r} differ. Extrapolate a model from the "
                "one that its training began from"
            )
        record: dict[str, Any] = {"weaker": options.weaker, "stronger": options.stronger}
        alpha = options.alpha[0]
        if len(options.alpha) > 1:
            env = make_rollout_env(
                options.spec(split="validation", reward="sparse", curriculum="sequential"), stronger, options.num_envs
            )
            problems = min(options.problems, env.size or options.problems)
            with progress(problems * len(options.alpha), "comparing") as bar:
                results = compare_alphas(weaker, stronger, env, options.alpha, problems=problems, on_step=bar.update)
            alpha = best_alpha(results)
            rows = [
                (f"{value:g}", str(result.metrics["maj@1"]), f"{result.median_response_length:g}")
                for value, result in results.items()
            ]
            say(table(("alpha", f"maj@1 of {problems} validation problems", "median response length"), rows))
            record["validation"] = {f"{value:g}": result.to_dict() for value, result in results.items()}
        save_policy(extrapolated(weaker, stronger, alpha), folder, {**record, "alpha": alpha})
        say(f"the model at alpha {alpha:g} is in {folder}")

    run_command(run, "tokengym extrapolate", arguments, extrapolate.__doc__, {"output": "folder"})
