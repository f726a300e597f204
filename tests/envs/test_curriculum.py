"""Which problem comes next."""

import json

import numpy as np
import pytest

from tokengym.envs import CURRICULA, Curriculum, Sequential, Uniform, make_curriculum
from tokengym.registry import UnknownNameError


def test_uniform_reaches_every_problem_equally_often_and_endless_sources_all_over():
    rng = np.random.default_rng(0)
    counts = np.bincount([Uniform().next(rng, 10) for _ in range(5000)], minlength=10)
    chi_squared = ((counts - 500) ** 2 / 500).sum()
    assert chi_squared < 27.9  # exceeded once in 1000 for 9 degrees of freedom
    indices = [Uniform().next(rng, 2**63) for _ in range(1000)]
    assert max(indices) > 2**62
    assert len(set(indices)) == 1000


@pytest.mark.parametrize("saved_after", [0, 1, 4, 17])
def test_uniform_draws_anew_for_every_k_attempts_and_continues_where_it_was_saved(saved_after):
    rng = np.random.default_rng(5)
    expected = [int(index) for index in np.random.default_rng(5).integers(10**6, size=8) for _ in range(3)]
    curriculum, other = Uniform(repeats=3), Uniform(repeats=3)
    got = [curriculum.next(rng, 10**6) for _ in range(saved_after)]
    other.load_state_dict(json.loads(json.dumps(curriculum.state_dict())))
    assert got + [other.next(rng, 10**6) for _ in range(24 - saved_after)] == expected
    with pytest.raises(ValueError, match="repeats must be at least 1"):
        Uniform(repeats=0)


@pytest.mark.parametrize("saved_after", [0, 1, 4, 17])
def test_sequential_goes_round_and_continues_where_it_was_saved(saved_after):
    expected = [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3] * 2
    rng = np.random.default_rng(0)
    before = rng.bit_generator.state
    curriculum = Sequential(repeats=3)
    got = [curriculum.next(rng, 4) for _ in range(saved_after)]
    other = Sequential(repeats=3)
    other.load_state_dict(json.loads(json.dumps(curriculum.state_dict())))
    got += [other.next(rng, 4) for _ in range(len(expected) - saved_after)]
    assert got == expected
    assert rng.bit_generator.state == before
    other.load_state_dict({})
    assert other.next(rng, 4) == 0


def test_curricula_by_name_by_mapping_and_ready_made():
    assert isinstance(make_curriculum("uniform"), Uniform)
    made = make_curriculum({"name": "sequential", "repeats": 8})
    assert isinstance(made, Sequential)
    assert made.repeats == 8
    assert make_curriculum(made) is made
    assert {"uniform", "sequential"} <= set(CURRICULA.names())
    with pytest.raises(UnknownNameError, match="did you mean 'uniform'"):
        make_curriculum("unifrom")
    with pytest.raises(TypeError, match="repeat"):
        make_curriculum({"name": "sequential", "repeat": 8})


def test_a_curriculum_of_your_own_needs_one_method():
    class Last(Curriculum):
        def next(self, rng, size):
            return size - 1

    assert make_curriculum(Last()).next(np.random.default_rng(0), 7) == 6
    assert Last().state_dict() == {}
