"""The environments' ids, and how they are made from plain values. Importing this registers them with Gymnasium."""

import copy
import inspect
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec

from ..registry import entry_point_names, unknown_name
from ..settings import argument_hint, check_kind

if TYPE_CHECKING:
    from .problems.base import ProblemSource
    from .token_env import TokenEnv
    from .token_vector_env import TokenVectorEnv

NAMESPACE = "tokengym"
_BUILT_IN = {
    f"{NAMESPACE}/Arithmetic-v0": "arithmetic",
    f"{NAMESPACE}/Dataset-v0": "dataset",
    f"{NAMESPACE}/GSM8K-v0": "gsm8k",
    f"{NAMESPACE}/MATH-v0": "math",
    f"{NAMESPACE}/Multiplication-v0": "multiplication",
    f"{NAMESPACE}/Parity-v0": "parity",
    f"{NAMESPACE}/SVAMP-v0": "svamp",
}


def _installed() -> dict[str, str]:
    """Ids of the problem sources that other packages declare, which are not imported for it."""
    names = [name for name in entry_point_names(f"{NAMESPACE}.problems") if re.fullmatch(r"[\w.-]+", name)]
    return {f"{NAMESPACE}/{name}" + ("" if re.search(r"-v\d+$", name) else "-v0"): name for name in names}


IDS: Mapping[str, str] = {**_installed(), **_BUILT_IN}
"""Registered ids, each with the name of its problem source.

A source that a package declares as `pens`, in the entry-point group `tokengym.problems`, is `tokengym/pens-v0`.
"""


def register_envs() -> None:
    """Registers all of `IDS` with Gymnasium."""
    for env_id, problems in IDS.items():
        gym.register(
            env_id,
            # Strings, so that registering imports nothing and a spec survives JSON and pickling.
            entry_point=f"{__name__}:make_token_env",
            vector_entry_point=f"{__name__}:make_token_vector_env",
            kwargs={"problems": problems},
        )


def make_token_env(problems: "str | ProblemSource", **settings: Any) -> "TokenEnv":
    """A `TokenEnv` from plain values: those of the problem source named `problems`, and those of the environment.

    `seed` goes to both, the source's generator and the environment's random stream. With `shots`, that many worked
    examples come from the source's validation split. Settings that are not given are the source's `env_settings`, if it
    has any, and then the environment's own defaults. Of a source that is made already, `split` chooses another split.

    Raises:
        UnknownNameError: No problem source has that name.
        TypeError: Neither takes one of `settings`.
    """
    from .token_env import TokenEnv

    # The vector environment's own ways to be many are no settings of a single one.
    source, settings = _divide(problems, settings, excluded=("num_envs", "autoreset_mode", "copy"))
    return TokenEnv(source, **settings)


def make_token_vector_env(problems: "str | ProblemSource", num_envs: int = 1, **settings: Any) -> "TokenVectorEnv":
    """A `TokenVectorEnv` from plain values, as `make_token_env`."""
    from .token_vector_env import TokenVectorEnv

    source, settings = _divide(problems, settings, excluded=("num_envs",))
    return TokenVectorEnv(source, num_envs, **settings)


def make_vec_env(
    env: "str | EnvSpec | gym.Env[Any, Any] | gym.vector.VectorEnv[Any, Any, Any]", num_envs: int, **settings: Any
) -> "TokenVectorEnv":
    """The vector environment that an agent was given: by id, as one attempt at a time, or ready made.

    Args:
        env: Environment id or spec, or a `gym.make` product, of which `num_envs` slots are made with its own settings,
            overridden by `settings`; or a `TokenVectorEnv`, which is returned as it is.
        num_envs: Number of slots.
        settings: Arguments of the environment.

    Raises:
        UnknownNameError: No environment has that id.
        TypeError: The environment is not a token environment, or takes no such setting.
        ValueError: `settings` came with an environment that is ready made.
    """
    from .token_env import TokenEnv
    from .token_vector_env import TokenVectorEnv

    if isinstance(env, gym.Env) and isinstance(env.unwrapped, TokenEnv):
        if env.spec is None:
            raise TypeError(f"{env} has no spec to make {num_envs} slots of: give its id, or a TokenVectorEnv")
        env = env.spec
        if env.additional_wrappers:
            names = ", ".join(wrapper.name for wrapper in env.additional_wrappers)
            raise TypeError(f"{num_envs} slots of {env.id} cannot have its wrappers ({names}): give it without them")
        if env.max_episode_steps is not None:
            raise TypeError(f"{env.id} has max_episode_steps={env.max_episode_steps}: set max_new_tokens instead")
    if isinstance(env, str | EnvSpec):
        try:
            env = gym.make_vec(env, num_envs, vectorization_mode="vector_entry_point", **settings)
        except gym.error.UnregisteredEnv as error:
            raise unknown_name("environment", str(env), IDS) from error
        except TypeError as error:
            spec = gym.spec(env) if isinstance(env, str) else env
            if "problems" in spec.kwargs or "problems" in settings:
                raise
            raise TypeError(_no_tokens(spec)) from error  # it takes none of our settings
    elif settings:
        raise ValueError(f"{env} is made already: give it {', '.join(sorted(settings))} where you make it")
    if not isinstance(env, TokenVectorEnv):
        raise TypeError(f"{env} is no environment of tokens: give a TokenEnv, a TokenVectorEnv or an id of one")
    return env


