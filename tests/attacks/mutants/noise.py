"""Mutants of the noise: its size, its law and its freshness."""

from attacks.mutants.mutant import mutant

NOISE = [
    mutant(
        "noise halved",
        "noise/gaussian.py",
        "add_(draws, alpha=std)",
        "add_(draws, alpha=std / 2)",
        "noise/test_gaussian.py::test_the_draws_are_normal_with_the_given_deviation",
    ),
    mutant(
        "noise a hundredth too small in what is added",
        "noise/gaussian.py",
        "add_(draws, alpha=std)",
        "add_(draws, alpha=0.99 * std)",
        "noise/test_gaussian.py::test_the_draws_are_normal_with_the_given_deviation",
    ),
    mutant(
        "noise reused across parameters and steps",
        "noise/gaussian.py",
        "self._used += draws.numel()",
        "self._used += 0",
        "noise/test_gaussian.py::test_every_tensor_and_every_step_gets_fresh_draws",
    ),
    mutant(
        "a block of noise that was made ahead handed out again",
        "noise/gaussian.py",
        "        self._ahead.append(self._thread.submit(self._block, spent))",
        "        if spent.numel():\n            return spent",
        "noise/test_gaussian.py::test_draws_that_were_added_are_not_overwritten_by_the_blocks_that_follow",
    ),
    mutant(
        "noise of a forked process from the blocks that its parent made ahead",
        "noise/gaussian.py",
        "        self._pools: dict[tuple[torch.device, torch.dtype], _Pool] = {}",
        "        self._pools = getattr(self, '_pools', {})",
        "noise/test_gaussian.py::test_a_forked_process_never_repeats_the_draws",
    ),
    mutant(
        "noise fixed by torch.manual_seed",
        "runtime/secret.py",
        "np.random.SeedSequence(self._seed if self._shared is None else self._shared, spawn_key=self._key)",
        "np.random.SeedSequence(torch.initial_seed())",
        "noise/test_gaussian.py::test_global_seeds_do_not_touch_it",
    ),
    mutant(
        "noise repeated by a forked process",
        "runtime/secret.py",
        "if self._process != os.getpid():",
        "if False:",
        "noise/test_gaussian.py::test_a_forked_process_never_repeats_the_draws",
    ),
    mutant(
        "one multiplier for each parameter: sqrt of their number missing",
        "noise/allocation.py",
        "{name: scale * math.sqrt(value / math.sqrt(sizes[name]))",
        "{name: noise_multiplier * value",
        "noise/test_allocation.py::test_the_split_spends_the_multiplier_exactly_and_has_the_least_energy",
    ),
    mutant(
        "halves of a Box-Muller pair alike",
        "noise/gaussian.py",
        "np.sin(second, out=second)",
        "np.cos(second, out=second)",
        "noise/test_gaussian.py::test_the_two_halves_of_a_pair_are_independent",
    ),
    mutant(
        "noise of 5 standard deviations at most",
        "noise/gaussian.py",
        "radius *= 2.0**-39",
        "radius[:] = np.maximum(np.floor(radius * 2.0**-21), 0.5) * 2.0**-18",
        "noise/test_gaussian.py::test_the_tails_go_beyond_those_of_24_bit_uniforms",
    ),
]
