"""Problems as Markov decision processes over tokens: the one place where their rules are written.

The state of an attempt is its tokens so far, an action is the next token, an end-of-sequence token terminates, and a
spent token budget truncates. What an attempt is worth is for a reward to say.
"""

import itertools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, cast

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import ArrayLike, NDArray

from ..arrays import BoolArray, FloatArray, IntArray
from ..registry import unknown_name
from ..rewards import Reward, Verdict, make_reward
from ..rewards.base import TERMINATED, TRUNCATED, as_scores
from ..settings import check_kind, kinds_checked
from .curriculum import NO_STAGE, Curriculum, make_curriculum
from .infos import Infos, add_infos, end_infos, objects, start_infos
from .pending_verdicts import PendingVerdicts
from .problems.base import Problem, ProblemSource, check_source
from .problems.prompts import Chat
from .prompt_encoder import PromptEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Observation = dict[str, NDArray[Any]]
StepResult = tuple[Observation, FloatArray, BoolArray, BoolArray, Infos]

_RESET_OPTIONS = ("problem_id", "prefix", "reset_mask")
_TRUNCATED = Verdict(False, "truncated", None)
# A curriculum that meets this many prompts over the limit in a row has nothing shorter to offer.
_MAX_SKIPS = 10_000


class TokenVectorEnv(VectorEnv[Observation, IntArray, NDArray[Any]]):
    r"""`num_envs` attempts at problems, one token of each per step.

    Observation: `input_ids`, int64 `[N, L]`, and `attention_mask`, int8 `[N, L]`, right-padded, with
    `L = max_prompt_tokens + max_new_tokens`. Action: one token id per slot, int64 `[N]`. An attempt is terminated by an
    end-of-sequence token or by the token with which its text first holds a stop string, and truncated by its
    `max_new_tokens`-th token. What is graded is the text before the stop string; that token remains in the completion.

    One curriculum and one random stream serve all slots, in the order in which attempts begin, so the sequence of
    problems attempted does not depend on `num_envs`.

    Infos are dictionaries of arrays over slots, each `key` with a mask `_key`, as in Gymnasium's vector environments.
    When an attempt begins: `problem_id`, `prompt_length` (tokens) and `attempt` (how often this problem had begun since
    seeding). When it ends: `is_success`, `verdict` (reason), `answer` (as read from the completion, or None),
    `problem_id`, `attempt`, `episode_return`, `episode_length` (steps), and with a reward that is a sum
    `reward_components`, a dictionary of what each of its terms paid.

    In `AutoresetMode.DISABLED` a finished slot ignores its actions until it is reset: its reward is 0, its flags stay
    set, and it has no info.

    Args:
        problems: Source of the problems, which also grades finished attempts.
        num_envs: Number of slots N.
        tokenizer: Tokenizer, or its name for `models.load_tokenizer`.
        eos_token_ids: Ids that end an attempt beside the tokenizer's own; a model's generation config may list some.
        reward: Reward: a name, a mapping with "name", or an instance, which belongs to this environment from then on.
        prompt: Template of the prompts: a name, any text with `{question}` in it, or a mapping with "name": "chat" and
            the fields of `prompts.Chat` (system prompt, text of the user, thinking).
        shots: Number of worked examples before each question, the first of `examples` that ask something else.
        examples: Source of the worked examples; the registered environments use the validation split.
        stop: Texts that end an attempt, or one text; `None` uses the beginning of the next question ("\nQ:" with the
            "qa" template) if there are shots and no chat, and otherwise none.
        max_prompt_tokens: Length limit of prompts in tokens.
        max_new_tokens: Length limit of completions in tokens, a reset prefix and the end-of-sequence token included.
        num_problems: Number of problems to use, the first of the source; `None` uses all.
        curriculum: Curriculum: a name, a mapping with "name", or an instance.
        on_long_prompt: Treatment of prompts over the limit: "error" raises, "skip" takes the curriculum's next problem
            instead and counts the skipped one in `num_skipped`. Prompts are never cut.
        autoreset_mode: Autoreset mode of finished slots, as in Gymnasium.
        copy: Return copies of observations; otherwise they are views of the live buffers, which the next call changes.
        seed: Seed of the first reset that is given none.
        render_mode: Render mode: "ansi" or None.

    Raises:
        ValueError: An argument is out of range, the tokenizer has no end-of-sequence token, or a stop string is empty
            or cuts off every answer.
        UnknownNameError: No reward, curriculum or template has the name given.
        TypeError: An argument is of another kind; the message names it.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 1}

    @kinds_checked
    def __init__(
        self,
        problems: ProblemSource,
        num_envs: int,
        *,
        tokenizer: "str | PreTrainedTokenizerBase" = "tokengym/tiny",
        eos_token_ids: Sequence[int] = (),
        reward: str | Mapping[str, Any] | Reward = "sparse",
        prompt: str | Mapping[str, Any] | Chat = "qa",
        shots: int = 0,
        examples: ProblemSource | None = None,
        stop: str | Sequence[str] | None = None,
        max_prompt_tokens: int = 256,
        max_new_tokens: int = 256,
        num_problems: int | None = None,
        curriculum: str | Mapping[str, Any] | Curriculum = "uniform",
        on_long_prompt: Literal["error", "skip"] = "error",
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        copy: bool = True,
        seed: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        super().__init__()
        check_source(problems)
        limits = {"num_envs": num_envs, "max_prompt_tokens": max_prompt_tokens, "max_new_tokens": max_new_tokens}
        for name, limit in limits.items():
            if limit < 1:
                raise ValueError(f"{name} must be at least 1, got {limit}")
        if num_problems is not None and num_problems < 1:
            raise ValueError(f"num_problems must be at least 1, got {num_problems}")
        if on_long_prompt not in ("error", "skip"):
            raise ValueError(f"on_long_prompt must be 'error' or 'skip', got {on_long_prompt!r}")
        # A TypeError, for that is what Stable-Baselines3 expects of an environment that has no "rgb_array".
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise TypeError(f"render_mode must be 'ansi' or None, got {render_mode!r}")

        # Gymnasium's spaces take no integers of numpy, which configurations and sweeps are full of.
        self.num_envs, max_prompt_tokens, max_new_tokens = map(operator.index, limits.values())
        modes = {mode.value: mode for mode in AutoresetMode}
        if autoreset_mode not in modes and not isinstance(autoreset_mode, AutoresetMode):
            raise unknown_name("autoreset_mode", autoreset_mode, modes)
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        self.render_mode = render_mode
        self.copy = copy
        self.num_problems = num_problems
        self.curriculum = make_curriculum(curriculum)
        self.max_prompt_tokens = max_prompt_tokens
        self.max_new_tokens = max_new_tokens
        self.on_long_prompt = on_long_prompt
        self.num_skipped = 0
        """Number of problems chosen since seeding whose prompts were over the limit."""
        self._seed = seed
        self.encoder = PromptEncoder(
            problems,
            tokenizer,
            eos_token_ids=eos_token_ids,
            template=prompt,
            shots=shots,
            examples=examples,
            stop=stop,
        )
        self._make_spaces(max_prompt_tokens + max_new_tokens)
        self._make_slots(max_prompt_tokens + max_new_tokens)
        self.reward = make_reward(reward)
        self.reward.bind(self)
        if getattr(self.reward, "_view", None) is not self:
            raise TypeError(f"{type(self.reward).__name__}.bind must call super().bind(view)")

    def _make_spaces(self, length: int) -> None:
        """The spaces of observations of `length` tokens and of actions."""
        vocab_size = self.encoder.vocab_size
        self.single_observation_space = gym.spaces.Dict(
            input_ids=gym.spaces.Box(0, vocab_size - 1, (length,), np.int64),
            attention_mask=gym.spaces.MultiBinary(length),
        )
        self.single_action_space = gym.spaces.Discrete(vocab_size)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def _make_slots(self, length: int) -> None:
        """The state of the slots, with room for `length` tokens in each; no attempt has begun."""
        num_envs = self.num_envs
        self._tokens = np.full((num_envs, length), self.encoder.pad_token_id, dtype=np.int64)
        self._mask = np.zeros((num_envs, length), dtype=np.int8)
        self._lengths = np.zeros(num_envs, dtype=np.int64)  # tokens in each row
        self._prompt_lengths = np.zeros(num_envs, dtype=np.int64)
        self._starts = np.zeros(num_envs, dtype=np.int64)  # where the first action is written: prompt and prefix
        self._stages = np.zeros(num_envs, dtype=np.int64)  # of the curriculum, when the attempt began
        self._limits = np.zeros(num_envs, dtype=np.int64)  # length at which the budget is spent
        self._returns = np.zeros(num_envs, dtype=np.float64)
        self._terminations = np.zeros(num_envs, dtype=np.bool_)
        self._truncations = np.zeros(num_envs, dtype=np.bool_)
        self._problems: list[Problem | None] = [None] * num_envs
        self._attempts = np.zeros(num_envs, dtype=np.int64)
        self._begun: dict[str, int] = {}  # attempts begun, by problem id
        self._checked = 0  # how many of the first prompts are known to keep to the limit
        self._pending = PendingVerdicts(num_envs)
        self._reset_needed = True
        self._slots = np.arange(num_envs)
        self._ones = np.ones(num_envs, dtype=np.int64)
        self._reward_log = np.zeros((num_envs, length), dtype=np.float64) if self.render_mode == "ansi" else None

    # --------------------------------------------------------------------------------------------- Gymnasium's methods

    @property
    def np_random(self) -> np.random.Generator:
        """Random stream of all slots; begun by the environment's `seed` if nothing has begun it before."""
        if self._np_random is None and self._seed is not None:
            self._seed_streams(self._seed)
        return super().np_random

    @np_random.setter
    def np_random(self, value: np.random.Generator) -> None:
        self._np_random, self._np_random_seed = value, -1  # as in Gymnasium

    @property
    def np_random_seed(self) -> int | None:
        """Seed of the random stream; -1 if the stream was set."""
        self.np_random  # noqa: B018 - which begins it
        return super().np_random_seed

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Observation, Infos]:
        """Begins attempts in all slots, or in those of `options["reset_mask"]`.

        Args:
            seed: Seed that restarts the random stream, the curriculum and the counts of attempts; one stream serves all
                slots, so seeds for single slots are mixed into one.
            options: Options by name: `problem_id`, a problem's id or index, or one (or None: the curriculum chooses)
                per slot that starts; `prefix`, text or token ids that the completion starts with, or one (or None) per
                slot that starts; `reset_mask`, bool `[N]`. Slots outside the mask continue; before the first reset they
                count as finished.

        Raises:
            ValueError: An unknown option or problem, a malformed mask or prefix, or a prompt over the limit.
        """
        options = {} if options is None else options
        for name in options:
            if name not in _RESET_OPTIONS:
                raise ValueError(f"unknown reset option {name!r}: known are {', '.join(_RESET_OPTIONS)}")
        slots = self._slots
        if options.get("reset_mask") is not None:
            mask = np.asarray(options["reset_mask"])
            if mask.shape != (self.num_envs,) or mask.dtype != np.bool_ or not mask.any():
                raise ValueError(
                    f"reset_mask must be bool of shape ({self.num_envs},) with at least one True, "
                    f"got {mask.dtype} of shape {mask.shape} with {np.count_nonzero(mask)} True"
                )
            slots = np.flatnonzero(mask)
        problem_ids = _per_slot("problem_id", options.get("problem_id"), len(slots), _is_problem_key)
        prefixes = _per_slot("prefix", options.get("prefix"), len(slots), _is_prefix)

        if seed is not None and not isinstance(seed, int | np.integer):
            check_kind("seed", seed, int | Sequence[int | None])
            given = [each for each in seed if each is not None]
            seed = int(np.random.SeedSequence(given).generate_state(1)[0]) if given else None
        if seed is None and self._np_random is None:
            seed = self._seed
        if seed is not None:
            self._seed_streams(int(seed))
        encoded_prefixes: list[IntArray | None] = [
            self.encoder.encode_prefix(prefix, self.max_new_tokens) for prefix in prefixes
        ]
        starts = [self._draw() if name is None else self._find(name) for name in problem_ids]
        for i, (problem, _) in enumerate(starts):
            if problem_ids[i] is None and prefixes[i] is None:
                encoded_prefixes[i] = self._solution_prefix(problem)
        if self._reset_needed:
            self._terminations[:] = True
            self._reset_needed = False
        infos = self._begin({}, slots, starts, encoded_prefixes)
        chosen = [problem_ids[i] is not None or prefixes[i] is not None for i in range(len(slots))]
        self._stages[slots[chosen]] = NO_STAGE
        return self._observation(), infos

    def step(self, actions: ArrayLike) -> StepResult:
        """Appends one token to each slot.

        Args:
            actions: Token ids, integers `[N]`. Those of slots that have finished are ignored.

        Returns:
            observation, rewards float64 `[N]`, terminations bool `[N]`, truncations bool `[N]`, infos.

        Raises:
            ResetNeeded: Before the first reset.
            ValueError: Actions of another shape or type, or outside the vocabulary; nothing has then changed.
        """
        return self._step(actions)

    def step_on(self, actions: ArrayLike, patience: int) -> StepResult:
        """Appends one token to each slot, and lets slots whose verdicts take long wait while the others go on.

        Such a slot stands still before its last token (see `awaits_verdict`) and ignores its actions. It takes that
        token, and ends, `patience` steps later, or when no other slot runs. So nothing depends on how long a verdict
        takes, and each attempt, with its rewards, is what `step` would have made it.

        Args:
            actions: Token ids, integers `[N]`, as in `step`.
            patience: Number of steps that a slot waits, at least 1.

        Raises:
            ValueError: The environment resets finished slots by itself, or as in `step`.
        """
        if self.autoreset_mode is not AutoresetMode.DISABLED or patience < 1:
            raise ValueError(
                f"step_on needs autoreset_mode='Disabled' and patience of at least 1, got "
                f"{self.autoreset_mode.value!r} and {patience}"
            )
        return self._step(actions, patience)

    @property
    def awaits_verdict(self) -> BoolArray:
        """`[N]` bool, true for the slots that `step_on` left waiting; `step` waits for their verdicts."""
        return self._pending.mask

    def step_tokens(self, tokens: ArrayLike, lengths: ArrayLike) -> StepResult:
        """Appends several tokens to each slot at once, for engines that return whole completions.

        Equal to stepping each slot `lengths[i]` times, one column of `tokens` after the other, with slots whose tokens
        are used up standing still. A slot that begins a new attempt (`AutoresetMode.NEXT_STEP`) ignores its tokens, as
        do the slots that have finished.

        Args:
            tokens: Token ids, integers `[N, K]`, used up to `lengths`.
            lengths: Number of tokens appended to each slot, integers `[N]` between 0 and K.

        Returns:
            observation, rewards float64 `[N, K]` (0 beyond `lengths`), terminations bool `[N]`, truncations bool `[N]`,
            infos.

        Raises:
            ResetNeeded: Before the first reset.
            ValueError: Arrays of another shape or type, a token outside the vocabulary, tokens after an end-of-sequence
                token or a stop string, or more tokens than are left of `max_new_tokens`; nothing has then changed.
        """
        tokens, lengths = np.asarray(tokens), np.asarray(lengths)
        if tokens.ndim != 2 or len(tokens) != self.num_envs or tokens.shape[1] < 1 or tokens.dtype.kind not in "iu":
            raise ValueError(
                f"tokens must be [{self.num_envs}, K] integers, got {tokens.dtype} of shape {tokens.shape}"
            )
        if lengths.shape != (self.num_envs,) or lengths.dtype.kind not in "iu":
            raise ValueError(f"lengths must be {self.num_envs} integers, got {lengths.dtype} of shape {lengths.shape}")
        if lengths.min() < 0 or lengths.max() > tokens.shape[1]:
            raise ValueError(f"lengths must be between 0 and {tokens.shape[1]}, got {lengths.min()} to {lengths.max()}")
        return self._advance(tokens, lengths.astype(np.int64, copy=False))

    def render(self) -> tuple[str, ...] | None:
        """Each slot as text: its problem's id, its prompt, and its completion, line by line with each line's reward."""
        if self._reward_log is None:
            gym.logger.warn(
                'render() shows nothing without a render mode: make the environment with render_mode="ansi"'
            )
            return None
        return tuple(self._render(slot, self._reward_log[slot]) for slot in range(self.num_envs))

    # --------------------------------------------------------------------------------- what a slot holds, and encoding

    def problem(self, slot: int) -> Problem:
        """The problem attempted in `slot`; raises `ResetNeeded` if nothing has begun there."""
        problem = self._problems[slot]
        if problem is None:
            raise ResetNeeded(f"no attempt has begun in slot {slot}: call reset()")
        return problem

    def prompt(self, slot: int) -> IntArray:
        """Token ids of the prompt in `slot`, a view."""
        return self._tokens[slot, : self._prompt_lengths[slot]]

    def completion(self, slot: int) -> IntArray:
        """Token ids after the prompt in `slot`, a reset prefix and the end-of-sequence token included, a view."""
        return _read_only(self._tokens[slot, self._prompt_lengths[slot] : self._lengths[slot]])

    @property
    def problems(self) -> ProblemSource:
        """Source of the problems; attempts that start after a change are at those of the new source."""
        return self.encoder.problems

    @problems.setter
    def problems(self, source: ProblemSource) -> None:
        self.encoder.problems = source
        self.encoder.forget()
        self._checked = 0
        vars(self).pop("size", None)

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The tokenizer of prompts, solutions and completions."""
        return self.encoder.tokenizer

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """All ids that end an attempt."""
        return self.encoder.eos_token_ids

    @property
    def stop(self) -> tuple[str, ...]:
        """Texts that terminate an attempt."""
        return self.encoder.stops.strings

    @property
    def prompt_template(self) -> str | Mapping[str, Any] | Chat:
        """The prompt template, as it was given."""
        return self.encoder.template

    def decode(self, completion: NDArray[np.integer[Any]]) -> str:
        """The text of a completion as it is graded, see `PromptEncoder.decode`."""
        return self.encoder.decode(completion)

    def is_answer(self, line: str) -> bool:
        """True if a line of a completion is the one that shows its answer ("#### 72"), and no step."""
        return self.problems.answer_format.is_answer(line)

    def cut(self, text: str) -> str:
        """The part of a completion's text that is graded, see `PromptEncoder.cut`."""
        return self.encoder.cut(text)

    def encode_prompt(self, problem: Problem) -> IntArray:
        """Token ids of the prompt for `problem`, however many they are."""
        return self.encoder.encode_prompt(problem)

    def encode_solution(self, problem: Problem) -> IntArray:
        """Token ids of the reference solution of `problem`, an end-of-sequence token at their end.

        Raises:
            ValueError: The problem has no solution.
        """
        return self.encoder.encode_solution(problem)

    # ---------------------------------------------------------------------------------------------- saving and loading

    def state_dict(self) -> dict[str, Any]:
        """State that decides which attempts start next, without the slots: random stream, curriculum, counts."""
        return {
            "rng": self.np_random.bit_generator.state,
            "curriculum": self.curriculum.state_dict(),
            "attempts": dict(self._begun),
            "num_skipped": self.num_skipped,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from `state_dict`: after the next reset, attempts begin as they would have there."""
        self.np_random.bit_generator.state = state["rng"]
        self.curriculum.load_state_dict(state["curriculum"])
        self._begun = dict(state["attempts"])
        self.num_skipped = int(state["num_skipped"])
        self._reset_needed = True

    def seek(self, seed: int, attempt: int = 0) -> None:
        """Goes to where attempt number `attempt` of those that `seed` leads to begins; until a reset no slot is live.

        The next resets then begin the attempts that they would have begun had `attempt` others begun before.
        """
        self._seed_streams(seed)
        for _ in range(attempt):
            problem, _ = self._draw()
            self._begun[problem.id] = self._begun.get(problem.id, 0) + 1
        self._reset_needed = True

    def _seed_streams(self, seed: int) -> None:
        super().reset(seed=seed)
        self.curriculum.load_state_dict({})
        self._begun.clear()
        self.num_skipped = 0

    # ------------------------------------------------------------------------------------------------------- beginning

    @property
    def num_indices(self) -> int | None:
        """Indices of the source that the curriculum chooses from; `None` for an endless one."""
        size = self.problems.size
        if self.num_problems is not None:
            if size is not None and size < self.num_problems:
                raise ValueError(f"num_problems={self.num_problems}, but {self.problems!r} has {size} problems")
            size = self.num_problems
        if size is not None and size < 1:
            raise ValueError(f"{self.problems!r} has no problems")
        return size

    @cached_property
    def size(self) -> int | None:
        """Number of problems that attempts start from, without skipped prompts; None for an endless source."""
        size = self.num_indices
        if size is None or self.on_long_prompt == "error":
            return size
        return sum(len(self.encoder.start(index)[1]) <= self.max_prompt_tokens for index in range(size))

    def indices(self, problems: int) -> list[int]:
        """Indices of the first `problems` problems that attempts start from: those without skipped prompts."""
        if self.on_long_prompt == "error":
            return list(range(problems))
        size, limit = self.num_indices, self.max_prompt_tokens
        every = itertools.count() if size is None else range(size)
        return list(itertools.islice((at for at in every if len(self.encoder.start(at)[1]) <= limit), problems))

    def check_prompts(self, problems: int | None = None) -> None:
        """Finds prompts over `max_prompt_tokens` before any attempt meets them, unless they are to be skipped.

        Args:
            problems: Number of first problems that may be attempted; `None` checks all of a finite source, and nothing
                of an endless one.

        Raises:
            ValueError: There are such prompts; the message says how many, and how long the longest is.
        """
        size = self.num_indices
        if self.on_long_prompt == "skip" or size is None:
            return
        count = size if problems is None else min(problems, size)
        lengths = {index: len(self.encoder.start(index)[1]) for index in range(self._checked, count)}
        if long := [index for index, length in lengths.items() if length > self.max_prompt_tokens]:
            longest = max(long, key=lengths.__getitem__)
            raise ValueError(
                f"{len(long)} of {count} prompts are over max_prompt_tokens={self.max_prompt_tokens}, the longest, of "
                f"problem {self.problems[longest].id!r}, with {lengths[longest]} tokens: raise that limit, or pass "
                'over such problems with on_long_prompt="skip"'
            )
        self._checked = max(self._checked, count)

    def _draw(self) -> tuple[Problem, IntArray]:
        """The curriculum's next problem and its prompt."""
        size = self.num_indices
        for _ in range(_MAX_SKIPS):
            key = self.curriculum.next(self.np_random, 2**63 if size is None else size)
            if not isinstance(key, str | int | np.integer):
                name = type(self.curriculum).__name__
                raise TypeError(f"{name}.next chose {key!r}: it must return the index of a problem, or its id")
            problem, prompt = self.encoder.start(key)
            if len(prompt) <= self.max_prompt_tokens:
                return problem, prompt
            if self.on_long_prompt == "error":
                raise self._too_long(problem, prompt)
            self.num_skipped += 1
        raise ValueError(f"{_MAX_SKIPS} prompts in a row are over max_prompt_tokens={self.max_prompt_tokens}")

    def _find(self, problem_id: str | int) -> tuple[Problem, IntArray]:
        try:
            problem, prompt = self.encoder.start(problem_id if isinstance(problem_id, str) else int(problem_id))
        except IndexError as error:
            raise ValueError(f"problem_id: {error}") from error
        if len(prompt) > self.max_prompt_tokens:
            raise self._too_long(problem, prompt)
        return problem, prompt

    def _too_long(self, problem: Problem, prompt: IntArray) -> ValueError:
        return ValueError(
            f"the prompt of problem {problem.id!r} has {len(prompt)} tokens, over max_prompt_tokens="
            f'{self.max_prompt_tokens}: raise that limit, or pass over such problems with on_long_prompt="skip"'
        )

    def _solution_prefix(self, problem: Problem) -> IntArray | None:
        """Prefix of a solution that the curriculum gives; `None` if it leaves no token to add, or contains a stop."""
        text = self.curriculum.prefix(problem)
        check_kind(f"what {type(self.curriculum).__name__}.prefix returns", text, str)
        if not text:  # as of most curricula: no tokenizer need be asked at each attempt
            return np.empty(0, dtype=np.int64)
        tokens = self.encoder.encode(text)
        fits = len(tokens) < self.max_new_tokens and self.encoder.stops.first_end(tokens) is None
        return tokens if fits else None

    def _begin_next(self, infos: Infos, slots: IntArray) -> Infos:
        """Begins the curriculum's next attempts in the slots."""
        starts = [self._draw() for _ in slots]
        return self._begin(infos, slots, starts, [self._solution_prefix(problem) for problem, _ in starts])

    def _begin(
        self,
        infos: Infos,
        slots: IntArray,
        starts: Sequence[tuple[Problem, IntArray]],
        given: Sequence[IntArray | None],
    ) -> Infos:
        """Puts the problems, prompts and prefixes into the slots; adds to `infos` what a reset tells.

        An attempt without the prefix that the curriculum wanted, `None`, begins at none of its stages.
        """
        none = np.empty(0, np.int64)
        prefixes = [none if prefix is None else prefix for prefix in given]
        self._stages[slots] = [NO_STAGE if prefix is None else self.curriculum.stage for prefix in given]
        prefix_lengths = np.zeros(len(slots), dtype=np.int64)
        for i, (slot, (problem, prompt)) in enumerate(zip(slots.tolist(), starts, strict=True)):
            prefix_lengths[i] = len(prefixes[i])
            tokens = np.concatenate((prompt, prefixes[i])) if len(prefixes[i]) else prompt
            self._tokens[slot, : len(tokens)] = tokens
            self._tokens[slot, len(tokens) :] = self.encoder.pad_token_id
            self._mask[slot, : len(tokens)] = 1
            self._mask[slot, len(tokens) :] = 0
            self._prompt_lengths[slot] = len(prompt)
            self._lengths[slot] = len(tokens)
            self._problems[slot] = problem
            self._attempts[slot] = self._begun.get(problem.id, 0)
            self._begun[problem.id] = self._begun.get(problem.id, 0) + 1
        self._starts[slots] = self._lengths[slots]
        self._limits[slots] = self._prompt_lengths[slots] + self.max_new_tokens
        self._returns[slots] = 0
        self._terminations[slots] = False
        self._truncations[slots] = False
        if self._pending:
            self._pending.drop(slots.tolist())
        if self._reward_log is not None:
            self._reward_log[slots] = 0
        problems = [problem for problem, _ in starts]
        self.reward.begin(slots, problems, prefix_lengths)
        starting = start_infos(problems, self._prompt_lengths[slots], self._attempts[slots])
        return add_infos(infos, self.num_envs, slots, starting)

    # -------------------------------------------------------------------------------------------------------- stepping

    def _step(self, actions: ArrayLike, patience: int = 0) -> StepResult:
        tokens = np.asarray(actions)
        if tokens.shape != (self.num_envs,) or tokens.dtype.kind not in "iu":
            raise ValueError(f"actions must be {self.num_envs} integers, got {tokens.dtype} of shape {tokens.shape}")
        observation, rewards, terminations, truncations, infos = self._advance(tokens[:, None], self._ones, patience)
        return observation, rewards[:, 0], terminations, truncations, infos

    def _advance(self, tokens: NDArray[Any], lengths: IntArray, patience: int = 0) -> StepResult:
        """Appends `tokens[i, :lengths[i]]` to each slot i that lives; `tokens` is `[N, K]`."""
        if self._reset_needed:
            raise ResetNeeded("no attempt has begun: call reset() before step()")
        self._pending.begin_step()
        finished = self._terminations | self._truncations
        beginning = None
        if self._pending:
            tokens, lengths = self._pending.with_due(tokens, np.where(finished, 0, lengths), finished, patience)
        elif finished.any():
            if self.autoreset_mode is AutoresetMode.NEXT_STEP:
                beginning = np.flatnonzero(finished & (lengths > 0))
            lengths = np.where(finished, 0, lengths)

        if tokens.shape[1] == 1:
            slots = self._slots if beginning is None and lengths.all() else np.flatnonzero(lengths)
            appended, columns = tokens[slots, 0], 0
        else:
            slots, columns = np.nonzero(np.arange(tokens.shape[1]) < lengths[:, None])
            appended = tokens[slots, columns]
        self.encoder.check_vocabulary(appended, slots)
        is_eos = self.encoder.is_eos[appended]
        terminated = np.zeros(self.num_envs, dtype=np.bool_)
        terminated[slots[is_eos]] = True
        if tokens.shape[1] > 1:
            self._check_ends(slots, columns, is_eos, lengths)

        positions = self._lengths[slots] + columns
        self._tokens[slots, positions] = appended
        if self.encoder.stops:
            terminated[self._stopped(slots, columns, appended, lengths)] = True
        self._mask[slots, positions] = 1
        self._lengths += lengths
        truncated = (self._lengths == self._limits) & (lengths > 0) & ~terminated
        verdicts = self._verdicts(terminated, truncated, patience)
        if patience and self._pending:
            lengths = self._hold_back(terminated, lengths)
        ending = np.flatnonzero(terminated | truncated)
        ending = ending[np.argsort(lengths[ending], kind="stable")]  # as stepping would have ended them
        rewards = self._score(tokens.shape[1], lengths, terminated * TERMINATED + truncated * TRUNCATED, verdicts)
        if self._reward_log is not None:
            self._reward_log[slots, positions] = rewards[slots, columns]

        infos: Infos = {}
        if len(ending):
            self._terminations |= terminated
            self._truncations |= truncated
            infos = self._end(ending, [cast(Verdict, verdicts[slot]) for slot in ending])
        if beginning is not None and len(beginning):
            infos = self._begin_next(infos, beginning)
        terminations, truncations = self._terminations.copy(), self._truncations.copy()
        if len(ending) and self.autoreset_mode is AutoresetMode.SAME_STEP:
            infos = self._begin_next(infos, ending)
        return self._observation(), rewards, terminations, truncations, infos

    def _end(self, ending: IntArray, verdicts: Sequence[Verdict]) -> Infos:
        """Tells the curriculum how attempts have ended; the infos of their ends."""
        for slot, verdict in zip(ending.tolist(), verdicts, strict=True):
            self.curriculum.ended(self.problem(slot), verdict.correct, int(self._stages[slot]))
        infos = self._end_infos(ending, verdicts)
        if self.autoreset_mode is not AutoresetMode.SAME_STEP:
            return infos
        final = {"final_obs": self._final_observations(ending), "final_info": infos}
        return add_infos({}, self.num_envs, ending, final)

    def _check_ends(self, slots: IntArray, columns: Any, is_eos: BoolArray, lengths: IntArray) -> None:
        early = is_eos & (columns < lengths[slots] - 1)
        if early.any():
            slot = slots[early][0]
            raise ValueError(
                f"slot {slot}: token {columns[early][0] + 1} of {lengths[slot]} is end-of-sequence: none may follow"
            )
        left = self._limits - self._lengths
        if (lengths > left).any():
            slot = int(np.flatnonzero(lengths > left)[0])
            raise ValueError(
                f"slot {slot}: {lengths[slot]} tokens, but max_new_tokens={self.max_new_tokens} leaves {left[slot]}"
            )

    def _stopped(self, slots: IntArray, columns: Any, appended: IntArray, lengths: IntArray) -> list[int]:
        """The slots whose tokens, written but not counted yet, end with a stop string.

        Raises:
            ValueError: Tokens follow a stop string; they have been taken back.
        """
        stopped: list[int] = []
        for i in self.encoder.stops.candidates(appended).tolist():
            slot, column = int(slots[i]), int(columns if isinstance(columns, int) else columns[i])
            begin, end = self._prompt_lengths[slot], self._lengths[slot] + column + 1
            if not self.encoder.is_eos[appended[i]] and self.encoder.stops.ends(self._tokens[slot, begin:end]):
                if column + 1 < lengths[slot]:
                    self._tokens[slots, self._lengths[slots] + columns] = self.encoder.pad_token_id
                    raise ValueError(
                        f"slot {slot}: token {column + 1} of {lengths[slot]} ends one of stop={self.stop!r}: none may "
                        "follow"
                    )
                stopped.append(slot)
        return stopped

    def _verdicts(self, terminated: BoolArray, truncated: BoolArray, patience: int) -> list[Verdict | None]:
        """The verdicts of slots that have ended; with patience, those that are not there yet are pending."""
        verdicts: list[Verdict | None] = [None] * self.num_envs
        begun: dict[int, Future[Verdict]] = {}
        for slot in np.flatnonzero(terminated | truncated).tolist():
            if truncated[slot]:
                verdicts[slot] = _TRUNCATED
                continue
            if slot in self._pending:
                verdicts[slot] = self._as_verdict(self._pending.take(slot))
                continue
            # The one time that an attempt's text is decoded; special tokens stay visible, or "4<pad>2" would read as 42
            attempt = self.decode(self.completion(slot)), self.problem(slot)
            verdict = self.problems.begin_grading(*attempt) if patience else self.problems.grade(*attempt)
            if isinstance(verdict, Future):
                begun[slot] = verdict
            else:
                verdicts[slot] = self._as_verdict(verdict)
        if begun:
            running = ~(self._terminations | self._truncations | terminated | truncated | self.awaits_verdict)
            for slot, verdict in begun.items():
                if running.any():
                    token = int(self._tokens[slot, self._lengths[slot] - 1])
                    self._pending.add(slot, token, patience, verdict)
                else:
                    verdicts[slot] = self._as_verdict(verdict.result())
        return verdicts

    def _as_verdict(self, verdict: Verdict) -> Verdict:
        if not isinstance(verdict, Verdict):
            raise TypeError(
                f"{type(self.problems).__name__} graded an attempt with {verdict!r}: grade returns a Verdict, "
                "begin_grading a Verdict or a Future of one"
            )
        return verdict

    def _hold_back(self, terminated: BoolArray, lengths: IntArray) -> IntArray:
        """Takes the last tokens of slots that wait for verdicts back; returns the numbers of tokens appended."""
        slots = np.flatnonzero(terminated & self.awaits_verdict)
        if not len(slots):
            return lengths
        lengths = lengths.copy()
        lengths[slots] = 0
        terminated[slots] = False
        self._lengths[slots] -= 1
        self._tokens[slots, self._lengths[slots]] = self.encoder.pad_token_id
        self._mask[slots, self._lengths[slots]] = 0
        return lengths

    def _score(self, width: int, lengths: IntArray, ended: IntArray, verdicts: list[Verdict | None]) -> FloatArray:
        expected = (self.num_envs, max(1, int(lengths.max())))
        scored = self.reward.score(_read_only(lengths), _read_only(ended), verdicts)
        rewards = as_scores(scored, expected, self.reward)
        if width == 1:
            self._returns += rewards[:, 0]
            return rewards
        # One addition after another, as stepping adds: np.sum adds in pairs and rounds differently.
        self._returns = np.cumsum(np.column_stack((self._returns, rewards)), axis=1)[:, -1]
        if rewards.shape[1] < width:
            rewards = np.pad(rewards, ((0, 0), (0, width - rewards.shape[1])))
        return rewards

    # ------------------------------------------------------------------------------------------- what callers are told

    def _observation(self) -> Observation:
        if self.copy:
            return {"input_ids": self._tokens.copy(), "attention_mask": self._mask.copy()}
        return {"input_ids": self._tokens, "attention_mask": self._mask}

    def _final_observations(self, slots: IntArray) -> NDArray[Any]:
        return objects(
            [{"input_ids": self._tokens[slot].copy(), "attention_mask": self._mask[slot].copy()} for slot in slots]
        )

    def _end_infos(self, slots: IntArray, verdicts: Sequence[Verdict]) -> Infos:
        ending = end_infos(
            [self.problem(slot) for slot in slots],
            verdicts,
            self._attempts[slots],
            self._returns[slots],
            self._lengths[slots] - self._starts[slots],
            {name: paid[slots] for name, paid in self.reward.components().items()},
        )
        return add_infos({}, self.num_envs, slots, ending)

    def _render(self, slot: int, rewards: FloatArray) -> str:
        if self._problems[slot] is None:
            return f"slot {slot}: nothing has begun"
        lines = [f"problem {self.problem(slot).id}", str(self.tokenizer.decode(self.prompt(slot))).rstrip("\n")]
        begin = int(self._prompt_lengths[slot])
        for end in range(begin + 1, int(self._lengths[slot]) + 1):
            last = end == self._lengths[slot]
            if last or "\n" in str(self.tokenizer.decode(self._tokens[slot, end - 1 : end])):
                text = str(self.tokenizer.decode(self._tokens[slot, begin:end])).rstrip("\n")
                lines.append(f"{rewards[begin:end].sum():+8.3f} | {text}")
                begin = end
        return "\n".join(lines)


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    """A view of an array for code of others, which must not change what the environment counts with."""
    view = array.view()
    view.flags.writeable = False
    return view


def _is_problem_key(value: Any) -> bool:
    return isinstance(value, str | int | np.integer) and not isinstance(value, bool)


def _is_prefix(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.ndim == 1 and value.dtype.kind in "iu"
    if isinstance(value, list | tuple):
        return all(isinstance(item, int | np.integer) for item in value)
    return isinstance(value, str)


def _per_slot(name: str, value: Any, count: int, is_single: Callable[[Any], bool]) -> list[Any]:
    """An option's value for each of `count` slots."""
    if value is None or is_single(value):
        return [value] * count
    if not isinstance(value, Iterable):
        raise ValueError(f"{name}: {value!r} is no {name}")
    values = list(value)
    if len(values) != count:
        raise ValueError(f"{name}: {len(values)} values for {count} slots that begin")
    for item in values:
        if item is not None and not is_single(item):
            raise ValueError(f"{name}: {item!r} is no {name}")
    return values