def make_spec(env: Mapping[str, Any]) -> EnvSpec:
    """The spec of an environment, given as its `id` and arguments; the registry's own stays as it is."""
    arguments = dict(env)
    spec = copy.deepcopy(gym.spec(arguments.pop("id")))
    spec.kwargs |= arguments
    return spec


def token_limits(spec: EnvSpec) -> tuple[int, int]:
    """The longest prompt and the longest completion of an environment, in tokens.

    Its problems are read only if one of the two is left to them.

    Args:
        spec: Spec of a token environment, with its settings.

    Raises:
        TypeError: The environment is not a token environment.
    """
    from .token_vector_env import TokenVectorEnv

    if "problems" not in spec.kwargs:
        raise TypeError(_no_tokens(spec))
    names = ("max_prompt_tokens", "max_new_tokens")
    given = dict(spec.kwargs)
    if not all(name in given for name in names):
        problems = given.pop("problems")
        _, given = _divide(problems, given, excluded=("num_envs", "autoreset_mode", "copy"))
    parameters = inspect.signature(TokenVectorEnv.__init__).parameters
    longest_prompt, longest_completion = (given.get(name, parameters[name].default) for name in names)
    return longest_prompt, longest_completion


def _no_tokens(spec: EnvSpec) -> str:
    return f"{spec.id} is no environment of tokens: choose one of {', '.join(IDS)}"


def _divide(
    problems: "str | ProblemSource", settings: Mapping[str, Any], excluded: tuple[str, ...]
) -> "tuple[ProblemSource, dict[str, Any]]":
    """The problem source made of its part of `settings`, and the environment's part."""
    from .problems.base import PROBLEMS, ProblemSource, check_source, make_problems
    from .token_vector_env import TokenVectorEnv

    of_env = {name: hint for name, hint in _hints(TokenVectorEnv).items() if name not in ("problems", *excluded)}
    of_source: Mapping[str, Any] = {}
    split: str | None = None
    if not isinstance(problems, str):
        check_source(problems)
    if not isinstance(problems, ProblemSource):
        of_source = _hints(PROBLEMS.get(problems))
    elif "split" in settings:  # a source that is made already has others beside its own
        split = settings["split"]
        settings = {name: value for name, value in settings.items() if name != "split"}
    for name, value in settings.items():
        if name not in of_env and name not in of_source:
            raise TypeError(str(unknown_name("argument", name, of_env.keys() | of_source.keys())))
        check_kind(name, value, of_env[name] if name in of_env else of_source[name])
    arguments = {
        name: value
        for name, value in settings.items()
        if name in of_source and (name, value) != ("seed", None)  # no seed for the environment is none for the source
    }
    settings = {name: value for name, value in settings.items() if name in of_env}
    if isinstance(problems, ProblemSource):
        source = problems.with_split(split or problems.split)
        if settings.get("shots") and "examples" not in settings:
            settings["examples"] = problems.with_split("validation")
        return source, {**source.env_settings, **settings}
    if settings.get("shots") and "examples" not in settings and "split" in of_source:
        settings["examples"] = make_problems(problems, **{**arguments, "split": "validation"})
    source = make_problems(problems, **arguments)
    return source, {**source.env_settings, **settings}


def _hints(factory: Callable[..., Any]) -> dict[str, Any]:
    """The parameters of a class or function, each with its type hint."""
    return {name: argument_hint(parameter) for name, parameter in inspect.signature(factory).parameters.items()}


register_envs()
