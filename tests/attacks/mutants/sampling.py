"""Mutants of the batches and of the rate that is charged for them."""

from attacks.mutants.mutant import mutant

MASK = "np.flatnonzero(self._generator.random(self._size) < self.sample_rate)"

SAMPLING = [
    mutant(
        "batches of one size in place of Poisson",
        "sampling/poisson.py",
        MASK,
        "np.sort(self._generator.permutation(self._size)[: max(1, round(self.sample_rate * self._size))])",
        "sampling/test_poisson.py::test_two_examples_appear_independently",
    ),
    mutant(
        "one mask for every batch",
        "sampling/poisson.py",
        MASK,
        "np.flatnonzero(np.random.Generator(np.random.SFC64(1)).random(self._size) < self.sample_rate)",
        "sampling/test_poisson.py::test_draws_are_fresh_whatever_the_global_seed",
    ),
    mutant(
        "q from the private size",
        "sampling/poisson.py",
        "_rate(sample_rate, batch_size, known)",
        "_rate(sample_rate, batch_size, size)",
        "sampling/test_poisson.py::test_a_neighbouring_data_set_has_the_same_constants",
    ),
    mutant(
        "masks of 24 bits",
        "sampling/poisson.py",
        "self._generator.random(self._size)",
        "self._generator.random(self._size, dtype=np.float32)",
        "sampling/test_poisson.py::test_a_small_rate_is_not_rounded_up",
    ),
    mutant(
        "1 / q rounded down",
        "sampling/loader.py",
        "max(1, round(1 / self.sample_rate))",
        "max(1, int(1 / self.sample_rate))",
        "sampling/test_poisson.py::test_an_epoch_has_the_steps_that_were_planned",
    ),
    mutant(
        "a weighted sampler taken for Poisson",
        "sampling/poisson.py",
        "        if not plain or",
        "        if False or",
        "sampling/test_loader.py::test_a_loader_that_samples_otherwise_is_refused",
    ),
    mutant(
        "batches of a fixed size accounted as Poisson",
        "sampling/fixed_size.py",
        "return FixedSizeEvent(noise_multiplier, self._batch_size, self.public_size)",
        "return GaussianEvent(noise_multiplier, self.sample_rate)",
        "training/test_fixed_size_run.py::test_a_run_charges_the_event_of_its_batches",
    ),
    mutant(
        "batches of a fixed size drawn with replacement",
        "sampling/fixed_size.py",
        "replace=False",
        "replace=True",
        "sampling/test_fixed_size.py::test_every_batch_holds_exactly_so_many_different_examples",
    ),
    mutant(
        "batches of a fixed size under add/remove",
        "accounting/events.py",
        "if neighboring not in event.neighboring:",
        "if False:",
        "training/test_fixed_size_run.py::test_what_no_theorem_covers_is_refused_before_anything_is_spent",
    ),
    mutant(
        "the ternary bound without its factor of four",
        "accounting/fixed_size.py",
        "ternary = math.log(4) +",
        "ternary =",
        "accounting/test_fixed_size_cost.py::test_a_divergence_is_not_below_its_theorem_in_exact_arithmetic",
    ),
]
